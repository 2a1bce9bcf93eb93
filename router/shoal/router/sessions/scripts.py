"""The session store's scripts.

    {session} hash: next_turn, created_at, updated_at, ttl, date, writer, tools, bytes
    {session}:items list: KeptMessage
    {session}:lease who writes the next turn, "writer owner"; `-` after its session was deleted under it

A session that was deleted, or expired, and was begun anew under its name is another one: `created_at` tells them apart.
While a turn is written its session does not expire.

Times are the server's own. A server without memory refuses a script at its first write that needs some, and none after
that: so each begins with such a write, and is refused as a whole.
"""

from __future__ import annotations

from shoal.router.store.script import Script

_BY = """
local function is_by(holder, writer)
  return string.sub(holder, 1, #writer + 1) == writer .. ' '
end
local function outlive(milliseconds)
  redis.call('PEXPIRE', KEYS[1], milliseconds, 'GT')
  redis.call('PEXPIRE', KEYS[2], milliseconds, 'GT')
end
"""

_STAMP = """
local function stamp()
  local time = redis.call('TIME')
  return string.format('%d%06d', time[1], time[2])
end
"""

# KEYS: hash, items.
LOAD = Script("""
return {redis.call('HGETALL', KEYS[1]), redis.call('LRANGE', KEYS[2], 0, -1), redis.call('TTL', KEYS[1])}
""")

# KEYS: hash, items, lease. ARGV: writer, lease ms, expected turn or -1, owner. Loads as LOAD does. Of two owners of one
# request, which both write as one writer, the later one has the lease.
RESERVE = Script(
    _BY
    + """
local found = tonumber(redis.call('HGET', KEYS[1], 'next_turn') or '0')
if ARGV[3] ~= '-1' and tonumber(ARGV[3]) ~= found
  and redis.call('HGET', KEYS[1], 'writer') ~= ARGV[1] then return {'conflict', found} end
local holder = redis.call('GET', KEYS[3])
if holder and holder ~= '-' and not is_by(holder, ARGV[1]) then
  return {'reserved', redis.call('PTTL', KEYS[3])}
end
redis.call('SET', KEYS[3], ARGV[1] .. ' ' .. ARGV[4], 'PX', ARGV[2])
outlive(ARGV[2])
return {'free', redis.call('HGETALL', KEYS[1]), redis.call('LRANGE', KEYS[2], 0, -1), redis.call('TTL', KEYS[1])}
"""
)

# KEYS: hash, items, lease. ARGV: writer, lease ms (0 gives it back), owner, turn, created_at or ''. Whether it is still
# the owner's. One that ran out is taken again while the session is as it was and nobody else has it.
HOLD = Script(
    _BY
    + """
local mine = ARGV[1] .. ' ' .. ARGV[3]
local holder = redis.call('GET', KEYS[3])
if ARGV[2] == '0' then return holder == mine and redis.call('DEL', KEYS[3]) or 0 end
if holder and holder ~= mine then return 0 end
if not holder then
  local head = redis.call('HMGET', KEYS[1], 'next_turn', 'created_at')
  if (head[1] or '0') ~= ARGV[4] or (head[2] or '') ~= ARGV[5] then return 0 end
end
redis.call('SET', KEYS[3], mine, 'PX', ARGV[2])
outlive(ARGV[2])
return 1
"""
)

# KEYS: hash, items, lease. ARGV: expected turn, ttl, date, writer, tools, created_at or '' for any, items... Returns
# {1, microseconds}, {0, turn found}, or {-1} when the session is not there any more. A writer that lost the answer may
# ask again: its turn is there already and that counts as stored. It is written to then, too, so that replicas can be
# waited for. Nobody else's reservation is written over, and none whose session was deleted.
APPEND = Script(
    _BY
    + _STAMP
    + """
local found = tonumber(redis.call('HGET', KEYS[1], 'next_turn') or '0')
local expected = tonumber(ARGV[1])
if ARGV[6] ~= '' and redis.call('HGET', KEYS[1], 'created_at') ~= ARGV[6] then return {-1} end
if found == expected + 1 and redis.call('HGET', KEYS[1], 'writer') == ARGV[4] then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.call('EXPIRE', KEYS[2], ARGV[2])
  return {1, redis.call('HGET', KEYS[1], 'updated_at')}
end
local holder = redis.call('GET', KEYS[3])
if holder == '-' then return {-1} end
if found ~= expected or (holder and not is_by(holder, ARGV[4])) then return {0, found} end
local now = stamp()
local exists = redis.call('EXISTS', KEYS[1]) == 1
if not exists then
  redis.call('HSET', KEYS[1], 'created_at', now, 'bytes', 0)
  redis.call('DEL', KEYS[2])
end
if expected == 0 then redis.call('HSET', KEYS[1], 'date', ARGV[3]) end
redis.call('HSET', KEYS[1], 'next_turn', expected + 1, 'updated_at', now, 'ttl', ARGV[2], 'writer', ARGV[4])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'tools', ARGV[5]) end
local bytes = 0
for i = 7, #ARGV do
  redis.call('RPUSH', KEYS[2], ARGV[i])
  bytes = bytes + #ARGV[i]
end
redis.call('HINCRBY', KEYS[1], 'bytes', bytes)
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[3])
return {1, now}
"""
)

# KEYS: hash, items, lease. ARGV: next turn, ttl, date, writer, tools, items... Returns {1, microseconds}, or {0} when
# there is one already. A writer that lost the answer may ask again.
CREATE = Script(
    _STAMP
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then
  if redis.call('HGET', KEYS[1], 'writer') ~= ARGV[4] then return {0} end
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.call('EXPIRE', KEYS[2], ARGV[2])
  return {1, redis.call('HGET', KEYS[1], 'updated_at')}
end
local holder = redis.call('GET', KEYS[3])
if holder and holder ~= '-' then return {0} end
local now = stamp()
local bytes = 0
redis.call('HSET', KEYS[1], 'next_turn', ARGV[1], 'created_at', now, 'updated_at', now, 'ttl', ARGV[2],
  'date', ARGV[3], 'writer', ARGV[4], 'tools', ARGV[5])
redis.call('DEL', KEYS[2], KEYS[3])
for i = 6, #ARGV do
  redis.call('RPUSH', KEYS[2], ARGV[i])
  bytes = bytes + #ARGV[i]
end
redis.call('HSET', KEYS[1], 'bytes', bytes)
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return {1, now}
"""
)

# KEYS: hash, items, lease. What runs there finds that it may not write any more. Whether there was anything.
DELETE = Script("""
local removed = redis.call('DEL', KEYS[1], KEYS[2])
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('SET', KEYS[3], '-', 'KEEPTTL') end
return removed
""")

# KEYS: index. ARGV: session, microseconds, ttl, the longest ttl of any session or 0. The index lives as long as the
# longest-lived session in it, and forgets those that cannot be there any more, also if nobody ever lists them.
INDEX = Script("""
redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
if ARGV[4] ~= '0' then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', ARGV[2] - ARGV[4] * 1000000))
end
if redis.call('TTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
""")

# KEYS: index. ARGV: session, microseconds. Forgets a session that is gone, unless it came back meanwhile.
FORGET = Script("""
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('ZREM', KEYS[1], ARGV[1])
end
""")
