"""When the circuit breaker opens, and how it closes again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logweir.collector import breaker
from logweir.collector.breaker import COOL_DOWN_S, IN_A_ROW, SHARE_OF_AT_LEAST, Breaker, judge

NOW_S = 1000.0


def seen(are_bad: list[bool]) -> Breaker:
    found = Breaker()
    for is_bad in are_bad:
        found = breaker.after(found, is_bad, NOW_S)
    return found


def test_it_opens_at_so_many_bad_blocks_in_a_row():
    assert not seen([True] * (IN_A_ROW - 1)).is_open(NOW_S)
    assert seen([True] * IN_A_ROW).is_open(NOW_S)


def test_a_good_block_ends_the_row():
    assert not seen([True] * (IN_A_ROW - 1) + [False, True]).is_open(NOW_S)


def test_it_opens_when_more_than_one_in_a_hundred_is_bad():
    good = [False] * (SHARE_OF_AT_LEAST - 11)

    assert not seen([*[True, False] * 5, *good, True]).is_open(NOW_S)
    assert seen([*[True, False] * 10, *good, True]).is_open(NOW_S)


def test_few_blocks_have_no_share_that_counts():
    assert not seen([True, False] * 50).is_open(NOW_S)


def test_it_is_open_for_the_cool_down_only():
    opened = seen([True] * IN_A_ROW)

    assert opened.is_open(NOW_S + COOL_DOWN_S - 0.001)
    assert not opened.is_open(NOW_S + COOL_DOWN_S)


def test_after_the_cool_down_one_more_bad_block_opens_it_again():
    later_s = NOW_S + COOL_DOWN_S
    again = breaker.after(seen([True] * IN_A_ROW), True, later_s)

    assert again.is_open(later_s)


def test_a_good_block_closes_it():
    later_s = NOW_S + COOL_DOWN_S
    closed = breaker.after(seen([True] * IN_A_ROW), False, later_s)

    assert not breaker.after(closed, True, later_s).is_open(later_s)


def test_what_was_bad_long_ago_counts_less_and_less():
    found = seen([True] * 10 + [False] * 100_000)

    assert found.bad == 0
    assert found.blocks < 2 * SHARE_OF_AT_LEAST


def test_blocks_behind_the_one_that_opens_it_are_not_to_be_stored():
    judged, count = judge(Breaker(), [True] * IN_A_ROW + [False] * 5, NOW_S)

    assert judged.is_open(NOW_S)
    assert count == IN_A_ROW


@given(st.lists(st.booleans(), max_size=200))
def test_judging_many_is_judging_each(are_bad):
    judged, count = judge(Breaker(), are_bad, NOW_S)

    assert judged == seen(are_bad[:count])
    assert count == len(are_bad) or judged.is_open(NOW_S)


@pytest.mark.parametrize("count", [0, 1, 999])
def test_good_blocks_alone_never_open_it(count):
    judged, stored = judge(Breaker(), [False] * count, NOW_S)

    assert (judged.is_open(NOW_S), stored) == (False, count)
