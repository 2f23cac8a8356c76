#!lua flags=allow-oom
-- drop: remove the segments of a run that has failed, and who won with them, since others need the room.  If it is
-- resumed it begins anew; if it has been, it needs them.
--
--   KEYS[1]  run        KEYS[2] and on: winners, totals and durations of the phases that write segments, shuffle hashes
--   ARGV[1]  records that the winners of the last phase have skipped, who are kept          ARGV[2]  steps
--
--   returns  "DROPPED" (asked twice, too) | the run's state, if it hasn't failed | "gone"

local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'failed' then return state or 'gone' end
for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end
for step = 0, ARGV[2] - 1 do redis.call('HDEL', KEYS[1], 'keys:s' .. step) end
redis.call('HSET', KEYS[1], 'skipped', ARGV[1])
return 'DROPPED'
