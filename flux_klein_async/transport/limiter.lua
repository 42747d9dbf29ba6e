-- One exchange between a process and what the processes of an account share. Runs whole, on the server's clock.
--
-- KEYS: 1 leases: a sorted set, process -> when its lease ends; 2 parts: a hash, process -> JSON of what it may use and
-- wants; 3 the common state as JSON, and the channel on which processes are woken. ARGV[1]: the report, as JSON.
--
-- A process may use its parts (slots, submits and polls a second) without asking. What it may use counts until it has
-- said that it uses less, so that the parts of all processes never add up to more than the limits.
local leases, parts, common = KEYS[1], KEYS[2], KEYS[3]
local report = cjson.decode(ARGV[1])
local me = report.process

if report.leaves then
  redis.call('ZREM', leases, me)
  redis.call('HDEL', parts, me)
  return '{}'
end

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local FORGET = 3600000 -- milliseconds after which an account that nobody uses leaves nothing behind
local news = false

for _, dead in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', string.format('%.6f', now))) do
  redis.call('ZREM', leases, dead)
  redis.call('HDEL', parts, dead)
end

local state = redis.call('GET', common)
if state then
  state = cjson.decode(state)
else -- a new server, or one that lost its data: for a moment others may have parts that it does not know of
  state = {epoch = me, settled = now + report.settle, fraction = 1, cut_at = 0, price = 1, raised_at = 0, demand = 0,
           counted_at = now, holds = {}}
end
local late = not redis.call('ZSCORE', leases, me)
if report.epoch ~= '' and (late or report.epoch ~= state.epoch) then
  -- It was silent, or lost its data: others may be late too, so nobody gets more until each has had its say
  state.settled = math.max(state.settled, now + report.lease)
end

-- Who lives: in an order that shifts every few seconds, so that a rest which cannot be divided goes round
local mine = {process = me, may = report.may, want = report.want, taken = report.taken}
local all, in_flight = {mine}, report.taken
local known = redis.call('HGETALL', parts)
for i = 1, #known, 2 do
  if known[i] ~= me then
    local other = cjson.decode(known[i + 1])
    other.process = known[i]
    all[#all + 1] = other
    in_flight = in_flight + other.taken
  end
end
table.sort(all, function(a, b) return a.process < b.process end)
local rank = 0
for i, one in ipairs(all) do
  if one == mine then rank = i - 1 end
  one.order = (i + math.floor(now / 5)) % #all
end

-- Refusals halve the generations in flight and double the price of a poll, once for each wave; answers undo it slowly
local most = report.limits.in_flight
if report.refused.submit and now - state.cut_at >= 1 then
  local base = math.min(most * state.fraction, in_flight > 0 and in_flight or most)
  state.fraction, state.cut_at, news = math.max(1, base / 2) / most, now, true
end
if report.refused.read and now - state.raised_at >= 1 then
  state.price, state.raised_at, news = math.min(64, state.price * 2), now, true
end
state.fraction = math.min(1, state.fraction + 0.1 * (report.served.submit or 0) / most)
state.price = math.max(1, state.price * 0.95 ^ (report.served.read or 0))
state.demand = state.demand * math.exp(state.counted_at - now) + report.demand
state.counted_at = now

for kind, seconds in pairs(report.holds) do
  if now + seconds > (state.holds[kind] or 0) + 0.05 then
    state.holds[kind], news = now + seconds, true
  end
end

-- A part of one limit: what it wants, or an even part of what those who want less leave over
local function part(name, limit, whole)
  table.sort(all, function(a, b)
    if a.want[name] ~= b.want[name] then return a.want[name] < b.want[name] end
    return a.order < b.order
  end)
  local left, others, wanting, fair = limit, 0, 0, 0
  for i, one in ipairs(all) do
    local even = left / (#all - i + 1)
    local given = math.min(one.want[name], whole and math.floor(even) or even)
    left = left - given
    if one.want[name] > 0 then wanting = wanting + 1 end
    if one == mine then fair = given else others = others + one.may[name] end
  end
  if not whole and mine.want[name] > 0 then fair = fair + left / wanting end
  local may = report.may[name]
  local free = now < state.settled and may or limit - others
  return math.min(fair, math.max(free, may))
end

local reply = {epoch = state.epoch, live = #all, rank = rank, holds = {}, parts = {}}
reply.parts.in_flight = part('in_flight', math.floor(most * state.fraction), true)
for _, name in ipairs({'submit', 'read'}) do
  local limit = report.limits[name]
  if limit then -- less one turn a second for each process, which may fall anywhere in that second
    reply.parts[name] = part(name, math.max(limit - #all, 0.95 * limit), false)
  end
end
for name, given in pairs(reply.parts) do mine.may[name] = math.max(mine.may[name], given) end

local crowding = report.limits.read and state.demand / report.limits.read or 0
reply.price = math.min(1000000, math.max(1, crowding * crowding) * state.price)
for kind, until_ in pairs(state.holds) do
  if until_ > now then reply.holds[kind] = until_ - now end
end

mine.process, mine.order = nil, nil
redis.call('ZADD', leases, string.format('%.6f', now + report.lease), me)
redis.call('HSET', parts, me, cjson.encode(mine))
redis.call('SET', common, cjson.encode(state), 'PX', FORGET)
redis.call('PEXPIRE', leases, FORGET)
redis.call('PEXPIRE', parts, FORGET)
if news then redis.call('PUBLISH', common, me) end
return cjson.encode(reply)
