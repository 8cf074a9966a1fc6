"""What retention does to a real store, and to those who read it meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import keeping
import msgspec
import psycopg
import pytest
import world
from keeping import ask, count, stored, visit, write
from prometheus_client import REGISTRY
from world import Tenant

from logweir.backends import failpoint, provision
from logweir.backends.retention_store import Partition, RetentionStore
from logweir.core import errors
from logweir.keeper import merges, retaining
from logweir.keeper import visit as visits
from logweir.keeper.retention import Rules
from logweir.keeper.visit import Left, RetentionFailedError

DAY_S = 86400
DAY_NS = DAY_S * 10**9
ADDS_UP = (
    "select coalesce(l.pipeline, c.pipeline), coalesce(l.bytes, 0), coalesce(c.bytes, 0) from"
    " (select pipeline, sum(length(body) + length(filter))::int8 as bytes from {0}.segments"
    " group by 1) as l full join"
    " (select pipeline, sum(stored_bytes)::int8 as bytes from {0}.usage group by 1) as c"
    " using (pipeline)"
)


@pytest.fixture
async def daily(make_tenant) -> Tenant:
    """A tenant of 60 days with a partition for each day, and two pipelines."""
    tenant = await make_tenant(retention_days=60, pipelines=("default", "audit"))
    await ask(tenant, "drop table {}.segments_" + await first_partition(tenant))
    await ask(tenant, "update {}.settings set partition_width = 'day'")
    return tenant


async def first_partition(tenant: Tenant) -> str:
    [(low,)] = await ask(tenant, "select low / 1000000000 from {}.partition_bounds()")
    return str(low)


async def write_days(tenant: Tenant, *days: int, segments: int = 3, pipeline="default") -> None:
    """Store segments with records of the middle of days, so many ago."""
    now_s = int(time.time())
    for day in days:
        middle_s = (now_s // DAY_S - day) * DAY_S + DAY_S // 2
        if day == 0:
            middle_s = now_s
        await write(tenant, segments, timestamp=middle_s, pipeline=pipeline)


async def keep_days(tenant: Tenant, days: int, most_bytes: int | None = None) -> None:
    """As the operator does it when the LogTenant says so."""
    await ask(
        tenant,
        "update {}.settings set retention_days = %s, retention_bytes = %s",
        [days, most_bytes],
    )


async def ages(tenant: Tenant) -> set[int]:
    """Of how many days ago segments are."""
    today = int(time.time()) // DAY_S
    return {today - row[0] // DAY_NS for row in await ask(tenant, "select min_ts from {}.segments")}


async def partitions(tenant: Tenant) -> list[Partition]:
    return await keeping.keeper_store(tenant).partitions()


async def adds_up(tenant: Tenant) -> bool:
    """Whether usage says of each pipeline what its segments take, to the byte."""
    return all(live == counted for _, live, counted in await ask(tenant, ADDS_UP))


async def storage(tenant: Tenant) -> tuple[int, int | None, int | None]:
    [row] = await ask(tenant, "select stored_bytes, oldest_ns, next_drop_ns from {}.storage")
    return row


# ---- by days -----------------------------------------------------------------------------------


async def test_partitions_go_when_all_in_them_has_expired(daily):
    await write_days(daily, 0, 3, 20, 40)
    await keep_days(daily, 10)

    await visit(daily).run("look", [], Rules(10))

    assert await ages(daily) == {0, 3}
    assert len(await partitions(daily)) == 2
    assert await adds_up(daily)


async def test_what_was_kept_for_less_stays_when_it_is_kept_for_longer(daily):
    await write_days(daily, 0, 20)
    await keep_days(daily, 30)

    await visit(daily).run("look", [], Rules(30))

    assert await ages(daily) == {0, 20}


async def test_the_schema_says_what_has_expired_whatever_a_keeper_believes(daily):
    await write_days(daily, 0, 20)
    [oldest, _] = await partitions(daily)

    dropped = await keeping.keeper_store(daily).drop_partition(oldest)
    with (
        psycopg.connect(daily.conninfo("k"), autocommit=True) as keeper,
        pytest.raises(psycopg.Error) as refused,
    ):
        keeper.execute("select drop_partition(%s)", [oldest.low])

    assert dropped == "kept"
    assert refused.value.sqlstate == "LW003"
    assert await ages(daily) == {0, 20}


@pytest.mark.parametrize(
    "statement",
    [
        "update settings set retention_days = 1",
        "update settings set retention_bytes = 1",
        "delete from settings",
        "update storage set leaving_since = '3'",
        "drop table segments",
    ],
)
async def test_a_keeper_cannot_say_itself_how_long_records_are_kept(daily, statement):
    with (
        psycopg.connect(daily.conninfo("k"), autocommit=True) as keeper,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        keeper.execute(statement)


@pytest.mark.parametrize("kind", ["w", "r"])
@pytest.mark.parametrize("call", ["drop_partition(0)", "correct_usage()", "change_usage(1, 1)"])
async def test_who_writes_or_reads_cannot_do_what_a_keeper_does(daily, kind, call):
    with (
        psycopg.connect(daily.conninfo(kind), autocommit=True) as other,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        other.execute(f"select {call}")


async def test_a_partition_that_is_gone_already_is_no_failure(daily):
    await write_days(daily, 0)

    found = await keeping.keeper_store(daily).drop_partition(Partition(0, DAY_NS))

    assert found == "gone"


async def test_a_pipeline_that_keeps_less_loses_its_segments_and_no_other_does(daily):
    await write_days(daily, 0, 3, 20)
    await write_days(daily, 0, 3, 20, pipeline="audit")
    before = await stored(daily)
    audit = daily.pipelines["audit"].id

    await visit(daily).run("look", [], Rules(60, {audit: 5}))

    left = await stored(daily)
    gone = before - left
    assert {one[0] for one in gone} == {audit}
    assert sum(gone.values()) == 9
    assert sum(1 for one in left if one[0] == audit) == 18
    assert await adds_up(daily)


async def test_many_expired_segments_go_in_one_visit(daily, monkeypatch):
    monkeypatch.setattr("logweir.backends.retention_store.BATCH_SEGMENTS", 4)
    monkeypatch.setattr("logweir.keeper.retaining.BATCH_SEGMENTS", 4)
    await write_days(daily, 0, 20, segments=10)

    await visit(daily).run("look", [], Rules(60, {daily.pipeline: 5}))

    assert await ages(daily) == {0}
    assert await adds_up(daily)


async def test_a_keeper_whose_clock_is_ahead_lets_nothing_go_too_early(daily, monkeypatch):
    await write_days(daily, 0, 3, 20, pipeline="audit")
    before = await stored(daily)
    ahead = timedelta(days=10)
    now = RetentionStore.now

    async def by_the_store(self) -> datetime:
        return await now(self) - ahead

    monkeypatch.setattr(RetentionStore, "now", by_the_store)

    await visit(daily).run("look", [], Rules(60, {daily.pipelines["audit"].id: 15}))
    left = await stored(daily)
    ahead = timedelta(0)
    await visit(daily).run("look", [], Rules(60, {daily.pipelines["audit"].id: 15}))

    assert left == before
    assert await ages(daily) == {0, 3}


async def test_a_partition_that_cannot_be_dropped_stops_no_other_duty(daily, monkeypatch):
    monkeypatch.setattr(merges, "MIN_AGE_S", 0.0)
    await write_days(daily, 20)
    await write_days(daily, 0, segments=12)
    [oldest, _] = await partitions(daily)
    await ask(daily, f"create view {{0}}.kept as select from {{0}}.segments_{oldest.low // 10**9}")
    await ask(
        daily,
        "insert into {}.ledger (key, pipeline, at) values (gen_random_uuid(), 99, '2020-01-01')",
    )
    await keep_days(daily, 10)

    left = Left()
    for work in ["upkeep", "look", *["look"] * (retaining.MAX_WAITS - 2)]:
        assert await ages(daily) == {0, 20}
        with pytest.raises(RetentionFailedError, match="depend") as failed:
            await visit(daily, left=left).run(work, [], Rules(10))
        assert failed.value.is_finished

    assert await ask(daily, "select from {}.ledger where pipeline = 99") == []
    assert await count(daily) == 1, "merged, and what has expired went without its partition"
    assert await ages(daily) == {0}
    assert (await storage(daily))[0] == await bytes_of(daily)


async def test_retention_that_takes_long_ends_and_is_noted_and_goes_on_later(daily, monkeypatch):
    monkeypatch.setattr(visits, "VISIT_S", 0.0)
    await write_days(daily, 0, 20)
    await keep_days(daily, 10)

    first = await visit(daily).run("upkeep", [], Rules(10))
    left, noted, stored_bytes = await ages(daily), await storage(daily), await bytes_of(daily)
    monkeypatch.undo()
    second = await visit(daily).run("upkeep", [], Rules(10))

    assert (first, left, noted[0]) == (False, {0, 20}, stored_bytes)
    assert (second, await ages(daily)) == (True, {0})


@pytest.mark.parametrize("point", keeping.RETENTION_POINTS)
async def test_retention_that_fails_there_adds_up_and_goes_on(daily, point):
    await write_days(daily, 0, 40)
    await write_days(daily, 20, pipeline="audit")
    await keep_days(daily, 30)
    rules = Rules(30, {daily.pipelines["audit"].id: 5})
    failpoint.arm(f"{point}:error:1")
    try:
        with pytest.raises(errors.LogweirError, match=point):
            await visit(daily).run("look", [], rules)
    finally:
        failpoint.arm("")
    left, did_add_up = await ages(daily), await adds_up(daily)

    await visit(daily).run("look", [], rules)

    assert (20 in left) == (point == "keeper.mid_expire")
    assert 40 not in left
    assert did_add_up
    assert await ages(daily) == {0}
    assert await adds_up(daily)


# ---- readers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first_read", ["select 1", "select count(*) from segments"])
async def test_nothing_is_dropped_while_an_older_snapshot_lives(daily, first_read):
    await write_days(daily, 0, 20)
    reader = await psycopg.AsyncConnection.connect(daily.conninfo("r"))
    await reader.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    await reader.execute(first_read)
    await keep_days(daily, 10)

    await visit(daily).run("look", [], Rules(10))
    [[seen]] = await (await reader.execute("select count(*) from segments")).fetchall()
    while_open = await ages(daily)
    await reader.rollback()  # the server may take a moment to see that a client is gone
    await reader.close()
    await visit(daily).run("look", [], Rules(10))

    assert seen == 6
    assert while_open == {0, 20}
    assert await ages(daily) == {0}


async def test_a_snapshot_that_is_younger_than_the_decision_holds_nothing_up(daily):
    await write_days(daily, 0, 20)
    [oldest, _] = await partitions(daily)
    older = await psycopg.AsyncConnection.connect(daily.conninfo("r"))
    await older.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    await older.execute("select 1")
    await keep_days(daily, 10)
    door = keeping.keeper_store(daily)
    first = await door.drop_partition(oldest)
    younger = await younger_snapshot(daily)
    second = await door.drop_partition(oldest)
    await older.rollback()
    await older.close()

    third = await door.drop_partition(oldest)

    await younger.close()
    assert (first, second, third) == ("waits", "waits", "dropped")


async def younger_snapshot(tenant: Tenant) -> psycopg.AsyncConnection:
    """A reader with a snapshot in which every transaction from before the decision has ended:
    those of the server's own housekeeping among them."""
    while True:
        reader = await psycopg.AsyncConnection.connect(tenant.conninfo("r"))
        await reader.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await reader.execute("select 1")
        is_younger = await ask(
            tenant,
            "select age(a.backend_xmin) < age(s.leaving_since::xid)"
            " from pg_stat_activity a, {}.storage s where a.pid = %s",
            [reader.info.backend_pid],
        )
        if is_younger == [(True,)]:
            return reader
        await reader.close()


