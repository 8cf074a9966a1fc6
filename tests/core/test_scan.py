"""Scanning columns finds what looking at each record alone finds; ranking is what sorting is."""

from __future__ import annotations

import numpy as np
import pytest
import re2
from generated import INT64
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from logweir.core import columns, scan
from logweir.core.logql import parser
from logweir.core.record import RecordId

TEXTS = st.lists(st.text("ab1 \n.-é", max_size=8), min_size=1, max_size=50)
LITERAL = st.text("ab1 \n.é\0", max_size=3)
PATTERNS = [
    "a",
    "",
    "a*",
    "b?",
    "^a",
    "b$",
    "^$",
    r"\Aa",
    r"b\z",
    "(?m)^a",
    "(?m)b$",
    r"\b",
    r"\B",
    r"\ba\b",
    r"\Ba",
    "a.b",
    "a.*b",
    ".",
    ".+",
    "(?-s).{3}",
    "(?-s:a.b)",
    "[^a]",
    "[^a]b",
    "[^ab1]+$",
    r"\W",
    r"\D\D",
    r"\S+ \S+",
    r"\x00",
    r"a\x00b",
    r"\pL+",
    r"\PL",
    "é",
    "(?i)AB",
    "(?i)[^A]b",
    r"a\nb",
    r"\s+",
    "a|^b",
    "(a|b){2}.{2}",
    "(?U)a.*b",
    r"[\^]|\$",
    "[[^]",
    r"\Qa.b\E",
    r"\Q^",
    "a{2,}",
    "()",
    "(?:)|a",
]
ATOM = st.sampled_from(
    ["a", "b", "1", ".", "[^a]", r"\b", "^", "$", r"\n", r"\W", "é", " ", r"\z", "(?i:A)"]
)
MADE_PATTERN = st.recursive(
    ATOM,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=2).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
    ),
    max_leaves=5,
)


@st.composite
def searched(draw: st.DrawFn) -> tuple[list[bytes], np.ndarray]:
    """Texts, and which of them matter: all, some, or so few that each is looked at alone."""
    texts = [text.encode() for text in draw(TEXTS)]
    kind = draw(st.sampled_from(["all", "none", "few", "some"]))
    among = np.full(len(texts), kind == "all")
    if kind == "few":
        among[draw(st.integers(0, len(texts) - 1))] = True
    if kind == "some":
        among = np.array(
            draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))), np.bool_
        )
    return texts, among


def texts_of(texts: list[bytes]) -> scan.Texts:
    return scan.Texts(columns.join(texts), len(texts))


# ---- texts -----------------------------------------------------------------------------------


@given(TEXTS)
def test_each_text_is_found_at_its_place(texts):
    column = texts_of([text.encode() for text in texts])

    assert [column.text(row).decode() for row in range(len(texts))] == texts


@settings(max_examples=200)
@given(searched(), LITERAL)
def test_a_literal_is_found_where_a_look_at_each_text_finds_it(given_texts, literal):
    texts, among = given_texts
    needle = literal.encode()

    found = texts_of(texts).containing(needle, among)

    assert found.tolist() == [
        bool(matters) and needle in text for matters, text in zip(among, texts, strict=True)
    ]


@pytest.mark.parametrize("piece_bytes", [1, 12, 4096])
@settings(max_examples=200)
@given(searched(), st.sampled_from(PATTERNS) | MADE_PATTERN)
def test_an_expression_is_found_where_a_look_at_each_text_finds_it(
    piece_bytes, given_texts, pattern
):
    texts, among = given_texts
    compiled = parser.compile_regex(pattern, anchored=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "_PIECE_BYTES", piece_bytes)
        edge_blind = scan.is_edge_blind(pattern)
        found = texts_of(texts).matching(compiled, among, edge_blind=edge_blind)

    assert found.tolist() == [
        bool(matters) and compiled.search(text) is not None
        for matters, text in zip(among, texts, strict=True)
    ]


def test_searching_leaves_what_was_asked_about_as_it_was():
    among = np.array([True, False, True])
    texts = texts_of([b"a", b"a", b"b"])

    texts.containing(b"a", among)
    texts.matching(re2.compile(b"b"), among, edge_blind=True)

    assert among.tolist() == [True, False, True]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("pattern", ["error.*timeout", "error.+", "error[^x]*99", "error(.*none|)"])
def test_an_expression_that_runs_on_does_not_run_through_the_column_each_time(pattern):
    texts = [b"error %d in worker, request timeout after 99 ms" % at for at in range(16_000)]
    compiled = parser.compile_regex(pattern, anchored=False)

    found = texts_of(texts).matching(
        compiled, np.ones(len(texts), np.bool_), edge_blind=scan.is_edge_blind(pattern)
    )

    assert scan.is_edge_blind(pattern)
    assert found.all()


