"""What stands beside the columns of segments, and a cache of it: no segment ever changes.

Snapshot.heads() -> HeadCache -> those that are not known are read, opened once, and kept
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from functools import cached_property
from typing import Final

import msgspec

from logweir.core import beside, segment
from logweir.core.columns import Int64s
from logweir.core.labels import LabelTable
from logweir.core.names import PipelineId, TenantId

MAX_CACHED_BYTES: Final = 64 << 20
"""Of all tenants together; a segment of 16,000 records and 400 label sets takes some 12 kB."""

MAX_LABEL_SETS: Final = 100_000
"""Label sets of a tenant that are numbered before all of its heads are forgotten."""

_HEAD_BYTES: Final = 2_000


class Head(msgspec.Struct, frozen=True, dict=True, eq=False):
    """A segment but for its columns and its filter; its parts are opened when they are asked for.

    `table` numbers the label sets. Times are inclusive nanoseconds.
    """

    table: LabelTable
    id: int
    pipeline: PipelineId
    min_ts: int
    max_ts: int
    n: int
    codec: int
    layout: bytes
    raw_label_sets: bytes
    raw_counts: bytes

    @cached_property
    def places(self) -> dict[str, segment.Place]:
        """Where each column stands in the body.

        Raises:
            UnknownVersionError, FormatError: as `segment.places`.
        """
        return segment.places(self.layout, self.codec)

    @cached_property
    def label_ids(self) -> Int64s:
        """The numbers of the label sets in `table`, shape (label sets,).

        Raises:
            FormatError: they are damaged.
        """
        return self.table.ids(beside.decode_label_sets(self.raw_label_sets, self.codec))

    @property
    def counts(self) -> beside.Counts:
        """Records per minute and label set.

        Raises:
            FormatError: they are damaged.
        """
        return beside.decode_counts(self.raw_counts, self.codec)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory: the numbers take no more than the compressed names."""
        return _HEAD_BYTES + 2 * len(self.raw_label_sets) + len(self.raw_counts)


class HeadCache:
    """The heads that were used last, of any number of tenants."""

    def __init__(self, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._heads: OrderedDict[tuple[TenantId, int, int], tuple[Head, int]] = OrderedDict()
        self._tables: dict[TenantId, LabelTable] = {}
        self._counts: Counter[TenantId] = Counter()
        self.size_bytes = 0

    def table(self, tenant: TenantId) -> LabelTable:
        """Return the table that numbers a tenant's label sets."""
        found = self._tables.get(tenant)
        if found is not None and len(found) > MAX_LABEL_SETS:
            self.forget(tenant)
            found = None
        if found is None:
            found = self._tables[tenant] = LabelTable()
        return found

    def get(self, tenant: TenantId, segment_id: int, min_ts: int) -> Head | None:
        """Return a head that is known."""
        key = (tenant, segment_id, min_ts)
        found = self._heads.get(key)
        if found is None:
            return None
        self._heads.move_to_end(key)
        return found[0]

    def put(self, tenant: TenantId, heads: Iterable[Head]) -> None:
        """Keep these, and of the others those that were used last."""
        for head in heads:
            key, size_bytes = (tenant, head.id, head.min_ts), head.size_bytes
            if head.table is not self._tables.get(tenant) or key in self._heads:
                continue
            self._heads[key] = (head, size_bytes)
            self._counts[tenant] += 1
            self.size_bytes += size_bytes
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._heads)))

    def forget(self, tenant: TenantId) -> None:
        """Drop all of a tenant."""
        for key in [key for key in self._heads if key[0] == tenant]:
            self._drop(key)
        self._tables.pop(tenant, None)

    def _drop(self, key: tuple[TenantId, int, int]) -> None:
        self.size_bytes -= self._heads.pop(key)[1]
        self._counts[key[0]] -= 1
        if not self._counts[key[0]]:
            del self._counts[key[0]]
            self._tables.pop(key[0], None)
