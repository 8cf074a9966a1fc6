"""The live tail over real WebSockets, fed by real appends and drained by a real collector."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time

import msgspec
import psycopg
import pytest
import websockets
from builders import delivered, encode, record, records, request
from draining import collecting, drained
from serving import until
from tailing import (
    Producer,
    Watcher,
    append,
    append_payload,
    channel,
    drop_lease,
    exactly_once,
    kill_connections,
    listeners,
    opened,
    opened_slow,
    refusal,
    watching,
)

from logweir.backends import journal, logins, provision
from logweir.core import keys, names
from logweir.query import hub, live, seam, tail, tenants


@pytest.fixture
async def key(client, query_key) -> str:
    """A key that the role knows."""
    return query_key


# ---- history, then live ----------------------------------------------------------------------


async def test_a_tail_shows_what_is_stored_and_buffered_then_what_is_appended(role, tenant, key):
    await tenant.store_records(records(3))
    await append(tenant, ["buffered"])
    async with watching(role, key) as watcher:
        await watcher.until_live()
        await append(tenant, ["live 1", "live 2"])
        await watcher.until_seen("live 2")

    assert sorted(watcher.history) == ["buffered", "message 0", "message 1", "message 2"]
    assert watcher.live == ["live 1", "live 2"]


async def test_the_history_has_the_last_lines_of_journal_and_store_in_order(role, tenant, key):
    now_ns = time.time_ns()
    for text, age in (("5", 5), ("2", 2), ("4", 4)):
        await tenant.store_records([record(text, timestamp=now_ns - age * 10**9)])
    await append(tenant, ["3"], timestamp=now_ns - 3 * 10**9)
    await append(tenant, ["1"], timestamp=now_ns - 10**9)

    async with watching(role, key, limit=4) as watcher:
        await watcher.until_live()

    assert watcher.history == ["4", "3", "2", "1"]


async def test_a_block_that_is_stored_and_still_in_the_journal_is_shown_once(role, tenant, key):
    payload = encode(tenant.id, tenant.pipeline, [request(records(5))])
    await append_payload(tenant.appender(), tenant.pipeline, payload)
    await tenant.store().commit(
        tenant.pipeline, [delivered(payload)], now_ns=time.time_ns(), retention_days=30
    )

    async with watching(role, key) as watcher:
        await watcher.until_live()

    assert sorted(watcher.history) == [f"message {n}" for n in range(5)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_record_comes_once_over_the_seam_of_history_and_live(role, tenant, key, seed):
    rng = random.Random(seed)
    producer = Producer(tenant, seed)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(collecting(tenant.collector_binding(linger_s=0.05)))
        async with producer.running():
            watchers = []
            for _ in range(10):
                await asyncio.sleep(rng.random() * 0.15)
                limit = rng.choice([1, 7, 50, 400, 5000])
                watchers.append(await stack.enter_async_context(watching(role, key, limit=limit)))
            await watchers[-1].until_live()
        await producer.seen_by(*watchers)

        for watcher in watchers:
            exactly_once(producer, watcher)
        assert {bool(watcher.live) for watcher in watchers} == {True}


async def test_a_tail_shows_what_its_query_selects(role, tenant, key):
    async with watching(role, key, query='{service="cart"} |~ "even$" != "2 "') as watcher:
        await watcher.until_live()
        for n in range(6):
            await append(tenant, [f"{n} even", f"{n} odd"], service=["cart", "shop"][n > 4])
        await append(tenant, ["last even"], service="cart")
        await watcher.until_seen("last even")

    assert watcher.live == ["0 even", "1 even", "3 even", "4 even", "last even"]


async def test_a_key_of_a_pipeline_hears_that_pipeline_only(role, make_tenant, client_of):
    tenant = await make_tenant(pipelines=["default", "other"])
    other = tenant.pipelines["other"].id
    key = await tenant.api_key(keys.SCOPE_QUERY, other)
    await client_of(key)
    await append(tenant, ["old of default"])
    await append(tenant, ["old of other"], other)
    async with watching(role, key) as watcher:
        await watcher.until_live()
        await append(tenant, ["of default"])
        await append(tenant, ["of other"], other)
        await watcher.until_seen("of other")

    assert watcher.everything == ["old of other", "of other"]


async def test_records_before_the_start_are_left_out(role, tenant, key):
    now_ns = time.time_ns()
    async with watching(role, key, start="-1m") as watcher:
        await watcher.until_live()
        await append(tenant, ["late"], timestamp=now_ns - 120 * 10**9)
        await append(tenant, ["on time"])
        await watcher.until_seen("on time")

    assert watcher.everything == ["on time"]


async def test_requests_that_a_block_names_as_repeats_are_left_out(role, tenant, key):
    appender = tenant.appender()
    first, again, fresh = (
        request([record(t)], key=k) for t, k in (("a", "1"), ("a", "1"), ("b", "2"))
    )

    def keyed(*of):
        return [
            journal.KeyedRequest(index, one.key, one.fingerprint)
            for index, (one, _) in enumerate(of)
        ]

    async with watching(role, key) as watcher:
        await watcher.until_live()
        for of in ([first], [again, fresh]):
            await append_payload(
                appender, tenant.pipeline, encode(tenant.id, tenant.pipeline, of), keyed(*of)
            )
        await watcher.until_seen("b")
        async with watching(role, key) as second:
            await second.until_live()

    assert watcher.everything == ["a", "b"]
    assert sorted(second.history) == ["a", "b"]


async def test_frames_stay_below_what_clients_take_and_a_large_block_arrives_whole(
    role, tenant, key
):
    messages = [f"{n} " + "x" * 900 for n in range(5000)]
    async with opened(role, key, max_size=1 << 20) as socket:
        watcher = Watcher(socket)
        task = asyncio.create_task(watcher.read())
        await watcher.until_live()
        await append(tenant, messages)
        await watcher.until_seen(messages[-1])
        await socket.close()
        await task

    assert watcher.live == messages


# ---- what breaks -----------------------------------------------------------------------------


async def test_every_record_comes_once_when_connections_are_killed(role, tenant, key):
    producer = Producer(tenant)
    async with (
        collecting(tenant.collector_binding(linger_s=0.05)),
        watching(role, key, limit=5) as first,
        watching(role, key, limit=5, query='{} |= "even"') as even,
    ):
        await first.until_live()
        await even.until_live()
        async with producer.running():
            for _ in range(3):
                await asyncio.sleep(0.3)
                await kill_connections(tenant)
        await producer.append()
        if producer.sent % 2 == 0:
            await producer.append()
        await producer.seen_by(first, even)

    exactly_once(producer, first)
    assert producer.numbers(even.everything) == [n for n in range(producer.sent) if n % 2 == 0]


async def test_what_was_appended_and_stored_during_a_gap_comes_before_what_follows(
    role, tenant, key, monkeypatch
):
    monkeypatch.setattr(hub, "BACKOFF_S", 1.0)
    producer = Producer(tenant)
    async with watching(role, key) as watcher:
        await watcher.until_live()
        await producer.append(3)
        await producer.seen_by(watcher)
        await kill_connections(tenant)
        async with collecting(tenant.collector_binding(linger_s=0.01)):
            for _ in range(10):
                await producer.append(7)
            await drained(tenant)
        await producer.append(5)
        await producer.seen_by(watcher)

    assert producer.numbers(watcher.live) == list(range(producer.sent))


async def test_a_gap_brings_nothing_that_was_there_before_the_tail(role, tenant, key, monkeypatch):
    async with collecting(tenant.collector_binding(linger_s=0.01)):
        for n in range(10):
            await append(tenant, [f"stored {n}"])
        await drained(tenant)
    for n in range(10):
        await append(tenant, [f"buffered {n}"])
    async with watching(role, key, limit=1) as watcher:
        await watcher.until_live()
        await kill_connections(tenant)
        await append(tenant, ["new"])
        await watcher.until_seen("new")

    assert watcher.everything == ["buffered 9", "new"]


async def test_a_tail_that_opens_during_a_gap_begins_with_its_last_lines(
    role, tenant, key, monkeypatch
):
    monkeypatch.setattr(hub, "BACKOFF_S", 0.5)
    async with watching(role, key) as first:
        await first.until_live()
        await kill_connections(tenant)
        for n in range(10):
            await append(tenant, [f"during {n}"])
        async with watching(role, key, limit=1) as second:
            await second.until_live()
            await append(tenant, ["after"])
            await second.until_seen("after")
        await first.until_seen("after")

    assert first.everything == [*(f"during {n}" for n in range(10)), "after"]
    assert second.everything == ["during 9", "after"]


async def test_an_error_that_nobody_foresaw_ends_no_tail(role, tenant, key, monkeypatch):
    matching, failures = hub._matching, [ZeroDivisionError("once")]

    def fails_once(*given):
        if failures:
            raise failures.pop()
        return matching(*given)

    async with watching(role, key) as watcher:
        await watcher.until_live()
        monkeypatch.setattr(hub, "_matching", fails_once)
        await append(tenant, ["one"])
        await append(tenant, ["two"])
        await watcher.until_seen("two")

    assert failures == []
    assert watcher.live == ["one", "two"]


async def test_a_gap_is_read_whole_however_long_it_is(role, tenant, key, monkeypatch):
    monkeypatch.setattr("logweir.query.missed.ROUND_BYTES", 2000)
    monkeypatch.setattr(hub, "BACKOFF_S", 1.0)
    producer = Producer(tenant)
    async with watching(role, key) as watcher:
        await watcher.until_live()
        await kill_connections(tenant)
        for _ in range(60):
            await producer.append(3)
        await producer.seen_by(watcher)

    assert producer.numbers(watcher.live) == list(range(producer.sent))


async def test_every_record_comes_once_when_the_lease_lapses(role, tenant, key, monkeypatch):
    monkeypatch.setattr(hub, "RENEW_S", 0.2)
    producer = Producer(tenant)
    async with (
        collecting(tenant.collector_binding(linger_s=0.05)),
        watching(role, key) as watcher,
    ):
        await watcher.until_live()
        async with producer.running():
            for _ in range(8):
                await asyncio.sleep(0.1)
                await drop_lease(tenant)
            await asyncio.sleep(0.3)
        await producer.seen_by(watcher)

    exactly_once(producer, watcher)


async def test_a_lapsed_lease_is_noticed_though_nothing_follows(role, tenant, key, monkeypatch):
    monkeypatch.setattr(hub, "RENEW_S", 0.2)
    monkeypatch.setattr(seam, "LATE_S", 0.3)
    producer = Producer(tenant)
    async with watching(role, key) as watcher:
        await watcher.until_live()
        await drop_lease(tenant)
        await producer.append(3)
        await producer.seen_by(watcher)

    assert producer.numbers(watcher.live) == [0, 1, 2]


async def test_what_is_no_block_does_not_end_a_tail(role, tenant, key):
    client = tenant.redis
    stream = channel(tenant).removesuffix("l") + "q"
    async with watching(role, key) as watcher:
        await watcher.until_live()
        for data in (b"", b"x", b"1:2", b"x:y:z", b"7::not a block", b"8:0,x:", b"\xff" * 100):
            await client.publish(channel(tenant), data)
        await client.xadd(stream, {"v": 1, "u": b"short", "n": 1, "r": "", "b": b"garbage"})
        await client.xadd(stream, {"v": 1, "u": b"u" * 16, "n": 1, "r": "", "b": b"garbage"})
        await append(tenant, ["after garbage"])
        await watcher.until_seen("after garbage")
        await kill_connections(tenant)
        await append(tenant, ["after a gap"])
        await watcher.until_seen("after a gap")
        async with watching(role, key) as second:
            await second.until_live()

    assert watcher.live == ["after garbage", "after a gap"]
    assert sorted(second.history) == ["after a gap", "after garbage"]


async def test_a_damaged_segment_does_not_end_a_tail(role, tenant, key):
    await tenant.store_records(records(3))
    async with await psycopg.AsyncConnection.connect(tenant.conninfo("k")) as connection:
        await connection.execute("update segments set layout = 'nonsense'")
    await append(tenant, ["buffered"])
    async with watching(role, key) as watcher:
        await watcher.until_live()
        await kill_connections(tenant)
        await append(tenant, ["live"])
        await watcher.until_seen("live")

    assert watcher.everything == ["buffered", "live"]


# ---- slow and many clients -------------------------------------------------------------------


async def test_a_client_that_does_not_read_is_told_how_many_it_missed(
    role, tenant, key, monkeypatch
):
    monkeypatch.setattr(tail, "QUEUE_RECORDS", 2000)
    producer = Producer(tenant)
    async with opened_slow(role, key) as socket, watching(role, key) as fast:
        slow = Watcher(socket)
        while not slow.is_live:
            slow.take(json.loads(await socket.recv()))
        await fast.until_live()
        longest_s = 0.0
        for _ in range(24):
            began_s = time.monotonic()
            await producer.append(500, padding="x" * 1000)
            longest_s = max(longest_s, time.monotonic() - began_s)
            await fast.until_seen(producer.message(producer.sent - 1) + "x" * 1000)
        while len(slow.live) + slow.gap_records < producer.sent:
            slow.take(json.loads(await asyncio.wait_for(socket.recv(), 20)))

    assert producer.numbers(fast.live) == list(range(producer.sent))
    assert fast.gap_records == 0
    assert slow.gap_records > 0
    assert len(slow.live) + slow.gap_records == producer.sent
    assert producer.numbers(slow.live)[:500] == list(range(500))
    assert longest_s < 2


async def test_a_client_that_never_reads_gives_its_place_to_another(role, tenant, key, monkeypatch):
    monkeypatch.setattr(live, "SEND_TIMEOUT_S", 0.3)
    monkeypatch.setattr(tenants, "MAX_TAILS", 1)
    async with opened_slow(role, key) as socket:
        while "live" not in json.loads(await socket.recv()):
            pass
        for _ in range(12):
            await append(tenant, ["x" * 10_000] * 100)

        async def is_taken() -> bool:
            with contextlib.suppress(websockets.InvalidStatus):
                async with watching(role, key) as watcher:
                    await watcher.until_live()
                    return True
            return False

        await until(is_taken)


async def test_tails_of_a_tenant_share_one_subscription(role, tenant, key):
    async with (
        watching(role, key) as first,
        watching(role, key, query='{} |= "x"') as second,
    ):
        await first.until_live()
        await second.until_live()

        assert await listeners(tenant) == 1


async def test_a_tenant_has_a_bounded_number_of_tails(role, tenant, key, monkeypatch):
    monkeypatch.setattr(tenants, "MAX_TAILS", 2)
    async with watching(role, key), watching(role, key):
        answer = await refusal(role, key)

        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1

    async def is_taken() -> bool:
        with contextlib.suppress(websockets.InvalidStatus):
            async with watching(role, key) as watcher:
                await watcher.until_live()
                return True
        return False

    await until(is_taken)


async def test_a_hub_without_tails_ends_and_begins_again(role, tenant, key, monkeypatch):
    monkeypatch.setattr(hub, "IDLE_S", 0.2)
    producer = Producer(tenant)

    async def nobody_listens() -> bool:
        return await listeners(tenant) == 0

    async with producer.running(), collecting(tenant.collector_binding(linger_s=0.05)):
        watchers = []
        for _ in range(3):
            async with watching(role, key, limit=20) as watcher:
                await watcher.until_live()
                await producer.seen_by(watcher)
                watchers.append((watcher, producer.sent))
            await until(nobody_listens)

    for watcher, _ in watchers:
        both = sorted(producer.numbers(watcher.everything))
        assert both == list(range(both[0], both[-1] + 1))


async def test_a_pipeline_that_no_tail_wants_any_more_is_not_published(
    role, make_tenant, client_of, monkeypatch
):
    monkeypatch.setattr(hub, "IDLE_S", 0.2)
    tenant = await make_tenant(pipelines=["default", "other"])
    key = await tenant.api_key(keys.SCOPE_QUERY)
    await client_of(key)

    async def is_left() -> bool:
        return await listeners(tenant) == 0

    async with watching(role, key, query='{pipeline="other"}') as other:
        async with watching(role, key, query='{pipeline="default"}') as default:
            await default.until_live()
        await until(is_left)
        await append(tenant, ["between"])
        async with watching(role, key, query='{pipeline="default"}') as again:
            await again.until_live()
            await append(tenant, ["live"])
            await again.until_seen("live")
        await append(tenant, ["of other"], tenant.pipelines["other"].id)
        await other.until_seen("of other")

    assert again.everything == ["between", "live"]
    assert other.everything == ["of other"]


# ---- who may, and how it ends ----------------------------------------------------------------


async def test_a_tail_without_a_key_is_refused(role):
    answer = await refusal(role, "")

    assert answer.status_code == 401
    assert json.loads(answer.body)["error"]["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        pytest.param({"query": "{"}, "column 2", id="a bad query"),
        pytest.param({"limit": "0"}, "limit", id="a bad limit"),
        pytest.param({"end": "now"}, "end", id="an unknown parameter"),
    ],
)
async def test_a_bad_tail_is_refused_in_its_handshake(role, empty_client, empty_keys, asked, named):
    answer = await refusal(role, empty_keys.query, **asked)

    assert answer.status_code == 400
    assert named in json.loads(answer.body)["error"]["message"]


async def test_an_ingest_key_opens_no_tail(role, empty_client, empty_keys):
    assert (await refusal(role, empty_keys.ingest)).status_code == 403


async def test_a_key_that_is_revoked_ends_its_tail(role, tenant, key, monkeypatch):
    monkeypatch.setattr(live, "RECHECK_S", 0.1)
    async with watching(role, key) as watcher:
        await watcher.until_live()
        began_s = time.monotonic()
        await tenant.control.revoke_api_keys(tenant.id, [])
        code = await watcher.until_closed()

        assert code == 1008
        assert watcher.problem["code"] == "unauthorized"
        assert time.monotonic() - began_s < 5


async def test_a_tail_goes_on_when_the_tenants_logins_are_rotated(role, tenant, key):
    """Without any query, and though the old password's connections end."""
    rotated = msgspec.structs.replace(tenant.row, redis_revision=2, rotation="overlapping")
    await provision.set_users(tenant.redis, rotated, tenant.roots)
    async with watching(role, key) as watcher:
        await watcher.until_live()
        await append(tenant, ["before"])
        tail_user, began_s = names.redis_user(tenant.id, "tail"), time.time()

        async def subscribers() -> set[str]:
            clients = await tenant.redis.client_list()
            return {o["id"] for o in clients if o["user"] == tail_user and int(o["sub"])}

        before = await subscribers()
        await tenant.control._rows(
            "update logweir.tenants set redis_revision = 2 where id = %s", [tenant.id]
        )

        async def has_moved() -> bool:
            return bool(await subscribers() - before)

        await until(has_moved)
        tenant.row = ended = msgspec.structs.replace(rotated, rotation="steady")
        await provision.set_users(tenant.redis, ended, tenant.roots)
        await logins.end_old_connections(tenant.redis, tenant.id, began_s)
        await append(tenant, ["after"])

        async def has_both() -> bool:
            return watcher.live == ["before", "after"]

        await until(has_both)
        assert (watcher.problem, watcher.gap_records) == ({}, 0)
