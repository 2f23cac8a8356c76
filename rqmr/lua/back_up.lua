#!lua flags=allow-oom
-- back_up: let another worker try a straggler's task too.  One backup a task.
--
--   KEYS[1]  run        KEYS[2]  winners    KEYS[3]  pending    KEYS[4]  leases     KEYS[5]  backups    KEYS[6]  events
--   ARGV[1]  straggling attempt             ARGV[2]  its task   ARGV[3]  its worker ARGV[4]  place in the pending line
--
--   returns  "BACKED UP" | "ALREADY" (committed, backed up, or not running any more)

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
if state ~= 'running' or redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1
  or not redis.call('ZSCORE', KEYS[4], ARGV[1]) or redis.call('HSETNX', KEYS[5], ARGV[2], ARGV[3]) == 0
then
  return 'ALREADY'
end
redis.call('ZADD', KEYS[3], 'LT', ARGV[4], ARGV[2])
redis.call('XADD', KEYS[6], 'MAXLEN', '~', 1000, '*', 'what', 'backed up', 'subject', ARGV[1], 'note', 'slow on ' .. ARGV[3])
for _, i in ipairs({3, 5, 6}) do redis.call('PEXPIRE', KEYS[i], keep) end
return 'BACKED UP'
