#!lua
-- write: store chunks of an attempt's segment, unless the run has ended: its keys must not come back.
--
--   KEYS[1]  run        KEYS[2]  shuffle hash of one reducer
--   ARGV[1]  field      ARGV[2]  chunk, and so on in pairs
--
--   returns  "WRITTEN" | "ENDED"

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
if state ~= 'running' then return 'ENDED' end
for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[2], keep)
return 'WRITTEN'
