"""`logweir usage`: what is asked for, and how it is printed."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import pytest
from answering import answering

from logweir.client import output, usage
from logweir.client.api import AnswerError, Target
from logweir.core import errors

ROW = {
    "start": "1772366400000000000",
    "pipeline": "web",
    "requests": 1200,
    "accepted": 33,
    "stored": 30,
    "quarantined": 0,
    "expired": 1,
    "repeated": 2,
    "raw_bytes": 1_234_567,
    "stored_bytes": -340_000,
    "refused": {"over_limit": 6, "too_large": 3},
}
DAYS = {"start": "-7d", "end": "", "step": "day"}


def show(answer: object, form: str, status: int = 200) -> tuple[str, dict[str, list[str]]]:
    """What is printed of an answer, and what was asked for."""
    with answering(lambda _: (status, answer)) as (url, asked):
        text = usage.text(Target(f"{url}/t/acme/web", "k"), DAYS, form)
    place = urlsplit(asked[0].path)
    assert place.path == "/api/v1/usage"
    return text, parse_qs(place.query)


def test_usage_is_a_table_of_hours_for_people():
    text, asked = show({"usage": [ROW]}, "table")

    head, line = text.splitlines()
    assert head.split() == [
        *("START", "PIPELINE", "REQUESTS", "ACCEPTED", "STORED", "EXPIRED", "REPEATED"),
        *("QUARANTINED", "RAW", "IN", "STORE", "REFUSED"),
    ]
    assert line.split() == [
        *("2026-03-01T12:00Z", "web", "1,200", "33", "30", "1", "2", "0"),
        *("1.23", "MB", "-340", "kB", "9"),
    ]
    assert len(head) == len(line)
    assert asked == {"start": ["-7d"], "step": ["day"], "format": ["json"]}


def test_usage_as_json_is_what_the_server_says():
    text, _ = show({"step": "day", "usage": [ROW]}, "json")

    assert json.loads(text) == {"step": "day", "usage": [ROW]}


def test_usage_as_csv_is_asked_for_as_csv():
    _, asked = show({}, "csv")

    assert asked["format"] == ["csv"]


def test_a_refusal_is_said_in_the_servers_words():
    refusal = {"error": {"code": "forbidden", "message": "No scope.", "hint": "Ask."}}

    with pytest.raises(AnswerError, match="No scope"):
        show(refusal, "table", 403)


def test_a_server_that_is_not_there_is_an_error_with_its_address():
    with pytest.raises(errors.UnavailableError, match=r"127\.0\.0\.1:9"):
        usage.text(Target("http://127.0.0.1:9", "k"), {}, "table")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (999_600, "1 MB"), (-1_500_000, "-1.5 MB"), (10**18, "1e+03 PB")],
)
def test_bytes_are_said_with_three_digits(size_bytes, text):
    assert output.size(size_bytes) == text
