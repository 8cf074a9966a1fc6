"""Which small segments become one larger, and how. Pure.

    SmallSegment ... -> plan() -> groups       segments of a group -> combine() -> Segment

A segment's *size* is the larger of its records and its raw bytes, as a part of what a segment may
hold. Sizes are sorted into tiers, each a tenth of the one above:

    full   | more than a half: two of them do not fit into one, so it is left as it is
    tier 0 | a tenth to a half
    tier 1 | a hundredth to a tenth
    ...

A group is of one pipeline, one partition and one tier, of neighbours in time, and is merged only
when what comes out stands in a higher tier; in tier 0, only when it is as good as full. So a record
is written again at most once a tier: four times when it came with four others, once when it came
with sixteen thousand. What is left over is less than ten segments a tier.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from logweir.backends.keeper_store import SmallSegment
from logweir.core import bounds, columns, errors, segment
from logweir.core.columns import Columns
from logweir.core.names import PipelineId

MAX_RECORDS: Final = 32_768
"""Records of a segment. Of larger ones a needle costs more, and a body no less; storage.md 2."""

MAX_RAW_BYTES: Final = 48 * bounds.MIB
"""Raw bytes of a segment. To merge so many takes some 600 MB for a few seconds, nearly all of it
to build the filter. Two full flushes of a collector (16 MiB and a block) fit."""

MAX_MEMBERS: Final = 1000
"""Segments of a group: a thousand of five records take a fifth of a second."""

MIN_AGE_S: Final = 5.0
"""A younger segment is left alone: it may get company, and its transaction's readers are about."""

TIER: Final = 10
"""How much larger a segment of the tier above is. Smaller: less is left over, more is rewritten."""

MAX_SMALL_RECORDS: Final = MAX_RECORDS // 2
MAX_SMALL_RAW_BYTES: Final = MAX_RAW_BYTES // 2

_FULL: Final = -1
_FULL_ENOUGH: Final = 7 / 8
_LAST_TIER: Final = 9

Group = tuple[SmallSegment, ...]


class DamagedSegmentsError(errors.FormatError):
    """Some of a group cannot be merged: `reasons`, by their place in it. The others are sound."""

    code = "damaged_segments"

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(
            f"{len(reasons)} segments cannot be merged: {next(iter(reasons.values()))}"
        )
        self.reasons = reasons


class _Sum(msgspec.Struct):
    """The segments of a group that is being gathered."""

    members: list[SmallSegment]
    n: int = 0
    raw_bytes: int = 0

    def takes(self, one: SmallSegment) -> bool:
        return (
            self.n + one.n <= MAX_RECORDS
            and self.raw_bytes + one.raw_bytes <= MAX_RAW_BYTES
            and len(self.members) < MAX_MEMBERS
        )

    def add(self, one: SmallSegment) -> None:
        self.members.append(one)
        self.n += one.n
        self.raw_bytes += one.raw_bytes

    def is_worth_it(self, tier: int, *, is_closed: bool) -> bool:
        """Whether to merge. `is_closed`: the next neighbour had no room."""
        if len(self.members) < 2:
            return False
        if tier == 0:
            return is_closed or size(self.n, self.raw_bytes) >= _FULL_ENOUGH
        return tier_of(self.n, self.raw_bytes) < tier


def size(n: int, raw_bytes: int) -> float:
    """Return which part of a segment so many records and bytes fill."""
    return max(n / MAX_RECORDS, raw_bytes / MAX_RAW_BYTES)


def tier_of(n: int, raw_bytes: int) -> int:
    """Return the tier of a segment; -1 when it is full."""
    part = size(n, raw_bytes)
    if part > 1 / 2:
        return _FULL
    for tier in range(_LAST_TIER):
        part *= TIER
        if part > 1:
            return tier
    return _LAST_TIER


def plan(segments: Iterable[SmallSegment]) -> list[Group]:
    """Return the groups to merge, each in the order of time; no segment is in two of them."""
    places: dict[tuple[PipelineId, int, int], list[SmallSegment]] = {}
    for one in segments:
        tier = tier_of(one.n, one.raw_bytes)
        if one.age_s >= MIN_AGE_S and tier != _FULL:
            places.setdefault((one.pipeline, one.partition, tier), []).append(one)
    groups = (_groups(found, tier) for (_, _, tier), found in places.items())
    return list(itertools.chain.from_iterable(groups))


def _groups(segments: list[SmallSegment], tier: int) -> list[Group]:
    """The groups of one tier: neighbours, as many in each as fit."""
    segments.sort(key=lambda one: (one.min_ts, one.id))
    found = []
    held = _Sum([])
    for one in segments:
        if not held.takes(one):
            if held.is_worth_it(tier, is_closed=True):
                found.append(tuple(held.members))
            held = _Sum([])
        held.add(one)
    if held.is_worth_it(tier, is_closed=False):
        found.append(tuple(held.members))
    return found


def combine(segments: Sequence[segment.Segment]) -> segment.Segment:
    """Return one segment with exactly the records of these, all of one pipeline, in their order.

    It is read again and compared before it is returned: it will be the only copy.

    Raises:
        DamagedSegmentsError: some of them cannot be read, or all together do not come out as they
            went in.
    """
    parts: list[Columns] = []
    reasons: dict[int, str] = {}
    for place, one in enumerate(segments):
        try:
            parts.append(_sound(one))
        except (errors.FormatError, TypeError) as error:  # TypeError: the row has a NULL
            reasons[place] = str(error)
    if reasons:
        raise DamagedSegmentsError(reasons)
    merged = segment.merge(segments[0].pipeline, segments)
    if not _same(segment.decode(merged), columns.concat(parts)):
        reason = "What was merged does not read as what it was merged from."
        raise DamagedSegmentsError(dict.fromkeys(range(len(segments)), reason))
    return merged


def _sound(one: segment.Segment) -> Columns:
    found = segment.decode(one)
    if (int(found.time_ns.min()), int(found.time_ns.max())) != (one.min_ts, one.max_ts):
        raise errors.FormatError("A segment's times are not those of its row.")
    return found


def _same(one: Columns, other: Columns) -> bool:
    return all(
        np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs
        for mine, theirs in zip(
            msgspec.structs.astuple(one), msgspec.structs.astuple(other), strict=True
        )
    )
