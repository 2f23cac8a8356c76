#!lua flags=allow-oom
-- place: a careful attempt tells which record it is about to begin, in its lease; none without one, so that no key
-- comes back.  Sent on a connection without replies: nobody waits for it.
--
--   KEYS[1]  lease
--   ARGV[1]  the record, "" for none
--
--   returns  "TOLD" | "ENDED" (there is no lease)

if redis.call('EXISTS', KEYS[1]) == 0 then return 'ENDED' end
redis.call('HSET', KEYS[1], 'place', ARGV[1])
return 'TOLD'
