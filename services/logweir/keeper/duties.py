"""What is due for which tenant, and since when rows may go. Pure; times are handed in.

    seen() <- how many segments were inserted, of all tenants, every few seconds
    due() -> the work of a visit -> done() | refused() | failed() -> ... -> due()

    upkeep  partitions are made, ledgers pruned, usage summed and compared with the segments
    sweep   segments are merged, of all times
    look    segments are merged, of the last days

In each of them what is too old or too much goes first.

A tenant that nothing is written for costs a number in one query for all tenants, a look every
`QUIET_S`, an upkeep and a sweep an hour. Each process plans for itself: who comes to a tenant that
another keeper has is refused by its lease.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from logweir.backends.keeper_store import Horizon
from logweir.core import bounds
from logweir.core.names import PipelineId
from logweir.keeper import merges

LOOK_S: Final = 10.0
"""How soon after a look a tenant is looked at again while segments are written."""

QUIET_S: Final = 300.0
"""The same while nothing is written, as far as the server's statistics know."""

OVER_S: Final = bounds.STORED_LOOK_S
"""The same of a tenant that may write nothing until some of what it has stored goes."""

UPKEEP_S: Final = 3600.0
SWEEP_S: Final = 3600.0

SETTLE_S: Final = merges.MIN_AGE_S + 2 * LOOK_S
"""How long after a change a tenant is looked at: until what was written is old enough."""

BACKOFF_S: Final = (10.0, 300.0)
"""After failures: doubled from the first to the second."""

REFUSED_S: Final = 30.0
"""Until another keeper's tenant is tried again."""

FRESH: Final = timedelta(days=2)
"""What a look looks at: segments with times since then."""

LEDGER_KEPT: Final = timedelta(hours=72)
PRODUCER_KEPT: Final = timedelta(days=90)
USAGE_KEPT: Final = timedelta(hours=1)
"""How long rows of `usage` stay as they were written."""

Work = Literal["look", "sweep", "upkeep"]

_NEVER: Final = float("-inf")


class Standing(msgspec.Struct, frozen=True):
    """What this process knows of a tenant; times in seconds of the caller's clock.

    `began_s` of the last visit that was let in, `is_unfinished` when a look left something over,
    `is_over` while more is stored than the tenant may, `ruled_s` when it was last said anew how
    long and how much is kept: the upkeep that follows finds out what goes next.
    """

    inserted: int = -1
    changed_s: float = _NEVER
    began_s: float = _NEVER
    upkept_s: float = _NEVER
    swept_s: float = _NEVER
    ruled_s: float = _NEVER
    is_unfinished: bool = False
    is_over: bool = False
    not_before_s: float = _NEVER
    failures: int = 0


def seen(standing: Standing, inserted: int, now_s: float) -> Standing:
    """Return the standing after one more count of what was inserted."""
    if inserted == standing.inserted:
        return standing
    return msgspec.structs.replace(standing, inserted=inserted, changed_s=now_s)


def ruled(standing: Standing, now_s: float) -> Standing:
    """Return the standing after a change of what is kept: an upkeep that begins later is due."""
    return msgspec.structs.replace(standing, ruled_s=now_s)


def due(standing: Standing, now_s: float) -> Work | None:
    """Return what is to be done for the tenant now."""
    if now_s < standing.not_before_s:
        return None
    if now_s >= standing.upkept_s + UPKEEP_S or standing.upkept_s < standing.ruled_s:
        return "upkeep"
    if now_s >= standing.swept_s + SWEEP_S:
        return "sweep"
    is_changed = standing.began_s < standing.changed_s + SETTLE_S
    wait_s = LOOK_S if is_changed else OVER_S if standing.is_over else QUIET_S
    return "look" if standing.is_unfinished or now_s >= standing.began_s + wait_s else None


def done(
    standing: Standing, work: Work, began_s: float, *, is_finished: bool, is_over: bool = False
) -> Standing:
    """Return the standing after a visit. What was not finished is due again."""
    return msgspec.structs.replace(
        standing,
        began_s=began_s,
        upkept_s=began_s if work == "upkeep" and is_finished else standing.upkept_s,
        swept_s=began_s if work == "sweep" and is_finished else standing.swept_s,
        is_unfinished=work == "look" and not is_finished,
        is_over=is_over,
        not_before_s=_NEVER,
        failures=0,
    )


def refused(standing: Standing, now_s: float) -> Standing:
    """Return the standing after another keeper turned out to have the tenant."""
    return msgspec.structs.replace(standing, not_before_s=now_s + REFUSED_S)


def failed(standing: Standing, now_s: float) -> Standing:
    """Return the standing after a visit that failed: it waits, and longer each time."""
    first_s, longest_s = BACKOFF_S
    wait_s = min(longest_s, first_s * 2 ** min(standing.failures, 10))
    return msgspec.structs.replace(
        standing, not_before_s=now_s + wait_s, failures=standing.failures + 1
    )


def partly_done(
    standing: Standing, work: Work, began_s: float, now_s: float, *, is_finished: bool
) -> Standing:
    """Return the standing after a visit of which retention alone failed: the tenant waits as after
    a failure, and has its other works in their turn."""
    rest = done(standing, work, began_s, is_finished=is_finished, is_over=standing.is_over)
    return failed(msgspec.structs.replace(rest, failures=standing.failures), now_s)


class Cutoffs(msgspec.Struct, frozen=True):
    """Since when rows of the ledger stay: by pipeline (None: all of them), and of all others."""

    by_pipeline: dict[PipelineId, datetime | None]
    others: datetime


def cutoffs(
    horizons: Iterable[Horizon], pipelines: Collection[PipelineId], now: datetime
) -> Cutoffs:
    """Return which rows of the ledger may go.

    A row is needed as long as a block that it knows may be delivered again, and for the 72 hours
    that are promised to senders: both end 72 hours before the arrival of the oldest block that the
    journal still holds. How far a journal is drained is known from `usage`, so a pipeline that has
    no row there keeps its ledger whole: it has stored nothing, or its rows were lost and nothing is
    known. An idle one keeps what it has, and grows no rows meanwhile.

    Rows of pipelines that are deleted go when they are 72 hours old: their journal went with the
    pipeline, ids are never used again, and no key is accepted for them.

    Args:
        horizons: of the pipelines that stored anything.
        pipelines: all that are not deleted.
        now: the store's time.
    """
    drained = {one.pipeline: one.at - LEDGER_KEPT for one in horizons}
    return Cutoffs({one: drained.get(one) for one in pipelines}, now - LEDGER_KEPT)
