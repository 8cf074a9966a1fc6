"""Laws of columns: what is joined, cut and chosen loses no record and changes none."""

from __future__ import annotations

import numpy as np
import pytest
from generated import ROW, TEXT, to_columns, to_rows
from hypothesis import given
from hypothesis import strategies as st

from logweir.core import columns, errors

ROWS = st.lists(ROW, max_size=6)
TEXTS = st.lists(TEXT.map(str.encode), max_size=8)


@given(TEXTS)
def test_splitting_undoes_joining(texts):
    assert columns.split(columns.join(texts), len(texts)) == texts


@given(TEXTS)
def test_a_column_of_empty_texts_takes_no_bytes(texts):
    column = columns.join(texts)

    assert (column == b"") == (not any(texts))


@given(TEXTS)
def test_each_text_lies_before_its_end(texts):
    column = columns.join(texts)

    ends = columns.ends(column, len(texts)).tolist()

    starts = [0, *(end + 1 for end in ends)] if column else [0] * len(texts)
    assert [column[a:b] for a, b in zip(starts, ends, strict=False)] == texts


@pytest.mark.parametrize(
    ("column", "n"),
    [
        pytest.param(b"one\0two", 1, id="too many"),
        pytest.param(b"one\0two", 3, id="too few"),
        pytest.param(b"one", 0, id="some where none is"),
    ],
)
@pytest.mark.parametrize("look", [columns.split, columns.ends])
def test_a_column_with_another_number_of_texts_is_refused(look, column, n):
    with pytest.raises(errors.FormatError, match=f"not {n}"):
        look(column, n)


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_concat_keeps_every_record_in_order(parts):
    joined = columns.concat([to_columns(part) for part in parts])

    assert to_rows(joined) == [row for part in parts for row in part]


@given(st.lists(ROWS, min_size=2, max_size=4))
def test_concat_holds_each_label_set_once(parts):
    joined = columns.concat([to_columns(part) for part in parts])

    assert len(joined.label_sets) == len(set(joined.label_sets))


@given(ROWS, st.data())
def test_select_keeps_exactly_what_is_asked_in_order(rows, data):
    keep = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))

    chosen = columns.select(to_columns(rows), np.array(keep, np.bool_))

    assert to_rows(chosen) == [row for row, kept in zip(rows, keep, strict=True) if kept]
    assert set(chosen.label_sets) == {row.labels for row in to_rows(chosen)}


@given(ROWS)
def test_selecting_nothing_leaves_what_selecting_nothing_leaves_anew(rows):
    nothing = columns.select(to_columns(rows), np.zeros(len(rows), np.bool_))

    assert to_rows(nothing) == []
    assert to_rows(columns.concat([nothing, to_columns(rows), columns.empty()])) == rows
    assert nothing.text_bytes == 0


@given(ROWS, st.data())
def test_records_that_are_dealt_out_are_all_there_again(rows, data):
    hands = st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows))
    where = np.array(data.draw(hands), np.int64)
    whole = to_columns(rows)

    parts = [columns.select(whole, where == hand) for hand in range(3)]

    assert sorted(to_rows(columns.concat(parts))) == sorted(rows)
