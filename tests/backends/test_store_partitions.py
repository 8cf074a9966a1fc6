"""Partitions of a tenant's segments: made when needed, never overlapping, never crossed."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import UTC, datetime, timedelta

import draining
import numpy as np
import psycopg
import pytest
from builders import delivered, encode, record, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import Tenant

from logweir.backends import store
from logweir.core import errors
from logweir.core.moments import NS_PER_DAY, NS_PER_S

RETENTION_DAYS = 400


@pytest.fixture
async def long_tenant(make_tenant) -> Tenant:
    """A tenant that keeps more than a year."""
    return await make_tenant(retention_days=RETENTION_DAYS)


def days_ago(count: float) -> int:
    return time.time_ns() - int(count * NS_PER_DAY)


def at(year: int, month: int, day: int = 1) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp()) * NS_PER_S


def month_of(time_ns: int) -> tuple[int, int]:
    """The month that holds a time, as bounds."""
    moment = datetime.fromtimestamp(time_ns // NS_PER_S, UTC)
    low = at(moment.year, moment.month)
    after = datetime.fromtimestamp(low // NS_PER_S, UTC) + timedelta(days=32)
    return low, at(after.year, after.month)


def day_of(time_ns: int) -> tuple[int, int]:
    low = time_ns // NS_PER_DAY * NS_PER_DAY
    return low, low + NS_PER_DAY


def bounds(tenant: Tenant) -> list[tuple[int, int]]:
    query = "select low, high from partition_bounds() order by low"
    return draining.rows(tenant, query)


def set_width(tenant: Tenant, width: str) -> None:
    draining.rows(tenant, "update settings set partition_width = %s", [width])


def ensure(tenant: Tenant, time_ns: int) -> None:
    """Ask for a partition with the writer's own rights."""
    with psycopg.connect(tenant.conninfo("w"), autocommit=True) as connection:
        connection.execute("select ensure_partition(%s)", [time_ns])


async def commit(
    tenant: Tenant,
    *times_ns: int,
    by: store.Store | None = None,
    retention_days: int = RETENTION_DAYS,
) -> store.Committed:
    of = [request([record(f"at {time_ns}")], arrival_ns=time_ns) for time_ns in times_ns]
    return await (by or tenant.store()).commit(
        tenant.pipeline,
        [delivered(encode(tenant.id, tenant.pipeline, of))],
        now_ns=time.time_ns(),
        retention_days=retention_days,
    )


def crossing(tenant: Tenant) -> list[object]:
    """Segments that reach over the end of the partition in which they stand."""
    query = (
        "select s.id from segments s join partition_bounds() b"
        " on s.tableoid = to_regclass(b.name)"
        " where s.min_ts < b.low or s.max_ts >= b.high"
    )
    return draining.rows(tenant, query)


# The store makes what it needs


async def test_a_new_tenant_has_the_partition_of_today(tenant):
    assert bounds(tenant) == [month_of(time.time_ns())]


async def test_records_of_several_months_are_split_at_the_bounds(long_tenant):
    times_ns = [days_ago(count) for count in (0, 1, 40, 41, 80, 120)]
    await commit(long_tenant, *times_ns)

    months = {month_of(one) for one in times_ns}
    held = sorted((month_of(one.min_ts), one.n) for _, one in draining.segments(long_tenant))
    expected = [(m, sum(month_of(one) == m for one in times_ns)) for m in sorted(months)]
    assert held == expected
    assert crossing(long_tenant) == []
    assert draining.is_balanced(long_tenant)


async def test_the_first_and_the_last_moment_of_a_partition_are_on_their_own_sides(long_tenant):
    low, _ = month_of(days_ago(40))
    await commit(long_tenant, low - 1, low, low + 1)

    assert [one.n for _, one in draining.segments(long_tenant)] == [1, 2]
    assert crossing(long_tenant) == []


async def test_bytes_are_shared_out_over_the_segments_of_a_batch(long_tenant):
    await commit(long_tenant, days_ago(0), days_ago(100))

    [total] = draining.rows(long_tenant, "select raw_bytes from usage")[0]
    parts = [one.raw_bytes for _, one in draining.segments(long_tenant)]
    assert all(parts)
    assert sum(parts) in (total, total - 1)


async def test_a_partition_that_was_dropped_is_made_again(long_tenant):
    door = long_tenant.store()
    await commit(long_tenant, days_ago(100), by=door)
    low, _ = month_of(days_ago(100))
    draining.rows(long_tenant, f"drop table segments_{low // NS_PER_S}")

    with pytest.raises(errors.UnavailableError):
        await commit(long_tenant, days_ago(100), by=door)
    await commit(long_tenant, days_ago(100), by=door)

    assert draining.stored_records(long_tenant) == 1


