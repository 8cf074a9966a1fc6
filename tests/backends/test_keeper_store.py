"""What a keeper's statements do to a tenant's store."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import keeping
import msgspec
import psycopg
import pytest
from keeping import ask, keeper_store, smalls, stored, write
from world import Tenant

from logweir.backends import keeper_store as doors
from logweir.backends import provision
from logweir.core import errors
from logweir.core.names import PipelineId
from logweir.keeper import merges

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


async def add_usage(tenant: Tenant, at: datetime, pending: datetime | None = None, **fields):
    row = {"pipeline": tenant.pipeline, "stored": 1, "at": at, "pending": pending} | fields
    await ask(
        tenant,
        "insert into {}.usage (at, pipeline, stored, oldest_pending_at, refused)"
        " values (%(at)s, %(pipeline)s, %(stored)s, %(pending)s, %(refused)s::jsonb)",
        {"refused": None} | row,
    )


async def add_ledger(tenant: Tenant, *times: datetime, pipeline: int | None = None):
    for at in times:
        await ask(
            tenant,
            "insert into {}.ledger (key, pipeline, kind, at) values (%s, %s, 'b', %s)",
            [uuid.uuid4(), pipeline or tenant.pipeline, at],
        )


async def ledger(tenant: Tenant) -> list[datetime]:
    return [row[0] for row in await ask(tenant, "select at from {}.ledger order by at")]


# ---- partitions -------------------------------------------------------------------------------


async def test_the_partitions_of_now_and_of_tomorrow_are_there_after_they_were_ensured(tenant):
    await ask(tenant, "update {}.settings set partition_width = 'day'")

    await keeper_store(tenant).ensure_partitions()

    held = await ask(
        tenant,
        "select count(*) from {0}.partition_bounds() b join"
        " (values (0), (86400)) as t(s) on b.low <= (extract(epoch from now()) + t.s) * 1e9"
        " and b.high > (extract(epoch from now()) + t.s) * 1e9",
    )
    assert held == [(2,)]


async def test_partitions_are_made_while_readers_and_writers_are_in_the_table(tenant):
    await write(tenant, 1)
    await ask(tenant, "update {}.settings set partition_width = 'day'")
    async with tenant.reader().snapshot() as snapshot:
        await snapshot.keys({tenant.pipeline: 0}, 2**62)

        async with asyncio.timeout(4):
            await keeper_store(tenant).ensure_partitions()


async def test_a_partition_is_vacuumed_long_before_a_fifth_of_it_is_dead(tenant):
    found = await ask(
        tenant,
        "select c.reloptions, t.reloptions from pg_class c join pg_class t"
        " on t.oid = c.reltoastrelid join pg_inherits i on i.inhrelid = c.oid"
        " where i.inhparent = format('%%I.segments', %s::text)::regclass",
        [tenant.schema],
    )

    option = ["autovacuum_vacuum_scale_factor=0.05"]
    assert found == [(option, option)]


# ---- segments ---------------------------------------------------------------------------------


async def test_small_segments_are_listed_by_time_with_what_a_plan_needs(tenant):
    await write(tenant, 3, 4)

    found = await smalls(tenant)

    assert [one.n for one in found] == [4, 4, 4]
    assert sorted(one.min_ts for one in found) == [one.min_ts for one in found]
    assert {one.pipeline for one in found} == {tenant.pipeline}
    assert len({one.partition for one in found}) == 1
    assert all(one.raw_bytes > 0 and 0 <= one.age_s < 60 for one in found)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_n": 3}, id="more records"),
        pytest.param({"max_raw_bytes": 1}, id="more raw bytes"),
    ],
)
async def test_larger_segments_are_not_listed(tenant, options):
    await write(tenant, 1, 4)

    found = await smalls(tenant, **options)

    assert found == []


async def test_segments_to_leave_alone_and_those_of_a_newer_codec_are_not_listed(tenant):
    await write(tenant, 3)
    first, second, third = await smalls(tenant)
    await ask(tenant, "update {}.segments set codec = codec + 1 where id = %s", [second.id])

    found = await smalls(tenant, left=[third.id])

    assert [one.id for one in found] == [first.id]


async def test_the_next_list_goes_on_behind_the_last_segment_of_the_one_before(tenant, monkeypatch):
    monkeypatch.setattr(doors, "MAX_LISTED", 2)
    await write(tenant, 3)
    bounds = {"max_n": 100, "max_raw_bytes": 10**9}

    first = await keeper_store(tenant).small_segments((0, -1), **bounds)
    last = await keeper_store(tenant).small_segments((first[1].min_ts, first[1].id), **bounds)

    assert [len(first), len(last)] == [2, 1]
    assert len({one.id for one in [*first, *last]}) == 3


async def test_segments_of_a_newer_codec_are_counted_once(tenant):
    await write(tenant, 3)
    await ask(tenant, "update {}.segments set codec = codec + 1")

    count, last = await keeper_store(tenant).unknown_segments(0)
    again, _ = await keeper_store(tenant).unknown_segments(last)

    assert (count, again) == (3, 0)


async def test_a_replaced_group_leaves_one_merged_segment_with_all_records(tenant):
    await write(tenant, 5)
    before = await stored(tenant)
    door, group = keeper_store(tenant), await smalls(tenant)

    is_replaced = await door.replace(group, merges.combine(await door.load(group)))

    rows = await ask(tenant, "select n, raw_bytes, merged from {}.segments")
    assert is_replaced
    assert rows == [(15, sum(one.raw_bytes for one in group), 1)]
    assert await stored(tenant) == before


async def test_nothing_is_replaced_when_one_of_the_group_is_gone(tenant):
    await write(tenant, 5)
    door, group = keeper_store(tenant), await smalls(tenant)
    merged = merges.combine(await door.load(group))
    await ask(tenant, "delete from {}.segments where id = %s", [group[2].id])
    before = await stored(tenant)

    is_replaced = await door.replace(group, merged)

    assert not is_replaced
    assert await keeping.count(tenant) == 4
    assert await stored(tenant) == before


async def test_nothing_is_deleted_when_the_merged_segment_cannot_be_inserted(tenant):
    await write(tenant, 5)
    before = await stored(tenant)
    door, group = keeper_store(tenant), await smalls(tenant)
    merged = merges.combine(await door.load(group))
    elsewhere = msgspec.structs.replace(merged, min_ts=0)

    with pytest.raises(errors.UnavailableError, match="no partition"):
        await door.replace(group, elsewhere)

    assert await stored(tenant) == before


async def test_a_group_of_which_one_is_gone_is_not_loaded(tenant):
    await write(tenant, 3)
    group = await smalls(tenant)
    await ask(tenant, "delete from {}.segments where id = %s", [group[0].id])

    assert await keeper_store(tenant).load(group) == []


# ---- ledgers ----------------------------------------------------------------------------------


async def test_the_horizon_is_the_oldest_pending_block_of_the_newest_row(tenant):
    await add_usage(tenant, NOW - timedelta(hours=2), NOW - timedelta(days=9))
    await add_usage(tenant, NOW, NOW - timedelta(minutes=5))

    found = await keeper_store(tenant).horizons()

    assert found == [doors.Horizon(tenant.pipeline, NOW - timedelta(minutes=5))]


async def test_the_horizon_is_the_time_of_the_row_when_nothing_was_pending(tenant):
    await add_usage(tenant, NOW)

    found = await keeper_store(tenant).horizons()

    assert found == [doors.Horizon(tenant.pipeline, NOW)]


async def test_the_horizon_is_never_later_than_now(tenant):
    await add_usage(tenant, NOW, datetime(2100, 1, 1, tzinfo=UTC))

    (found,) = await keeper_store(tenant).horizons()

    assert found.at <= await keeper_store(tenant).now()


async def test_a_pipelines_newest_usage_is_found_without_reading_all_of_it(tenant):
    other = PipelineId(tenant.pipeline + 1)
    for pipeline in (tenant.pipeline, other):
        await ask(
            tenant,
            "insert into {}.usage (at, pipeline, stored_bytes)"
            " select %s::timestamptz - make_interval(hours => n), %s, 1"
            " from generate_series(0, 4999) as n",
            [NOW - SECOND, pipeline],
        )
    await ask(tenant, "analyze {}.usage")
    door = keeper_store(tenant)
    # A superuser's: nobody else may read statistics of the tables.
    url = tenant.postgres.url(database=provision.DATABASE)
    door._connection = await psycopg.AsyncConnection.connect(url, autocommit=True)

    async with door._door() as connection, connection.transaction():
        found = await door.horizons()
        await door._count_change(connection, other, 7)
        cursor = await connection.execute(
            "select pg_stat_get_xact_tuples_returned(%(t)s::regclass)"
            " + pg_stat_get_xact_tuples_fetched(%(t)s::regclass)",
            {"t": f"{tenant.schema}.usage"},
        )
        [(rows_read,)] = await cursor.fetchall()

    assert {one.pipeline: one.at for one in found} == {
        tenant.pipeline: NOW - SECOND,
        other: NOW - SECOND,
    }
    assert rows_read <= 10


async def test_rows_from_before_the_cutoff_go_to_the_second(tenant):
    await add_ledger(tenant, NOW - SECOND, NOW, NOW + SECOND)

    gone = await keeper_store(tenant).prune_ledger(0, {tenant.pipeline: NOW}, NOW)

    assert gone == 1
    assert await ledger(tenant) == [NOW, NOW + SECOND]


async def test_each_pipeline_has_its_own_cutoff_and_the_others_theirs(tenant):
    for pipeline in (1, 2, 3):
        await add_ledger(tenant, NOW, NOW + 2 * SECOND, pipeline=pipeline)
    before = {PipelineId(1): NOW + SECOND, PipelineId(2): None}

    await keeper_store(tenant).prune_ledger(0, before, NOW + 3 * SECOND)

    left = await ask(tenant, "select pipeline, at from {}.ledger order by pipeline, at")
    assert left == [(1, NOW + 2 * SECOND), (2, NOW), (2, NOW + 2 * SECOND)]


async def fill_ledger(tenant: Tenant, rows: int) -> None:
    await ask(
        tenant,
        "insert into {}.ledger (key, pipeline, kind, block, outcomes, at)"
        " select gen_random_uuid(), %s, 'b', gen_random_uuid(), '{{1,0,0,0}}', %s"
        " from generate_series(1, %s)",
        [tenant.pipeline, NOW, rows],
    )


async def test_one_transaction_prunes_some_pages_and_all_of_them_all_rows(tenant):
    await fill_ledger(tenant, 12000)
    door = keeper_store(tenant)

    pages = await door.ledger_pages()
    gone = [
        await door.prune_ledger(first, {tenant.pipeline: NOW + SECOND}, NOW)
        for first in range(0, pages, doors.PRUNE_PAGES)
    ]

    assert sum(gone) == 12000
    assert len(gone) > 2
    assert max(gone) <= 8000


async def test_producers_go_when_they_were_idle_since_the_cutoff(tenant):
    for number, at in enumerate((NOW - SECOND, NOW, NOW + SECOND)):
        await ask(
            tenant,
            "insert into {}.producers (pipeline, producer, epoch, last_at) values (1, %s, 1, %s)",
            [uuid.UUID(int=number), at],
        )

    gone = await keeper_store(tenant).prune_producers(NOW)

    left = await ask(tenant, "select last_at from {}.producers order by 1")
    assert gone == 1
    assert left == [(NOW,), (NOW + SECOND,)]


async def test_a_producer_that_comes_back_while_it_is_pruned_stays(tenant):
    who = [uuid.UUID(int=7)]
    await ask(
        tenant,
        "insert into {}.producers (pipeline, producer, epoch, last_at)"
        " values (1, %s, 1, '2020-01-01')",
        who,
    )
    async with await psycopg.AsyncConnection.connect(tenant.conninfo("w")) as writer:
        await writer.execute("update producers set last_at = now() where producer = %s", who)
        pruning = asyncio.create_task(keeper_store(tenant).prune_producers(NOW))
        await waits_for_a_lock(tenant)
        await writer.commit()

        gone = await pruning

    assert gone == 0
    assert await ask(tenant, "select count(*) from {}.producers") == [(1,)]


async def waits_for_a_lock(tenant: Tenant) -> None:
    """Return when the tenant's keeper waits for a row."""
    async with asyncio.timeout(5):
        while not (
            await ask(
                tenant,
                "select 1 from pg_stat_activity where usename = %s and wait_event_type = 'Lock'",
                [tenant.store_login("k").user],
            )
        ):
            await asyncio.sleep(0.01)


