"""The journal's functions, on Valkey and on Redis: what goes in, what is refused, what counts."""

from __future__ import annotations

import asyncio
import random
import secrets
import time

import pytest
import world

from logweir.backends import journal, provision, redis_client
from logweir.core import errors, ids, names
from logweir.core.binding import Login


@pytest.fixture
async def tenant(make_journal_tenant, each_journal):
    return await make_journal_tenant(each_journal)


@pytest.fixture
async def appender(tenant):
    return tenant.appender()


@pytest.fixture
async def reader(tenant):
    return tenant.journal_reader()


def keyed(index: int, key: str, fingerprint: int = 1) -> journal.KeyedRequest:
    return journal.KeyedRequest(index, key.encode().ljust(16, b"."), fingerprint)


async def append(tenant, payload: bytes = b"block", *keyed_requests, uuid: bytes = b"", **counts):
    """Append a block of one request; `counts` are those of `Appender.append`."""
    counts = {"accepted": 1, "size_bytes": 10, "requests": 1, "keyed": keyed_requests} | counts
    pipeline = counts.pop("pipeline", tenant.pipeline)
    door = counts.pop("door", None) or tenant.appender()
    return await door.append(pipeline, uuid or world.new_uuid(), payload, **counts)


async def counters(tenant, pipeline=None) -> journal.Counters:
    return await journal.counters(tenant.redis, tenant.id, pipeline or tenant.pipeline)


async def entries(tenant) -> list[journal.Entry]:
    return journal.entries_of(
        await journal.command(tenant.redis, "XRANGE", key(tenant, "q"), "-", "+")
    )


def key(tenant, name: str) -> str:
    return names.journal_pipeline(tenant.id, tenant.pipeline) + name


async def set_limits(tenant, **limits) -> None:
    await tenant.redis.hset(names.journal_tenant(tenant.id) + "m", mapping=limits)


async def until(true, wait_s: float = 5.0) -> None:
    async with asyncio.timeout(wait_s):
        while not await true():
            await asyncio.sleep(0.02)


async def test_an_entry_holds_what_was_appended(tenant, reader):
    payload = secrets.token_bytes(100_000)
    uuid = world.new_uuid()

    answer = await append(tenant, payload, uuid=uuid, accepted=7)

    (entry,) = (await reader.read([tenant.pipeline], 10, 0.01))[tenant.pipeline]
    assert answer == journal.Appended({})
    assert (entry.uuid, entry.payload, entry.accepted) == (uuid, payload, 7)
    assert entry.repeats == frozenset()
    assert abs(journal.time_ms(entry.id) - time.time() * 1000) < 10_000


async def test_counters_go_up_by_an_append_and_down_by_its_ack(tenant, reader):
    await append(tenant, b"a" * 100, accepted=3)
    await append(tenant, b"b" * 50, accepted=4)
    first, _ = (await reader.read([tenant.pipeline], 10, 0.01))[tenant.pipeline]
    full = await counters(tenant)

    await reader.ack(tenant.pipeline, [first])

    assert full == journal.Counters(bytes=150, accepted=7, inflight=7)
    assert await counters(tenant) == journal.Counters(bytes=50, accepted=7, inflight=4)
    assert await reader.backlog(tenant.pipeline) == 1


async def test_an_ack_given_twice_counts_once(tenant, reader):
    await append(tenant, b"a" * 100)
    (entry,) = (await reader.read([tenant.pipeline], 10, 0.01))[tenant.pipeline]

    for _ in range(3):
        await reader.ack(tenant.pipeline, [entry])
    await reader.ack(tenant.pipeline, [entry, entry])

    assert await counters(tenant) == journal.Counters(bytes=0, accepted=1, inflight=0)


async def test_counters_follow_any_order_of_appends_and_acks(tenant, appender, reader):
    chance = random.Random(7)
    waiting, gone = [], []
    size_bytes = accepted = inflight = 0
    for _ in range(120):
        if chance.random() < 0.6 or not waiting:
            payload, count = bytes(chance.randrange(200)), chance.randrange(5)
            await append(tenant, payload, accepted=count, door=appender)
            waiting += (await reader.read([tenant.pipeline], 10, 0.01))[tenant.pipeline]
            size_bytes, accepted, inflight = (
                size_bytes + len(payload),
                accepted + count,
                inflight + count,
            )
        else:
            done = waiting.pop(chance.randrange(len(waiting)))
            again = chance.sample(gone, min(2, len(gone)))
            await reader.ack(tenant.pipeline, [*again, done])
            gone.append(done)
            size_bytes, inflight = size_bytes - len(done.payload), inflight - done.accepted

    assert await counters(tenant) == journal.Counters(size_bytes, accepted, inflight)
    assert await reader.backlog(tenant.pipeline) == len(waiting)


