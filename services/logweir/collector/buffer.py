"""What a collector holds of one pipeline between the journal and the store. Pure.

Entry -> deliver() -> Buffer ... due? -> the batch of a transaction
"""

from __future__ import annotations

from typing import Final

import msgspec

from logweir.backends.journal import Entry
from logweir.core import block, bounds, errors, settle
from logweir.core.names import PipelineId, TenantId

FLUSH_RECORDS: Final = 16_000
"""Records of a full segment: larger ones open slower for a needle, smaller ones cost more."""

FLUSH_BYTES: Final = 16 * bounds.MIB
"""Decoded bytes at which a batch goes to the store, whatever its number of records."""

READ_ENTRIES: Final = 16
"""Entries of one read. With blocks of at most 10 MiB it bounds what a collector holds."""


def deliver(entry: Entry, tenant: TenantId, pipeline: PipelineId) -> settle.Delivery:
    """Return the entry's block, or why it cannot be read.

    Raises:
        UnknownVersionError: a newer program wrote it; it must stay where it is.
    """
    bare = settle.Delivery(entry.id, entry.uuid, entry.accepted, entry.payload)
    try:
        header, records = block.decode(entry.payload)
    except errors.UnknownVersionError:
        raise
    except errors.FormatError as error:
        return msgspec.structs.replace(bare, problem=f"undecodable: {error.message}")
    if header.tenant != tenant or header.pipeline != pipeline:
        found = f"{header.tenant}/{header.pipeline}"
        return msgspec.structs.replace(bare, problem=f"foreign block of {found}")
    if header.uuid != entry.uuid or header.accepted != entry.accepted:
        return msgspec.structs.replace(bare, problem="block and stream entry differ")
    return msgspec.structs.replace(bare, header=header, records=records)


class Buffer:
    """Deliveries of one pipeline that wait for their transaction."""

    def __init__(self, linger_s: float) -> None:
        self.linger_s = linger_s
        self.entries: list[Entry] = []
        self.deliveries: list[settle.Delivery] = []
        self._since_s = 0.0
        self._records = 0
        self._size_bytes = 0

    def add(self, entry: Entry, delivery: settle.Delivery, now_s: float) -> None:
        """Hold one more block."""
        if not self.entries:
            self._since_s = now_s
        self.entries.append(entry)
        self.deliveries.append(delivery)
        self._records += delivery.header.records if delivery.header else 1
        self._size_bytes += delivery.header.size_bytes if delivery.header else len(entry.payload)

    def holds(self, entry_id: str) -> bool:
        """Whether an entry is here already: a claim may hand out what this process waits with."""
        return any(entry.id == entry_id for entry in self.entries)

    def wait_s(self, now_s: float) -> float | None:
        """How long the batch may still wait for company; 0 when it is due, None when empty."""
        if not self.entries:
            return None
        if self._records >= FLUSH_RECORDS or self._size_bytes >= FLUSH_BYTES:
            return 0.0
        return max(0.0, self._since_s + self.linger_s - now_s)

    def clear(self) -> None:
        """Forget all: it is stored, or will be delivered again."""
        self.entries, self.deliveries = [], []
        self._records = self._size_bytes = 0
