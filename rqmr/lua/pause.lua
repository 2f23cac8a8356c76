#!lua flags=allow-oom
-- pause: let a run's claims wait for memory, note again how things are meanwhile, or let claims go on.
--
-- Nothing is counted and no time is passed in, so a repeat only notes a moment later.
--
--   KEYS[1]  run        KEYS[2]  events
--   ARGV[1]  "" to let claims go on, else how many tasks are committed
--   ARGV[2]  bytes that the server uses     ARGV[3]  these in words, for the events
--
--   returns  "PAUSED" | "NOTED" (again) | "GOES ON" | "ALREADY" | "ENDED"

local state, full, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'full', 'keep_ms'))
if state ~= 'running' then return 'ENDED' end

local function tell(what)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'what', what, 'subject', 'run', 'note', ARGV[3])
  redis.call('PEXPIRE', KEYS[2], keep)
end

if ARGV[1] == '' then
  if not full then return 'ALREADY' end
  redis.call('HDEL', KEYS[1], 'full')
  tell('went on')
  return 'GOES ON'
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[1], 'full', now .. ' ' .. ARGV[1] .. ' ' .. ARGV[2])
if full then return 'NOTED' end
tell('paused')
return 'PAUSED'
