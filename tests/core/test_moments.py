"""Timestamps: which are understood, as what, and that a batch is read as each of them alone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logweir.core import errors, moments

NOON_NS = 1_767_268_800_000_000_000
"""2026-01-01T12:00:00Z"""
MAX_NS = 2**63 - 1


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    """Each test begins without the seconds that others have looked up."""
    monkeypatch.setattr(moments, "_seconds", {})


# ---- integers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "time_ns"),
    [
        pytest.param(0, 0, id="the epoch"),
        pytest.param(1_767_268_800, NOON_NS, id="seconds"),
        pytest.param(9_223_372_036, 9_223_372_036_000_000_000, id="the last second of 64 bits"),
        pytest.param(99_999_999_999_999, None, id="14 digits: milliseconds beyond 64 bits"),
        pytest.param(100_000_000_000, 100_000_000_000_000_000, id="12 digits: milliseconds"),
        pytest.param(1_767_268_800_000, NOON_NS, id="13 digits: milliseconds"),
        pytest.param(100_000_000_000_000, 100_000_000_000_000_000, id="15 digits: microseconds"),
        pytest.param(1_767_268_800_000_000, NOON_NS, id="16 digits: microseconds"),
        pytest.param(99_999_999_999, None, id="11 digits: seconds beyond 64 bits"),
        pytest.param(99_999_999_999_999_999, None, id="17 digits: microseconds beyond 64 bits"),
        pytest.param(100_000_000_000_000_000, 100_000_000_000_000_000, id="18 digits: nanoseconds"),
        pytest.param(NOON_NS, NOON_NS, id="19 digits: nanoseconds"),
        pytest.param(-1, -1_000_000_000, id="a second before the epoch"),
        pytest.param(-1_767_268_800_000, -NOON_NS, id="milliseconds before the epoch"),
        pytest.param(MAX_NS, MAX_NS, id="the last nanosecond"),
        pytest.param(MAX_NS + 1, None, id="one more"),
        pytest.param(-MAX_NS - 2, None, id="before the first"),
        pytest.param(10**30, None, id="absurd"),
    ],
)
def test_the_digits_of_an_integer_name_its_unit(value, time_ns):
    if time_ns is None:
        with pytest.raises(errors.BadRequestError, match="64 bits"):
            moments.from_integer(value)
    else:
        assert moments.from_integer(value) == time_ns


INTEGER = st.integers(-(10**20), 10**20) | st.integers(-(10**11), 10**11)


@given(INTEGER)
def test_no_integer_becomes_more_than_64_bits(value):
    try:
        found = moments.from_integer(value)
    except errors.BadRequestError:
        return

    assert abs(found) <= MAX_NS


def outcome(read, *arguments):
    """What a call returns, or that it refuses."""
    try:
        return read(*arguments)
    except errors.BadRequestError:
        return "refused"


def each(read, values) -> object:
    """What reading one after the other gives: all results, or that one is refused."""
    found = [outcome(read, value) for value in values]
    return "refused" if "refused" in found else found


@given(st.lists(INTEGER, max_size=4) | st.lists(st.integers(10**17, 2**63), max_size=4))
def test_a_batch_of_integers_is_read_as_each_alone(values):
    found = outcome(moments.from_integers, values)

    assert (found if found == "refused" else list(found)) == each(moments.from_integer, values)


# ---- texts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("2026-01-01T12:00:00Z", NOON_NS),
        ("2026-01-01t12:00:00z", NOON_NS),
        ("2026-01-01 12:00:00Z", NOON_NS),
        ("2026-01-01T12:00:00.5Z", NOON_NS + 500_000_000),
        ("2026-01-01T12:00:00,25Z", NOON_NS + 250_000_000),
        ("2026-01-01T12:00:00.000000001Z", NOON_NS + 1),
        ("2026-01-01T12:00:00.0000000019Z", NOON_NS + 1),
        ("2026-01-01T12:00:00.123456789123456789Z", NOON_NS + 123_456_789),
        ("2026-01-01T12:00:00+00:00", NOON_NS),
        ("2026-01-01T12:00:00-00:00", NOON_NS),
        ("2026-01-01T14:00:00+02:00", NOON_NS),
        ("2026-01-01T06:30:00.5-05:30", NOON_NS + 500_000_000),
        ("2026-01-02T11:59:00+23:59", NOON_NS),
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000_000_000),
        ("2262-04-11T23:47:16.854775807Z", MAX_NS),
        ("1677-09-21T00:12:43.145224193Z", -MAX_NS),
    ],
)
def test_rfc_3339_is_understood(text, time_ns):
    assert moments.from_text(text) == time_ns


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("yesterday", id="a word"),
        pytest.param("1767268800", id="an integer as text"),
        pytest.param("2026-01-01", id="a day alone"),
        pytest.param("2026-01-01T12:00Z", id="no seconds"),
        pytest.param("2026-01-01T12:00:00", id="no zone"),
        pytest.param("2026-01-01T12:00:00.Z", id="a point without digits"),
        pytest.param("2026-01-01T12:00:00.1234567890123456789Z", id="19 digits of a fraction"),
        pytest.param("2026-01-01T12:00:00+0200", id="an offset without its colon"),
        pytest.param("2026-01-01T12:00:00+2:00", id="an offset of one digit"),
        pytest.param("2026-01-01T12:00:00+24:00", id="an offset of a day"),
        pytest.param("2026-01-01T12:00:00+12:60", id="an offset of 60 minutes"),
        pytest.param("2026-01-01T12:00:00Z ", id="a space behind"),
        pytest.param("2026-01-01T12:00:00Z\n", id="a line break behind"),
        pytest.param(" 2026-01-01T12:00:00Z", id="a space before"),
        pytest.param("2026-13-01T12:00:00Z", id="month 13"),
        pytest.param("2026-00-01T12:00:00Z", id="month 0"),
        pytest.param("2026-02-29T12:00:00Z", id="29 February of no leap year"),
        pytest.param("2026-01-32T12:00:00Z", id="day 32"),
        pytest.param("2026-01-01T24:00:00Z", id="hour 24"),
        pytest.param("2026-01-01T12:60:00Z", id="minute 60"),
        pytest.param("2016-12-31T23:59:60Z", id="a leap second"),
        pytest.param("0000-01-01T00:00:00Z", id="year 0"),
        pytest.param("0001-01-01T00:00:00Z", id="year 1"),
        pytest.param("9999-12-31T23:59:59Z", id="year 9999"),
        pytest.param("2262-04-11T23:47:16.854775808Z", id="a nanosecond beyond 64 bits"),
        pytest.param("1677-09-21T00:12:43.145224192Z", id="a nanosecond before 64 bits"),
        pytest.param("12026-01-01T12:00:00Z", id="a year of five digits"),
        pytest.param("٢٠٢٦-01-01T12:00:00Z", id="other digits in the year"),
        pytest.param(
            "2026-01-01T12:00:00.\N{ARABIC-INDIC DIGIT FIVE}Z", id="other digits in the fraction"
        ),
        pytest.param("2026-01-01T12:00:00.5½Z", id="a vulgar fraction"),
        pytest.param("2026-01-01T1a:00:00Z", id="a letter in the hour"),
        pytest.param("2026-01-01T12:0:;00Z", id="a sign that follows the digits"),
    ],
)
def test_what_is_no_moment_is_refused_first_and_again(text):
    for _ in range(2):
        with pytest.raises(errors.BadRequestError, match="timestamp"):
            moments.from_text(text)
        with pytest.raises(errors.BadRequestError, match="timestamp"):
            moments.from_texts([text] * 3)


def test_an_error_shows_no_more_than_the_beginning():
    with pytest.raises(errors.BadRequestError) as caught:
        moments.from_text("x" * 100_000)

    assert len(str(caught.value)) < 200


@given(st.integers(-MAX_NS, MAX_NS))
def test_a_moment_that_is_written_is_read_again(time_ns):
    text = moments.to_text(time_ns)

    assert moments.from_text(text) == time_ns
    assert moments.from_text(text) == time_ns
    assert moments.from_texts([text, text]) == [time_ns, time_ns]


@given(st.integers(-(10**9), 10**9), st.integers(0, 1439), st.sampled_from("+-"))
def test_any_offset_names_the_same_moment(seconds, minutes, sign):
    local = datetime.fromtimestamp(seconds, UTC)
    text = f"{local:%Y-%m-%dT%H:%M:%S}{sign}{minutes // 60:02}:{minutes % 60:02}"

    found = moments.from_text(text)

    behind = minutes * 60 if sign == "+" else -minutes * 60
    assert found == (seconds - behind) * moments.NS_PER_S


# ---- batches ---------------------------------------------------------------------------------

CHARACTER = st.sampled_from("0123456789:;/-.,TZz +a\N{ARABIC-INDIC DIGIT FIVE}")


@st.composite
def timestamps(draw: st.DrawFn) -> list[str]:
    """A batch as senders make it: one form and one day; then some of them are spoiled."""
    day = draw(
        st.sampled_from(["2026-01-01", "2262-04-11", "1677-09-21", "9999-12-31", "2026-02-30"])
    )
    places = draw(st.integers(0, 12))
    texts = []
    for _ in range(draw(st.integers(0, 4))):
        clock = draw(st.times())
        fraction = draw(st.text("0123456789", min_size=places, max_size=places))
        texts.append(f"{day}T{clock:%H:%M:%S}{'.' * bool(places)}{fraction}Z")
    for _ in range(draw(st.integers(0, 2)) if texts else 0):
        at = draw(st.integers(0, len(texts) - 1))
        place = draw(st.integers(0, len(texts[at]) - 1))
        change = draw(CHARACTER | st.just(""))
        everywhere = draw(st.booleans())
        texts = [
            text[:place] + change + text[place + 1 :] if everywhere or number == at else text
            for number, text in enumerate(texts)
        ]
    return texts


@settings(max_examples=800)
@given(timestamps())
def test_a_batch_is_read_as_each_alone(texts):
    moments._seconds.clear()

    assert outcome(moments.from_texts, texts) == each(moments.from_text, texts)


@settings(max_examples=300)
@given(timestamps())
def test_a_second_look_reads_the_same(texts):
    moments._seconds.clear()

    assert each(moments.from_text, texts) == each(moments.from_text, texts)


@given(st.lists(st.text(CHARACTER, max_size=32), max_size=4))
def test_any_batch_is_read_or_refused(texts):
    assert outcome(moments.from_texts, texts) == each(moments.from_text, texts)


def test_the_look_up_of_seconds_does_not_grow_for_ever(monkeypatch):
    monkeypatch.setattr(moments, "_CACHE_SIZE", 10)

    for minute in range(40):
        moments.from_text(f"2026-01-01T12:{minute:02}:00Z")

    assert len(moments._seconds) <= 10
