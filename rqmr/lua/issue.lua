#!lua
-- issue: number new tickets and register them, unless the run has ended: its keys must not come back.
--
-- Repeated, it registers tickets that nobody enqueues; they are missed later and struck off.
--
--   KEYS[1]  run        KEYS[2]  tickets    KEYS[3]  pending
--   ARGV[1]  how many
--
--   returns  {"ISSUED", number of the last ticket, pending tasks from the front of the line …} | {"ENDED"}

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
if state ~= 'running' then return {'ENDED'} end
local last = redis.call('HINCRBY', KEYS[1], 'tickets', ARGV[1])
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
for number = last - ARGV[1] + 1, last do redis.call('ZADD', KEYS[2], now, number) end
redis.call('PEXPIRE', KEYS[2], keep)
-- A name is a hint only, so a thousand are enough; unpack has a limit of some thousands.
return {'ISSUED', last, unpack(redis.call('ZRANGE', KEYS[3], 0, math.min(ARGV[1], 1000) - 1))}