async def test_snapshots_of_other_tenants_hold_nothing_up(daily, make_tenant):
    await write_days(daily, 0, 20)
    other = await make_tenant()
    async with other.reader().snapshot() as snapshot:
        await snapshot.keys({other.pipeline: 0}, 2**62)
        await keep_days(daily, 10)

        await visit(daily).run("look", [], Rules(10))

    assert await ages(daily) == {0}


async def test_a_drop_that_waits_for_a_lock_gives_up_and_comes_back(daily):
    await write_days(daily, 0, 20)
    await keep_days(daily, 10)
    # Of a session without a snapshot: only its lock is in the way.
    holder = await psycopg.AsyncConnection.connect(daily.conninfo("r"))
    await holder.execute("select count(*) from segments")
    begun_s = time.monotonic()

    await visit(daily).run("look", [], Rules(10))
    took_s = time.monotonic() - begun_s
    while_locked = await ages(daily)
    await holder.close()
    await visit(daily).run("look", [], Rules(10))

    assert while_locked == {0, 20}
    assert took_s < 10
    assert await ages(daily) == {0}


@pytest.fixture
async def locked(daily) -> AsyncIterator[Tenant]:
    """The tenant, with an expired partition and a session without a snapshot: only its lock is in
    the way."""
    await write_days(daily, 0, 20)
    await keep_days(daily, 10)
    holder = await psycopg.AsyncConnection.connect(daily.conninfo("r"))
    await holder.execute("select count(*) from segments")
    yield daily
    await holder.close()