async def test_a_tenants_bytes_are_those_of_all_its_pipelines(make_journal_tenant, each_journal):
    tenant = await make_journal_tenant(each_journal, pipelines=("default", "audit"))
    for number, one in enumerate(tenant.pipelines.values(), start=1):
        await append(tenant, bytes(100 * number), pipeline=one.id)

    assert await tenant.redis.hget(names.journal_tenant(tenant.id) + "c", "bytes") == b"300"
    assert (await counters(tenant)).bytes == 100


async def test_numbers_of_appends_rise_by_one(tenant):
    for _ in range(3):
        await append(tenant)
    await append(tenant, b"", keyed(0, "k"))
    await append(tenant, b"", keyed(0, "k"))

    assert await tenant.redis.hget(key(tenant, "c"), "seq") == b"4"


async def test_thousands_of_entries_are_acknowledged_in_one_call(tenant, reader):
    count = 2 * journal.ACK_BATCH + 100
    async with tenant.redis.pipeline(transaction=False) as pipe:
        for _ in range(count):
            pipe.fcall("lw_append", 1, key(tenant, "q"), world.new_uuid(), 2, 1, b"xyz", 1)
        await pipe.execute()
    found = (await reader.read([tenant.pipeline], count, 0.01))[tenant.pipeline]

    await reader.ack(tenant.pipeline, found)

    assert len(found) == count
    assert await counters(tenant) == journal.Counters(bytes=0, accepted=2 * count, inflight=0)
    assert await reader.backlog(tenant.pipeline) == 0


# --- requests with a key --------------------------------------------------------------------------


async def test_a_repeat_gets_the_first_receipt_and_nothing_goes_in(tenant):
    uuid = world.new_uuid()
    await append(tenant, b"first", keyed(3, "k"), uuid=uuid, requests=4)
    before = await counters(tenant)

    answer = await append(tenant, b"again", keyed(0, "k"))

    assert answer == journal.AllRepeated({0: ids.Receipt(uuid, 3)})
    assert await counters(tenant) == before
    assert len(await entries(tenant)) == 1


async def test_repeats_among_others_are_named_in_the_entry(tenant):
    uuid = world.new_uuid()
    await append(tenant, b"first", keyed(0, "a"), keyed(1, "b"), uuid=uuid, requests=2)

    answer = await append(
        tenant, b"second", keyed(0, "a"), keyed(2, "new"), keyed(3, "b"), requests=4, accepted=9
    )

    assert answer == journal.Appended({0: ids.Receipt(uuid, 0), 3: ids.Receipt(uuid, 1)})
    assert [one.repeats for one in await entries(tenant)] == [set(), {0, 3}]
    assert (await counters(tenant)).accepted == 10, "the ledger drops repeats, the counter not"


async def test_a_request_without_a_key_is_never_a_repeat(tenant):
    await append(tenant, b"first", keyed(0, "k"))

    answer = await append(tenant, b"second", keyed(0, "k"), requests=2)

    assert isinstance(answer, journal.Appended)


async def test_one_conflict_keeps_the_whole_block_out_and_is_named(tenant):
    await append(tenant, b"first", keyed(0, "a", 1), keyed(1, "b", 1), requests=2)
    before = await counters(tenant)

    answer = await append(
        tenant,
        b"second",
        keyed(0, "new", 1),
        keyed(1, "a", 2),
        keyed(2, "b", 1),
        keyed(3, "b2", 1),
        requests=4,
    )

    assert answer == journal.Conflicts(frozenset({1}))
    assert await counters(tenant) == before
    fresh = await append(tenant, b"third", keyed(0, "new", 5))
    assert isinstance(fresh, journal.Appended), "the conflict's neighbour left no marker"


