"""The keeping side of a tenant's store: what is merged, pruned and summed, with its keeper login.

    KeeperStore.small_segments() -> load() -> (merged by who calls) -> replace()
                .horizons() -> prune_ledger(), prune_producers()
                .sum_usage(), ensure_partitions()
    Activity.inserted() -> how much was written for whom, for all tenants at once

Each change is one transaction that is right by itself, whoever else does the same at that time: a
lease saves work, it is not what keeps records safe. One connection, opened when it is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec
import psycopg
from psycopg import sql

from logweir.backends import doors, failpoint, store
from logweir.core import errors, names, segment
from logweir.core.binding import Login, PostgresServer
from logweir.core.names import PipelineId, TenantId

OPERATION_TIMEOUT_S: Final = 120.0
"""For one call here; after it the connection is given up, and what was not committed undone."""

PRUNE_PAGES: Final = 80
"""Pages of the ledger that one transaction prunes, some 5,000 rows."""

PRUNE_PRODUCERS: Final = 5_000
USAGE_HOURS: Final = 20
"""Hours of pipelines that one transaction sums; an hour has at most some 18,000 rows."""

MAX_LISTED: Final = 20_000
"""Segments of one list, for the memory of who reads it."""


class SmallSegment(msgspec.Struct, frozen=True):
    """A segment that might be merged, without its bytes.

    `partition` is a number that the segments of one partition share, `age_s` the time since it was
    written, in the server's clock.
    """

    partition: int
    pipeline: PipelineId
    id: int
    min_ts: int
    max_ts: int
    n: int
    raw_bytes: int
    age_s: float


class Horizon(msgspec.Struct, frozen=True):
    """How far a pipeline's journal was surely drained when `usage` was last written for it."""

    pipeline: PipelineId
    at: datetime


class _Door:
    """One connection, opened when it is needed and given up after any error."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._connection: psycopg.AsyncConnection[Any] | None = None

    @contextlib.asynccontextmanager
    async def _door(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT_S):
                if self._connection is None or self._connection.closed:
                    self._connection = await psycopg.AsyncConnection.connect(
                        self._conninfo, autocommit=True, prepare_threshold=None
                    )
                yield self._connection
        except (psycopg.Error, OSError, TimeoutError) as cause:
            await self.close()
            reason = doors.reason_of(cause).rstrip(".")
            raise errors.UnavailableError(f"The store failed: {reason}.") from cause

    async def close(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()


class Activity(_Door):
    """What the server's own statistics say of all tenants; needs no right on any of them."""

    def __init__(self, server: PostgresServer, login: Login) -> None:
        super().__init__(store.conninfo(server, login, "logweir keeper"))

    async def inserted(self) -> dict[str, int]:
        """Return how many segments were ever inserted, by schema: a number that moves when there
        is something new, and that says nothing else (it may begin anew at any time).

        Raises:
            UnavailableError: the store does not answer.
        """
        async with self._door() as connection:
            cursor = await connection.execute(
                "select s.nspname::text, sum(pg_stat_get_tuples_inserted(c.oid))::int8"
                " from pg_class c join pg_namespace s on s.oid = c.relnamespace"
                " where c.relispartition and c.relkind = 'r' and s.nspname like 't\\_%'"
                " group by s.nspname"
            )
            return dict(await cursor.fetchall())


