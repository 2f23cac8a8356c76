#!lua flags=allow-oom
-- ask: an attempt asks for ranges of an input that its worker doesn't see, unless the run has ended.
--
-- Asking again changes nothing: the first time counts.
--
--   KEYS[1]  run        KEYS[2]  asks
--   ARGV[1] and on: asks
--
--   returns  "ASKED" | "ENDED"

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
if state ~= 'running' then return 'ENDED' end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
for i = 1, #ARGV do redis.call('ZADD', KEYS[2], 'NX', now, ARGV[i]) end
redis.call('PEXPIRE', KEYS[2], keep)
return 'ASKED'
