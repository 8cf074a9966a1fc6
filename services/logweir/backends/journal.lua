#!lua name=logweir
-- The journal's functions; Redis 7.0 commands only. One declared key: the stream <P>q of a pipeline,
-- P = '{sNN}:t_<tenant>:<pipeline>:', T = P without the pipeline. All other keys are derived from it, so
-- tenants cannot be mixed, and every command in here is checked against the ACL of the CALLER.
--
--   <P>q stream of blocks          <T>m hash: state,max_bytes,rps,bps,burst_s,stored (the operator writes)
--   <P>m hash: state,bw,nb,shards  <T>c hash: bytes,rtat,rrem,btat,brem         (append and ack write)
--   <P>c hash: bytes,appended,accepted,inflight,seq   (`appended`: bytes ever, from any origin)
--   <P>i:<bucket>:<shard> hash of markers: request key -> fingerprint(8) uuid(16) index
--   <P>t lease of live tails       <P>l their channel
local US = 1000000
local FINGERPRINT = 8

-- Integers only: exact while cost * 1e6 + rate < 2^53. Never tostring() such a number (%.14g loses digits).
local function int(x) return string.format('%.0f', x) end

-- Charge cost to a rate; the remainder is carried, so nothing drifts. Returns the new tat (us) and remainder.
local function charge(now, tat, rem, cost, rate)
  local num = cost * US + rem
  local r = num % rate
  if tat < now then tat = now end
  return tat + (num - r) / rate, r
end

local function marker(P, key, nb, sh, bucket)
  local a, b = string.byte(key, 1, 2)
  local shard = string.format(':%d', (a * 256 + b) % sh)
  local cur = string.format('%si:%d%s', P, bucket, shard)
  local found = redis.call('HGET', cur, key)
  for i = 1, nb - 1 do
    if found then break end
    found = redis.call('HGET', string.format('%si:%d%s', P, bucket - i, shard), key)
  end
  return cur, found
end

local function remember(cur, key, value, ttl)
  redis.call('HSET', cur, key, value)
  if redis.call('HLEN', cur) == 1 then redis.call('EXPIRE', cur, ttl) end
end

