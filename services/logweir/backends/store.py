"""The writing side of a tenant's store: ledgers, segments, quarantine and usage in one transaction.

    deliveries -> Store.commit -> ledger rows, settle(), segments -> COMMIT -> (the caller acks)

It connects with the tenant's writer login, which can read no segment. Whatever happens to the
connection, nothing is half done: a batch is committed whole, or delivered again and settled anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid as uuids
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from logweir.backends import doors, failpoint, ledgers
from logweir.core import columns, errors, moments, names, segment, settle
from logweir.core.binding import Login, PostgresServer
from logweir.core.columns import Columns
from logweir.core.names import PipelineId, TenantId

COMMIT_TIMEOUT_S: Final = 60.0
"""After this the connection is given up; the batch is settled again on a new one."""

CONNECT_TIMEOUT_S: Final = 5
IDLE_S: Final = 60.0
"""A connection that is not used for so long goes home."""

_DATA_ERRORS: Final = (psycopg.DataError, psycopg.IntegrityError)
_TOO_OLD: Final = "LW001"
_TOO_NEW: Final = "LW002"
"""What ensure_partition raises: the time is older than the retention, or in the future."""

PARTITIONS: Final = (
    "select pg_get_expr(c.relpartbound, c.oid) from pg_inherits i"
    " join pg_class c on c.oid = i.inhrelid where i.inhparent = %s::regclass"
)
"""The bounds of a table's partitions, for `partition_bounds`; takes the table, quoted."""

_BOUND = re.compile(r"FROM \('?(-?\d+)'?\) TO \('?(-?\d+)'?\)")


class RefusedByStoreError(errors.LogweirError):
    """The values themselves were refused (SQLSTATE class 22 or 23, a time in the future, text that
    is none): sent again, they will be again."""

    code = "refused_by_store"


class Committed(msgspec.Struct, frozen=True, eq=False):
    """What a transaction did: results of blocks that were new, and ids of entries seen before."""

    results: tuple[settle.BlockResult, ...]
    repeated: tuple[settle.Delivery, ...]


def conninfo(server: PostgresServer, login: Login, application: str) -> str:
    """Return libpq's connection string of a login."""
    return psycopg.conninfo.make_conninfo(
        host=server.host,
        port=server.port,
        dbname=server.database,
        user=login.user,
        password=login.password,
        sslmode=server.tls,
        sslrootcert=server.ca_file or None,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name=application,
        keepalives_idle=30,
    )


