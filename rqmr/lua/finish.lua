#!lua flags=allow-oom
-- finish: give a run its last state, and write down how it ended.  The first to say so is right.
--
-- A task that has failed for good fails its run, too; how that ended is written down by the first who sees it.
--
--   KEYS[1]  run        KEYS[2]  events     KEYS[3]  end
--   ARGV[1]  succeeded, failed or cancelled ARGV[2]  the failure, "" for none
--   ARGV[3]  how it ended, "" for nothing to write down         ARGV[4]  how long that is kept, ms
--   ARGV[5]  "seen" if it has that state already, and nothing else is to happen; else ""
--
--   returns  the run's state, or "gone"

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
local ends = state == 'running' and ARGV[5] ~= 'seen'
if ends then
  redis.call('HSET', KEYS[1], 'state', ARGV[1])
  if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'failure', ARGV[2]) end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'what', ARGV[1], 'subject', 'run', 'note', '')
  redis.call('PEXPIRE', KEYS[2], keep)
  redis.call('DEL', KEYS[3]) -- of an earlier life
  state = ARGV[1]
end
if state == ARGV[1] and ARGV[3] ~= '' and redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
end
return state or 'gone'
