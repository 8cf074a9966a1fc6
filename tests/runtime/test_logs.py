"""Logs of the platform: JSON lines for machines, text for a terminal."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from logweir.runtime import logs


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    logging.captureWarnings(False)


def test_a_line_is_one_json_object_with_its_facts():
    stream = io.StringIO()
    logs.configure("ingest", "json", stream)

    logging.getLogger("logweir.x").warning("part changed", extra={"part": "journal", "n": 3})

    line = json.loads(stream.getvalue())
    assert line["level"] == "warning"
    assert line["role"] == "ingest"
    assert line["message"] == "part changed"
    assert (line["part"], line["n"]) == ("journal", 3)


def test_an_exception_stays_on_one_line():
    stream = io.StringIO()
    logs.configure("ingest", "json", stream)

    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("failed")

    assert stream.getvalue().count("\n") == 1
    assert "ValueError: two\nlines" in json.loads(stream.getvalue())["exception"]


def test_without_a_terminal_lines_are_json():
    stream = io.StringIO()
    logs.configure("query", "auto", stream)

    logging.getLogger("x").info("hello")

    assert json.loads(stream.getvalue())["message"] == "hello"


def test_on_a_terminal_lines_are_text():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    logs.configure("query", "auto", stream)

    logging.getLogger("x").info("hello", extra={"who": "ada"})

    assert stream.getvalue().rstrip().endswith("query     hello  who=ada")