# ---- usage ------------------------------------------------------------------------------------


async def totals(tenant: Tenant) -> list[tuple]:
    return await ask(
        tenant,
        "select pipeline, sum(requests), sum(stored), sum(quarantined), sum(expired),"
        " sum(repeated), sum(raw_bytes), sum(stored_bytes) from {}.usage group by 1 order by 1",
    )


async def add_much_usage(tenant: Tenant) -> None:
    """Rows of two pipelines, one every 7 minutes of ten hours before NOW."""
    await ask(
        tenant,
        "insert into {}.usage (at, pipeline, requests, stored, quarantined, expired, repeated,"
        " raw_bytes, stored_bytes, refused, oldest_pending_at)"
        " select t, p, 1, p * 10, 2, 3, 4, 1000, 100, '{{\"rate\": 2}}', t - interval '1 s'"
        " from generate_series(%(now)s - interval '10 hours', %(now)s, interval '7 min') as t,"
        " generate_series(1, 2) as p",
        {"now": NOW},
    )


async def sum_all(tenant: Tenant, before: datetime = NOW) -> None:
    while await keeper_store(tenant).sum_usage(before):
        pass


async def test_sums_of_usage_always_add_up(tenant):
    await add_much_usage(tenant)
    before = await totals(tenant)

    while await keeper_store(tenant).sum_usage(NOW):
        assert await totals(tenant) == before

    assert await totals(tenant) == before
    assert len(before) == 2


