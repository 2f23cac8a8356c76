#!lua flags=allow-oom
-- release: an attempt lets go of its task, uncharged: another one won, or it can't go on through no fault of its own.
--
--   KEYS[1]  run        KEYS[2]  winners    KEYS[3]  pending    KEYS[4]  leases     KEYS[5]  lease
--   KEYS[6]  attempts   KEYS[7]  tries      KEYS[8]  backups    KEYS[9]  holders
--   ARGV[1]  attempt    ARGV[2]  task       ARGV[3]  the task's place in the pending line
--
--   returns  "RELEASED" (its task is pending) | "STALE" (another attempt won, or has the task now)
--            | "ENDED" (the run has, or this attempt has: asked twice, too)

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
local attempt, task = ARGV[1], ARGV[2]
local was = redis.call('HGET', KEYS[6], attempt)
if state ~= 'running' or (was ~= 'running' and was ~= 'revived' and was ~= 'lost') then return 'ENDED' end

redis.call('ZREM', KEYS[4], attempt)
redis.call('DEL', KEYS[5])
redis.call('HDEL', KEYS[9], attempt)
local running = redis.call('HINCRBY', KEYS[7], task .. ':running', was == 'lost' and 0 or -1)
local won = redis.call('HEXISTS', KEYS[2], task) == 1
redis.call('HSET', KEYS[6], attempt, won and 'stale' or 'released')
for _, i in ipairs({6, 7}) do redis.call('PEXPIRE', KEYS[i], keep) end
if won then return 'STALE' end
redis.call('HDEL', KEYS[8], task) -- the attempt that is left, or the next one, may have a backup again
if running > 0 then return 'STALE' end
redis.call('ZADD', KEYS[3], 'LT', ARGV[3], task)
redis.call('PEXPIRE', KEYS[3], keep)
return 'RELEASED'
