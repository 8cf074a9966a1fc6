"""How many records a plan has, by bucket and group: histograms, and the values of labels.

    candidate -> its counts per minute, where no line filter asks and no edge cuts a minute
              -> its rows otherwise                                     --> Tally

Counts are exact. When a budget ends a count, the newest part is exact and the rest is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from logweir.backends.segments_reader import Reader, Snapshot
from logweir.core import beside
from logweir.query import engine
from logweir.query.engine import Candidate, Run
from logweir.query.plan import Plan
from logweir.query.tally import Tally


class Counted(msgspec.Struct, frozen=True):
    """What ended a count early, if anything, and from when on it is exact then."""

    stopped: str | None
    exact_from_ns: int | None


async def count(reader: Reader, plan: Plan, tally: Tally, run: Run) -> Counted:
    """Count the records of a backward plan into `tally`.

    Raises:
        UnavailableError: the store does not answer.
        BadRequestError: there are too many groups.
        CancelledQueryError: the run was cancelled.
    """
    async with reader.snapshot() as snapshot:
        keys, edges = engine.ordered(await snapshot.keys(plan.lows_ns, plan.high_ns), plan)
        run.stats.segments = len(keys)
        async for at, found in engine.batches(snapshot, plan, keys):
            edge_ns = int(edges[at])
            if (reason := _stop(run)) is not None:
                return Counted(reason, edge_ns + 1)
            summed = [one for one in found if _is_summed(plan, tally, one)]
            if summed:
                await asyncio.to_thread(_add_counts, tally, summed, run)
            read = [one for one in found if not _is_summed(plan, tally, one)]
            for group in engine.pieces(read, "time", plan.last_column):
                if (reason := _stop(run)) is not None:
                    return Counted(reason, group[0].edge_ns(is_backward=True) + 1)
                await _add_rows(snapshot, plan, tally, group, run)
    return Counted(None, None)


def _stop(run: Run) -> str | None:
    run.check()
    return run.spent()


def _is_summed(plan: Plan, tally: Tally, one: Candidate) -> bool:
    """Whether the counts per minute say all of this segment: no edge cuts a minute of it."""
    minute_ns = beside.MINUTE_NS
    whole_low = one.low_ns <= one.head.min_ts or one.low_ns % minute_ns == 0
    whole_high = one.high_ns > one.head.max_ts or one.high_ns % minute_ns == 0
    return not plan.lines and tally.is_by_minute and whole_low and whole_high


def _add_counts(tally: Tally, found: Sequence[Candidate], run: Run) -> None:
    minute_ns = beside.MINUTE_NS
    for one in found:
        run.check()
        counts = one.head.counts
        run.scanned(3 * counts.minute.nbytes)
        begin = counts.minute * minute_ns
        inside = (begin + minute_ns > one.low_ns) & (begin < one.high_ns)
        counts = beside.Counts(
            counts.minute[inside], counts.label_set[inside], counts.count[inside]
        )
        tally.add_counts(one.head, one.accepted, counts)


async def _add_rows(
    snapshot: Snapshot, plan: Plan, tally: Tally, group: Sequence[Candidate], run: Run
) -> None:
    pieces = await snapshot.pieces([one.range("time", plan.last_column) for one in group])

    found = await engine.in_threads(
        lambda one, piece: engine.hits(plan, one, piece, run).without_message(), group, pieces
    )

    def fold() -> None:
        for one in found:
            tally.add_rows(one.candidate.head, one.time_ns, one.label_set)

    await asyncio.to_thread(fold)
