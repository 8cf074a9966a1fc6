"""What a collector holds of one pipeline between the journal and the store. Pure.

Entry -> deliver() -> Buffer ... due? -> the batch of a transaction
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from logweir.backends.journal import Entry
from logweir.core import block, bounds, errors, settle
from logweir.core.names import PipelineId, TenantId

FLUSH_RECORDS: Final = 16_000
"""Records of a full segment: larger ones open slower for a needle, smaller ones cost more."""

WORTH_RECORDS: Final = 4_096
"""Records worth a segment of their own (a tenth more CPU a record than of a full one): with so
many, a batch whose stream has fallen quiet waits for `QUIET_PART` of its linger only."""

QUIET_PART: Final = 0.2

MAX_RECORDS: Final = 16_384
"""Records of a batch, unless one block has more: two segments of it can still become one."""

FLUSH_BYTES: Final = 16 * bounds.MIB
"""Decoded bytes at which a batch goes to the store, whatever its number of records."""

MAX_HELD_BYTES: Final = 256 * bounds.MIB
"""Decoded bytes of all batches of a process: over it, nothing more is taken before some are stored.
A read that is under way may exceed it by what one read brings."""

READ_ENTRIES: Final = 16
"""Most entries of one read: with the largest of blocks still a bounded amount of memory."""

READ_BYTES: Final = 8 * bounds.MIB
"""Bytes of one read from which fewer entries are asked for."""

_UUID_BYTES: Final = 16
_MAX_COUNT: Final = (1 << 31) - 1
"""The ledger's outcomes are int4; an entry's own count is nobody's promise."""


def next_count(count: int, size_bytes: int) -> int:
    """Return how many entries to ask for after a read of `count` that brought so many bytes.

    Begins low and doubles, so that a process that was killed for its memory gets on after all.
    """
    if size_bytes > READ_BYTES:
        return max(1, count * READ_BYTES // size_bytes)
    return min(2 * count, READ_ENTRIES)


def deliver(entry: Entry, tenant: TenantId, pipeline: PipelineId) -> settle.Delivery:
    """Return the entry's block, or why it cannot be read.

    Raises:
        UnknownVersionError: a newer program wrote it; it must stay where it is.
    """
    bare = settle.Delivery(
        entry.id,
        _uuid(entry),
        min(max(0, entry.accepted), _MAX_COUNT),
        entry.payload,
        repeats=entry.repeats,
    )
    try:
        header, records = block.decode(entry.payload)
    except errors.UnknownVersionError:
        raise
    except (errors.FormatError, ValueError) as error:
        return refused(bare, f"undecodable: {error}")
    if header.tenant != tenant or header.pipeline != pipeline:
        return refused(bare, f"foreign block of {header.tenant}/{header.pipeline}")
    if header.uuid != entry.uuid or header.accepted != entry.accepted:
        return refused(bare, "block and stream entry differ")
    return msgspec.structs.replace(bare, header=header, records=records)


def refused(delivery: settle.Delivery, problem: str) -> settle.Delivery:
    """Return the delivery as one for the quarantine, whole."""
    return settle.Delivery(
        delivery.entry_id,
        delivery.uuid,
        delivery.accepted,
        delivery.payload,
        problem=problem.replace("\0", "\N{REPLACEMENT CHARACTER}"),
    )


def _uuid(entry: Entry) -> bytes:
    """The block's id in the ledger; an entry without one gets one that is its own for ever."""
    if len(entry.uuid) == _UUID_BYTES:
        return entry.uuid
    what = b"%b\0%b" % (entry.id.encode(), entry.payload)
    return hashlib.blake2b(what, digest_size=_UUID_BYTES).digest()


def _records(delivery: settle.Delivery) -> int:
    """What a block counts for: one without records still costs a row of the ledger."""
    return max(1, delivery.header.records) if delivery.header else 1


class Held:
    """How many bytes all buffers of a process hold."""

    def __init__(self) -> None:
        self.size_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be taken."""
        return self.size_bytes >= MAX_HELD_BYTES


class Buffer:
    """Deliveries of one pipeline that wait for their transaction."""

    def __init__(self, linger_s: float, held: Held | None = None) -> None:
        self.linger_s = linger_s
        self._held = held or Held()
        self.entries: list[Entry] = []
        self.deliveries: list[settle.Delivery] = []
        self.records = 0
        self.size_bytes = 0
        self._ids: set[str] = set()
        self._since_s = self._last_s = 0.0

    def has_room(self, delivery: settle.Delivery) -> bool:
        """Whether a block may join the batch."""
        return not self.entries or self.records + _records(delivery) <= MAX_RECORDS

    def add(self, entry: Entry, delivery: settle.Delivery, now_s: float) -> None:
        """Hold one more block."""
        if not self.entries:
            self._since_s = now_s
        self._last_s = now_s
        self.entries.append(entry)
        self.deliveries.append(delivery)
        self._ids.add(entry.id)
        self.records += _records(delivery)
        decoded_bytes = delivery.header.size_bytes if delivery.header else 0
        size_bytes = max(decoded_bytes, len(entry.payload))
        self.size_bytes += size_bytes
        self._held.size_bytes += size_bytes

    def holds(self, entry_id: str) -> bool:
        """Whether an entry is here already: a claim may hand out what this process waits with."""
        return entry_id in self._ids

    def wait_s(self, now_s: float) -> float | None:
        """How long the batch may still wait for company; 0 when it is due, None when empty."""
        if not self.entries:
            return None
        if self.records >= FLUSH_RECORDS or self.size_bytes >= FLUSH_BYTES:
            return 0.0
        due_s = self._since_s + self.linger_s
        if self.records >= WORTH_RECORDS:
            due_s = min(due_s, self._last_s + QUIET_PART * self.linger_s)
        return max(0.0, due_s - now_s)

    def clear(self) -> None:
        """Forget all: it is stored, or will be delivered again."""
        self.entries, self.deliveries = [], []
        self._ids = set()
        self._held.size_bytes -= self.size_bytes
        self.records = self.size_bytes = 0
