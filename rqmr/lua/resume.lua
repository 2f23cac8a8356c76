#!lua flags=allow-oom
-- resume: let a failed run go on.  What has a winner is kept; all else is pending again, with budgets as on the first day.
--
--   KEYS[1]  run        KEYS[2]  pending    KEYS[3]  leases     KEYS[4]  attempts   KEYS[5]  tries
--   KEYS[6]  holders    KEYS[7]  backups    KEYS[8]  events     KEYS[9] and on: winners and totals of each phase, in turn,
--            the shuffle hashes and parts to remove, and last the end
--   ARGV[1]  the spec to go on with         ARGV[2]  "fresh" to keep no winner, else ""
--   ARGV[3]  prefix of the lease keys       ARGV[4]  distance of two phases in the pending line
--   ARGV[5]  name of a phase                ARGV[6]  its tasks, and so on in pairs
--
--   returns  "RESUMED" (asked twice, too) | the run's state, if it hasn't failed | "gone"

local state, keep, opened, spec = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms', 'opened', 'spec'))
if state == 'running' and spec == ARGV[1] then return 'RESUMED' end
if state ~= 'failed' then return state or 'gone' end
local fresh = ARGV[2] == 'fresh'
opened = tonumber(opened)
local phases = {}
for i = 5, #ARGV, 2 do
  phases[#phases + 1] = {name = ARGV[i], tasks = ARGV[i + 1], winners = KEYS[i + 4], totals = KEYS[i + 5]}
end

-- No attempt of before may renew or commit any more.
for _, attempt in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do redis.call('DEL', ARGV[3] .. attempt) end
local attempts = redis.call('HGETALL', KEYS[4])
for i = 1, #attempts, 2 do
  if fresh or attempts[i + 1] ~= 'committed' then redis.call('HSET', KEYS[4], attempts[i], 'released') end
end
local tries = redis.call('HKEYS', KEYS[5])
for _, field in ipairs(tries) do
  if not string.match(field, ':made$') then redis.call('HDEL', KEYS[5], field) end
end
redis.call('DEL', KEYS[3], KEYS[6], KEYS[7])

if fresh then
  redis.call('DEL', KEYS[2])
  for i = 9 + 2 * #phases, #KEYS do redis.call('UNLINK', KEYS[i]) end
  for number, phase in ipairs(phases) do
    redis.call('DEL', phase.winners, phase.totals)
    redis.call('HDEL', KEYS[1], 'started:' .. number, 'keys:s' .. number - 1)
  end
  redis.call('HDEL', KEYS[1], 'skipped')
  opened = 0
end
local current = opened -- its barrier may be all that is left, or nothing
for number = math.min(opened, #phases - 1), 0, -1 do
  local phase = phases[number + 1]
  for index = 0, phase.tasks - 1 do
    local task = string.format('%s%04d', phase.name, index)
    if redis.call('HEXISTS', phase.winners, task) == 0 then
      redis.call('ZADD', KEYS[2], 'NX', string.format('%.0f', number * ARGV[4] + index), task)
      current = number
    end
  end
end

redis.call('DEL', KEYS[#KEYS])
redis.call('HDEL', KEYS[1], 'failure', 'full')
redis.call('HINCRBY', KEYS[1], 'resumed', 1)
redis.call('HSET', KEYS[1], 'state', 'running', 'phase', current, 'opened', opened, 'spec', ARGV[1])
redis.call('XADD', KEYS[8], 'MAXLEN', '~', 1000, '*', 'what', 'resumed', 'subject', 'run', 'note', ARGV[2])
for _, i in ipairs({1, 2, 4, 5, 8}) do redis.call('PEXPIRE', KEYS[i], keep) end
return 'RESUMED'