async def test_bodies_and_filters_are_kept_outside_of_the_rows_as_they_are(long_tenant):
    await commit(long_tenant, days_ago(100))
    low, _ = month_of(days_ago(100))

    query = (
        "select attname from pg_attribute where attrelid = %s::regclass and attstorage = 'e'"
        " order by 1"
    )
    found = draining.rows(long_tenant, query, [f"segments_{low // NS_PER_S}"])
    assert found == [("body",), ("counts",), ("filter",)]


# What the retention allows


async def test_a_record_that_expired_on_its_way_is_counted_as_expired(tenant):
    await commit(tenant, days_ago(31), days_ago(0), retention_days=30)

    assert draining.usage(tenant)["expired"] == 1
    assert draining.stored_records(tenant) == 1
    assert draining.is_balanced(tenant)


async def test_a_tenant_that_keeps_less_than_its_pipeline_expires_what_is_older(make_tenant):
    tenant = await make_tenant(retention_days=5)
    await commit(tenant, days_ago(200), days_ago(100), days_ago(0), retention_days=300)

    assert draining.usage(tenant)["expired"] == 2
    assert draining.stored_records(tenant) == 1
    assert draining.is_balanced(tenant)


async def test_a_pipeline_that_keeps_less_than_its_tenant_expires_what_is_older(long_tenant):
    await commit(long_tenant, days_ago(10), days_ago(0), retention_days=7)

    assert draining.usage(long_tenant)["expired"] == 1
    assert draining.stored_records(long_tenant) == 1


async def test_a_time_of_next_month_is_refused_by_itself(tenant):
    with pytest.raises(store.RefusedByStoreError, match="LW002"):
        await commit(tenant, days_ago(-40))

    assert draining.rows(tenant, "select * from ledger") == []


@pytest.mark.parametrize(
    ("age_days", "state"),
    [
        pytest.param(RETENTION_DAYS + 0.01, "LW001", id="just too old"),
        pytest.param(10_000, "LW001", id="far too old"),
        pytest.param(-1.01, "LW002", id="just too new"),
        pytest.param(-10_000, "LW002", id="far too new"),
    ],
)
async def test_no_partition_is_made_outside_of_what_is_kept(long_tenant, age_days, state):
    with pytest.raises(psycopg.Error) as caught:
        ensure(long_tenant, days_ago(age_days))

    assert caught.value.sqlstate == state
    assert len(bounds(long_tenant)) == 1


@pytest.mark.parametrize("age_days", [RETENTION_DAYS - 0.01, 0, -0.99])
async def test_a_partition_is_made_up_to_the_edges_of_what_is_kept(long_tenant, age_days):
    time_ns = days_ago(age_days)
    ensure(long_tenant, time_ns)

    assert month_of(time_ns) in bounds(long_tenant)


async def test_the_refusal_says_what_the_oldest_time_is(long_tenant):
    with pytest.raises(psycopg.Error) as caught:
        ensure(long_tenant, days_ago(RETENTION_DAYS + 1))

    assert abs(int(caught.value.diag.message_detail) - days_ago(RETENTION_DAYS)) < 10 * NS_PER_S


async def test_a_retention_of_a_hundred_years_is_no_trouble(make_tenant):
    tenant = await make_tenant(retention_days=36_500)
    ensure(tenant, at(1999, 12, 31))

    assert month_of(at(1999, 12, 31)) in bounds(tenant)


# Several at once


async def test_two_that_ask_for_one_partition_at_once_get_one(long_tenant):
    time_ns = days_ago(100)
    lock = f"lock table {long_tenant.schema}.settings in share update exclusive mode"
    with draining.connect(long_tenant) as holder, holder.transaction():
        holder.execute(lock)
        asking = [asyncio.to_thread(ensure, long_tenant, time_ns) for _ in range(2)]
        both = asyncio.gather(*asking)
        await draining.waiting_backends(long_tenant, 2)
    await both

    assert bounds(long_tenant) == [month_of(time_ns), month_of(days_ago(0))]


ADVISORY = "select pg_advisory_lock(1)"


async def test_a_reader_cannot_hold_up_the_making_of_partitions(long_tenant):
    with psycopg.connect(long_tenant.conninfo("r")) as reader:
        for lock in ("lock table settings in share update exclusive mode", ADVISORY):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(lock)
            reader.rollback()
        reader.execute("select count(*) from segments, settings")
        await asyncio.wait_for(asyncio.to_thread(ensure, long_tenant, days_ago(100)), 3)

    assert month_of(days_ago(100)) in bounds(long_tenant)


