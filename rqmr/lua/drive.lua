#!lua flags=allow-oom
-- drive: take or renew the driver's lease.  Who holds it ticks; each new holder begins a new epoch.
--
--   KEYS[1]  run        KEYS[2]  driver
--   ARGV[1]  who asks   ARGV[2]  lease, ms
--
--   returns  {"DRIVING", epoch} | {"HELD", by whom} | {"ENDED"}

if redis.call('EXISTS', KEYS[1]) == 0 then return {'ENDED'} end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {'HELD', holder} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
if holder then return {'DRIVING', tonumber(redis.call('HGET', KEYS[1], 'epoch'))} end
return {'DRIVING', redis.call('HINCRBY', KEYS[1], 'epoch', 1)}
