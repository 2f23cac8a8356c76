#!lua flags=allow-oom
-- expire: an attempt's lease has run out, or RQ says that its work-horse died; the attempt is lost, and its task is
-- pending again, first in line.
--
-- The machine's fault and not the code's, so it is charged to a budget of its own, once for each attempt: one that
-- revives and is lost again costs nothing more.
--
--   KEYS[1]  run        KEYS[2]  winners    KEYS[3]  pending    KEYS[4]  leases     KEYS[5]  lease
--   KEYS[6]  attempts   KEYS[7]  tries      KEYS[8]  totals     KEYS[9]  events     KEYS[10] backups
--   KEYS[11] holders
--   ARGV[1]  attempt    ARGV[2]  task       ARGV[3]  the task's place in the pending line, an urgent one
--   ARGV[4]  attempts that may be lost      ARGV[5]  the run's failure if this is one too many
--   ARGV[6]  "" if the lease has run out; for a dead horse's, the ms of its last renewal that is known: a later one
--            tells that it lives
--
--   returns  "LOST" | "RUN FAILED" | "ALIVE" (it was renewed meanwhile) | "ENDED" (it holds no lease: asked twice, too)

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
local attempt, task = ARGV[1], ARGV[2]
local deadline = redis.call('ZSCORE', KEYS[4], attempt)
if state ~= 'running' or not deadline then return 'ENDED' end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local died = ARGV[6] ~= ''
if died then
  local renewed = redis.call('HGET', KEYS[5], 'renewed') -- nil: the lease has run out meanwhile
  if renewed and renewed ~= ARGV[6] then return 'ALIVE' end
  redis.call('HDEL', KEYS[11], attempt)
elseif tonumber(deadline) > now then
  return 'ALIVE'
else -- its horse may still hold the task: stuck, stopped or cut off
  local holder = redis.call('HGET', KEYS[11], attempt)
  if holder then redis.call('HSET', KEYS[11], attempt, string.match(holder, '^[^\n]*\n[^\n]*\n[^\n]*') .. '\n' .. now) end
end

redis.call('ZREM', KEYS[4], attempt)
redis.call('DEL', KEYS[5])
local was = redis.call('HGET', KEYS[6], attempt)
redis.call('HSET', KEYS[6], attempt, 'lost')
local running = redis.call('HINCRBY', KEYS[7], task .. ':running', -1)
if redis.call('HEXISTS', KEYS[2], task) == 1 then return 'LOST' end
redis.call('HDEL', KEYS[10], task) -- the attempt that is left, or the next one, may have a backup again

redis.call('XADD', KEYS[9], 'MAXLEN', '~', 1000, '*', 'what', 'lost', 'subject', attempt, 'note', died and 'its work-horse died' or 'its lease expired')
for _, i in ipairs({6, 7, 9}) do redis.call('PEXPIRE', KEYS[i], keep) end
if was == 'running' then
  local lost = redis.call('HINCRBY', KEYS[7], task .. ':lost', 1)
  redis.call('HINCRBY', KEYS[8], 'lost', 1)
  redis.call('PEXPIRE', KEYS[8], keep)
  if lost >= tonumber(ARGV[4]) then
    redis.call('HSET', KEYS[1], 'state', 'failed', 'failure', ARGV[5])
    return 'RUN FAILED'
  end
end
if running <= 0 then
  redis.call('ZADD', KEYS[3], 'LT', ARGV[3], task)
  redis.call('PEXPIRE', KEYS[3], keep)
end
return 'LOST'
