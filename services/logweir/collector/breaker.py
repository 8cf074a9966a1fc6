"""A circuit breaker: stops a pipeline whose blocks are damaged one after the other. Pure.

One damaged block is quarantined and its neighbours go on. Many mean that something is wrong with
the program or the journal, and quarantining all of them would only hide it. The pipeline stands
still and says so; after each cool-down one more damaged block may pass, so that it is never lost
for good behind a damaged stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

IN_A_ROW: Final = 20
SHARE: Final = 0.01
SHARE_OF_AT_LEAST: Final = 1000
"""Blocks before the share counts; below, one bad block would be too large a part."""

COOL_DOWN_S: Final = 60.0


class Breaker(msgspec.Struct, frozen=True):
    """What was seen of one pipeline. `open_until_s` is in the clock of the caller; 0: closed."""

    blocks: int = 0
    bad: int = 0
    bad_in_a_row: int = 0
    open_until_s: float = 0.0

    def is_open(self, now_s: float) -> bool:
        """Whether the pipeline stands still."""
        return now_s < self.open_until_s


def after(breaker: Breaker, is_bad: bool, now_s: float) -> Breaker:
    """Return the breaker after one more block; it opens when the bad ones are too many.

    After the cool-down one more bad block opens it again, one good block closes it.
    """
    if not is_bad:
        blocks, bad = breaker.blocks + 1, breaker.bad
        if blocks >= 2 * SHARE_OF_AT_LEAST:  # forget slowly, so that the share is of today
            blocks, bad = blocks // 2, bad // 2
        return Breaker(blocks, bad)
    seen = Breaker(breaker.blocks + 1, breaker.bad + 1, breaker.bad_in_a_row + 1)
    many = seen.blocks >= SHARE_OF_AT_LEAST and seen.bad > SHARE * seen.blocks
    if many or seen.bad_in_a_row >= IN_A_ROW:
        return msgspec.structs.replace(seen, open_until_s=now_s + COOL_DOWN_S)
    return seen


def judge(breaker: Breaker, are_bad: Sequence[bool], now_s: float) -> tuple[Breaker, int]:
    """Return the breaker after blocks in their order, and how many of them may be stored.

    That is all of them, or those up to the one that opened it.
    """
    for number, is_bad in enumerate(are_bad, start=1):
        breaker = after(breaker, is_bad, now_s)
        if breaker.is_open(now_s):
            return breaker, number
    return breaker, len(are_bad)