-- lw_append  KEYS: q   ARGV: uuid(16), accepted records, decoded bytes, block, requests,
--                            then for each request with a key: key(16), fingerprint(8), index
-- Answers: NOMETA | NOSTREAM | STATE state | STORED | FULL | LARGE max_bytes | RATE wait_us | CONFLICT index...
--          | DUP (index, marker)... | OK id seq (index, marker of the request that it repeats)...
local function append(K, A)
  local P = string.sub(K[1], 1, -2)
  local T = string.match(P, '^(.*:)%d+:$')
  if not T then return {'NOMETA'} end
  local pm = redis.call('HMGET', P .. 'm', 'state', 'bw', 'nb', 'shards')
  local tm = redis.call('HMGET', T .. 'm', 'state', 'max_bytes', 'rps', 'bps', 'burst_s', 'stored')
  if not pm[1] or not tm[1] then return {'NOMETA'} end
  if tm[1] ~= 'active' then return {'STATE', tm[1]} end
  if pm[1] ~= 'active' then return {'STATE', pm[1]} end
  local t = redis.call('TIME')
  local now = tonumber(t[1]) * US + tonumber(t[2])
  local bw, nb, sh = tonumber(pm[2]), tonumber(pm[3]), tonumber(pm[4])
  local bucket = math.floor(tonumber(t[1]) / bw)

  local conflicts, repeats, fresh = {'CONFLICT'}, {}, {}
  for i = 6, #A, 3 do
    local cur, found = marker(P, A[i], nb, sh, bucket)
    if not found then
      fresh[#fresh + 1] = {cur, A[i], A[i + 1] .. A[1] .. A[i + 2]}
    elseif string.sub(found, 1, FINGERPRINT) ~= A[i + 1] then
      conflicts[#conflicts + 1] = A[i + 2]
    else
      repeats[#repeats + 1] = {cur, A[i], found, A[i + 2]}
    end
  end
  if #conflicts > 1 then return conflicts end
  if #repeats == tonumber(A[5]) then
    local answer = {'DUP'}
    for _, r in ipairs(repeats) do
      remember(r[1], r[2], r[3], bw * nb)  -- a WRITE on purpose: WAIT covers it, and it refreshes the marker
      answer[#answer + 1] = r[4]
      answer[#answer + 1] = r[3]
    end
    return answer
  end

  if tm[6] == 'over' then return {'STORED'} end
  local c = redis.call('HMGET', T .. 'c', 'bytes', 'rtat', 'rrem', 'btat', 'brem')
  local size = string.len(A[4])
  local room = tonumber(tm[2] or '')
  if room and size > room then return {'LARGE', tm[2]} end  -- it will never fit
  if room and tonumber(c[1] or 0) + size > room then return {'FULL'} end
  local rps, bps = tonumber(tm[3] or ''), tonumber(tm[4] or '')
  local burst = (tonumber(tm[5] or '') or 2) * US
  local wait = 0
  if rps then wait = math.max(wait, tonumber(c[2] or 0) - now - burst) end
  if bps then wait = math.max(wait, tonumber(c[4] or 0) - now - burst) end
  if wait > 0 then return {'RATE', int(wait)} end

  -- Scripts do not roll back: the entry first, so that an error leaves a duplicate (the ledger absorbs it),
  -- never a marker without its entry (a loss).
  local named = {}
  for i, r in ipairs(repeats) do named[i] = r[4] end
  local id = redis.call('XADD', K[1], 'NOMKSTREAM', '*', 'v', 1, 'u', A[1], 'n', A[2],
    'r', table.concat(named, ','), 'b', A[4])
  if not id then return {'NOSTREAM'} end
  local answer = {'OK', id, 0}
  for _, f in ipairs(fresh) do remember(f[1], f[2], f[3], bw * nb) end
  for _, r in ipairs(repeats) do
    remember(r[1], r[2], r[3], bw * nb)
    answer[#answer + 1] = r[4]
    answer[#answer + 1] = r[3]
  end
  redis.call('HINCRBY', P .. 'c', 'bytes', size)
  redis.call('HINCRBY', P .. 'c', 'appended', size)
  redis.call('HINCRBY', P .. 'c', 'accepted', A[2])
  redis.call('HINCRBY', P .. 'c', 'inflight', A[2])
  local seq = redis.call('HINCRBY', P .. 'c', 'seq', 1)
  answer[3] = seq
  redis.call('HINCRBY', T .. 'c', 'bytes', size)
  if rps then
    local tat, rem = charge(now, tonumber(c[2] or 0), tonumber(c[3] or 0), tonumber(A[2]), rps)
    redis.call('HSET', T .. 'c', 'rtat', int(tat), 'rrem', int(rem))
  end
  if bps then
    local tat, rem = charge(now, tonumber(c[4] or 0), tonumber(c[5] or 0), tonumber(A[3]), bps)
    redis.call('HSET', T .. 'c', 'btat', int(tat), 'brem', int(rem))
  end
  -- Only while somebody holds the lease: a PUBLISH is replicated even when nobody listens.
  if redis.call('EXISTS', P .. 't') == 1 then
    redis.pcall('PUBLISH', P .. 'l', int(seq) .. ':' .. table.concat(named, ',') .. ':' .. A[4])
  end
  return answer
end

-- lw_ack  KEYS: q   ARGV: group, k, id1..idk, size1..sizek, accepted1..acceptedk   (k <= 2000)
-- Answers how many entries it deleted; one that is gone already (delivered again) counts nothing twice.
local function ack(K, A)
  local P = string.sub(K[1], 1, -2)
  local T = string.match(P, '^(.*:)%d+:$')
  local k, deleted, bytes, records = tonumber(A[2]), 0, 0, 0
  redis.call('XACK', K[1], A[1], unpack(A, 3, k + 2))
  for i = 1, k do
    if redis.call('XDEL', K[1], A[2 + i]) == 1 then
      deleted = deleted + 1
      bytes = bytes + tonumber(A[2 + k + i])
      records = records + tonumber(A[2 + 2 * k + i])
    end
  end
  if deleted > 0 then
    redis.call('HINCRBY', P .. 'c', 'bytes', int(0 - bytes))
    redis.call('HINCRBY', P .. 'c', 'inflight', int(0 - records))
    redis.call('HINCRBY', T .. 'c', 'bytes', int(0 - bytes))
  end
  return deleted
end

-- One stream: {entries, bytes, appended, pending, id of the oldest entry}, or {why it cannot be asked, ...}.
local function sample(q, group)
  local P = string.sub(q, 1, -2)
  local n = redis.pcall('XLEN', q)
  local c = redis.pcall('HMGET', P .. 'c', 'bytes', 'appended')
  local p = redis.pcall('XPENDING', q, group)
  if p.err and string.find(p.err, 'NOGROUP', 1, true) then p = {0} end  -- no such stream: nothing waits
  local refused = type(n) == 'table' and n.err or c.err or p.err
  if refused then return {refused, 0, 0, 0, ''} end
  local oldest = ''
  if n > 0 then
    -- Entries are handed out in their order. The block itself goes no further than here.
    oldest = p[2] or redis.call('XRANGE', q, '-', '+', 'COUNT', 1)[1][1]
  end
  return {n, c[1] or 0, c[2] or 0, p[1], oldest}
end

-- lw_samples  KEYS: q...   ARGV: group
-- Answers: the server's clock in ms, then five values a stream, as `sample` returns them.
local function samples(K, A)
  local t = redis.call('TIME')
  local answer = {int(tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000))}
  for _, q in ipairs(K) do
    for _, value in ipairs(sample(q, A[1])) do answer[#answer + 1] = value end
  end
  return answer
end

redis.register_function{function_name='lw_append', callback=append}
redis.register_function{function_name='lw_ack', callback=ack, flags={'allow-oom'}}
redis.register_function{function_name='lw_samples', callback=samples, flags={'no-writes', 'allow-oom'}}
redis.register_function{function_name='lw_version', callback=function() return 'logweir-3' end,
  flags={'no-writes', 'allow-stale', 'allow-oom'}}
