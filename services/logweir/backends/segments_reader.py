"""The reading side of a tenant's store: segments and receipts, with the tenant's reader login.

    Reader.snapshot() -> Snapshot (REPEATABLE READ, READ ONLY)
        keys() -> which segments may hold a time       (no column is read)
        heads() -> label sets, layout, counts of some  (a few thousand bytes each, cached)
        blocks() -> single blocks of filters           (32 bytes each)
        pieces() -> ranges of bodies                   (the columns themselves)

All of one snapshot is as of one moment, whatever is merged meanwhile. Who reads decides what.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Literal, Self

import msgspec
import numpy as np
import psycopg
import psycopg_pool
from psycopg import sql

from logweir.backends import doors, store
from logweir.backends.heads import Head, HeadCache
from logweir.core import beside, errors, names
from logweir.core.binding import Login, PostgresServer
from logweir.core.columns import Int64s
from logweir.core.names import PipelineId, TenantId

CONNECTION_WAIT_S: Final = 5.0
IDLE_S: Final = 60.0
"""An idle reader goes home: thousands of tenants share the connections of one PostgreSQL."""
LIFETIME_S: Final = 900.0
"""A backend keeps a catalogue entry of each partition it saw; a new one starts small."""
STATEMENT_TIMEOUT_MS: Final = 30_000

_OPTIONS: Final = (
    f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c jit=off -c max_parallel_workers_per_gather=0"
    " -c idle_in_transaction_session_timeout=120000"
)


class Keys(msgspec.Struct, frozen=True, eq=False):
    """Segments that may hold a time: shape (m,) each; times are inclusive nanoseconds.

    `head_bytes` is about what the segment's head takes when it is opened.
    """

    id: Int64s
    pipeline: Int64s
    min_ts: Int64s
    max_ts: Int64s
    filter_bytes: Int64s
    filter_version: Int64s
    head_bytes: Int64s

    def __len__(self) -> int:
        return len(self.id)

    def take(self, which: Int64s) -> Keys:
        """Return the chosen ones, in the order of `which`."""
        return Keys(*(getattr(self, name)[which] for name in self.__struct_fields__))


class Range(msgspec.Struct, frozen=True):
    """Bytes [offset, offset + length) of a value of the segment (id, min_ts)."""

    id: int
    min_ts: int
    offset: int
    length: int


class LedgerRow(msgspec.Struct, frozen=True):
    """A block's row: `outcomes` are four numbers a request, as `core.settle.Outcome`."""

    pipeline: PipelineId
    outcomes: tuple[int, ...]


class Used(msgspec.Struct, frozen=True):
    """What a pipeline used since `start_ns`: requests and records by outcome, bytes as they were
    sent, and by how many bytes the store has grown. `refused` counts requests by reason."""

    start_ns: int
    pipeline: PipelineId
    requests: int
    stored: int
    quarantined: int
    expired: int
    repeated: int
    raw_bytes: int
    stored_bytes: int
    refused: Mapping[str, int] = {}


UsageStep = Literal["hour", "day", "total"]


class UnreachableError(errors.UnavailableError):
    """The store did not answer. Why is for logs (`str`): it names tables, logins and files."""

    def __init__(self, reason: str) -> None:
        super().__init__("The store did not answer.", hint="Ask again.")
        self.reason = reason.rstrip(".")

    def __str__(self) -> str:
        return f"The store did not answer: {self.reason}."


class Reader:
    """One tenant's store, read by any number of queries at once."""

    def __init__(
        self,
        server: PostgresServer,
        login: Login,
        tenant: TenantId,
        max_connections: int,
        heads: HeadCache | None = None,
    ) -> None:
        self._tenant = tenant
        self._heads = heads or HeadCache()
        self._refusals: list[psycopg.Error] = []
        self._pool = psycopg_pool.AsyncConnectionPool(
            store.conninfo(server, login, "logweir query"),
            connection_class=_remembering(self._refusals),
            kwargs={"autocommit": True, "prepare_threshold": 2, "options": _OPTIONS},
            configure=_configure,
            check=psycopg_pool.AsyncConnectionPool.check_connection,
            min_size=0,
            max_size=max_connections,
            timeout=CONNECTION_WAIT_S,
            max_idle=IDLE_S,
            max_lifetime=LIFETIME_S,
            reconnect_timeout=CONNECTION_WAIT_S,
            open=False,
        )
        self._is_closed = False

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """Open a transaction that sees the store as of now.

        Raises:
            UnavailableError: the store does not answer, or broke off.
        """
        if self._is_closed:
            raise errors.UnavailableError("The reader's login was changed meanwhile.")
        try:
            await self._pool.open()
            async with self._pool.connection() as connection, connection.transaction():
                yield Snapshot(connection, self._tenant, self._heads)
        except psycopg_pool.PoolTimeout as cause:
            why = self._refusals[0] if self._refusals else cause
            raise UnreachableError(doors.reason_of(why)) from cause
        except (psycopg.Error, psycopg_pool.PoolClosed) as cause:
            raise UnreachableError(doors.reason_of(cause)) from cause

    async def close(self) -> None:
        """Close all connections, running queries' last."""
        self._is_closed = True
        self._heads.forget(self._tenant)
        await self._pool.close()