class KeeperStore(_Door):
    """One tenant's store, for one visit of a keeper; not to be used by two tasks at once.

    All methods raise UnavailableError when the store does not answer, or refuses.
    """

    def __init__(self, server: PostgresServer, login: Login, tenant: TenantId) -> None:
        super().__init__(store.conninfo(server, login, "logweir keeper"))
        self._schema = names.schema(tenant)
        self._is_migrated = False

    def _sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(sql.Identifier(self._schema))

    async def _rows(
        self, text: str, values: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        """Run one statement, which is a transaction; return its rows."""
        async with self._door() as connection:
            cursor = await connection.execute(self._sql(text), values, binary=True)
            return await cursor.fetchall()

    async def _change(self, text: str, values: Sequence[object] | Mapping[str, object] = ()) -> int:
        """Run one statement, which is a transaction; return how many rows it changed."""
        async with self._door() as connection:
            cursor = await connection.execute(self._sql(text), values)
            return cursor.rowcount

    # ---- partitions --------------------------------------------------------------------------

    async def ensure_partitions(self) -> None:
        """Make the partitions of now and of this time tomorrow, where there are none."""
        await self._rows(
            "select {0}.ensure_partition(t.now_ns), {0}.ensure_partition(t.now_ns + %s)"
            " from (select (extract(epoch from clock_timestamp()) * 1e9)::int8 as now_ns) as t",
            [24 * 3600 * 10**9],
        )

    # ---- segments ----------------------------------------------------------------------------

    async def small_segments(
        self,
        after: tuple[int, int],
        *,
        max_n: int,
        max_raw_bytes: int,
        left: Collection[int] = (),
    ) -> list[SmallSegment]:
        """Return segments that are small enough to be merged, by time; the first `MAX_LISTED`.

        Args:
            after: `min_ts` and `id` of the one before the first.
            max_n: most records.
            max_raw_bytes: most raw bytes.
            left: ids of those that are to be left alone. So are those of a newer codec version.
        """
        rows = await self._rows(
            "select s.tableoid::int8, s.pipeline, s.id, s.min_ts, s.max_ts, s.n, s.raw_bytes,"
            " extract(epoch from clock_timestamp() - s.created_at)::float8 from {}.segments s"
            " where s.min_ts >= %s and (s.min_ts, s.id) > (%s, %s) and s.n <= %s"
            " and s.raw_bytes <= %s and s.codec <= %s and s.id <> all(%s::int8[])"
            " order by s.min_ts, s.id limit %s",
            [after[0], *after, max_n, max_raw_bytes, segment.VERSION, list(left), MAX_LISTED],
        )
        return [SmallSegment(*row) for row in rows]

    async def unknown_segments(self, after_id: int) -> tuple[int, int]:
        """Return how many segments with a larger id have a newer codec version, and their last."""
        rows = await self._rows(
            "select count(*), coalesce(max(s.id), %(after)s) from {}.segments s"
            " where s.codec > %(known)s and s.id > %(after)s",
            {"after": after_id, "known": segment.VERSION},
        )
        return rows[0][0], rows[0][1]

    async def load(self, group: Sequence[SmallSegment]) -> list[segment.Segment]:
        """Return these segments whole, in their order; none when one of them is gone."""
        rows = await self._rows(
            "select s.id, s.pipeline, s.min_ts, s.max_ts, s.n, s.raw_bytes, s.codec, s.layout,"
            " s.label_sets, s.counts, s.filter_version, s.filter, s.body"
            " from unnest(%(ids)s::int8[], %(times)s::int8[]) as k(id, min_ts)"
            " join {}.segments s on s.id = k.id and s.min_ts = k.min_ts"
            " where s.min_ts between %(low)s and %(high)s",
            which(group),
        )
        by_id = {row[0]: segment.Segment(*row[1:]) for row in rows}
        if len(by_id) < len(group):
            return []
        return [by_id[one.id] for one in group]

    async def replace(self, group: Sequence[SmallSegment], merged: segment.Segment) -> bool:
        """Put one segment in the place of several, in one transaction.

        Returns:
            False when they are not all there any more: then nothing is changed.
        """
        is_replaced = False
        async with self._door() as connection:
            async with connection.transaction() as transaction:
                deleted = await connection.execute(self._sql(DELETE_SEGMENTS), which(group))
                gone_bytes = [row[1] for row in await deleted.fetchall()]
                if len(gone_bytes) != len(group):
                    raise psycopg.Rollback(transaction)
                failpoint.reach("keeper.mid_merge")
                await connection.execute(
                    self._sql(
                        "insert into {}.segments (pipeline, min_ts, max_ts, n, raw_bytes, codec,"
                        " layout, label_sets, counts, filter_version, filter, body, merged)"
                        " values (%s, %s, %s, %s, %s, %s, %b, %b, %b, %s, %b, %b, 1)"
                    ),
                    msgspec.structs.astuple(merged),
                )
                saved_bytes = sum(gone_bytes) - len(merged.body) - len(merged.filter)
                await self._count_change(connection, merged.pipeline, -saved_bytes)
                is_replaced = True
            failpoint.reach("keeper.after_merge")
        return is_replaced

    async def _count_change(
        self, connection: psycopg.AsyncConnection[Any], pipeline: PipelineId, by_bytes: int
    ) -> None:
        """Add to usage what a change of segments, in the same transaction, does to their bytes."""
        if await self._has_storage(connection):
            await connection.execute(
                self._sql("select {}.change_usage(%s, %s)"), [pipeline, by_bytes]
            )

    async def _has_storage(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        """Whether the schema is of this program's revision: that of the one before does not
        follow what a keeper does to its bytes, and is put right when it is migrated."""
        if not self._is_migrated:
            cursor = await connection.execute(
                "select coalesce(has_function_privilege(to_regprocedure(%s)::oid, 'execute'),"
                " false)",
                [f'"{self._schema}".drop_partition(int8)'],
            )
            [[self._is_migrated]] = await cursor.fetchall()
        return self._is_migrated

    # ---- ledgers -----------------------------------------------------------------------------

    async def now(self) -> datetime:
        """Return the server's time, of which all times of rows are."""
        rows = await self._rows("select now()")
        found: datetime = rows[0][0]
        return found

    async def horizons(self) -> list[Horizon]:
        """Return for each pipeline that ever stored anything how far it was drained: the arrival
        of its oldest pending block as its newest row of `usage` tells it, at most now."""
        rows = await self._rows(_HORIZONS)
        return [Horizon(*row) for row in rows]

    async def ledger_pages(self) -> int:
        """Return how many pages the ledger has."""
        rows = await self._rows(
            "select pg_relation_size(%s::regclass) / current_setting('block_size')::int8",
            [f'"{self._schema}".ledger'],
        )
        return int(rows[0][0])

    async def prune_ledger(
        self,
        first_page: int,
        before: Mapping[PipelineId, datetime | None],
        others_before: datetime,
    ) -> int:
        """Delete what is old enough in `PRUNE_PAGES` pages; return how many rows.

        Args:
            first_page: of these pages. By pages, because each is then looked at once, and no row
                that stands in a page is written.
            before: for each pipeline, rows from before which go; None keeps them all.
            others_before: the same for the rows of all other pipelines.
        """
        return await self._change(
            "delete from {}.ledger l where l.ctid >= %(first)s::tid and l.ctid < %(end)s::tid"
            " and l.at < case when l.pipeline = any(%(pipelines)s::int4[])"
            " then (%(before)s::timestamptz[])[array_position(%(pipelines)s::int4[], l.pipeline)]"
            " else %(others)s end",
            {
                "first": f"({first_page},0)",
                "end": f"({first_page + PRUNE_PAGES},0)",
                "pipelines": list(before),
                "before": list(before.values()),
                "others": others_before,
            },
        )

    async def prune_producers(self, before: datetime) -> int:
        """Delete producers that stored nothing since then, a batch of them; return how many."""
        return await self._change(
            "delete from {0}.producers where ctid = any(array("
            "select p.ctid from {0}.producers p where p.last_at < %s limit %s))",
            [before, PRUNE_PRODUCERS],
        )

    # ---- usage -------------------------------------------------------------------------------

    async def sum_usage(self, before: datetime) -> int:
        """Sum rows of `usage` from before then, per pipeline and hour; return how many rows went.

        A pipeline's newest row stays as it is: it says how far the journal is drained. A sum has
        the time and the `oldest_pending_at` of the newest row in it. Rows that come late for an
        hour are summed with its sum the next time.
        """
        rows = await self._rows(_SUM_USAGE, {"before": before, "hours": USAGE_HOURS})
        return int(rows[0][0])


DELETE_SEGMENTS: Final = (
    "delete from {}.segments s"
    " using unnest(%(ids)s::int8[], %(times)s::int8[]) as k(id, min_ts)"
    " where s.id = k.id and s.min_ts = k.min_ts and s.min_ts between %(low)s and %(high)s"
    " returning s.pipeline, octet_length(s.body) + coalesce(octet_length(s.filter), 0)"
)
"""Deletes those of `which`; returns pipeline and bytes of each that was there."""


class Located(Protocol):
    """What finds a segment."""

    @property
    def id(self) -> int:
        """Its number."""

    @property
    def min_ts(self) -> int:
        """Its first time."""


def which(group: Sequence[Located]) -> dict[str, object]:
    """The keys of segments, and the bounds that tell the planner which partitions to look at."""
    times = [one.min_ts for one in group]
    ids = [one.id for one in group]
    return {"ids": ids, "times": times, "low": min(times), "high": max(times)}


_HORIZONS: Final = """  -- from pipeline to pipeline by the index: one row of each is read
with recursive found (pipeline) as (
    select min(u.pipeline) from {0}.usage u union all
    select (select min(u.pipeline) from {0}.usage u where u.pipeline > f.pipeline) from found f
    where f.pipeline is not null
)
select f.pipeline, newest.at from found f cross join lateral (
    select least(coalesce(u.oldest_pending_at, u.at), now()) as at from {0}.usage u
    where u.pipeline = f.pipeline order by u.at desc limit 1) as newest
"""

_SUM_USAGE: Final = """
with chosen as (
    select u.pipeline, date_trunc('hour', u.at, 'UTC') as hour
    from {0}.usage u
    join (select pipeline, max(at) as at from {0}.usage group by pipeline) as newest
        on newest.pipeline = u.pipeline and u.at < newest.at
    where date_trunc('hour', u.at, 'UTC') + interval '1 hour' <= %(before)s
    group by 1, 2 having count(*) > 1 order by 2 limit %(hours)s
), gone as (
    delete from {0}.usage u using chosen c
    where u.pipeline = c.pipeline and u.at >= c.hour and u.at < c.hour + interval '1 hour'
        and u.at < (select max(n.at) from {0}.usage n where n.pipeline = u.pipeline)
    returning u.*, c.hour
), reasons as (
    select t.pipeline, t.hour, jsonb_object_agg(t.reason, t.total) as refused
    from (
        select g.pipeline, g.hour, e.key as reason, sum(e.value::int8) as total
        from gone g cross join jsonb_each_text(g.refused) as e
        group by 1, 2, 3
    ) as t
    group by 1, 2
), summed as (
    insert into {0}.usage (at, pipeline, requests, stored, quarantined, expired, repeated,
        raw_bytes, stored_bytes, refused, oldest_pending_at)
    select max(g.at), g.pipeline, sum(g.requests), sum(g.stored), sum(g.quarantined),
        sum(g.expired), sum(g.repeated), sum(g.raw_bytes), sum(g.stored_bytes),
        coalesce((select r.refused from reasons r where r.pipeline = g.pipeline
            and r.hour = g.hour), '{{}}'),
        (array_agg(g.oldest_pending_at order by g.at desc))[1]
    from gone g group by g.pipeline, g.hour
)
select count(*) from gone
"""