async def test_who_reads_and_stores_hardly_waits_while_a_drop_waits_for_a_lock(locked):
    await keep_days(locked, 10, 1)  # to be dropped for both reasons
    reader = locked.reader()
    done = asyncio.Event()
    took_s = []

    async def read() -> None:
        while not done.is_set():
            begun_s = time.monotonic()
            async with reader.snapshot() as snapshot:
                await snapshot.keys({locked.pipeline: 0}, 2**62)
            took_s.append(time.monotonic() - begun_s)

    async def append() -> None:
        while not done.is_set():
            begun_s = time.monotonic()
            await write_days(locked, 0, segments=1)
            took_s.append(time.monotonic() - begun_s)

    neighbours = [asyncio.create_task(read()), asyncio.create_task(append())]
    left = Left()
    await visit(locked, left=left).run("look", [], Rules(10))
    done.set()
    await asyncio.gather(*neighbours)

    assert list(left.waits.values()) == [1], "it had to wait, and was tried once"
    assert max(took_s) < 1


async def test_a_partition_that_never_can_be_dropped_loses_its_segments(locked):
    left = Left()
    seen = []
    for _ in range(retaining.MAX_WAITS):
        seen.append(await ages(locked))
        await visit(locked, left=left).run("look", [], Rules(10))

    assert seen == [{0, 20}] * retaining.MAX_WAITS
    assert await ages(locked) == {0}
    assert len(await partitions(locked)) == 2
    assert await adds_up(locked)


