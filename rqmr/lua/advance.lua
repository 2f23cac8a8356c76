#!lua flags=allow-oom
-- advance: pass the barrier behind a phase, if each of its tasks has a winner.  Idempotent: anyone may ask, any time.
--
-- The next phase's tasks are made pending when it begins for the first time.  When a reopened task is back, the
-- phase is passed again, and those that wait are still in line.
--
--   KEYS[1]  run        KEYS[2]  winners    KEYS[3]  pending    KEYS[4]  events
--   ARGV[1]  number of the phase            ARGV[2]  its tasks  ARGV[3]  the next one's name, "" if this is the last
--   ARGV[4]  the next one's tasks           ARGV[5]  place of its first task in the pending line
--
--   returns  "ADVANCED" | "NOT YET" | "ALREADY"

local state, phase, opened, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'phase', 'opened', 'keep_ms'))
if state ~= 'running' or phase ~= ARGV[1] then return 'ALREADY' end
if redis.call('HLEN', KEYS[2]) < tonumber(ARGV[2]) then return 'NOT YET' end

local following = tonumber(phase) + 1
redis.call('HSET', KEYS[1], 'phase', following)
if following > tonumber(opened) then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'opened', following,
    'started:' .. following, string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
  if ARGV[3] ~= '' then
    for i = 0, tonumber(ARGV[4]) - 1 do
      redis.call('ZADD', KEYS[3], string.format('%.0f', ARGV[5] + i), string.format('%s%04d', ARGV[3], i))
    end
    redis.call('PEXPIRE', KEYS[3], keep)
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', 1000, '*', 'what', 'began', 'subject', ARGV[3], 'note', ARGV[4] .. ' tasks')
    redis.call('PEXPIRE', KEYS[4], keep)
  end
end
return 'ADVANCED'