async def test_an_hour_of_a_pipeline_becomes_one_row_with_the_horizon_of_its_newest(tenant):
    await add_much_usage(tenant)

    await sum_all(tenant)

    rows = await ask(
        tenant,
        "select date_trunc('hour', at, 'UTC'), count(*), max(at - oldest_pending_at)"
        " from {}.usage where pipeline = 1 group by 1 order by 1",
    )
    assert [row[1] for row in rows] == [*[1] * 9, 2]
    assert {row[2] for row in rows} == {SECOND}


async def test_refusals_are_summed_by_reason(tenant):
    for minute, refused in enumerate(('{"rate": 2, "buffer": 1}', None, '{"rate": 5}', "{}")):
        at = NOW - timedelta(hours=5) + timedelta(minutes=minute)
        await add_usage(tenant, at, refused=refused)
    await add_usage(tenant, NOW)

    await sum_all(tenant)

    rows = await ask(tenant, "select stored, refused from {}.usage order by at")
    assert rows[0] == (4, {"rate": 7, "buffer": 1})


async def test_the_newest_row_of_a_pipeline_is_never_summed(tenant):
    for minute in range(4):
        at = NOW - timedelta(days=3) + timedelta(minutes=minute)
        await add_usage(tenant, at, at - timedelta(hours=minute))
    before = await keeper_store(tenant).horizons()

    await sum_all(tenant)

    rows = await ask(tenant, "select stored from {}.usage order by at")
    assert rows == [(3,), (1,)]
    assert await keeper_store(tenant).horizons() == before


