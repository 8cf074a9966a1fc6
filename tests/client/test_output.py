"""Records as lines: for people, for pipes, and never obeyed by a terminal."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logweir.client import terminal
from logweir.client.output import formatter


def record(message: str = "hello", **fields) -> dict:
    whole = {
        "id": "1-aa-0",
        "timestamp": "1700000000123456789",
        "labels": {"service": "shop", "level": "warn"},
        "message": message,
        "trace_id": "",
        "span_id": "",
        "attributes": {},
    }
    return whole | fields


def line(form: str, *, colour: bool = False, **fields) -> str:
    return formatter(form, colour=colour)(record(**fields))


def test_a_line_for_people_has_time_level_service_and_message():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.123 WARN    shop  hello", line("default"))


def test_colours_change_nothing_but_colours():
    coloured = line("default", colour=True)

    assert "\x1b[33mWARN" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == line("default")


def test_a_service_has_always_the_same_colour():
    assert line("default", colour=True) == line("default", colour=True)


@given(st.text())
def test_no_message_moves_the_cursor(message):
    shown = line("default", message=message)

    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


def test_json_is_the_record_as_it_came():
    assert json.loads(line("json", attributes={"a": [1]})) == record(attributes={"a": [1]})


def test_raw_is_the_message_alone():
    assert line("raw", message="a\tb") == "a\tb"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, "msg=hello", id="a word"),
        pytest.param({"message": 'say "x"'}, r'msg="say \"x\""', id="quotes"),
        pytest.param({"message": ""}, 'msg=""', id="nothing"),
        pytest.param({"message": "a\nb"}, r'msg="a\nb"', id="a line break"),
        pytest.param({"attributes": {"n": 5, "o": {"a": 1}}}, r'n=5 o="{\"a\":1}"', id="values"),
        pytest.param({"trace_id": "ab"}, "trace_id=ab", id="a trace"),
    ],
)
def test_logfmt_quotes_what_needs_it(fields, expected):
    found = line("logfmt", **fields)

    assert found.startswith("ts=1700000000123456789 service=shop level=warn msg=")
    assert expected in found


def test_an_attribute_does_not_hide_a_label():
    assert "service=shop" in line("logfmt", attributes={"service": "other"})


@pytest.mark.parametrize(
    ("color", "environment", "expected"),
    [
        pytest.param("always", {"NO_COLOR": "1"}, True, id="always"),
        pytest.param("never", {"FORCE_COLOR": "1"}, False, id="never"),
        pytest.param("auto", {}, False, id="no terminal"),
        pytest.param("auto", {"FORCE_COLOR": "1"}, True, id="forced"),
        pytest.param("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, id="NO_COLOR wins"),
    ],
)
def test_when_there_are_colours(monkeypatch, color, environment, expected):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert terminal.has_colour(color) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15m", "-15m"),
        ("1h30m", "-1h30m"),
        ("250ms", "-250ms"),
        ("2026-01-01", "2026-01-01"),
        ("", ""),
    ],
)
def test_a_bare_duration_means_so_long_ago(text, expected):
    assert terminal.moment(text) == expected
