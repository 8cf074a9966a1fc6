"""What was heard of one pipeline: which blocks are new, where a gap is, when to look again. Pure.

hub.py: a block came -> is_next()? else a gap -> missed.py reads -> is_new() -> offered, once
"""

from __future__ import annotations

from typing import Final

import msgspec

LATE_S: Final = 5.0
"""How long a block that was appended before a renewal may take to be heard."""

RECENT_BLOCKS: Final = 50_000
"""Blocks that are remembered as offered; far more than a gap's overlap brings."""


class Due(msgspec.Struct, frozen=True):
    """What a renewal found: `number` of the newest append at `at_ms`, by the wall clock, and at
    `since_s`, by the monotonic one. All up to it must be heard soon."""

    number: int
    at_ms: int
    since_s: float


class Line:
    """What was heard of one pipeline.

    All appends up to number `sequence` were heard, or read as missed. All that were before
    `heard_ms` are in `recent` or older. `wanted_s` is when a tail last wanted it.
    """

    def __init__(self, wanted_s: float) -> None:
        self.sequence = 0
        self.heard_ms: int | None = None
        self.renewed_s = 0.0
        self.wanted_s = wanted_s
        self.recent: dict[int, None] = {}
        self._due: Due | None = None

    def is_next(self, number: int) -> bool:
        """Whether nothing lies between what was heard and the append of this number."""
        return number == self.sequence + 1

    def hear(self, number: int) -> None:
        """Note that the append of this number was heard."""
        self.sequence = max(self.sequence, number)

    def is_new(self, block: int) -> bool:
        """Whether a block (the short form of its id) was not offered yet."""
        return block not in self.recent

    def remember(self, block: int) -> None:
        """Take a block for offered."""
        self.recent[block] = None
        while len(self.recent) > RECENT_BLOCKS:
            del self.recent[next(iter(self.recent))]

    def renewed(self, due: Due) -> None:
        """Note a renewal: what the journal had counted then is to be heard."""
        self.renewed_s = due.since_s
        if self._due is None:
            self._due = due

    def settle(self, now_s: float, *, is_idle: bool) -> bool:
        """Note how far is heard; false when what the journal counted does not arrive."""
        if self._due is None:
            return True
        if self.sequence >= self._due.number:
            self.heard_ms, self._due = self._due.at_ms, None
        elif is_idle and now_s - self._due.since_s >= LATE_S:
            self._due = None
            return False
        return True

    def caught_up(self, number: int, at_ms: int) -> None:
        """Note that all up to this number, and all before that time, was offered or read."""
        self.sequence, self.heard_ms, self._due = number, at_ms, None
