"""The journal's scripts. Each answers an array that begins with a word.

    {request} hash: record, attempt, owner, lease_until, state, outcome, bytes,
                    at:C.R   tokens of round R of choice C so far
                    by:C.R   who computed the latest of them: "attempt try epoch"
                    end:C.R  set once that round ended
                    note:N   a fact that was journaled before it was used
    {request}:log list: JournalTokens, in the order of their writing

Times are the server's own, in milliseconds: routers' clocks do not matter.
"""

from __future__ import annotations

from shoal.router.store.script import Script

_NOW = """
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# ARGV[1] is the attempt: the late writer of an older one is refused, whatever it wants to write.
_FENCE = """
local head = redis.call('HMGET', KEYS[1], 'attempt', 'state')
if not head[1] then return {'absent'} end
if head[1] ~= ARGV[1] then return {'stale_attempt', tonumber(head[1])} end
"""

# KEYS: request. ARGV: record, owner, lease ms, time to live ms.
ACCEPT = Script(
    _NOW
    + """
local head = redis.call('HMGET', KEYS[1], 'attempt', 'owner', 'record')
if head[1] then
  if head[1] == '1' and head[2] == ARGV[2] and head[3] == ARGV[1] then return {'accepted'} end
  return {'taken'}
end
redis.call('HSET', KEYS[1], 'record', ARGV[1], 'attempt', 1, 'owner', ARGV[2], 'lease_until', now() + ARGV[3],
  'state', 'running', 'bytes', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {'accepted'}
"""
)

# KEYS: request, log. ARGV: attempt, lane "C.R", try, epoch, offset, count, 1 if the round ends, entry, lease ms, most
# bytes. Epochs are compared within one try, for the next may run in another group; tries within one attempt.
APPEND = Script(
    _NOW
    + _FENCE
    + """
if head[2] ~= 'running' then return {'over'} end
local at_, by_, end_ = 'at:' .. ARGV[2], 'by:' .. ARGV[2], 'end:' .. ARGV[2]
local found = redis.call('HMGET', KEYS[1], at_, by_, end_, 'bytes')
local at, ended = tonumber(found[1] or '0'), found[3]
local try, epoch, offset, count = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if found[2] then
  local a, t, e = string.match(found[2], '(%d+) (%d+) (%d+)')
  if a == ARGV[1] and (try < tonumber(t) or (try == tonumber(t) and epoch < tonumber(e))) then
    return {'stale_epoch', tonumber(t), tonumber(e)}
  end
end
if offset > at then return {'gap', at} end
redis.call('HSET', KEYS[1], 'lease_until', now() + ARGV[9])
if offset + count <= at and (ARGV[7] == '0' or ended) then return {'known', at} end
if offset < at or ended then return {'overlap', at} end
local bytes = tonumber(found[4]) + #ARGV[8]
if bytes > tonumber(ARGV[10]) then return {'full', at} end
redis.call('HSET', KEYS[1], at_, at + count, 'bytes', bytes, by_, ARGV[1] .. ' ' .. ARGV[3] .. ' ' .. ARGV[4])
if ARGV[7] == '1' then redis.call('HSET', KEYS[1], end_, 1) end
if redis.call('RPUSH', KEYS[2], ARGV[8]) == 1 then
  redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
end
return {'stored', at + count}
"""
)

# KEYS: request. ARGV: attempt, lease ms (0 gives the lease back).
RENEW = Script(
    _NOW
    + _FENCE
    + """
if head[2] ~= 'running' then return {'over'} end
redis.call('HSET', KEYS[1], 'lease_until', ARGV[2] == '0' and 0 or now() + ARGV[2])
return {'renewed'}
"""
)

# KEYS: request. ARGV: attempt, name, value, most bytes. The first to write a name wins; everybody learns what it wrote.
NOTE = Script(
    _FENCE
    + """
if head[2] ~= 'running' then return {'over'} end
local known = redis.call('HGET', KEYS[1], 'note:' .. ARGV[2])
if known then return {'known', known} end
local bytes = tonumber(redis.call('HGET', KEYS[1], 'bytes')) + #ARGV[3]
if bytes > tonumber(ARGV[4]) then return {'full'} end
redis.call('HSET', KEYS[1], 'note:' .. ARGV[2], ARGV[3], 'bytes', bytes)
return {'stored', ARGV[3]}
"""
)

# KEYS: request. ARGV: new owner, lease ms, attempt that must be the present one (0: any), 1 if only an orphan.
TAKE_OVER = Script(
    _NOW
    + """
local head = redis.call('HMGET', KEYS[1], 'attempt', 'state', 'lease_until')
if not head[1] then return {'absent'} end
if head[2] ~= 'running' then return {'over'} end
if ARGV[3] ~= '0' and ARGV[3] ~= head[1] then return {'stale_attempt', tonumber(head[1])} end
local left = tonumber(head[3]) - now()
if ARGV[4] == '1' and left > 0 then return {'held', left} end
local attempt = tonumber(head[1]) + 1
redis.call('HSET', KEYS[1], 'attempt', attempt, 'owner', ARGV[1], 'lease_until', now() + ARGV[2])
return {'taken', attempt}
"""
)

# KEYS: request, log. ARGV: attempt, state, outcome, how long to keep it ms.
FINISH = Script(
    _FENCE
    + """
if head[2] ~= 'running' then
  if head[2] == ARGV[2] then return {'finished'} end
  return {'over'}
end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'outcome', ARGV[3], 'lease_until', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {'finished'}
"""
)

# KEYS: request, log. ARGV: entries that are known already. The record is left out when some are.
READ = Script(
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return {'absent'} end
local fields = {}
if ARGV[1] == '0' then
  fields = redis.call('HGETALL', KEYS[1])
else
  for _, name in ipairs({'attempt', 'owner', 'lease_until', 'state', 'outcome'}) do
    local value = redis.call('HGET', KEYS[1], name)
    if value then table.insert(fields, name) table.insert(fields, value) end
  end
  local all = redis.call('HKEYS', KEYS[1])
  for _, name in ipairs(all) do
    if string.sub(name, 1, 5) == 'note:' then
      table.insert(fields, name) table.insert(fields, redis.call('HGET', KEYS[1], name))
    end
  end
end
return {'found', now(), fields, redis.call('LRANGE', KEYS[2], ARGV[1], -1)}
"""
)
