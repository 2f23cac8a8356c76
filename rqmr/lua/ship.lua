#!lua
-- ship: answer an ask, if nobody has yet.  What was shipped is counted, for people.
--
--   KEYS[1]  run        KEYS[2]  asks       KEYS[3]  shipment
--   ARGV[1]  ask        ARGV[2]  answer     ARGV[3]  how long it waits to be taken, ms
--
--   returns  "SHIPPED" | "ALREADY" (asked twice, too) | "ENDED"

if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return 'ENDED' end
if redis.call('ZREM', KEYS[2], ARGV[1]) == 0 then return 'ALREADY' end
redis.call('RPUSH', KEYS[3], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
redis.call('HINCRBY', KEYS[1], 'shipped', #ARGV[2])
return 'SHIPPED'