async def test_all_bytes_of_a_key_and_a_fingerprint_count(tenant):
    made = journal.KeyedRequest(0, b"\0\r\n'\xff" + bytes(11), 2**63 - 1)
    other = journal.KeyedRequest(0, b"\0\r\n'\xff" + bytes(10) + b"\1", 2**63 - 1)
    lower = journal.KeyedRequest(0, made.key, 2**63 - 2)

    answers = [await append(tenant, b"x", one) for one in (made, other, lower, made)]

    assert [type(one) for one in answers] == [
        journal.Appended,
        journal.Appended,
        journal.Conflicts,
        journal.AllRepeated,
    ]


async def set_marker_time(tenant, bucket_s: float, buckets: int) -> None:
    await tenant.redis.hset(key(tenant, "m"), mapping={"bw": bucket_s, "nb": buckets})


async def markers(tenant) -> list[str]:
    """The keys of the hashes that hold markers."""
    return sorted(
        one.decode() for one in await tenant.redis.keys(key(tenant, "i:*").replace("{", "[{]"))
    )


async def test_a_marker_is_gone_after_its_time(tenant):
    await set_marker_time(tenant, bucket_s=0.1, buckets=10)
    await append(tenant, b"x", keyed(0, "k", 1))
    assert isinstance(await append(tenant, b"x", keyed(0, "k", 2)), journal.Conflicts)

    async def is_gone() -> bool:
        return not await markers(tenant)

    await until(is_gone)
    assert isinstance(await append(tenant, b"x", keyed(0, "k", 2)), journal.Appended)


@pytest.mark.parametrize("age", range(provision.MARKER_BUCKETS + 1))
async def test_a_marker_counts_while_its_bucket_does_and_a_repeat_makes_it_new(tenant, age):
    uuid = world.new_uuid()
    await set_marker_time(tenant, bucket_s=86_400, buckets=provision.MARKER_BUCKETS)
    await append(tenant, b"x", keyed(0, "k"), uuid=uuid)
    (present,) = await markers(tenant)
    start, bucket, shard = present.rsplit(":", 2)
    await tenant.redis.rename(present, f"{start}:{int(bucket) - age}:{shard}")

    answer = await append(tenant, b"x", keyed(0, "k"))

    if age < provision.MARKER_BUCKETS:
        assert answer == journal.AllRepeated({0: ids.Receipt(uuid, 0)})
    else:
        assert answer == journal.Appended({})
    assert present in await markers(tenant)


async def test_markers_live_for_an_hour_and_stand_in_small_hashes(tenant, appender):
    await asyncio.gather(
        *(
            append(tenant, b"x", journal.KeyedRequest(0, secrets.token_bytes(16), 1), door=appender)
            for _ in range(50)
        )
    )

    found = await markers(tenant)
    lives_s = [await tenant.redis.ttl(one) for one in found]
    assert len(found) > 40, "they spread over the shards"
    assert all(3600 <= one <= 4800 for one in lives_s)


async def test_the_functions_leave_no_key_without_an_end_but_the_streams_and_counters(tenant):
    await append(tenant, b"x", keyed(0, "k"))

    prefix = names.journal_tenant(tenant.id)
    found = await tenant.redis.keys(prefix.replace("{", "[{]") + "*")
    lasting = {one.decode() for one in found if await tenant.redis.ttl(one) == -1}
    own = names.journal_pipeline(tenant.id, tenant.pipeline)
    assert lasting == {prefix + "m", prefix + "c", own + "q", own + "m", own + "c"}


# --- limits ---------------------------------------------------------------------------------------


async def test_a_full_buffer_refuses_to_the_byte_until_an_ack(tenant, reader):
    await set_limits(tenant, max_bytes=100)
    await append(tenant, bytes(60))
    with pytest.raises(errors.OverLimitError) as full:
        await append(tenant, bytes(41))
    await append(tenant, bytes(40))
    with pytest.raises(errors.OverLimitError):
        await append(tenant, bytes(1))

    (first, _) = (await reader.read([tenant.pipeline], 10, 0.01))[tenant.pipeline]
    await reader.ack(tenant.pipeline, [first])

    assert isinstance(await append(tenant, bytes(60)), journal.Appended)
    assert full.value.retry_after_s == 2.0
    assert (await counters(tenant)).bytes == 100


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        pytest.param({"max_bytes": 10}, errors.TooLargeError, id="it never fits"),
        pytest.param({"stored": "over"}, errors.OverLimitError, id="too much is stored"),
    ],
)
async def test_what_is_refused_leaves_nothing_behind(tenant, limits, error):
    await set_limits(tenant, **limits)
    with pytest.raises(error):
        await append(tenant, bytes(11), keyed(0, "k", 1))

    assert await counters(tenant) == journal.Counters()
    assert await markers(tenant) == []
    assert await entries(tenant) == []


