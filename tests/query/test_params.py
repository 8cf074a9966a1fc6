"""Moments and durations as clients write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logweir.core import errors
from logweir.query import params

NOW_NS = 1_770_000_000_123_456_789
SECOND = 10**9


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        pytest.param("now", NOW_NS, id="now"),
        pytest.param("-15m", NOW_NS - 900 * SECOND, id="ago"),
        pytest.param("now-1h30m", NOW_NS - 5400 * SECOND, id="ago in two units"),
        pytest.param("now+10s", NOW_NS + 10 * SECOND, id="ahead"),
        pytest.param("1770000000", 1_770_000_000 * SECOND, id="seconds"),
        pytest.param("1770000000123", 1_770_000_000_123 * 10**6, id="milliseconds"),
        pytest.param("1770000000123456", 1_770_000_000_123_456 * 10**3, id="microseconds"),
        pytest.param("1770000000123456789", 1_770_000_000_123_456_789, id="nanoseconds"),
        pytest.param("1970-01-01T00:00:01Z", SECOND, id="RFC 3339"),
        pytest.param("1970-01-01T01:00:01+01:00", SECOND, id="RFC 3339 with an offset"),
        pytest.param("1970-01-01T01:00:01 01:00", SECOND, id="a plus that the URL lost"),
        pytest.param("-1", -SECOND, id="before the epoch"),
    ],
)
def test_a_moment_is_read(text, expected_ns):
    assert params.moment_ns(text, NOW_NS) == expected_ns


@pytest.mark.parametrize(
    "text", ["", "soon", "-", "now-", "1h", "now 1h", "1e9", "٣", "-٣m", "9" * 20, "-99999999w"]
)
def test_what_is_no_moment_is_refused(text):
    with pytest.raises(errors.BadRequestError):
        params.moment_ns(text, NOW_NS)


@given(
    st.lists(
        st.tuples(st.integers(0, 999), st.sampled_from(list(params._UNITS_NS))),
        min_size=1,
        max_size=4,
    )
)
def test_a_duration_is_the_sum_of_its_parts(parts):
    text = "".join(f"{number}{unit}" for number, unit in parts)

    assert params.duration_ns(text) == sum(n * params._UNITS_NS[unit] for n, unit in parts)


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        pytest.param("5", 5 * SECOND, id="seconds without a unit"),
        pytest.param("0.25", SECOND // 4, id="a fraction of a second"),
    ],
)
def test_seconds_need_no_unit(text, expected_ns):
    assert params.duration_ns(text) == expected_ns


@pytest.mark.parametrize("text", ["", "5x", "-5m", "1.5s", "m", "٣s", "999999999999w", "1 m"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(errors.BadRequestError):
        params.duration_ns(text)


@pytest.mark.parametrize(
    "body", [b'{"query": "\xff"}', b'{"\xff": 1}', b'{"a":' * 5000, b"[]", b'{"query": NaN}']
)
def test_a_body_that_is_no_json_object_is_refused_in_words(body):
    with pytest.raises(errors.BadRequestError, match="not a JSON object"):
        params.from_body(body, "application/json", ("query",))
