"""The session store's scripts.

    {session} hash: next_turn, created_at, updated_at, ttl, date, writer, tools, bytes
    {session}:items list: KeptMessage
    {session}:lease who writes the next turn; `-` after its session was deleted under it

Times are the server's own. A server without memory refuses a script at its first write that needs some, and none after
that: so each begins with such a write, and is refused as a whole.
"""

from __future__ import annotations

from shoal.router.store.script import Script

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

# KEYS: hash, items, lease. ARGV: writer, lease ms, expected turn or -1. Loads as LOAD does.
RESERVE = Script("""
local found = tonumber(redis.call('HGET', KEYS[1], 'next_turn') or '0')
if ARGV[3] ~= '-1' and tonumber(ARGV[3]) ~= found
  and redis.call('HGET', KEYS[1], 'writer') ~= ARGV[1] then return {'conflict', found} end
local holder = redis.call('GET', KEYS[3])
if holder and holder ~= ARGV[1] and holder ~= '-' then return {'reserved', redis.call('PTTL', KEYS[3])} end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
return {'free', redis.call('HGETALL', KEYS[1]), redis.call('LRANGE', KEYS[2], 0, -1), redis.call('TTL', KEYS[1])}
""")

# KEYS: lease. ARGV: writer, lease ms; 0 gives it back. Whether it was still the writer's.
HOLD = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then redis.call('DEL', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
""")

# KEYS: hash, items, lease. ARGV: expected turn, ttl, date, writer, tools, items... Returns {1, microseconds} or
# {0, turn found}. A writer that lost the answer may ask again: its turn is there already and that counts as stored.
# It is written to then, too, so that replicas can be waited for. Nobody else's reservation is written over, and none
# whose session was deleted.
APPEND = Script(
    _STAMP
    + """
local found = tonumber(redis.call('HGET', KEYS[1], 'next_turn') or '0')
local expected = tonumber(ARGV[1])
if found == expected + 1 and redis.call('HGET', KEYS[1], 'writer') == ARGV[4] then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.call('EXPIRE', KEYS[2], ARGV[2])
  return {1, redis.call('HGET', KEYS[1], 'updated_at')}
end
local holder = redis.call('GET', KEYS[3])
if found ~= expected or (holder and holder ~= ARGV[4]) then return {0, found} end
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
for i = 6, #ARGV do
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

# KEYS: index. ARGV: session, microseconds, ttl. The index lives as long as the longest-lived session in it.
INDEX = Script("""
redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
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
