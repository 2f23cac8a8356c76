#!lua
-- write: store chunks of an attempt's segments, unless the run has ended: its keys must not come back.
--
-- Of many reducers at a time: segments of small tasks are small, and a call for each would cost more than they do.
--
--   KEYS[1]  run        KEYS[2]  shuffle hash of a reducer, and so on
--   ARGV[1]  number of one of these keys    ARGV[2]  field      ARGV[3]  chunk, and so on in threes
--
--   returns  "WRITTEN" | "ENDED"

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
if state ~= 'running' then return 'ENDED' end
for i = 1, #ARGV, 3 do redis.call('HSET', KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2]) end
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], keep) end
return 'WRITTEN'
