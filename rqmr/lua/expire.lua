#!lua flags=allow-oom
-- expire: an attempt's lease has run out, or RQ says that its work-horse died; the attempt is lost, and its task is
-- pending again, first in line.
--
-- The machine's fault and not the code's, so it is charged to a budget of its own, once for each attempt: one that
-- revives and is lost again costs nothing more.
--
-- But two deaths at one record are the code's fault.  If the run may skip records, that one is to be left out from now
-- on, and nothing is charged; if not, or if that didn't help, those deaths are charged as failures.
--
--   KEYS[1]  run        KEYS[2]  winners    KEYS[3]  pending    KEYS[4]  leases     KEYS[5]  lease
--   KEYS[6]  attempts   KEYS[7]  tries      KEYS[8]  totals     KEYS[9]  events     KEYS[10] backups
--   KEYS[11] holders
--   ARGV[1]  attempt    ARGV[2]  task       ARGV[3]  the task's place in the pending line, an urgent one
--   ARGV[4]  attempts that may be lost      ARGV[5]  the run's failure if this is one too many
--   ARGV[6]  "" if the lease has run out; for a dead horse's, the ms of its last renewal that is known: a later one
--            tells that it lives
--   ARGV[7]  how its process died, "" if that isn't known       ARGV[8]  index of the record it died at, "" for none
--   ARGV[9]  records that the run may skip  ARGV[10] attempts that may fail
--   ARGV[11] the run's failure if this record has made one too many fail
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

local note = 'its lease expired'
if died then note = 'its work-horse died' .. (ARGV[7] ~= '' and ' (' .. ARGV[7] .. ')' or '') end
local charge, failures = was == 'running' and 1 or 0, 0
if ARGV[7] ~= '' then
  redis.call('HINCRBY', KEYS[7], task .. ':died', 1)
  if ARGV[8] ~= '' then
    note = note .. ' at record ' .. ARGV[8]
    local deaths = redis.call('HINCRBY', KEYS[7], task .. ':died:' .. ARGV[8], 1)
    if deaths > 1 then
      local those = deaths == 2 and 2 or 1 -- the first one counted as lost
      charge = charge - those
      if deaths == 2 and ARGV[9] ~= '0' then
        local bad = redis.call('HGET', KEYS[7], task .. ':bad') or ''
        redis.call('HSET', KEYS[7], task .. ':bad', bad .. ARGV[8] .. ' ' .. ARGV[7] .. '\n')
      else
        failures = those
      end
    end
  end
end

redis.call('XADD', KEYS[9], 'MAXLEN', '~', 1000, '*', 'what', 'lost', 'subject', attempt, 'note', note)
for _, i in ipairs({6, 7, 9}) do redis.call('PEXPIRE', KEYS[i], keep) end
if was == 'running' then
  redis.call('HINCRBY', KEYS[8], 'lost', 1)
  redis.call('PEXPIRE', KEYS[8], keep)
end
if failures > 0 and redis.call('HINCRBY', KEYS[7], task .. ':failed', failures) >= tonumber(ARGV[10]) then
  redis.call('HSET', KEYS[1], 'state', 'failed', 'failure', ARGV[11])
  return 'RUN FAILED'
end
if redis.call('HINCRBY', KEYS[7], task .. ':lost', charge) >= tonumber(ARGV[4]) and charge > 0 then
  redis.call('HSET', KEYS[1], 'state', 'failed', 'failure', ARGV[5])
  return 'RUN FAILED'
end
if running <= 0 then
  redis.call('ZADD', KEYS[3], 'LT', ARGV[3], task)
  redis.call('PEXPIRE', KEYS[3], keep)
end
return 'LOST'