@pytest.mark.parametrize(
    ("pattern", "is_blind"),
    [
        ("error", True),
        (".*", True),
        (r"\bid\B", True),
        ("[^a]", True),
        (r"\^\$", True),
        (r"[\^]", True),
        (r"\\", True),
        ("^a", False),
        ("a$", False),
        ("a|^b", False),
        ("(?m)^a", False),
        (r"\Aa", False),
        (r"a\z", False),
        (r"\\^", False),
        (r"\[^", False),
        (r"\Q^\E", False),
    ],
)
def test_what_sees_the_edge_of_a_text_is_told_from_what_does_not(pattern, is_blind):
    assert scan.is_edge_blind(pattern) is is_blind


# ---- ranking ---------------------------------------------------------------------------------

ID = st.builds(
    RecordId,
    time_ns=st.integers(-2, 2) | INT64,
    block=st.integers(0, 2) | st.integers(0, scan.MAX_BLOCK),
    index=st.integers(0, 2) | st.integers(0, scan.MAX_INDEX),
)
CLOSE_ID = st.builds(RecordId, st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
ID_LISTS = st.lists(st.lists(ID, max_size=6) | st.lists(CLOSE_ID, max_size=6), max_size=4)


def ids_of(of: list[RecordId], segment: int = 0) -> scan.Ids:
    return scan.Ids(
        time_ns=np.array([one.time_ns for one in of], np.int64),
        block=np.array([one.block for one in of], np.uint64),
        index=np.array([one.index for one in of], np.uint32),
        segment=np.full(len(of), segment, np.int64),
        row=np.arange(len(of), dtype=np.int64),
    )


def listed(of: scan.Ids) -> list[RecordId]:
    return [of.id(at) for at in range(len(of))]


@given(ID_LISTS, st.integers(1, 8), st.booleans())
def test_the_best_are_the_first_of_all_in_order(groups, count, is_backward):
    best = scan.Best(count, is_backward=is_backward)

    for group in groups:
        best.add(ids_of(group))

    everything = sorted((one for group in groups for one in group), reverse=is_backward)
    assert listed(best.ids) == everything[:count]
    assert best.edge_ns == (everything[count - 1].time_ns if len(everything) >= count else None)


@given(ID_LISTS, st.integers(1, 8), st.booleans())
def test_the_best_know_where_they_stand(groups, count, is_backward):
    best = scan.Best(count, is_backward=is_backward)

    for segment, group in enumerate(groups):
        best.add(ids_of(group, segment))

    places = zip(best.ids.segment.tolist(), best.ids.row.tolist(), strict=True)
    assert [groups[segment][row] for segment, row in places] == listed(best.ids)


@settings(max_examples=200)
@given(ID_LISTS, st.lists(ID | CLOSE_ID, max_size=6), st.integers(1, 4), st.booleans())
def test_what_could_not_enter_would_change_nothing(groups, more, count, is_backward):
    best, all_in = (scan.Best(count, is_backward=is_backward) for _ in range(2))
    for group in groups:
        best.add(ids_of(group))
        all_in.add(ids_of(group))
    new = ids_of(more)

    best.add(new.take(best.could_enter(new.time_ns)))
    all_in.add(new)

    assert listed(best.ids) == listed(all_in.ids)


@given(st.lists(st.integers(-3, 3) | INT64, max_size=20), st.integers(1, 8), st.booleans())
def test_the_nearest_are_the_first_by_time_and_all_that_are_equal(times, count, is_backward):
    found = scan.nearest(np.array(times, np.int64), count, is_backward=is_backward)

    edges = sorted(times, reverse=is_backward)[:count]
    edge = edges[-1] if len(times) > count else None
    assert found.tolist() == [
        edge is None or (time >= edge if is_backward else time <= edge) for time in times
    ]


@given(st.lists(ID | CLOSE_ID, max_size=20), ID | CLOSE_ID, st.booleans())
def test_a_bound_lets_through_what_lies_behind_it(ids, bound, is_backward):
    found = scan.Bound(bound, is_backward=is_backward).after(ids_of(ids))

    assert found.tolist() == [one < bound if is_backward else one > bound for one in ids]


@given(st.lists(ID, unique=True, max_size=20), st.integers(1, 5), st.booleans())
def test_pages_that_begin_behind_the_last_id_show_every_record_once(ids, size, is_backward):
    assume(ids)
    everything = ids_of(ids)
    pages: list[list[RecordId]] = []
    left = everything
    while len(left):
        best = scan.Best(size, is_backward=is_backward)
        best.add(left)
        pages.append(listed(best.ids))
        bound = scan.Bound(pages[-1][-1], is_backward=is_backward)
        left = everything.take(bound.after(everything))

    assert [one for page in pages for one in page] == sorted(ids, reverse=is_backward)
