"""What became of one request: the ledger, the journal, the ledger again.

A block moves from the journal to the ledger: who looks only once in each, in that order, may miss
it in both. After 72 hours the ledger forgets, and the answer is `unknown`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from logweir.backends.segments_reader import LedgerRow, Reader
from logweir.core import settle
from logweir.core.ids import Receipt
from logweir.core.names import PipelineId

IsBuffered = Callable[[], Awaitable[bool]]
"""Asks the journal whether it holds the receipt's block."""

_NUMBERS: Final = 4


class ReceiptState(msgspec.Struct, frozen=True):
    """The answer of `/api/v1/receipts/<id>`; `counts` is null while there is no outcome."""

    receipt: str
    state: str
    counts: settle.Outcome | None


def outcome(row: LedgerRow, index: int) -> settle.Outcome | None:
    """Return what a block's row says of one request; None when it has no such request.

    A block that could not be read has one outcome for all of its requests: how many it held is
    not known.
    """
    numbers = row.outcomes[index * _NUMBERS : (index + 1) * _NUMBERS]
    if len(numbers) == _NUMBERS:
        return settle.Outcome(*numbers)
    if len(row.outcomes) == _NUMBERS:
        whole = settle.Outcome(*row.outcomes)
        if whole == settle.Outcome(quarantined=whole.quarantined) and whole.quarantined:
            return whole
    return None


def state(counts: settle.Outcome) -> str:
    """Return the one word for an outcome: the worst news that is in it.

    A repeat is not called stored: the first request with its key may be in quarantine.
    """
    if counts.quarantined:
        return "quarantined"
    if counts.repeated:
        return "repeated"
    if counts.expired and not counts.stored:
        return "expired"
    return "stored"


async def look_up(
    reader: Reader, is_buffered: IsBuffered, pipeline: PipelineId | None, receipt: Receipt
) -> ReceiptState:
    """Return where a request is now.

    Args:
        reader: of the tenant's store.
        is_buffered: asks the tenant's journal.
        pipeline: the only one that the key may see; None for all.
        receipt: names the request.

    Raises:
        UnavailableError: the store or the journal does not answer.
    """
    found = await _in_ledger(reader, pipeline, receipt)
    if found is None:
        buffered = await is_buffered()
        found = await _in_ledger(reader, pipeline, receipt)
        if found is None:
            return ReceiptState(str(receipt), "buffered" if buffered else "unknown", None)
    return ReceiptState(str(receipt), state(found), found)


async def _in_ledger(
    reader: Reader, pipeline: PipelineId | None, receipt: Receipt
) -> settle.Outcome | None:
    async with reader.snapshot() as snapshot:
        row = await snapshot.ledger_row(receipt.block)
    if row is None or (pipeline is not None and row.pipeline != pipeline):
        return None
    return outcome(row, receipt.index)
