"""What retention asks of a tenant's store, with its keeper login: what is there, and that it goes.

    RetentionStore.partitions(), expired(), oldest()  -> (retention.py decides)
                  .delete(), drop_partition()         each with its row of usage, in one transaction
                  .storage() -> note()                what others are told of it

Two keepers at once do no harm: what one has deleted the other does not count again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec
import psycopg

from logweir.backends import failpoint, store
from logweir.backends.control import Storage
from logweir.backends.keeper_store import DELETE_SEGMENTS, KeeperStore, which
from logweir.core.names import PipelineId

BATCH_SEGMENTS: Final = 500
"""Segments of one list, and of one transaction that deletes them."""

_NOT_EXPIRED: Final = "LW003"

_KEPT: Final = (
    "select s.pipeline, s.id, s.min_ts, s.max_ts,"
    " (octet_length(s.body) + coalesce(octet_length(s.filter), 0))::int8 from {}.segments s"
)

Dropped = Literal["dropped", "waits", "gone", "kept"]
"""What became of a partition: it is dropped; an older snapshot or a lock is waited for; it was not
there; or the schema's own settings keep it."""


class Partition(msgspec.Struct, frozen=True):
    """A partition of segments: its first moment, its end, and the bytes in it."""

    low: int
    high: int
    bytes: int = 0


class Kept(msgspec.Struct, frozen=True):
    """A segment as retention sees it; times are inclusive nanoseconds."""

    pipeline: PipelineId
    id: int
    min_ts: int
    max_ts: int
    bytes: int


class RetentionStore(KeeperStore):
    """One tenant's store, as its keeper has it; see `KeeperStore`."""

    async def is_migrated(self) -> bool:
        """Whether the schema knows retention; the operator migrates it soon if not."""
        async with self._door() as connection:
            return await self._has_storage(connection)

    async def retention_bytes(self) -> int | None:
        """Return over how many bytes the oldest segments go, as the schema says."""
        rows = await self._rows("select s.retention_bytes from {}.settings s")
        found: int | None = rows[0][0]
        return found

    async def storage(self) -> Storage:
        """Return what is stored. Bytes are those of usage, which adds up with the segments."""
        rows = await self._rows(
            "select (select coalesce(sum(u.stored_bytes), 0)::int8 from {0}.usage u),"
            " (select s.min_ts from {0}.segments s order by s.min_ts limit 1)"
        )
        return Storage(*rows[0])

    async def note(self, storage: Storage) -> None:
        """Write down what is stored, for those who may not count it themselves."""
        await self._change(
            "update {}.storage set stored_bytes = %(bytes)s, oldest_ns = %(oldest)s,"
            " next_drop_ns = %(drop)s where (stored_bytes, oldest_ns, next_drop_ns)"
            " is distinct from (%(bytes)s::int8, %(oldest)s::int8, %(drop)s::int8)",
            {
                "bytes": storage.stored_bytes,
                "oldest": storage.oldest_ns,
                "drop": storage.next_drop_ns,
            },
        )

    async def correct_usage(self) -> int:
        """Make usage add up with the segments where something else changed them; return by how
        many bytes it did not."""
        rows = await self._rows("select {}.correct_usage()")
        return int(rows[0][0])

    async def partitions(self, *, with_bytes: bool = False) -> list[Partition]:
        """Return the partitions, the oldest first."""
        rows = await self._rows(store.PARTITIONS, [f'"{self._schema}".segments'])
        found = [Partition(low, high) for low, high in store.partition_bounds(rows)]
        if not with_bytes:
            return found
        rows = await self._rows(
            "select min(s.min_ts), sum(octet_length(s.body) + coalesce(octet_length(s.filter), 0))"
            " from {}.segments s group by s.tableoid"
        )
        return [
            msgspec.structs.replace(
                one, bytes=sum(size for at, size in rows if one.low <= at < one.high)
            )
            for one in found
        ]

    async def expired(
        self, before: Mapping[PipelineId, int], others_before: int, after: tuple[int, int]
    ) -> list[Kept]:
        """Return segments whose last record is from before then, by time; a batch of them.

        Args:
            before: nanoseconds, by pipeline.
            others_before: the same, of all other pipelines.
            after: `min_ts` and `id` of the one before the first.
        """
        latest = max([*before.values(), others_before])
        return await self._kept(
            "s.min_ts >= %(from)s and (s.min_ts, s.id) > (%(from)s, %(id)s)"
            " and s.min_ts < %(latest)s and s.max_ts < coalesce((%(before)s::int8[])"
            "[array_position(%(pipelines)s::int4[], s.pipeline)], %(others)s)",
            {
                "from": after[0],
                "id": after[1],
                "latest": latest,
                "pipelines": list(before),
                "before": list(before.values()),
                "others": others_before,
            },
        )

    async def oldest(self, since_ns: int) -> list[Kept]:
        """Return the oldest segments that begin then or later, by time; a batch of them."""
        return await self._kept("s.min_ts >= %(since)s", {"since": since_ns})

    async def first_of_each(self) -> list[Kept]:
        """Return of each pipeline the end of the segment that ends first, as a segment: what goes
        next is among them. It looks at all segments."""
        rows = await self._rows(
            "select s.pipeline, min(s.max_ts) from {}.segments s group by s.pipeline"
        )
        return [Kept(pipeline, 0, end_ns, end_ns, 0) for pipeline, end_ns in rows]

    async def _kept(self, condition: str, values: Mapping[str, object]) -> list[Kept]:
        rows = await self._rows(
            f"{_KEPT} where {condition} order by s.min_ts, s.id limit %(limit)s",
            {**values, "limit": BATCH_SEGMENTS},
        )
        return [Kept(*row) for row in rows]

    async def delete(self, segments: Sequence[Kept]) -> int:
        """Delete segments; return the bytes of those that were still there."""
        gone: dict[PipelineId, int] = {}
        async with self._door() as connection:
            async with connection.transaction():
                cursor = await connection.execute(self._sql(DELETE_SEGMENTS), which(segments))
                for pipeline, size_bytes in await cursor.fetchall():
                    gone[pipeline] = gone.get(pipeline, 0) + size_bytes
                failpoint.reach("keeper.mid_expire")
                for pipeline, size_bytes in gone.items():
                    await self._count_change(connection, pipeline, -size_bytes)
            failpoint.reach("keeper.after_expire")
        return sum(gone.values())

    async def drop_partition(self, partition: Partition) -> Dropped:
        """Drop a partition, as soon as nobody can want what is in it."""
        async with self._door() as connection:
            try:
                cursor = await connection.execute(
                    self._sql("select {}.drop_partition(%s)"), [partition.low]
                )
                rows = await cursor.fetchall()
            except psycopg.errors.LockNotAvailable:
                return "waits"
            except psycopg.Error as error:
                if error.sqlstate != _NOT_EXPIRED:
                    raise
                return "kept"
            found: Dropped = rows[0][0]
            if found == "dropped":
                failpoint.reach("keeper.after_drop")
        return found
