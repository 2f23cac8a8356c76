#!lua flags=allow-oom
-- give_way: whether a run's ticket has to let another run go first, since that one has had less of the workers' time.
--
-- Only a run counts that has something for this worker to do, so whoever is let go first gets on, and nobody gives way
-- for ever.  A run that is new begins where the others are, and one that had nothing to do for a while isn't left more
-- than some seconds behind them: they would else wait until it has caught up.
--
--   KEYS[1]  run        KEYS[2]  the others: run, pending and backups of each, in turn …
--   ARGV[1]  worker     ARGV[2]  how far a run may be behind, as `charge` counts
--
--   returns  "GIVE WAY" | "GO ON" | "ENDED" (the run has)

local state, had, keep = unpack(redis.call('HMGET', KEYS[1], 'state', 'had', 'keep_ms'))
if state ~= 'running' then return 'ENDED' end

local function has_work(pending, backups)
  for _, task in ipairs(redis.call('ZRANGE', pending, 0, 15)) do
    if redis.call('HGET', backups, task) ~= ARGV[1] then return true end
  end
  return false
end

local least, is_new
for i = 2, #KEYS, 3 do
  local other, has_had, full = unpack(redis.call('HMGET', KEYS[i], 'state', 'had', 'full'))
  if other == 'running' and not full and has_work(KEYS[i + 1], KEYS[i + 2]) then
    if has_had then least = math.min(least or tonumber(has_had), tonumber(has_had)) else is_new = true end
  end
end

local from = had and math.max(tonumber(had), (least or 0) - tonumber(ARGV[2])) or least or 0
if from ~= tonumber(had) then
  redis.call('HSET', KEYS[1], 'had', string.format('%.0f', from))
  redis.call('PEXPIRE', KEYS[1], keep)
end
if had and (is_new or (least and from > least)) then return 'GIVE WAY' end
return 'GO ON'
