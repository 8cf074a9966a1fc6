"""The last lines of a live tail: the newest matching records of the journal and the store.

The journal is read first: a block moves from it to the store, so who reads in this order misses
none. A block that is in both is found twice, and shown once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from logweir.backends.journal import Entry
from logweir.backends.journal_tail import TailReader
from logweir.backends.segments_reader import Reader
from logweir.core import errors
from logweir.core.names import PipelineId
from logweir.core.record import Record, RecordId
from logweir.query import blocks, search
from logweir.query.engine import OverBudgetError, Run
from logweir.query.plan import Plan

logger = logging.getLogger(__name__)

JOURNAL_BYTES: Final = 64 << 20
"""How much of each pipeline's journal is read, the newest blocks."""

TIME_S: Final = 5.0
"""What the search of the store may take: the live part is worth more than an old line."""


async def last_records(
    source: TailReader, reader: Reader, plan: Plan, limit: int, run: Run
) -> list[Record]:
    """Return the last `limit` records that match, in their order.

    Raises:
        UnavailableError: the journal or the store does not answer.
        CancelledQueryError: the run was cancelled.
    """
    found: dict[RecordId, Record] = {}
    for pipeline in plan.lows_ns:
        await _add_buffered(source, plan, pipeline, limit, found)
    try:
        page = await search.search(reader, plan, limit, run)
        found |= {one.id: one for one in page.records}
    except (OverBudgetError, errors.FormatError) as error:
        logger.warning("old lines left out of a tail", extra={"why": str(error)})
    return [found[one] for one in sorted(found)[-limit:]]


async def _add_buffered(
    source: TailReader,
    plan: Plan,
    pipeline: PipelineId,
    limit: int,
    found: dict[RecordId, Record],
) -> None:
    """Add the last records of a journal; `found` keeps `limit` of all."""
    before, size_bytes = "", 0
    while size_bytes < JOURNAL_BYTES:
        page = await source.before(pipeline, before)
        if not page:
            return
        before = page[-1].id
        size_bytes += sum(len(one.payload) for one in page)
        for record in await asyncio.to_thread(_matching, plan, pipeline, page, limit):
            found[record.id] = record
        for old in sorted(found)[:-limit]:
            del found[old]


def _matching(plan: Plan, pipeline: PipelineId, page: Sequence[Entry], limit: int) -> list[Record]:
    found: list[Record] = []
    for entry in page:
        block = blocks.decode(entry.payload, entry.repeats)
        if block is not None:
            rows = blocks.Rows(pipeline, block, blocks.matching_rows(plan, pipeline, block))
            found += rows.newest(limit).records(plan)
    return found