async def test_a_partition_is_made_while_a_query_reads(long_tenant):
    with psycopg.connect(long_tenant.conninfo("r")) as reader:
        reader.execute("select count(*) from segments")
        await asyncio.wait_for(commit(long_tenant, days_ago(100)), 3)

    assert draining.stored_records(long_tenant) == 1


# Widths


async def test_days_are_made_beside_a_month(long_tenant):
    this_month = month_of(days_ago(0))
    set_width(long_tenant, "day")
    ensure(long_tenant, this_month[0] - 1)

    assert bounds(long_tenant) == [day_of(this_month[0] - 1), this_month]


async def test_a_month_is_clipped_to_the_days_around_the_time(long_tenant):
    low, high = month_of(days_ago(70))
    set_width(long_tenant, "day")
    ensure(long_tenant, low + 5 * NS_PER_DAY)
    ensure(long_tenant, low + 20 * NS_PER_DAY)
    set_width(long_tenant, "month")
    for day in (10, 0, 25):
        ensure(long_tenant, low + day * NS_PER_DAY)

    days = [low + day * NS_PER_DAY for day in (0, 5, 6, 20, 21)]
    expected = list(zip(days, [*days[1:], high], strict=True))
    assert [one for one in bounds(long_tenant) if one[0] < high] == expected


async def test_a_week_begins_on_a_monday(long_tenant):
    set_width(long_tenant, "week")
    time_ns = days_ago(70)
    ensure(long_tenant, time_ns)

    [(low, high)] = [one for one in bounds(long_tenant) if one[0] <= time_ns < one[1]]
    assert datetime.fromtimestamp(low // NS_PER_S, UTC).weekday() == 0
    assert high - low == 7 * NS_PER_DAY


async def test_a_batch_over_partitions_of_mixed_widths_crosses_none(long_tenant):
    for width, age_days in (("day", 40), ("week", 60), ("day", 61), ("month", 90)):
        set_width(long_tenant, width)
        ensure(long_tenant, days_ago(age_days))
    await commit(long_tenant, *(days_ago(age_days / 2) for age_days in range(220)))

    assert crossing(long_tenant) == []
    assert draining.stored_records(long_tenant) == 220


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from(["month", "week", "day"]), st.floats(0, RETENTION_DAYS - 1, width=16)
        ),
        min_size=1,
        max_size=6,
    )
)
async def test_whatever_widths_were_asked_for_partitions_never_overlap(long_tenant, asked):
    times_ns = [days_ago(age_days) for _, age_days in asked]
    with draining.connect(long_tenant) as connection:
        for (name,) in connection.execute("select name from partition_bounds()").fetchall():
            connection.execute(f"drop table {name}")
        for (width, _), time_ns in zip(asked, times_ns, strict=True):
            connection.execute("update settings set partition_width = %s", [width])
            connection.execute("select ensure_partition(%s)", [time_ns])
        query = "select low, high from partition_bounds() order by low"
        found = connection.execute(query).fetchall()

    assert all(low < high for low, high in found)
    assert all(one[1] <= after[0] for one, after in itertools.pairwise(found))
    assert all(any(low <= t < high for low, high in found) for t in times_ns)
    assert all(low % NS_PER_DAY == high % NS_PER_DAY == 0 for low, high in found)


# Without a server


PARTITIONS = [(10 * NS_PER_DAY, 20 * NS_PER_DAY), (25 * NS_PER_DAY, 30 * NS_PER_DAY)]


def of_days(*days: float) -> np.ndarray:
    return np.array([int(day * NS_PER_DAY) for day in days], np.int64)


@pytest.mark.parametrize(
    ("days", "missing"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([10, 19.999, 25, 29], [], id="all inside"),
        pytest.param([9.9, 12], [9.9], id="before the first"),
        pytest.param([20, 24.9, 30], [20, 24.9, 30], id="gaps and behind"),
        pytest.param([21.1, 21.2, 21.3], [21.1], id="one of a day is enough"),
    ],
)
def test_times_without_a_partition_are_found(days, missing):
    assert store.uncovered(PARTITIONS, of_days(*days)) == of_days(*missing).tolist()


def test_without_partitions_every_day_misses_one():
    assert store.uncovered([], of_days(1.1, 1.2, 2.5)) == of_days(1.1, 2.5).tolist()