class Store:
    """One tenant's store, for one collector; not to be used by two tasks at once."""

    def __init__(self, server: PostgresServer, login: Login, tenant: TenantId) -> None:
        self._conninfo = conninfo(server, login, "logweir collector")
        self._schema = names.schema(tenant)
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._used_s = 0.0
        self._partitions: list[tuple[int, int]] = []

    async def commit(
        self,
        pipeline: PipelineId,
        deliveries: Sequence[settle.Delivery],
        *,
        now_ns: int,
        retention_days: int,
        oldest_pending_ms: int | None = None,
    ) -> Committed:
        """Store these blocks, each exactly once.

        Args:
            pipeline: whose blocks.
            deliveries: the blocks.
            now_ns: the time, for the retention.
            retention_days: of the pipeline.
            oldest_pending_ms: arrival of the oldest block that the journal still holds, these
                among them, since the epoch; the keeper keeps ledger rows for it.

        Raises:
            RefusedByStoreError: the values themselves were refused; nothing was stored.
                Some block among these is to blame, maybe not all.
            UnavailableError: anything else; it is unknown whether the commit took place, and
                harmless to try again.
        """
        oldest_ns = now_ns - retention_days * moments.NS_PER_DAY
        work = _Work(pipeline, deliveries, oldest_ns, oldest_pending_ms)
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                return await self._commit(work)
        except psycopg.errors.CheckViolation as error:
            # A partition was dropped since its bounds were read; they are read again.
            self._partitions = []
            raise errors.UnavailableError(f"The store has no partition: {error}.") from error
        except (*_DATA_ERRORS, ValueError, msgspec.MsgspecError) as error:
            raise RefusedByStoreError(f"{type(error).__name__}: {_first_line(error)}") from error
        except (psycopg.Error, OSError, TimeoutError) as error:
            await self.close()
            reason = doors.reason_of(error).rstrip(".")
            raise errors.UnavailableError(f"The store failed: {reason}.") from error

    async def close_idle(self) -> None:
        """Close the connection when nothing was stored for a while: tenants share a server."""
        if time.monotonic() - self._used_s >= IDLE_S:
            await self.close()

    async def _commit(self, work: _Work) -> Committed:
        self._used_s = time.monotonic()
        failpoint.reach("collector.refusal", psycopg.DataError)
        connection = await self._connect()
        guess = work.results(settle.Known())
        try:
            await self._cover(connection, guess)
        except psycopg.Error as error:
            if error.sqlstate == _TOO_NEW:
                raise RefusedByStoreError(f"{error.sqlstate}: {error}") from error
            if error.sqlstate != _TOO_OLD or not error.diag.message_detail:
                raise
            # The tenant keeps less than the pipeline was told, or the clocks differ.
            work = msgspec.structs.replace(work, oldest_ns=int(error.diag.message_detail))
            guess = work.results(settle.Known())
            await self._cover(connection, guess)
        return await self._transaction(connection, work, guess)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._partitions = []
            self._connection = await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, prepare_threshold=2
            )
        return self._connection

    async def close(self) -> None:
        """Close the connection; the next commit opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()

    async def _cover(
        self, connection: psycopg.AsyncConnection[Any], guess: Sequence[settle.BlockResult]
    ) -> None:
        """Make sure that a partition holds each record that will be stored."""
        times_ns = np.concatenate([result.records.time_ns for result in guess])
        if not self._partitions:
            self._partitions = await self._read_partitions(connection)
        for time_ns in uncovered(self._partitions, times_ns):
            if not uncovered(self._partitions, np.array([time_ns])):
                continue  # an earlier one's partition holds it, too
            await connection.execute(self._sql("select {}.ensure_partition(%s)"), [time_ns])
            failpoint.reach("collector.after_partition")
            self._partitions = await self._read_partitions(connection)

    async def _read_partitions(
        self, connection: psycopg.AsyncConnection[Any]
    ) -> list[tuple[int, int]]:
        cursor = await connection.execute(PARTITIONS, [f'"{self._schema}".segments'])
        return partition_bounds(await cursor.fetchall())

    async def _transaction(
        self,
        connection: psycopg.AsyncConnection[Any],
        work: _Work,
        guess: list[settle.BlockResult],
    ) -> Committed:
        # Nearly always all is new: the segments are made before any row is locked.
        segments = work.segments(guess, self._partitions)
        async with connection.transaction():
            known = await ledgers.ask(connection, self._schema, work.pipeline, work.deliveries)
            results = work.results(known)
            fresh = await ledgers.add_blocks(connection, self._schema, work.pipeline, results)
            kept = _first_of_each([r for r in results if r.delivery.uuid in fresh])
            if len(kept) != len(guess) or known.earlier or known.seen:
                segments = work.segments(kept, self._partitions)
            stored_bytes = await self._add_segments(connection, segments)
            await self._add_rest(connection, work, kept, stored_bytes)
            failpoint.reach("collector.before_commit")
        failpoint.reach("collector.cut_on_commit")
        done = {id(result.delivery) for result in kept}
        repeated = tuple(d for d in work.deliveries if id(d) not in done)
        return Committed(tuple(kept), repeated)

    async def _add_segments(
        self, connection: psycopg.AsyncConnection[Any], segments: Sequence[segment.Segment]
    ) -> int:
        """Insert segments; return the bytes that they take."""
        insert = self._sql(
            "insert into {}.segments (pipeline, min_ts, max_ts, n, raw_bytes, codec, layout,"
            " label_sets, counts, filter_version, filter, body)"
            " values (%s, %s, %s, %s, %s, %s, %b, %b, %b, %s, %b, %b)"
        )
        for one in segments:
            await connection.execute(insert, msgspec.structs.astuple(one))
        return sum(len(one.body) + len(one.filter) for one in segments)

    async def _add_rest(
        self,
        connection: psycopg.AsyncConnection[Any],
        work: _Work,
        results: Sequence[settle.BlockResult],
        stored_bytes: int,
    ) -> None:
        pipeline = work.pipeline
        for row in (row for result in results for row in result.quarantine):
            await connection.execute(
                self._sql(
                    "insert into {}.quarantine (pipeline, block, request_index, reason, payload)"
                    " values (%s, %s, %s, %s, %b)"
                ),
                [pipeline, uuids.UUID(bytes=row.block), row.request_index, row.reason, row.payload],
            )
            failpoint.reach("collector.after_quarantine")
        if results:
            total = totals(results)
            await connection.execute(
                self._sql(
                    "insert into {}.usage (pipeline, requests, stored, quarantined, expired,"
                    " repeated, raw_bytes, stored_bytes, refused, oldest_pending_at)"
                    " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, to_timestamp(%s / 1000.0))"
                ),
                [
                    pipeline,
                    sum(len(result.outcomes) for result in results),
                    *msgspec.structs.astuple(total),
                    sum(result.raw_bytes for result in results),
                    stored_bytes,
                    Jsonb(refusals(results)),
                    work.oldest_pending_ms,
                ],
            )

    def _sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(sql.Identifier(self._schema))


class _Work(msgspec.Struct, frozen=True, eq=False):
    """One batch on its way into the store."""

    pipeline: PipelineId
    deliveries: Sequence[settle.Delivery]
    oldest_ns: int
    oldest_pending_ms: int | None

    def results(self, known: settle.Known) -> list[settle.BlockResult]:
        return settle.settle(self.deliveries, known, now_ns=self.oldest_ns, retention_days=0)

    def segments(
        self, results: Sequence[settle.BlockResult], partitions: Sequence[tuple[int, int]]
    ) -> list[segment.Segment]:
        """The segments of these results: one, or one for each partition that they touch."""
        records = columns.concat([r.records for r in results]) if results else columns.empty()
        raw_bytes = sum(result.raw_bytes for result in results)
        parts = split(records, partitions)
        return [
            segment.encode(self.pipeline, part, raw_bytes * part.n // max(1, records.n))
            for part in parts
        ]


def _first_line(error: Exception) -> str:
    """What was refused; the lines behind it may quote what was to be stored."""
    return str(error).partition("\n")[0]


def _first_of_each(results: Sequence[settle.BlockResult]) -> list[settle.BlockResult]:
    """One block may be delivered twice in a batch; the first one counts."""
    return list({r.delivery.uuid: r for r in reversed(results)}.values())[::-1]


def totals(results: Iterable[settle.BlockResult]) -> settle.Outcome:
    """Return the sum of all outcomes."""
    outcomes = [outcome for result in results for outcome in result.outcomes]
    return settle.Outcome(
        stored=sum(outcome.stored for outcome in outcomes),
        quarantined=sum(outcome.quarantined for outcome in outcomes),
        expired=sum(outcome.expired for outcome in outcomes),
        repeated=sum(outcome.repeated for outcome in outcomes),
    )


def refusals(results: Iterable[settle.BlockResult]) -> dict[str, int]:
    """Return the refusals that the blocks' headers report, by reason."""
    found: dict[str, int] = {}
    for result in results:
        for reason, count in (
            result.delivery.header.refused if result.delivery.header else {}
        ).items():
            found[reason] = found.get(reason, 0) + count
    return found


