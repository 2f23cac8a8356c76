#!lua flags=allow-oom
-- commit: make one attempt's output the task's output, exactly once.
--
-- Two attempts of a task may finish (a backup, or a worker that was slow and not dead).  The first to get here wins;
-- the other is told, and throws its own output away.  Asking twice gets the same answer, since the first reply can be
-- lost with the connection.  Whether a phase is complete is counted from the winners, never told by a message.
--
--   KEYS[1]  run        KEYS[2]  winners    KEYS[3]  pending    KEYS[4]  leases     KEYS[5]  lease
--   KEYS[6]  attempts   KEYS[7]  tries      KEYS[8]  totals     KEYS[9]  durations  KEYS[10] events
--   KEYS[11] holders
--   KEYS[12] and on: the shuffle hashes that this attempt has a segment in
--   ARGV[1]  attempt    ARGV[2]  task       ARGV[3]  its outcome, kept with the winner
--   ARGV[4]  started ms ARGV[5]  records    ARGV[6]  bytes
--   ARGV[7]  field of its segments' chunk 0, which is written last
--   ARGV[8]  field of the run that holds the key type           ARGV[9]  key type, "" for none
--   ARGV[10] records that it has skipped    ARGV[11] records that the run may skip
--   ARGV[12] the run's failure if they are too many
--
--   returns  {"COMMITTED", winners of the phase} | {"STALE"} | {"ENDED"} | {"MISSING", number of the shuffle key}
--            | {"MIXED", key type of the others} | {"RUN FAILED"}

local state, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'keep_ms'))
local attempt, task = ARGV[1], ARGV[2]

local winner = redis.call('HGET', KEYS[2], task)
-- Also when the run has failed since: the winner would remove its segments, which a resumed run needs.
if winner and string.match(winner, '^[^\n]+') == attempt then return {'COMMITTED', redis.call('HLEN', KEYS[2])} end
if state ~= 'running' then return {'ENDED'} end
if winner then return {'STALE'} end

-- Lost is not dead, but an attempt that failed or gave its task back has ended.
local was = redis.call('HGET', KEYS[6], attempt)
if was ~= 'running' and was ~= 'revived' and was ~= 'lost' then return {'ENDED'} end

for i = 12, #KEYS do
  if redis.call('HEXISTS', KEYS[i], ARGV[7]) == 0 then return {'MISSING', i - 11} end
end
if ARGV[9] ~= '' then
  local others = redis.call('HGET', KEYS[1], ARGV[8])
  if others and others ~= ARGV[9] then return {'MIXED', others} end
end
if ARGV[10] ~= '0' then
  local skipped = ARGV[10] + (redis.call('HGET', KEYS[1], 'skipped') or 0)
  if skipped > tonumber(ARGV[11]) then
    redis.call('HSET', KEYS[1], 'state', 'failed', 'failure', ARGV[12])
    return {'RUN FAILED'}
  end
  redis.call('HSET', KEYS[1], 'skipped', skipped)
end
if ARGV[9] ~= '' then redis.call('HSET', KEYS[1], ARGV[8], ARGV[9]) end

local time = redis.call('TIME')
local took = math.max(0, time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[4])
redis.call('HSET', KEYS[2], task, attempt .. '\n' .. ARGV[3])
redis.call('ZREM', KEYS[3], task)
redis.call('ZREM', KEYS[4], attempt)
redis.call('DEL', KEYS[5])
redis.call('HDEL', KEYS[11], attempt)
redis.call('HSET', KEYS[6], attempt, 'committed')
if was ~= 'lost' then redis.call('HINCRBY', KEYS[7], task .. ':running', -1) end
redis.call('HINCRBY', KEYS[8], 'records', ARGV[5])
redis.call('HINCRBY', KEYS[8], 'bytes', ARGV[6])
redis.call('LPUSH', KEYS[9], took)
redis.call('LTRIM', KEYS[9], 0, 99)
redis.call('XADD', KEYS[10], 'MAXLEN', '~', 1000, '*', 'what', 'committed', 'subject', attempt,
  'note', 'in ' .. string.format('%.1f', took / 1000) .. ' s')
for _, i in ipairs({2, 6, 7, 8, 9, 10}) do redis.call('PEXPIRE', KEYS[i], keep) end
return {'COMMITTED', redis.call('HLEN', KEYS[2])}