@pytest.mark.parametrize("limits", [{"max_bytes": 50}, {"max_bytes": 10}, {"stored": "over"}])
async def test_a_repeat_is_answered_also_when_nothing_more_is_taken(tenant, limits):
    uuid = world.new_uuid()
    await append(tenant, bytes(50), keyed(0, "k"), uuid=uuid)
    await set_limits(tenant, **limits)

    assert await append(tenant, bytes(50), keyed(0, "k")) == journal.AllRepeated(
        {0: ids.Receipt(uuid, 0)}
    )


@pytest.mark.parametrize(
    ("limit", "cost"),
    [
        pytest.param({"rps": 10}, {"accepted": 100, "size_bytes": 1}, id="records"),
        pytest.param({"bps": 10}, {"accepted": 1, "size_bytes": 100}, id="bytes"),
    ],
)
async def test_a_request_is_charged_its_true_cost_and_the_next_one_waits(tenant, limit, cost):
    await set_limits(tenant, **limit)

    await append(tenant, **cost)
    with pytest.raises(errors.OverLimitError) as refused:
        await append(tenant, **cost)

    assert 7.0 < refused.value.retry_after_s <= 8.0, "10 s of cost less the burst of 2 s"
    assert (await counters(tenant)).accepted == cost["accepted"]


@pytest.mark.parametrize(
    ("limit", "cost", "spent"),
    [
        pytest.param({"rps": 10}, {"accepted": 20_000}, "rtat", id="half an hour of records"),
        pytest.param({"bps": 1000}, {"size_bytes": 32 << 20}, "btat", id="nine hours of bytes"),
        pytest.param({"rps": 1000}, {"accepted": 2_001}, "rtat", id="a millisecond"),
    ],
)
async def test_after_the_time_that_it_says_a_debt_is_over_and_not_much_sooner(
    tenant, limit, cost, spent
):
    counts = names.journal_tenant(tenant.id) + "c"
    await set_limits(tenant, **limit)
    await append(tenant, **{"accepted": 1, "size_bytes": 1} | cost)

    async def passes(wait_s: float) -> errors.OverLimitError | None:
        """Let time pass, as far as the debt knows, and try again."""
        await tenant.redis.hincrby(counts, spent, -round(wait_s * 1e6))
        try:
            await append(tenant, accepted=1, size_bytes=1)
        except errors.OverLimitError as error:
            return error
        return None

    first = await passes(0)
    early = None
    if first is not None and first.retry_after_s > 1:
        early = await passes(first.retry_after_s - 1)
        assert early is not None
        assert early.retry_after_s <= 1
    last = early or first

    assert last is None or await passes(last.retry_after_s) is None


async def test_a_rate_counts_over_all_pipelines_of_the_tenant(make_journal_tenant, each_journal):
    tenant = await make_journal_tenant(each_journal, pipelines=("default", "audit"))
    await set_limits(tenant, rps=1)
    await append(tenant, accepted=100)

    with pytest.raises(errors.OverLimitError):
        await append(tenant, pipeline=tenant.pipelines["audit"].id)


@pytest.mark.parametrize(
    ("rate", "costs"), [(7, [1, 2, 5]), (999_983, [500_000, 4_096_001, 70_001])]
)
async def test_charges_are_exact_to_the_last_microsecond_and_carry_the_rest(
    tenant, appender, rate, costs
):
    await set_limits(tenant, rps=rate, burst_s=10**6)
    sent = 0
    differences = set()
    for cost in costs * 5:
        await append(tenant, accepted=cost, door=appender)
        sent += cost
        charged = await tenant.redis.hmget(names.journal_tenant(tenant.id) + "c", ["rtat", "rrem"])
        until_us, rest = map(int, charged)
        assert 0 <= rest < rate
        differences.add(until_us * rate + rest - sent * 10**6)

    # A tenant that owes goes on to owe exactly what it sends: nothing is rounded away.
    assert len(differences) == 1


