#!lua flags=allow-oom
-- charge: a run has had some more of the workers' time.
--
-- Repeated, it charges twice, which costs the run a second of its share.
--
--   KEYS[1]  run
--   ARGV[1]  how much: ms, times the weight of its priority
--
--   returns  "CHARGED" | "ENDED" (the run has: its keys must not come back)

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
if state ~= 'running' then return 'ENDED' end
redis.call('HINCRBY', KEYS[1], 'had', ARGV[1])
redis.call('PEXPIRE', KEYS[1], keep)
return 'CHARGED'
