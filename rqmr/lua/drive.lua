#!lua flags=allow-oom
-- drive: take, renew or give back the driver's lease.  Who holds it ticks; each new holder begins a new epoch.
--
--   KEYS[1]  run        KEYS[2]  driver
--   ARGV[1]  who asks   ARGV[2]  lease, ms; 0 gives it back
--
--   returns  {"DRIVING", epoch} | {"HELD", by whom} | {"RESIGNED"} | {"ENDED"}

if redis.call('EXISTS', KEYS[1]) == 0 then return {'ENDED'} end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {'HELD', holder} end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[2])
  return {'RESIGNED'}
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
if holder then return {'DRIVING', tonumber(redis.call('HGET', KEYS[1], 'epoch'))} end
return {'DRIVING', redis.call('HINCRBY', KEYS[1], 'epoch', 1)}
