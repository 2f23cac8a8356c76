#!lua flags=allow-oom
-- fail: the job's code raised in an attempt.  Charged once; at the last allowed one the run has failed.
--
--   KEYS[1]  run        KEYS[2]  winners    KEYS[3]  pending    KEYS[4]  leases     KEYS[5]  lease
--   KEYS[6]  attempts   KEYS[7]  tries      KEYS[8]  totals     KEYS[9]  events     KEYS[10] backups
--   KEYS[11] holders
--   ARGV[1]  attempt    ARGV[2]  task       ARGV[3]  the task's place in the pending line
--   ARGV[4]  attempts that may fail         ARGV[5]  the failure            ARGV[6]  its message, for the events
--
--   returns  "FAILED" | "RUN FAILED" | "STALE" (another attempt won, so nothing is charged)
--            | "ENDED" (the run has, or this attempt has: asked twice, too)

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
local attempt, task = ARGV[1], ARGV[2]
local was = redis.call('HGET', KEYS[6], attempt)
if state ~= 'running' or (was ~= 'running' and was ~= 'revived' and was ~= 'lost') then return 'ENDED' end

redis.call('ZREM', KEYS[4], attempt)
redis.call('DEL', KEYS[5])
redis.call('HDEL', KEYS[11], attempt)
local running = redis.call('HINCRBY', KEYS[7], task .. ':running', was == 'lost' and 0 or -1)
if redis.call('HEXISTS', KEYS[2], task) == 1 then
  redis.call('HSET', KEYS[6], attempt, 'stale')
  return 'STALE'
end
redis.call('HDEL', KEYS[10], task) -- the attempt that is left, or the next one, may have a backup again

redis.call('HSET', KEYS[6], attempt, 'failed')
local failed = redis.call('HINCRBY', KEYS[7], task .. ':failed', 1)
redis.call('HINCRBY', KEYS[8], 'failed', 1)
redis.call('XADD', KEYS[9], 'MAXLEN', '~', 1000, '*', 'what', 'failed', 'subject', attempt, 'note', ARGV[6])
for _, i in ipairs({6, 7, 8, 9}) do redis.call('PEXPIRE', KEYS[i], keep) end
if failed >= tonumber(ARGV[4]) then
  redis.call('HSET', KEYS[1], 'state', 'failed', 'failure', ARGV[5])
  return 'RUN FAILED'
end
if running <= 0 then
  redis.call('ZADD', KEYS[3], 'LT', ARGV[3], task)
  redis.call('PEXPIRE', KEYS[3], keep)
end
return 'FAILED'