def _remembering(refusals: list[psycopg.Error]) -> type[psycopg.AsyncConnection[Any]]:
    """Connections that leave in `refusals` why the last of them was not opened: a pool only says
    that it has none."""

    class Remembering(psycopg.AsyncConnection[Any]):
        @classmethod
        async def connect(cls, conninfo: str = "", **options: Any) -> Self:  # noqa: ANN401 - as there
            try:
                made = await super().connect(conninfo, **options)
            except psycopg.Error as error:
                refusals[:] = [error]
                raise
            refusals.clear()
            return made

    return Remembering


async def _configure(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)


class Snapshot:
    """What a query reads, all as of the moment of its first read."""

    def __init__(
        self, connection: psycopg.AsyncConnection[Any], tenant: TenantId, heads: HeadCache
    ) -> None:
        self._connection = connection
        self._tenant = tenant
        self._schema = names.schema(tenant)
        self._heads = heads

    async def keys(self, lows_ns: Mapping[PipelineId, int], high_ns: int) -> Keys:
        """Return the segments that may hold records in [low, high), by pipeline.

        Args:
            lows_ns: the pipelines that are asked for, each with its own first moment.
            high_ns: exclusive.
        """
        floor_ns = await self._floor_ns(min(lows_ns.values(), default=0))
        rows = await self._rows(
            "select s.id, s.pipeline::int8, s.min_ts, s.max_ts,"
            " coalesce(octet_length(s.filter), 0)::int8, coalesce(s.filter_version, -1)::int8,"
            " octet_length(s.counts)::int8, s.codec::int8, octet_length(s.label_sets)::int8,"
            " substring(s.label_sets for %s)"
            " from {}.segments s join unnest(%s::int4[], %s::int8[]) as p(id, low)"
            " on p.id = s.pipeline"
            " where s.min_ts >= %s and s.min_ts < %s and s.max_ts >= p.low",
            [beside.PREFIX_BYTES, list(lows_ns), list(lows_ns.values()), floor_ns, high_ns],
        )
        return _keys([(*row[:6], _head_bytes(*row[6:])) for row in rows])

    async def keys_created_since(self, pipelines: Sequence[PipelineId], since_ms: int) -> Keys:
        """Return the segments of these pipelines that were made since then, merged ones too."""
        rows = await self._rows(
            "select s.id, s.pipeline::int8, s.min_ts, s.max_ts, 0::int8, -1::int8, 0::int8"
            " from {}.segments s where s.pipeline = any(%s)"
            " and s.created_at >= to_timestamp(%s / 1000.0)",
            [list(pipelines), since_ms],
        )
        return _keys(rows)

    async def _floor_ns(self, low_ns: int) -> int:
        """The beginning of the partition that holds `low_ns`: no segment crosses a partition, so
        no older one is worth a look."""
        rows = await self._rows(store.PARTITIONS, [f'"{self._schema}".segments'])
        holding = (low for low, end in store.partition_bounds(rows) if low <= low_ns < end)
        return next(holding, low_ns)

    async def heads(self, keys: Keys) -> list[Head]:
        """Return the heads of these segments, in their order."""
        parts = (keys.id.tolist(), keys.min_ts.tolist(), keys.max_ts.tolist())
        wanted = list(zip(*parts, strict=True))
        known = [self._heads.get(self._tenant, *one) for one in wanted]
        missing = [one[:2] for one, head in zip(wanted, known, strict=True) if head is None]
        read = await self._read_heads(missing) if missing else {}
        return [head or read[one[0]] for one, head in zip(wanted, known, strict=True)]

    async def _read_heads(self, wanted: Sequence[tuple[int, int]]) -> dict[int, Head]:
        ids, min_ts = zip(*wanted, strict=True)
        rows = await self._rows(
            "select s.id, s.pipeline, s.min_ts, s.max_ts, s.n, s.codec, s.layout, s.label_sets,"
            " s.counts from unnest(%s::int8[], %s::int8[]) as k(id, min_ts)"
            " join {}.segments s on s.id = k.id and s.min_ts = k.min_ts"
            " where s.min_ts >= %s and s.min_ts <= %s",
            [list(ids), list(min_ts), *_span(min_ts)],
        )
        table = self._heads.table(self._tenant)
        found = {row[0]: Head(table, *row) for row in rows}
        self._heads.put(self._tenant, found.values())
        return found

    async def filter_blocks(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return single blocks of segments' filters, in the order of `ranges`."""
        return await self._substrings(sql.Identifier("filter"), ranges)

    async def pieces(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return pieces of segments' bodies, in the order of `ranges`."""
        return await self._substrings(sql.Identifier("body"), ranges)

    async def _substrings(self, column: sql.Identifier, ranges: Sequence[Range]) -> list[bytes]:
        if not ranges:
            return []
        rows = await self._rows(
            "select k.place::int4, substring(s.{1} from k.first for k.length)"
            " from unnest(%s::int8[], %s::int8[], %s::int4[], %s::int4[])"
            " with ordinality as k(id, min_ts, first, length, place)"
            " join {0}.segments s on s.id = k.id and s.min_ts = k.min_ts"
            " where s.min_ts >= %s and s.min_ts <= %s",
            [
                [one.id for one in ranges],
                [one.min_ts for one in ranges],
                [one.offset + 1 for one in ranges],
                [one.length for one in ranges],
                *_span([one.min_ts for one in ranges]),
            ],
            column,
        )
        found = [b""] * len(ranges)
        for place, piece in rows:
            found[place - 1] = piece
        return found

    async def ledger_row(self, block: bytes) -> LedgerRow | None:
        """Return what became of a block's requests; None when the ledger does not have it."""
        rows = await self._rows(
            "select pipeline, outcomes from {}.ledger where key = %s and kind = 'b'",
            [uuid.UUID(bytes=block)],
        )
        return LedgerRow(rows[0][0], tuple(rows[0][1])) if rows else None

    async def usage(
        self,
        pipelines: Sequence[PipelineId],
        span_s: tuple[int, int],
        step: UsageStep,
        most: int,
    ) -> list[Used]:
        """Return what pipelines used, by time and pipeline; at most so many rows.

        Args:
            pipelines: whose usage.
            span_s: first second and the one after the last, since the epoch: whole hours, as
                the keeper keeps no more.
            step: what one row stands for, in UTC.
            most: rows.
        """
        values = [list(pipelines), *span_s]
        place = sql.Literal(span_s[0] * 10**9) if step == "total" else _START[step]
        rows = await self._rows(
            "select ({1})::int8, u.pipeline, coalesce(sum(u.requests), 0)::int8,"
            " coalesce(sum(u.stored), 0)::int8, coalesce(sum(u.quarantined), 0)::int8,"
            " coalesce(sum(u.expired), 0)::int8, coalesce(sum(u.repeated), 0)::int8,"
            " coalesce(sum(u.raw_bytes), 0)::int8, coalesce(sum(u.stored_bytes), 0)::int8"
            " from {0}.usage u where u.pipeline = any(%s) and u.at >= to_timestamp(%s)"
            " and u.at < to_timestamp(%s) group by 1, 2 order by 1, 2 limit %s",
            [*values, most],
            place,
        )
        reasons = await self._rows(
            "select ({1})::int8, u.pipeline, r.key, sum(r.value::int8)::int8 from {0}.usage u"
            " cross join jsonb_each_text(u.refused) as r where u.pipeline = any(%s)"
            " and u.at >= to_timestamp(%s) and u.at < to_timestamp(%s) group by 1, 2, 3 order by 3",
            values,
            place,
        )
        refused: dict[tuple[object, ...], dict[str, int]] = {}
        for *at, reason, number in reasons:
            refused.setdefault(tuple(at), {})[reason] = number
        return [
            msgspec.structs.replace(Used(*row), refused=refused.get(row[:2], {})) for row in rows
        ]

    async def _rows(
        self, text: str, values: Sequence[object], *names: sql.Composable
    ) -> list[tuple[Any, ...]]:
        query = sql.SQL(text).format(sql.Identifier(self._schema), *names)
        cursor = await self._connection.execute(query, values, binary=True)
        return await cursor.fetchall()


_START: Final[Mapping[str, sql.SQL]] = {
    "hour": sql.SQL("extract(epoch from date_trunc('hour', u.at, 'UTC')) * 1e9"),
    "day": sql.SQL("extract(epoch from date_trunc('day', u.at, 'UTC')) * 1e9"),
}


def _head_bytes(counts_bytes: int, codec: int, label_sets_bytes: int, prefix: bytes) -> int:
    opened_bytes = beside.label_sets_bytes(prefix, codec)
    return counts_bytes + max(opened_bytes, label_sets_bytes)


def _keys(rows: Sequence[tuple[int, ...]]) -> Keys:
    width = len(Keys.__struct_fields__)
    table = np.array(rows, np.int64).reshape(-1, width)
    return Keys(*(np.ascontiguousarray(table[:, column]) for column in range(width)))


def _span(min_ts: Sequence[int]) -> tuple[int, int]:
    """The first and last beginning: it tells the planner which partitions to leave alone."""
    return min(min_ts, default=0), max(min_ts, default=0)
