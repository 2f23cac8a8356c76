#!lua
-- claim: give a work-horse the next task, number the attempt, set its lease.
--
-- redis-py silently repeats a command whose reply was lost, and a repeat must not take a second task.  So a claim
-- carries the horse's token and a sequence number: the same pair gets the same answer.
--
-- When there is nothing to take one horse stands by, for what may come and for a driver that may die.  Its place is
-- an expiring key; who finds it taken leaves.
--
--   KEYS[1]  run        KEYS[2]  pending    KEYS[3]  leases     KEYS[4]  attempts   KEYS[5]  tries
--   KEYS[6]  claims     KEYS[7]  tickets    KEYS[8]  backups    KEYS[9]  events     KEYS[10] holders
--   KEYS[11] standby    KEYS[12] splits
--   ARGV[1]  token of this horse            ARGV[2]  its sequence number
--   ARGV[3]  ticket it came with            ARGV[4]  task that the ticket names, "" for none
--   ARGV[5]  worker     ARGV[6]  host       ARGV[7]  lease, ms
--   ARGV[8]  prefix of the lease keys       ARGV[9]  distance of two phases in the pending line
--   ARGV[10] how long its place as standby lasts, ms
--   ARGV[11] how often the run had been resumed when the horse read its spec: one of before has the wrong code
--
--   returns  {"CLAIMED", attempt, started ms, how many of the task's attempts died, its records to leave out: a line
--            for each, with its index and how a process died at it, a map task's split} | {"STAND BY"} | {"NOTHING"}
--            | {"ENDED", state of the run, or "gone"}

local state, phase, keep, full, resumed = unpack(
  redis.call('HMGET', KEYS[1], 'state', 'phase', 'keep_ms', 'full', 'resumed'))
if state ~= 'running' then return {'ENDED', state or 'gone'} end
if (resumed or '0') ~= ARGV[11] then return {'ENDED', 'resumed'} end

local function claimed(attempt, task, started)
  local died, bad = unpack(redis.call('HMGET', KEYS[5], task .. ':died', task .. ':bad'))
  local index = string.match(task, '^s0%-m(%d+)$')
  local split = index and redis.call('HGET', KEYS[12], string.format('%d', index))
  return {'CLAIMED', attempt, started, tonumber(died or 0), bad or '', split or false}
end

local last = redis.call('HGET', KEYS[6], ARGV[1])
if last then
  local sequence, attempt, started = string.match(last, '^(%d+) (%S+) (%d+)$')
  if sequence == ARGV[2] then return claimed(attempt, string.match(attempt, '^(.*)%-a%d+$'), tonumber(started)) end
  -- It hung in a connection that its horse gave up: nobody would run what it takes.
  if tonumber(sequence) > tonumber(ARGV[2]) then return {'NOTHING'} end
end
redis.call('ZREM', KEYS[7], ARGV[3])

local worker = ARGV[5]
local stride = tonumber(ARGV[9])
local first_of_phase = tonumber(phase) * stride
local limit = '(' .. string.format('%.0f', first_of_phase + stride / 2)

-- A backup is of no use on the worker that is slow.
local function may_take(task) return redis.call('HGET', KEYS[8], task) ~= worker end

local function choose()
  local line = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', limit, 'WITHSCORES', 'LIMIT', 0, 16)
  local i = 1
  while line[i] and not may_take(line[i]) do i = i + 2 end
  -- What others wait for goes before what the ticket names: lost tasks, and maps that were opened again.
  if line[i] and tonumber(line[i + 1]) < first_of_phase then return line[i] end
  local named = ARGV[4] ~= '' and redis.call('ZSCORE', KEYS[2], ARGV[4])
  if named and tonumber(named) < first_of_phase + stride / 2 and may_take(ARGV[4]) then return ARGV[4] end
  return line[i]
end

local task = not full and choose() -- a full server has no room for another attempt's segments
local standby = redis.call('GET', KEYS[11])
if not task then
  if standby and standby ~= ARGV[1] then return {'NOTHING'} end
  redis.call('SET', KEYS[11], ARGV[1], 'PX', ARGV[10])
  return {'STAND BY'}
end
if standby == ARGV[1] then redis.call('DEL', KEYS[11]) end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local attempt = task .. '-a' .. redis.call('HINCRBY', KEYS[5], task .. ':made', 1)
local lease = ARGV[8] .. attempt
redis.call('HINCRBY', KEYS[5], task .. ':running', 1)
redis.call('ZREM', KEYS[2], task)
redis.call('ZADD', KEYS[3], now + ARGV[7], attempt)
redis.call('HSET', lease, 'worker', worker, 'host', ARGV[6], 'started', now, 'renewed', now)
redis.call('PEXPIRE', lease, ARGV[7])
redis.call('HSET', KEYS[4], attempt, 'running')
redis.call('HSET', KEYS[6], ARGV[1], ARGV[2] .. ' ' .. attempt .. ' ' .. now)
redis.call('HSET', KEYS[10], attempt, ARGV[3] .. '\n' .. worker .. '\n' .. ARGV[6])
redis.call('XADD', KEYS[9], 'MAXLEN', '~', 1000, '*', 'what', 'claimed', 'subject', attempt, 'note', 'by ' .. worker)
for _, i in ipairs({3, 4, 5, 6, 9, 10}) do redis.call('PEXPIRE', KEYS[i], keep) end
return claimed(attempt, task, now)