async def test_hours_that_are_not_over_long_enough_stay_as_they_are(tenant):
    hour = NOW - timedelta(hours=2)
    for minute in (0, 30, 59):
        await add_usage(tenant, hour + timedelta(minutes=minute))
    await add_usage(tenant, NOW)

    await sum_all(tenant, hour + timedelta(hours=1) - SECOND)
    early = len(await ask(tenant, "select 1 from {}.usage"))
    await sum_all(tenant, hour + timedelta(hours=1))
    late = len(await ask(tenant, "select 1 from {}.usage"))

    assert (early, late) == (4, 2)


async def test_a_row_that_comes_late_is_added_to_the_sum_of_its_hour(tenant):
    hour = NOW - timedelta(hours=5)
    for minute in (0, 30):
        await add_usage(tenant, hour + timedelta(minutes=minute))
    await add_usage(tenant, NOW)
    await sum_all(tenant)
    await add_usage(tenant, hour + timedelta(minutes=10), stored=40)

    await sum_all(tenant)

    assert await ask(tenant, "select stored from {}.usage order by at") == [(42,), (1,)]


async def test_two_keepers_that_sum_at_once_add_nothing_twice(tenant):
    await add_much_usage(tenant)
    before = await totals(tenant)

    await asyncio.gather(*(sum_all(tenant) for _ in range(3)))

    assert await totals(tenant) == before


# ---- doors ------------------------------------------------------------------------------------


async def test_activity_moves_when_a_segment_is_written(tenant):
    binding = keeping.keeper_binding(tenant)
    activity = tenant._keep(doors.Activity(binding.store, binding.control_login))
    before = (await activity.inserted()).get(tenant.schema, 0)
    await write(tenant, 2)
    await tenant.close()  # at the latest when it ends, a backend tells what it did

    async with asyncio.timeout(5):
        while (await activity.inserted())[tenant.schema] != before + 2:
            await asyncio.sleep(0.02)


async def test_a_store_that_refuses_says_why(tenant):
    await ask(tenant, "drop table {}.ledger")

    with pytest.raises(errors.UnavailableError, match='ledger" does not exist'):
        await keeper_store(tenant).ledger_pages()


async def test_a_door_opens_again_after_its_connection_was_cut(tenant):
    door = keeper_store(tenant)
    await door.now()
    await ask(
        tenant,
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s",
        [tenant.store_login("k").user],
    )
    with pytest.raises(errors.UnavailableError):
        await door.now()

    assert await door.now()


async def test_a_keeper_of_one_tenant_reads_nothing_of_another(make_tenant):
    one, other = await make_tenant(), await make_tenant()
    door = one._keep(doors.KeeperStore(one.store_server, one.store_login("k"), other.id))

    with pytest.raises(errors.UnavailableError, match="permission denied"):
        await door.small_segments((0, -1), max_n=1, max_raw_bytes=1)