def partition_bounds(rows: Iterable[Sequence[str | None]]) -> list[tuple[int, int]]:
    """Return what `PARTITIONS` found: first moment (inclusive) and end of each, in order.

    One that is dropped while the catalog is read has no bound there.
    """
    found = (_BOUND.search(row[0]) for row in rows if row[0])
    return sorted((int(match[1]), int(match[2])) for match in found if match)


def uncovered(partitions: Sequence[tuple[int, int]], times_ns: columns.Int64s) -> list[int]:
    """Return times that no partition holds, at least one of each gap between partitions."""
    if not len(times_ns):
        return []
    if not partitions:
        lone = np.unique(times_ns // moments.NS_PER_DAY, return_index=True)[1]
        days: list[int] = times_ns[lone].tolist()
        return days
    where, inside = _partition_of(partitions, times_ns)
    out = times_ns[~inside]
    if not len(out):
        return []
    keys = np.stack([where[~inside], out // moments.NS_PER_DAY])
    lone = np.unique(keys, axis=1, return_index=True)[1]
    found: list[int] = out[lone].tolist()
    return found


def _partition_of(
    partitions: Sequence[tuple[int, int]], times_ns: columns.Int64s
) -> tuple[columns.Int64s, columns.Bools]:
    """For each time the last partition that begins at or before it, and whether it holds it."""
    lows = np.array([low for low, _ in partitions], np.int64)
    highs = np.array([high for _, high in partitions], np.int64)
    where = np.searchsorted(lows, times_ns, side="right") - 1
    inside = (where >= 0) & (times_ns < highs[np.maximum(where, 0)])
    return where, inside


def split(records: Columns, partitions: Sequence[tuple[int, int]]) -> list[Columns]:
    """Return the records of each partition that holds any."""
    if not records.n:
        return []
    where, _ = _partition_of(partitions, records.time_ns)
    first = int(where[0])
    if (where == first).all():
        return [records]
    return [columns.select(records, where == one) for one in np.unique(where)]