async def test_over_a_while_the_rate_is_what_it_says(tenant, appender):
    rate, cost = 1_000_003, 33_331
    await set_limits(tenant, rps=rate)
    before_us = await server_us(tenant)
    await append(tenant, accepted=cost, door=appender)
    begun_us, accepted = await server_us(tenant), cost
    asked_us, is_refused = begun_us, False
    while asked_us < begun_us + 1_000_000 or not is_refused:
        asked_us = await server_us(tenant)
        answers = await asyncio.gather(
            *(append(tenant, accepted=cost, door=appender) for _ in range(16)),
            return_exceptions=True,
        )
        accepted += cost * sum(isinstance(one, journal.Appended) for one in answers)
        is_refused = any(isinstance(one, errors.OverLimitError) for one in answers)
    ended_us = await server_us(tenant)

    least = rate * ((asked_us - begun_us) / 1e6 + 2)
    most = rate * ((ended_us - before_us) / 1e6 + 2) + cost
    assert 0.999 * least <= accepted <= most


async def server_us(tenant) -> int:
    seconds, micros = await tenant.redis.time()
    return seconds * 10**6 + micros


async def test_an_idle_tenant_saves_up_no_more_than_its_burst(tenant):
    await set_limits(tenant, rps=10)
    long_ago_us = await server_us(tenant) - 3600 * 10**6
    charged = names.journal_tenant(tenant.id) + "c"
    await tenant.redis.hset(charged, mapping={"rtat": long_ago_us, "rrem": 0})

    await append(tenant, accepted=100)

    with pytest.raises(errors.OverLimitError) as refused:
        await append(tenant)
    assert refused.value.retry_after_s > 7.0


# --- what is not open or not set up ---------------------------------------------------------------


@pytest.mark.parametrize("state", ["readonly", "deleting"])
@pytest.mark.parametrize("whose", ["tenant", "pipeline"])
async def test_a_closed_tenant_or_pipeline_takes_nothing_and_says_its_state(tenant, whose, state):
    at = names.journal_tenant(tenant.id) + "m" if whose == "tenant" else key(tenant, "m")
    await tenant.redis.hset(at, "state", state)

    with pytest.raises(errors.ForbiddenError, match=state):
        await append(tenant)

    assert await entries(tenant) == []


async def test_a_tenant_that_is_being_set_up_asks_to_come_back(tenant):
    await set_limits(tenant, state="provisioning")

    with pytest.raises(errors.UnavailableError, match="not set up"):
        await append(tenant)


@pytest.mark.parametrize("missing", ["the tenant's limits", "the pipeline's state", "the stream"])
async def test_what_is_not_set_up_asks_to_come_back_and_makes_no_stream(tenant, missing):
    at = {
        "the tenant's limits": names.journal_tenant(tenant.id) + "m",
        "the pipeline's state": key(tenant, "m"),
        "the stream": key(tenant, "q"),
    }[missing]
    await tenant.redis.unlink(at)

    with pytest.raises(errors.UnavailableError, match="not set up"):
        await append(tenant, b"x", keyed(0, "k"))

    assert await counters(tenant) == journal.Counters()
    assert await markers(tenant) == []
    assert not await tenant.redis.exists(at)


async def test_a_pipeline_that_nobody_made_is_not_set_up(tenant):
    with pytest.raises(errors.UnavailableError, match="not set up"):
        await append(tenant, pipeline=names.PipelineId(999_999))


async def test_provisioning_again_changes_nothing_that_ingest_and_collectors_wrote(tenant, reader):
    await append(tenant, b"x", keyed(0, "k"))
    before = await counters(tenant)

    for _ in range(2):
        await provision.provision_journal(
            tenant.redis, tenant.row, list(tenant.pipelines.values()), tenant.roots, tenant.limits
        )

    assert await counters(tenant) == before
    assert isinstance(await append(tenant, b"x", keyed(0, "k")), journal.AllRepeated)
    assert len((await reader.read([tenant.pipeline], 10, 0.01))[tenant.pipeline]) == 1


async def test_the_library_is_loaded_where_it_is_missing_or_of_another_version(
    make_journal_tenant, valkey
):
    tenant = await make_journal_tenant(valkey)
    other = journal.library().replace(f"return '{journal.LIBRARY_VERSION}'", "return 'other'")
    await tenant.redis.function_load(other, replace=True)
    await provision.bootstrap_journal(tenant.redis)
    assert await tenant.redis.fcall("lw_version", 0) == journal.LIBRARY_VERSION.encode()

    await tenant.redis.function_delete("logweir")
    with pytest.raises(errors.UnavailableError):
        await append(tenant)
    await provision.bootstrap_journal(tenant.redis)

    assert isinstance(await append(tenant), journal.Appended)


