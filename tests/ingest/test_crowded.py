"""Bodies that are made to cost memory: what they hold is counted before anything is made of it."""

from __future__ import annotations

import json
import tracemalloc

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logweir.core import bounds, errors
from logweir.ingest import native, pieces

RULES = native.Rules(1_767_268_800_000_000_000, 30)
GOOD = b'{"message":"m","level":"info","service":"s"}'
MILLION = 1_000_000

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


def peak_bytes(body: bytes) -> tuple[int, native.Decoded | errors.LogweirError]:
    """What decoding takes at most beyond the body, and what comes of it."""
    tracemalloc.start()
    try:
        try:
            found: native.Decoded | errors.LogweirError = native.decode(body, RULES)
        except errors.LogweirError as refusal:
            found = refusal
        return tracemalloc.get_traced_memory()[1], found
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{}\n" * MILLION, id="empty objects, one a line"),
        pytest.param(b"{}" * MILLION, id="empty objects in one line"),
        pytest.param(b"{}" + b" 0" * MILLION, id="numbers in one line"),
        pytest.param(b"[" + b"{}," * MILLION + b"{}]", id="an array of empty objects"),
        pytest.param(b"[" + b"0," * MILLION + b"0]", id="an array of numbers"),
        pytest.param(b"[" + b'"",' * MILLION + b"0]", id="an array of texts"),
        pytest.param((GOOD + b"\n") * 100_000, id="good records"),
        pytest.param(GOOD + b"\n" + b"\n{" * MILLION, id="lines that are no JSON"),
    ],
)
def test_a_million_of_anything_is_refused_and_takes_no_memory(body):
    size_bytes, found = peak_bytes(body)

    assert isinstance(found, errors.TooLargeError | errors.BadRequestError) or not found.accepted
    assert size_bytes < 24 * bounds.MIB


def some(count: int, one: bytes) -> bytes:
    return b",".join(one % number for number in range(count))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(GOOD[:-1] + b',"labels":{%b}}' % some(300_000, b'"%d":""'), id="labels"),
        pytest.param(
            b"\n".join([GOOD[:-1] + b',"labels":{%b}}' % some(80_000, b'"%d":""')] * 4),
            id="labels of several records",
        ),
        pytest.param(GOOD.replace(b'"m"', b'"%b"' % (b"\\ud800" * 500_000)), id="lone surrogates"),
        pytest.param(GOOD.replace(b'"m"', b'"%b"' % (b"\\ud83d\\ude00" * 300_000)), id="pairs"),
        pytest.param(GOOD.replace(b'"m"', b'"%b"' % (b"\\u0000" * 500_000)), id="NUL escapes"),
    ],
)
def test_a_record_that_is_over_its_bounds_takes_a_few_times_its_bytes(body):
    size_bytes, found = peak_bytes(body)

    assert isinstance(found, native.Decoded)
    assert not found.accepted
    assert size_bytes < 5 * len(body)


def test_a_lone_quote_among_very_many_records_spoils_its_line_only():
    lines = [GOOD] * 15_000
    lines[7] = b'{"message":"a'

    found = native.decode(b"\n".join(lines), RULES)

    assert found.accepted == len(lines) - 1
    assert [one.index for one in found.rejected] == [7]


@given(st.lists(values, min_size=1), st.booleans(), st.integers(1, 40))
@example([["\\", '"', '\\"', "[", "{,"]], True, 1)
def test_the_elements_of_an_array_are_counted_whatever_they_are(of, is_ascii, portion):
    body = json.dumps(of, ensure_ascii=is_ascii).encode("utf-8", "replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_PORTION_BYTES", portion)

        assert pieces.values_at_most(body, is_array=True) == len(of)


@given(st.lists(st.tuples(values, st.sampled_from(["", " ", "\n", "\r\n\t"]))), st.integers(1, 40))
def test_no_value_of_lines_is_left_uncounted(of, portion):
    body = "".join(json.dumps(one) + end for one, end in of).encode()
    try:
        count = len(msgspec.json.Decoder(msgspec.Raw).decode_lines(body))
    except msgspec.MsgspecError:
        return  # two numbers in a row are another one, or none
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_PORTION_BYTES", portion)

        assert pieces.values_at_most(body, is_array=False) >= count
        objects = [one for one, _ in of if isinstance(one, dict)]
        if len(objects) == len(of):
            assert pieces.values_at_most(body, is_array=False) == count
