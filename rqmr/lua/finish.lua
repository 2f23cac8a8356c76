#!lua flags=allow-oom
-- finish: give a run its last state.  The first to say so is right.
--
--   KEYS[1]  run        KEYS[2]  events
--   ARGV[1]  succeeded, failed or cancelled ARGV[2]  the failure, "" for none
--
--   returns  the run's state, or "gone"

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
if state ~= 'running' then return state or 'gone' end
redis.call('HSET', KEYS[1], 'state', ARGV[1])
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'failure', ARGV[2]) end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'what', ARGV[1], 'subject', 'run', 'note', '')
redis.call('PEXPIRE', KEYS[2], keep)
return ARGV[1]