# --- the tail's channel ---------------------------------------------------------------------------


async def test_blocks_are_published_only_while_somebody_holds_the_lease(tenant, appender):
    tail = redis_client.client(tenant.journal_server, tenant.journal_login("tail"))
    listening = tail.pubsub()
    await listening.subscribe(key(tenant, "l"))
    await listening.get_message(timeout=5)

    await append(tenant, b"unheard", door=appender)
    await tail.set(key(tenant, "t"), "1", ex=30)
    await append(tenant, b"heard", keyed(0, "k"), door=appender)
    await append(tenant, b"both", keyed(0, "k"), keyed(1, "new"), requests=2, door=appender)
    await tenant.redis.unlink(key(tenant, "t"))
    await append(tenant, b"unheard", door=appender)
    await tail.set(key(tenant, "t"), "1", ex=30)
    await append(tenant, b"last", door=appender)

    heard = [(await listening.get_message(timeout=5))["data"] for _ in range(3)]
    assert heard == [b"2::heard", b"3:0:both", b"5::last"]
    await listening.aclose()
    await tail.aclose()


async def test_an_append_whose_publishing_is_denied_is_in_all_the_same(tenant, appender):
    user = tenant.journal_login("in").user
    await journal.command(tenant.redis, "ACL", "SETUSER", user, "resetchannels")
    await tenant.redis.set(key(tenant, "t"), "1")

    answer = await append(tenant, b"x", keyed(0, "k"), door=appender)

    assert answer == journal.Appended({})
    assert len(await entries(tenant)) == 1


# --- reading --------------------------------------------------------------------------------------


async def test_an_entry_is_handed_to_one_consumer_and_again_to_it_after_a_restart(tenant):
    first, second = tenant.journal_reader("c0"), tenant.journal_reader("c1")
    await append(tenant, b"x")
    (entry,) = (await first.read([tenant.pipeline], 10, 0.01))[tenant.pipeline]

    assert await second.read([tenant.pipeline], 10, 0.01) == {}
    assert await second.own_pending(tenant.pipeline, "0", 10) == []
    assert await first.own_pending(tenant.pipeline, "0", 10) == [entry]
    assert await first.own_pending(tenant.pipeline, entry.id, 10) == []
    assert await first.oldest_pending_ms(tenant.pipeline) == journal.time_ms(entry.id)


async def test_an_entry_of_a_lost_consumer_is_claimed_and_acknowledged_by_another(tenant):
    lost, other = tenant.journal_reader("c0"), tenant.journal_reader("c1")
    await append(tenant, b"x")
    await lost.read([tenant.pipeline], 10, 0.01)

    (entry,) = await other.claim(tenant.pipeline, 0, 10)
    await other.ack(tenant.pipeline, [entry])

    assert entry.payload == b"x"
    assert await lost.own_pending(tenant.pipeline, "0", 10) == []
    assert await other.oldest_pending_ms(tenant.pipeline) is None


async def test_an_entry_deleted_while_pending_is_only_acknowledged(tenant, reader):
    await append(tenant, b"x")
    (entry,) = (await reader.read([tenant.pipeline], 10, 0.01))[tenant.pipeline]
    await tenant.redis.xdel(key(tenant, "q"), entry.id)

    (empty,) = await reader.own_pending(tenant.pipeline, "0", 10)
    await reader.ack(tenant.pipeline, [empty])

    assert (empty.payload, empty.accepted) == (b"", 0)
    assert await reader.own_pending(tenant.pipeline, "0", 10) == []
    assert await counters(tenant) == journal.Counters(bytes=1, accepted=1, inflight=1)


async def test_a_wrong_password_is_an_error_that_names_no_password(tenant):
    door = journal.Appender(tenant.journal_server, Login("nobody", "hunter2"), tenant.id)

    with pytest.raises(journal.UnreachableError) as refused:
        await append(tenant, door=door)

    assert "hunter2" not in str(refused.value)
    assert refused.value.message == "The journal did not take the block."
    await door.close()
