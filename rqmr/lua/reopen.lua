#!lua flags=allow-oom
-- reopen: a committed task's segment vanished or is damaged, so it has to run again, before all others.
--
-- Charged to the budget of lost attempts, so that a store that keeps losing segments ends the run.
--
--   KEYS[1]  run        KEYS[2]  winners    KEYS[3]  pending    KEYS[4]  attempts   KEYS[5]  tries
--   KEYS[6]  totals     KEYS[7]  events     KEYS[8]  winners of the phase that reads
--   KEYS[9]  backups
--   ARGV[1]  attempt whose segment it is    ARGV[2]  its task   ARGV[3]  the task's place, an urgent one
--   ARGV[4]  number of its phase            ARGV[5]  records    ARGV[6]  bytes      ARGV[7]  attempts that may be lost
--   ARGV[8]  the run's failure if this is one too many           ARGV[9]  task that couldn't read it
--   ARGV[10] records that it has skipped
--
--   returns  "REOPENED" | "RUN FAILED" | "ALREADY" (it isn't the winner any more, or nobody needs it: the
--            reader's task has a winner)

local state, phase, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'phase', 'keep_ms'))
local attempt, task = ARGV[1], ARGV[2]
local winner = redis.call('HGET', KEYS[2], task)
if state ~= 'running' or not winner or string.match(winner, '^[^\n]+') ~= attempt then return 'ALREADY' end
if redis.call('HEXISTS', KEYS[8], ARGV[9]) == 1 then return 'ALREADY' end

redis.call('HDEL', KEYS[2], task)
redis.call('HDEL', KEYS[9], task)
redis.call('HSET', KEYS[4], attempt, 'reopened')
redis.call('HINCRBY', KEYS[6], 'records', 0 - ARGV[5]) -- not -ARGV[5]: Redis 7.0 spells that "-0" for "0"
redis.call('HINCRBY', KEYS[6], 'bytes', 0 - ARGV[6])
redis.call('HINCRBY', KEYS[6], 'lost', 1)
if ARGV[10] ~= '0' then redis.call('HINCRBY', KEYS[1], 'skipped', 0 - ARGV[10]) end
redis.call('XADD', KEYS[7], 'MAXLEN', '~', 1000, '*', 'what', 'reopened', 'subject', task, 'note', 'its segment is lost')
if redis.call('HINCRBY', KEYS[5], task .. ':lost', 1) >= tonumber(ARGV[7]) then
  redis.call('HSET', KEYS[1], 'state', 'failed', 'failure', ARGV[8])
  return 'RUN FAILED'
end
redis.call('ZADD', KEYS[3], 'LT', ARGV[3], task)
if tonumber(phase) > tonumber(ARGV[4]) then redis.call('HSET', KEYS[1], 'phase', ARGV[4]) end
for _, i in ipairs({3, 4, 5, 6, 7}) do redis.call('PEXPIRE', KEYS[i], keep) end
return 'REOPENED'
