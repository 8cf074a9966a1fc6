"""The journal's functions against a model in plain Python: any history, the same answers and state.

A driver makes thousands of random steps from a seed: appends of several requests with keys that
are used again, for the same body or another; acks, given twice; limits and states that change;
time that passes; markers that are lost. After each step answer and counters are compared, and now
and then everything that is stored.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
import world

from logweir.backends import journal
from logweir.core import names
from logweir.core.names import PipelineId

STEPS = 600
LOOK_EVERY = 100
US = 1_000_000
BUCKET_S = 1_000_000_000
"""So wide that no bucket ends while a test runs; time passes when the test says so."""

BUCKETS = 3
SHARDS = 4
KEYS = [bytes([number, number * 37 % 256]) * 8 for number in range(12)]
STATES = [*["active"] * 25, "readonly", "deleting", "provisioning"]


class Asked(msgspec.Struct, frozen=True):
    """A request of an append: its key, if any, and the fingerprint of its body."""

    key: bytes
    fingerprint: bytes


class Append(msgspec.Struct, frozen=True):
    uuid: bytes
    accepted: int
    size_bytes: int
    payload: bytes
    requests: list[Asked]

    def arguments(self) -> list[Any]:
        flat: list[Any] = [
            self.uuid,
            self.accepted,
            self.size_bytes,
            self.payload,
            len(self.requests),
        ]
        for index, one in enumerate(self.requests):
            if one.key:
                flat += [one.key, one.fingerprint, index]
        return flat


class Stored(msgspec.Struct, frozen=True):
    """An entry, without its id."""

    uuid: bytes
    accepted: int
    repeats: frozenset[int]
    payload: bytes


class Line:
    """The model of one pipeline. `markers` by age: the newest bucket is the first."""

    def __init__(self) -> None:
        self.state = "active"
        self.is_set_up = True
        self.entries: dict[bytes, Stored] = {}
        self.markers: list[dict[bytes, bytes]] = [{} for _ in range(BUCKETS + 2)]
        self.accepted = self.inflight = self.seq = self.appended = 0

    @property
    def size_bytes(self) -> int:
        return sum(len(one.payload) for one in self.entries.values())

    def found(self, key: bytes) -> bytes | None:
        return next((one[key] for one in self.markers[:BUCKETS] if key in one), None)


class Rate(msgspec.Struct):
    """One of a tenant's rates: what is allowed a second, and how far it is spent (us, rest)."""

    allowed: int | None = None
    tat: int = 0
    rest: int = 0

    def wait(self, now: int, burst: int) -> int:
        return max(0, self.tat - now - burst) if self.allowed else 0

    def charge(self, now: int, cost: int) -> None:
        if self.allowed:
            whole, self.rest = divmod(cost * US + self.rest, self.allowed)
            self.tat = max(self.tat, now) + whole


