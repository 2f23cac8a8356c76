#!lua flags=allow-oom
-- renew: an attempt is alive; its lease begins anew, with how far it is.
--
-- Lost is not dead: a mapper that held the interpreter for longer than its lease may renew a lease that has expired,
-- as long as no other attempt has committed.  If nobody has taken its task yet, it takes it back.
--
--   KEYS[1]  run        KEYS[2]  winners    KEYS[3]  pending    KEYS[4]  leases     KEYS[5]  lease
--   KEYS[6]  attempts   KEYS[7]  tries      KEYS[8]  events
--   ARGV[1]  attempt    ARGV[2]  task       ARGV[3]  lease, ms  ARGV[4]  worker     ARGV[5]  host
--   ARGV[6]  started ms ARGV[7]  records    ARGV[8]  bytes      ARGV[9]  fraction
--   ARGV[10] what it waits for, "memory" or "input"; else ""
--
--   returns  "RENEWED" | "STALE" (another attempt won) | "ENDED" (the run has, or this attempt has)

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
if state ~= 'running' then return 'ENDED' end
local winner = redis.call('HGET', KEYS[2], ARGV[2])
if winner then
  return string.match(winner, '^[^\n]+') == ARGV[1] and 'ENDED' or 'STALE'
end

local was = redis.call('HGET', KEYS[6], ARGV[1])
if was == 'lost' then
  redis.call('HSET', KEYS[6], ARGV[1], 'revived')
  redis.call('HINCRBY', KEYS[7], ARGV[2] .. ':running', 1)
  redis.call('ZREM', KEYS[3], ARGV[2])
  redis.call('XADD', KEYS[8], 'MAXLEN', '~', 1000, '*', 'what', 'revived', 'subject', ARGV[1], 'note', 'by ' .. ARGV[4])
  redis.call('PEXPIRE', KEYS[8], keep)
elseif was ~= 'running' and was ~= 'revived' then
  return 'ENDED'
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[4], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[4], keep)
redis.call('HSET', KEYS[5], 'worker', ARGV[4], 'host', ARGV[5], 'started', ARGV[6], 'renewed', now,
  'records', ARGV[7], 'bytes', ARGV[8], 'fraction', ARGV[9], 'waits', ARGV[10])
redis.call('PEXPIRE', KEYS[5], ARGV[3])
return 'RENEWED'
