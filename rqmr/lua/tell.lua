#!lua flags=allow-oom
-- tell: add an event, unless the run is gone: its keys must not come back.
--
--   KEYS[1]  run        KEYS[2]  events
--   ARGV[1]  what       ARGV[2]  about what or whom             ARGV[3]  note
--
--   returns  "TOLD" | "GONE"

local keep = redis.call('HGET', KEYS[1], 'keep_ms')
if not keep then return 'GONE' end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'what', ARGV[1], 'subject', ARGV[2], 'note', ARGV[3])
redis.call('PEXPIRE', KEYS[2], keep)
return 'TOLD'