class Model:
    """What the functions should do. Times are the server's, in microseconds."""

    def __init__(self, pipelines: list[PipelineId]) -> None:
        self.state = "active"
        self.max_bytes: int | None = None
        self.is_over = False
        self.burst = 2 * US
        self.records, self.bytes = Rate(), Rate()
        self.lines = {one: Line() for one in pipelines}

    def append(self, pipeline: PipelineId, of: Append, now: int) -> list[Any]:
        """The answer, and what an entry that goes in is."""
        line = self.lines[pipeline]
        if not line.is_set_up:
            return [b"NOMETA"]
        for state in (self.state, line.state):
            if state != "active":
                return [b"STATE", state.encode()]
        keyed = [(at, one, line.found(one.key)) for at, one in enumerate(of.requests) if one.key]
        repeats = {at: found for at, one, found in keyed if found and found[:8] == one.fingerprint}
        conflicts = [at for at, one, found in keyed if found and found[:8] != one.fingerprint]
        flat = [part for at, found in repeats.items() for part in (b"%d" % at, found)]
        if conflicts:
            return [b"CONFLICT", *(b"%d" % at for at in conflicts)]
        if len(repeats) == len(of.requests):
            self._remember(line, of, repeats)
            return [b"DUP", *flat]
        if self.is_over:
            return [b"STORED"]
        in_buffer = sum(one.size_bytes for one in self.lines.values())
        if self.max_bytes is not None and len(of.payload) > self.max_bytes:
            return [b"LARGE", b"%d" % self.max_bytes]
        if self.max_bytes is not None and in_buffer + len(of.payload) > self.max_bytes:
            return [b"FULL"]
        wait = max(one.wait(now, self.burst) for one in (self.records, self.bytes))
        if wait:
            return [b"RATE", b"%d" % wait]
        self._remember(line, of, repeats)
        line.accepted += of.accepted
        line.inflight += of.accepted
        line.seq += 1
        line.appended += len(of.payload)
        self.records.charge(now, of.accepted)
        self.bytes.charge(now, of.size_bytes)
        return [
            b"OK",
            Stored(of.uuid, of.accepted, frozenset(repeats), of.payload),
            line.seq,
            *flat,
        ]

    def _remember(self, line: Line, of: Append, repeats: dict[int, bytes]) -> None:
        for at, one in enumerate(of.requests):
            if one.key:
                fresh = one.fingerprint + of.uuid + b"%d" % at
                line.markers[0][one.key] = repeats.get(at, fresh)

    def ack(self, pipeline: PipelineId, ids: list[bytes]) -> int:
        line = self.lines[pipeline]
        gone = [line.entries.pop(one) for one in ids if one in line.entries]
        line.inflight -= sum(one.accepted for one in gone)
        return len(gone)