async def test_over_the_bytes_a_partition_that_never_can_be_dropped_loses_its_segments(locked):
    most_bytes = await bytes_of(locked) // 3
    await keep_days(locked, 60, most_bytes)
    left = Left()
    seen = []
    for _ in range(retaining.MAX_WAITS + 1):
        seen.append(await ages(locked))
        await visit(locked, left=left).run("look", [], Rules(60))

    assert seen == [{0, 20}] * (retaining.MAX_WAITS + 1)
    assert await ages(locked) == {0}
    assert 0 < await bytes_of(locked) <= most_bytes
    assert await adds_up(locked)


async def test_collectors_and_readers_go_on_while_partitions_go(daily):
    await write_days(daily, 0, *range(20, 40), segments=1)
    await keep_days(daily, 10)
    reader = daily.reader()
    done = asyncio.Event()
    seen = []

    async def read() -> None:
        while not done.is_set():
            async with reader.snapshot() as snapshot:
                today = (int(time.time()) // DAY_S) * DAY_NS
                keys = await snapshot.keys({daily.pipeline: today}, 2**62)
                seen.append(len(keys))

    readers = [asyncio.create_task(read()) for _ in range(2)]
    visits = 0
    while await ages(daily) != {0}:
        await visit(daily).run("look", [], Rules(10))
        await write_days(daily, 0, segments=1)
        visits += 1
    done.set()
    await asyncio.gather(*readers)

    assert min(seen) >= 1
    assert visits < 10
    assert await adds_up(daily)


# ---- by bytes ----------------------------------------------------------------------------------


async def bytes_of(tenant: Tenant) -> int:
    return (await ask(tenant, "select sum(length(body) + length(filter))::int8 from {}.segments"))[
        0
    ][0]


async def test_over_the_bytes_the_oldest_partitions_and_segments_go(daily):
    await write_days(daily, 0, 1, 2, 3, segments=4)
    whole = await bytes_of(daily)
    most = whole * 10 // 16  # two days and two segments
    await keep_days(daily, 60, most)

    await visit(daily).run("look", [], Rules(60))

    left = await bytes_of(daily)
    assert await ages(daily) == {0, 1, 2}
    assert len(await partitions(daily)) == 3
    assert most - whole // 16 <= left <= most
    assert await adds_up(daily)


@pytest.mark.parametrize("how", ["dropped", "by hand"])
async def test_a_decision_for_bytes_ends_with_its_partition(daily, how):
    door = keeping.keeper_store(daily)
    await write_days(daily, 0, 2)
    await keep_days(daily, 60, 1)
    [first, _] = await door.partitions()
    if how == "by hand":
        older = await psycopg.AsyncConnection.connect(daily.conninfo("r"))
        await older.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await older.execute("select 1")
        assert await door.drop_partition(first) == "waits"
        await older.rollback()
        await older.close()
        await ask(daily, f"drop table {{}}.segments_{first.low // 10**9}")
    else:
        assert await dropped_soon(daily, first)
    await keep_days(daily, 60)
    await write_days(daily, 2 if how == "dropped" else 3)
    reader = await psycopg.AsyncConnection.connect(daily.conninfo("r"))
    await reader.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    await reader.execute("select 1")
    await keep_days(daily, 60, 1)
    [again, _] = await door.partitions()

    found = await door.drop_partition(again)
    await reader.rollback()
    await reader.close()

    assert again.high <= first.high
    assert found == "waits"
    assert await dropped_soon(daily, again)


async def dropped_soon(tenant: Tenant, partition: Partition) -> bool:
    """Drop a partition; the server's own housekeeping may have snapshots for a moment."""
    door = keeping.keeper_store(tenant)
    async with asyncio.timeout(10):
        while (found := await door.drop_partition(partition)) == "waits":
            pass
    return found == "dropped"


async def test_below_the_bytes_nothing_goes(daily):
    await write_days(daily, 0, 1, 2)
    before = await stored(daily)
    await keep_days(daily, 60, await bytes_of(daily))

    await visit(daily).run("upkeep", [], Rules(60))

    assert await stored(daily) == before


async def test_a_sum_that_is_too_high_lets_nothing_go(daily):
    await write_days(daily, 0, 1, 2)
    before = await stored(daily)
    await ask(daily, "update {}.usage set stored_bytes = stored_bytes * 3")
    await keep_days(daily, 60, await bytes_of(daily))

    await visit(daily).run("look", [], Rules(60))

    assert await stored(daily) == before


async def test_the_partition_of_now_is_never_dropped_for_its_bytes(daily):
    await write_days(daily, 0, segments=8)
    await keep_days(daily, 60, 1)

    await visit(daily).run("look", [], Rules(60))

    assert await count(daily) == 0
    assert len(await partitions(daily)) == 1
    assert await adds_up(daily)


# ---- usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_usage_adds_up_with_the_segments_after_any_history(daily, monkeypatch, seed):
    monkeypatch.setattr(merges, "MIN_AGE_S", 0.0)
    chance = random.Random(seed)
    audit = daily.pipelines["audit"].id
    days = 60
    for _ in range(12):
        move = chance.choice(["append"] * 5 + ["merge", "merge", "shorten", "shrink", "upkeep"])
        rules = Rules(days, {audit: max(1, days // 2)})
        if move == "append":
            pipeline = chance.choice(["default", "audit"])
            await write_days(
                daily,
                *chance.sample(range(days), 2),
                segments=chance.randint(1, 12),
                pipeline=pipeline,
            )
        elif move == "merge":
            await visit(daily).run("sweep", [], rules)
        elif move == "shorten":
            days = max(2, days - chance.randint(1, 20))
            await keep_days(daily, days)
            await visit(daily).run("look", [], Rules(days, {audit: max(1, days // 2)}))
        elif move == "shrink":
            [(size,)] = await ask(daily, "select sum(length(body))::int8 from {}.segments")
            await keep_days(daily, days, max(1, (size or 0) * 2 // 3))
            await visit(daily).run("look", [], rules)
            await keep_days(daily, days)
        else:
            await visit(daily).run("upkeep", [], rules)
        assert await adds_up(daily), move
    corrected = REGISTRY.get_sample_value("logweir_keeper_corrected_usage_bytes_total")

    await visit(daily).run("upkeep", [], Rules(days))

    again = REGISTRY.get_sample_value("logweir_keeper_corrected_usage_bytes_total")
    assert again == corrected, "nothing was wrong"
    assert (await storage(daily))[0] == (await bytes_of(daily) or 0)


async def test_what_a_keeper_does_says_nothing_of_how_far_a_journal_is_drained(daily, monkeypatch):
    monkeypatch.setattr(merges, "MIN_AGE_S", 0.0)
    door = keeping.keeper_store(daily)
    await write_days(daily, 0, segments=12)
    await ask(daily, "update {}.usage set oldest_pending_at = now() - interval '3 days'")
    [before] = await door.horizons()

    await visit(daily).run("sweep", [], Rules(60))
    [after] = await door.horizons()
    await ask(daily, "delete from {}.usage")
    await visit(daily).run("upkeep", [], Rules(60))
    [unknown] = await door.horizons()

    assert await count(daily) < 12
    assert after == before
    assert unknown.at.timestamp() == 0, "nothing is known, so all of the ledger stays"
    assert await adds_up(daily)


async def test_usage_is_put_right_when_segments_were_changed_by_hand(daily):
    await write_days(daily, 0, segments=4)
    await ask(daily, "delete from {0}.segments where id = (select min(id) from {0}.segments)")
    wrong = await adds_up(daily)
    name = "logweir_keeper_corrected_usage_bytes_total"
    before = REGISTRY.get_sample_value(name)

    await visit(daily).run("upkeep", [], Rules(60))

    assert not wrong
    assert await adds_up(daily)
    assert REGISTRY.get_sample_value(name) > before


async def test_the_schema_of_the_program_before_is_kept_as_it_was_kept_then(daily, monkeypatch):
    monkeypatch.setattr(merges, "MIN_AGE_S", 0.0)
    await write_days(daily, 0, 20, segments=12)
    before = await stored(daily)
    for statement in (
        "drop function {0}.drop_partition, {0}.correct_usage, {0}.change_usage",
        "drop table {}.storage",
        "alter table {}.settings drop column retention_bytes",
    ):
        await ask(daily, statement)

    for work in ("upkeep", "sweep", "look"):
        await visit(daily).run(work, [], Rules(5))

    assert await stored(daily) == before
    assert await count(daily) < 24


# ---- what others are told ----------------------------------------------------------------------


async def test_what_is_stored_and_what_goes_next_is_noted_and_measured(daily):
    await write_days(daily, 0, 3, 20)
    holding = [one for one in await partitions(daily) if one.low < time.time_ns() - 19 * DAY_NS]
    [(oldest,)] = await ask(daily, "select min(min_ts) from {}.segments")

    await visit(daily).run("upkeep", [], Rules(60))

    goes_ns = holding[0].high + 60 * DAY_NS + 300 * 10**9
    assert await storage(daily) == (await bytes_of(daily), oldest, goes_ns)
    value = REGISTRY.get_sample_value
    labels = {"tenant": daily.id}
    assert value("logweir_tenant_stored_bytes", labels) == await bytes_of(daily)
    assert value("logweir_tenant_oldest_record_timestamp_seconds", labels) == oldest / 1e9
    assert value("logweir_tenant_next_drop_timestamp_seconds", labels) == goes_ns / 1e9


async def test_an_empty_store_has_no_oldest_record(daily):
    await visit(daily).run("upkeep", [], Rules(60))

    assert await storage(daily) == (0, None, None)


async def test_retention_of_the_resource_reaches_the_schema_and_goes_again(daily):
    operator = provision_as(daily)
    operator(days=7, most_bytes=5000)
    first = await ask(daily, "select retention_days, retention_bytes from {}.settings")
    operator(days=90, most_bytes=None)

    assert first == [(7, 5000)]
    assert await ask(daily, "select retention_days, retention_bytes from {}.settings") == [
        (90, None)
    ]


def provision_as(tenant: Tenant):
    """The operator, with the days and bytes of a LogTenant."""

    def made(*, days: int, most_bytes: int | None) -> None:
        spec = {"retention": {"days": days} | ({"bytes": most_bytes} if most_bytes else {})}
        row = msgspec.structs.replace(tenant.row, retention_days=days, spec=spec)
        provision.provision_store(
            world.operator_conninfo(tenant.postgres, tenant.roots), row, tenant.roots, tenant.limits
        )

    return made
