"""What stands beside the columns of segments, and a cache of it: no segment ever changes.

Snapshot.heads() -> HeadCache -> those that are not known are read, opened once, and kept
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from typing import Final

import msgspec

from logweir.core import beside, segment
from logweir.core.columns import Int64s
from logweir.core.labels import LabelTable
from logweir.core.names import PipelineId, TenantId

MAX_CACHED_BYTES: Final = 64 << 20
"""Of all tenants together; a segment of 16,000 records and 400 label sets takes some 12 kB, and
each label set that no other segment has some 1 kB."""

MAX_LABEL_SETS: Final = 100_000
"""Label sets of a tenant that are numbered before all of its heads are forgotten."""

_HEAD_BYTES: Final = 2_000
_LABEL_SET_BYTES: Final = 20
"""JSON of the shortest label set that a record has."""


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
        """About what it takes in memory; `table` counts its label sets itself."""
        opened_bytes = beside.label_sets_bytes(self.raw_label_sets, self.codec)
        ids_bytes = 8 * opened_bytes // _LABEL_SET_BYTES
        return _HEAD_BYTES + len(self.raw_label_sets) + len(self.raw_counts) + ids_bytes


class _Known:
    """What is known of one tenant: heads, those used last at the end, and the table of them."""

    def __init__(self) -> None:
        self.table = LabelTable()
        self.heads: OrderedDict[tuple[int, int, int], Head] = OrderedDict()
        self.heads_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self.heads_bytes + self.table.size_bytes

    def drop_oldest(self) -> None:
        self.heads_bytes -= self.heads.popitem(last=False)[1].size_bytes


class HeadCache:
    """The heads that were used last, of any number of tenants; of the event loop alone.

    `max_bytes` is about what heads and tables take together. Above it tenants are forgotten, those
    first that were not read for the longest time, and of a single one the heads.
    """

    def __init__(self, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._tenants: OrderedDict[TenantId, _Known] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """About what all of it takes in memory."""
        return sum(known.size_bytes for known in self._tenants.values())

    def table(self, tenant: TenantId) -> LabelTable:
        """Return the table that numbers a tenant's label sets."""
        known = self._tenants.get(tenant)
        if known is None or len(known.table) > MAX_LABEL_SETS:
            known = self._tenants[tenant] = _Known()
        return known.table

    def get(self, tenant: TenantId, segment_id: int, min_ts: int, max_ts: int) -> Head | None:
        """Return a head that is known."""
        known, key = self._tenants.get(tenant), (segment_id, min_ts, max_ts)
        if known is None or key not in known.heads:
            return None
        self._tenants.move_to_end(tenant)
        known.heads.move_to_end(key)
        return known.heads[key]

    def put(self, tenant: TenantId, heads: Iterable[Head]) -> None:
        """Keep these, as far as there is room; what was used last goes last."""
        known = self._tenants.get(tenant)
        for head in heads:
            key = (head.id, head.min_ts, head.max_ts)
            if known is not None and head.table is known.table and key not in known.heads:
                known.heads[key] = head
                known.heads_bytes += head.size_bytes
                self._tenants.move_to_end(tenant)
        self.trim()

    def trim(self) -> None:
        """Forget what is too much: tables grow when heads are opened."""
        while self.size_bytes > self._max_bytes:
            tenant, known = next(iter(self._tenants.items()))
            if len(self._tenants) > 1 or not known.heads:
                self.forget(tenant)
            else:
                known.drop_oldest()

    def forget(self, tenant: TenantId) -> None:
        """Drop all of a tenant."""
        self._tenants.pop(tenant, None)