class Drive:
    """Random steps, done to the model and to the server."""

    def __init__(self, tenant: world.Tenant, seed: int) -> None:
        self.tenant = tenant
        self.chance = random.Random(seed)
        self.pipelines = [one.id for one in tenant.pipelines.values()]
        self.model = Model(self.pipelines)
        self.gone: list[bytes] = []
        self.answers: dict[bytes, int] = {}

    def key(self, pipeline: PipelineId, name: str) -> str:
        return names.journal_pipeline(self.tenant.id, pipeline) + name

    def tenant_key(self, name: str) -> str:
        return names.journal_tenant(self.tenant.id) + name

    async def begin(self) -> None:
        await self.tenant.redis.hset(self.tenant_key("m"), mapping={"max_bytes": ""})
        for one in self.pipelines:
            await self.set_up(one)

    async def set_up(self, pipeline: PipelineId) -> None:
        fields = {"state": "active", "bw": BUCKET_S, "nb": BUCKETS, "shards": SHARDS}
        await self.tenant.redis.hset(self.key(pipeline, "m"), mapping=fields)
        self.model.lines[pipeline].is_set_up, self.model.lines[pipeline].state = True, "active"

    async def step(self) -> None:
        pipeline = self.chance.choice(self.pipelines)
        if not self.model.lines[pipeline].is_set_up and self.chance.random() < 0.1:
            await self.set_up(pipeline)
        steps = [
            (self.append, 64),
            (self.ack, 16),
            (self.limit, 4),
            (self.wait, 8),
            (self.lose_markers, 3),
            (self.change_state, 3),
            (self.tear_down, 1),
        ]
        [step] = self.chance.choices(
            [one for one, _ in steps], weights=[weight for _, weight in steps]
        )
        await step(pipeline)

    # ---- steps -------------------------------------------------------------------------------

    def an_append(self) -> Append:
        chance = self.chance
        asked = [
            Asked(
                chance.choice(KEYS) if chance.random() < 0.75 else b"",
                bytes(7) + bytes([1 if chance.random() < 0.9 else 2]),
            )
            for _ in range(chance.choice([1, 1, 2, 4]))
        ]
        return Append(
            chance.randbytes(16),
            chance.randrange(60),
            chance.randrange(1, 5000),
            chance.randbytes(chance.choice([0, 10, 100, 300])),
            asked,
        )

    async def append(self, pipeline: PipelineId) -> None:
        of = self.an_append()
        async with self.tenant.redis.pipeline(transaction=True) as pipe:
            pipe.execute_command("TIME")
            pipe.execute_command("FCALL", "lw_append", 1, self.key(pipeline, "q"), *of.arguments())
            pipe.execute_command("TIME")
            pipe.hgetall(self.tenant_key("c"))
            before, answer, after, counted = await pipe.execute()
        found = [part if isinstance(part, int) else bytes(part) for part in answer]
        self.answers[found[0]] = self.answers.get(found[0], 0) + 1
        bounds = [int(s) * US + int(us) for s, us in (before, after)]
        now = self.moment(of, found, counted, bounds)
        expected = self.model.append(pipeline, of, now)
        if found[0] == b"OK":
            entry_id, found[1] = found[1], None
            stored, expected[1] = expected[1], None
            self.model.lines[pipeline].entries[entry_id] = stored
        assert found == expected

    def moment(
        self, of: Append, found: list[Any], counted: dict[bytes, bytes], bounds: list[int]
    ) -> int:
        """When the server was asked: between two looks at its clock, and as its answer says."""
        model, first = self.model, bounds[0]
        if found[0] == b"RATE":
            spent = [one.tat for one in (model.records, model.bytes) if one.allowed]
            first = max(spent) - model.burst - int(found[1])
        elif found[0] == b"OK":
            rates = (
                (model.records, b"rtat", of.accepted),
                (model.bytes, b"btat", of.size_bytes),
            )
            for rate, name, cost in rates:
                if rate.allowed and rate.tat < bounds[1]:
                    grown = (cost * US + rate.rest) // rate.allowed
                    first = max(int(counted[name]) - grown, bounds[0])
        assert bounds[0] <= first <= bounds[1], "the clock of the answer"
        return first

    async def ack(self, pipeline: PipelineId) -> None:
        line = self.model.lines[pipeline]
        ids = self.chance.sample(sorted(line.entries), min(len(line.entries), 6))
        ids += self.chance.sample(self.gone, min(len(self.gone), 2))
        ids += ids[: self.chance.randrange(2)]
        if not ids:
            return
        entries = [self._entry(line, one) for one in ids]
        answer = await self.tenant.redis.fcall(
            "lw_ack",
            1,
            self.key(pipeline, "q"),
            names.CONSUMER_GROUP,
            len(ids),
            *ids,
            *[len(one.payload) for one in entries],
            *[one.accepted for one in entries],
        )
        assert answer == self.model.ack(pipeline, ids)
        self.gone += ids

    def _entry(self, line: Line, entry_id: bytes) -> Stored:
        return line.entries.get(entry_id) or Stored(b"", 999, frozenset(), bytes(999))

    async def limit(self, _: PipelineId) -> None:
        chance, model = self.chance, self.model
        model.max_bytes = chance.choice([None, 250, 300, 800])
        model.records.allowed = chance.choice([None, None, None, 1, 7, 1000])
        model.bytes.allowed = chance.choice([None, None, None, 3, 10_007])
        burst_s = chance.choice([None, 0, 1, 5])
        model.burst = (2 if burst_s is None else burst_s) * US
        model.is_over = chance.random() < 0.1
        fields = {
            "stored": "over" if model.is_over else "",
            "max_bytes": model.max_bytes,
            "rps": model.records.allowed,
            "bps": model.bytes.allowed,
            "burst_s": burst_s,
        }
        said = {name: "" if value is None else value for name, value in fields.items()}
        await self.tenant.redis.hset(self.tenant_key("m"), mapping=said)

    async def wait(self, pipeline: PipelineId) -> None:
        """Time passes: debts lie further back, and markers are a bucket older."""
        passed = self.chance.choice([1, 1000, 60 * US, 10_000 * US])
        for rate, name in ((self.model.records, "rtat"), (self.model.bytes, "btat")):
            if await self.tenant.redis.hexists(self.tenant_key("c"), name):
                rate.tat -= passed
                await self.tenant.redis.hincrby(self.tenant_key("c"), name, -passed)
        if self.chance.random() < 0.3:
            line = self.model.lines[pipeline]
            line.markers = [{}, *line.markers[:-1]]
            for bucket, shard in sorted(await self.buckets(pipeline)):
                new = f"i:{bucket - 1}:{shard}"
                await self.tenant.redis.rename(
                    self.key(pipeline, f"i:{bucket}:{shard}"), self.key(pipeline, new)
                )

    async def lose_markers(self, pipeline: PipelineId) -> None:
        for bucket, shard in await self.buckets(pipeline):
            if self.chance.random() < 0.5:
                await self.tenant.redis.delete(self.key(pipeline, f"i:{bucket}:{shard}"))
                age, markers = await self.age(bucket), self.model.lines[pipeline].markers
                if age < len(markers):
                    markers[age] = {k: v for k, v in markers[age].items() if shard_of(k) != shard}

    async def change_state(self, pipeline: PipelineId) -> None:
        self.model.state = self.chance.choice(STATES)
        self.model.lines[pipeline].state = self.chance.choice(STATES)
        await self.tenant.redis.hset(self.tenant_key("m"), "state", self.model.state)
        line = self.model.lines[pipeline]
        if line.is_set_up:
            await self.tenant.redis.hset(self.key(pipeline, "m"), "state", line.state)

    async def tear_down(self, pipeline: PipelineId) -> None:
        await self.tenant.redis.delete(self.key(pipeline, "m"))
        self.model.lines[pipeline].is_set_up = False

    # ---- looks -------------------------------------------------------------------------------

    async def buckets(self, pipeline: PipelineId) -> list[tuple[int, int]]:
        """The hashes of markers: bucket and shard, the oldest first."""
        pattern = self.key(pipeline, "i:*").replace("{", "[{]")
        found = [one.decode().rsplit(":", 2)[1:] for one in await self.tenant.redis.keys(pattern)]
        return sorted((int(bucket), int(shard)) for bucket, shard in found)

    async def age(self, bucket: int) -> int:
        seconds, _ = await self.tenant.redis.time()
        return int(seconds // BUCKET_S - bucket)

    async def check_counters(self) -> None:
        in_buffer = 0
        for pipeline, line in self.model.lines.items():
            counted = await self.tenant.redis.hgetall(self.key(pipeline, "c"))
            numbers = {name.decode(): int(value) for name, value in counted.items()}
            expected = {
                "bytes": line.size_bytes,
                "accepted": line.accepted,
                "inflight": line.inflight,
                "seq": line.seq,
                "appended": line.appended,
            }
            assert {name: numbers.get(name, 0) for name in expected} == expected
            in_buffer += line.size_bytes
        found = await self.tenant.redis.hget(self.tenant_key("c"), "bytes")
        assert int(found or 0) == in_buffer

    async def check_all(self) -> None:
        for pipeline, line in self.model.lines.items():
            stream = self.key(pipeline, "q")
            raw = await journal.command(self.tenant.redis, "XRANGE", stream, "-", "+")
            found = {
                one.id.encode(): Stored(one.uuid, one.accepted, one.repeats, one.payload)
                for one in journal.entries_of(raw)
            }
            assert found == line.entries
            assert list(found) == list(line.entries), "in the order of appends"
            markers: list[dict[bytes, bytes]] = [{} for _ in line.markers]
            for bucket, shard in await self.buckets(pipeline):
                key = self.key(pipeline, f"i:{bucket}:{shard}")
                assert await self.tenant.redis.ttl(key) > 0
                age = await self.age(bucket)
                if age < len(markers):
                    markers[age] |= await self.tenant.redis.hgetall(key)
            assert markers == line.markers


def shard_of(key: bytes) -> int:
    return (key[0] * 256 + key[1]) % SHARDS


@pytest.mark.parametrize("seed", range(4))
async def test_any_history_of_appends_and_acks_is_as_the_model_says(
    make_journal_tenant, each_journal, seed
):
    tenant = await make_journal_tenant(each_journal, pipelines=("default", "audit"))
    drive = Drive(tenant, seed)
    await drive.begin()

    for number in range(STEPS):
        await drive.step()
        await drive.check_counters()
        if number % LOOK_EVERY == 0:
            await drive.check_all()
    await drive.check_all()

    assert min(drive.answers[name] for name in (b"OK", b"DUP", b"CONFLICT", b"FULL", b"RATE")) > 2
