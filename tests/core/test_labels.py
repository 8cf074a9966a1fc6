"""Label sets by number: equal ones share a number, and marks stay with their table."""

from __future__ import annotations

import weakref

import numpy as np
from generated import LABELS
from hypothesis import given
from hypothesis import strategies as st

from logweir.core.labels import LabelTable, Marks


@given(st.lists(st.lists(LABELS, max_size=5), max_size=5))
def test_a_number_stands_for_one_label_set_whichever_segment_it_comes_from(segments):
    table = LabelTable()

    numbers = [table.ids(label_sets).tolist() for label_sets in segments]

    assert [[table.of[one] for one in found] for found in numbers] == segments
    assert len(set(table.of)) == len(table) == len({one for found in segments for one in found})


def test_what_is_unknown_is_named_once_until_it_is_marked():
    table, marks = LabelTable(), Marks()
    ids = table.ids([(("a", "1"),), (("a", "2"),), (("a", "1"),)])

    assert marks.unknown(table, ids) == [0, 1]
    marks.set(table, 0, 7)
    marks.set(table, 1, 0)

    assert marks.unknown(table, ids) == []
    assert marks.get(table, ids).tolist() == [7, 0, 7]


def test_marks_are_kept_when_the_table_grows():
    table, marks = LabelTable(), Marks()
    first = table.ids([(("a", "1"),)])
    assert marks.unknown(table, first) == [0]
    marks.set(table, 0, 3)

    more = table.ids([(("a", str(at)),) for at in range(100)])

    assert marks.unknown(table, more) == np.setdiff1d(more, [0]).tolist()
    assert marks.get(table, first).tolist() == [3]


def test_two_tables_do_not_share_marks():
    one, other, marks = LabelTable(), LabelTable(), Marks()
    ids = one.ids([(("a", "1"),)])
    other.ids([(("b", "1"),)])
    assert marks.unknown(one, ids) == [0]
    marks.set(one, 0, 1)

    assert marks.unknown(other, ids) == [0]


def test_marks_do_not_keep_a_table_alive():
    marks, table = Marks(), LabelTable()
    assert marks.unknown(table, table.ids([(("a", "1"),)])) == [0]
    gone = weakref.ref(table)

    del table

    assert gone() is None


def test_a_table_counts_what_its_texts_take():
    small, large = LabelTable(), LabelTable()

    small.ids([(("a", "1"),)])
    large.ids([(("a", "1" * 200),)])

    assert large.size_bytes - small.size_bytes == 199
