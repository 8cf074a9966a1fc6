"""The ledgers of a tenant's store: which blocks and requests it has taken. Called by `store` alone.

    ask()         rows of requests are added, producers' numbers spent -> what was there before
    add_blocks()  rows of blocks are added, with their outcomes -> which were not there before

All of it happens in the transaction that stores the records. Rows are locked in the order of
their keys, so that two writers never wait for each other in a circle; who comes second waits for
the first to commit, and then sees its rows.
"""

from __future__ import annotations

import itertools
import uuid as uuids
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import psycopg
from psycopg import sql
from psycopg.types.multirange import Int8Multirange
from psycopg.types.range import Int8Range

from logweir.core import errors, settle
from logweir.core.names import PipelineId

Connection = psycopg.AsyncConnection[Any]


async def ask(
    connection: Connection,
    schema: str,
    pipeline: PipelineId,
    deliveries: Sequence[settle.Delivery],
) -> settle.Known:
    """Claim the keys and numbers of these blocks; return those that were claimed before."""
    wanted = settle.keyed_requests(deliveries)
    earlier = await _add_requests(connection, schema, pipeline, wanted)
    seen: set[settle.Number] = set()
    for (producer, epoch), group in itertools.groupby(
        settle.numbers(deliveries), key=lambda number: (number.producer, number.epoch)
    ):
        who = _Producer(pipeline, producer, epoch)
        old = await _spend(connection, schema, who, [number.sequence for number in group])
        seen |= {settle.Number(producer, epoch, sequence) for sequence in old}
    return settle.Known(earlier, frozenset(seen))


async def add_blocks(
    connection: Connection,
    schema: str,
    pipeline: PipelineId,
    results: Sequence[settle.BlockResult],
) -> set[bytes]:
    """Add the blocks' rows; return the ids of those that were not there."""
    rows = sorted({r.delivery.uuid: r for r in reversed(results)}.items())
    cursor = await connection.execute(
        _sql(
            "insert into {}.ledger (key, pipeline, kind, block, outcomes)"
            " select k, %s, 'b', k, string_to_array(o, ',')::int4[]"
            " from unnest(%s::uuid[], %s::text[]) as t(k, o) order by k"
            " on conflict (key) do nothing returning key",
            schema,
        ),
        [
            pipeline,
            [uuids.UUID(bytes=uuid) for uuid, _ in rows],
            [_outcomes_text(result) for _, result in rows],
        ],
    )
    return {row[0].bytes for row in await cursor.fetchall()}


async def _add_requests(
    connection: Connection,
    schema: str,
    pipeline: PipelineId,
    wanted: Sequence[settle.KeyedRequest],
) -> dict[bytes, settle.KeyedRequest]:
    """Add rows for requests, sorted by key; return those that stood there before, by key."""
    if not wanted:
        return {}
    keys = [uuids.UUID(bytes=request.key) for request in wanted]
    cursor = await connection.execute(
        _sql(
            "insert into {}.ledger (key, pipeline, kind, block, request_index, fingerprint)"
            " select k, %s, 'r', b, i, f from unnest(%s::uuid[], %s::uuid[], %s::int4[],"
            " %s::int8[]) as t(k, b, i, f) order by k on conflict (key) do nothing"
            " returning key",
            schema,
        ),
        [
            pipeline,
            keys,
            [uuids.UUID(bytes=request.block) for request in wanted],
            [request.index for request in wanted],
            [request.fingerprint for request in wanted],
        ],
    )
    added = {row[0] for row in await cursor.fetchall()}
    old = [key for key in keys if key not in added]
    if not old:
        return {}
    cursor = await connection.execute(
        _sql(
            "select key, block, request_index, fingerprint from {}.ledger where key = any(%s)",
            schema,
        ),
        [old],
    )
    found = {
        key.bytes: settle.KeyedRequest(key.bytes, block.bytes, index, fingerprint)
        for key, block, index, fingerprint in await cursor.fetchall()
    }
    if len(found) < len(old):
        raise errors.UnavailableError("Rows of the ledger were pruned just now.")
    return found


class _Producer(msgspec.Struct, frozen=True):
    """Whose numbers they are: the key of a row of `producers`."""

    pipeline: PipelineId
    uuid: bytes
    epoch: int

    @property
    def key(self) -> list[object]:
        return [self.pipeline, uuids.UUID(bytes=self.uuid), self.epoch]


async def _spend(
    connection: Connection, schema: str, who: _Producer, sequences: Sequence[int]
) -> set[int]:
    """Mark a producer's numbers as seen; return those that were before."""
    await connection.execute(
        _sql(
            "insert into {}.producers (pipeline, producer, epoch) values (%s, %s, %s)"
            " on conflict do nothing",
            schema,
        ),
        who.key,
    )
    cursor = await connection.execute(
        _sql(
            "select seen, has_overflow from {}.producers"
            " where pipeline = %s and producer = %s and epoch = %s for update",
            schema,
        ),
        who.key,
    )
    row = await cursor.fetchone()
    if row is None:
        raise errors.UnavailableError("The producer's row was pruned just now.")
    spent = settle.spend([(part.lower, part.upper) for part in row[0]], sequences)
    seen = set(spent.seen)
    has_overflow = bool(row[1] or spent.overflow)
    if has_overflow:
        # Ranges that have room again must not forget the numbers that once had none.
        seen |= await _add_overflow(connection, schema, who, set(sequences) - seen)
    if len(seen) < len(set(sequences)):
        await connection.execute(
            _sql(
                "update {}.producers set seen = %s, has_overflow = %s, last_at = now()"
                " where pipeline = %s and producer = %s and epoch = %s",
                schema,
            ),
            [
                Int8Multirange([Int8Range(low, high) for low, high in spent.ranges]),
                has_overflow,
                *who.key,
            ],
        )
    return seen


async def _add_overflow(
    connection: Connection, schema: str, who: _Producer, numbers: Iterable[int]
) -> set[int]:
    """Remember numbers as rows of the ledger; return those known before."""
    # One producer may send to several pipelines, with numbers of its own in each.
    name = b"%d\0%b" % (who.pipeline, who.uuid)
    by_key = {settle.overflow_key(name, who.epoch, number): number for number in numbers}
    wanted = [settle.KeyedRequest(key, who.uuid, 0, 0) for key in sorted(by_key)]
    earlier = await _add_requests(connection, schema, who.pipeline, wanted)
    return {by_key[key] for key in earlier}


def _outcomes_text(result: settle.BlockResult) -> str:
    flat = itertools.chain.from_iterable(msgspec.structs.astuple(o) for o in result.outcomes)
    return ",".join(map(str, flat))


def _sql(text: str, schema: str) -> sql.Composed:
    return sql.SQL(text).format(sql.Identifier(schema))
