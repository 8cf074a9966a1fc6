"""What the commands show on a terminal: records, how far a send is, where a query is wrong."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from logweir.client import api
from logweir.client.output import Form, Record, formatter
from logweir.client.send import Sent
from logweir.core import errors

SHOWN_REJECTED: Final = 20
_DURATION = re.compile(r"(?:\d+(?:ms|[smhdw]))+")
_PART = re.compile(r"(\d+)(ms|[smhdw])")
_UNITS_S: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def say(text: str) -> None:
    """Say something to the person, not to the pipe."""
    _write(text + "\n")


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def show_records(records: Iterable[Record], form: Form, color: str, *, is_live: bool) -> None:
    """Write records to standard output; live ones each at once."""
    line_of = formatter(form, colour=has_colour(color))
    write, flush = sys.stdout.write, sys.stdout.flush
    for record in records:
        write(line_of(record) + "\n")
        if is_live:
            flush()
    flush()


def is_read() -> bool:
    """Say whether somebody still reads standard output, without a word to write."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always told
    return not poll.poll(0)


def has_colour(color: str) -> bool:
    """Say whether to colour: `always`, `never`, or as the terminal and the environment want."""
    if color != "auto":
        return color == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def moment(text: str) -> str:
    """Return a time as the API takes it: a bare duration means so long ago."""
    return f"-{text}" if _DURATION.fullmatch(text) else text


def seconds(text: str) -> int:
    """Return the seconds of a duration such as `1h` or `1h30m`.

    Raises:
        BadRequestError: it is none.
    """
    if not _DURATION.fullmatch(text):
        raise errors.BadRequestError(f"{text!r} is no duration.", hint="90d, 12h and 1h30m are.")
    return int(sum(int(count) * _UNITS_S[unit] for count, unit in _PART.findall(text)))


def ahead(text: str) -> datetime:
    """Return a moment that is given as a duration from now, or as RFC 3339.

    Raises:
        BadRequestError: it is neither.
    """
    if _DURATION.fullmatch(text):
        with contextlib.suppress(OverflowError):
            return datetime.now(UTC) + timedelta(seconds=seconds(text))
    with contextlib.suppress(ValueError):
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found
    raise errors.BadRequestError(
        f"{text!r} is no moment ahead.", hint="90d and 2030-01-31T12:00:00Z are."
    )


@contextlib.contextmanager
def explained(query: str) -> Iterator[None]:
    """Show where in the query an error is."""
    try:
        yield
    except errors.LogweirError as error:
        shown = api.picture(query, error.message)
        if shown:
            say(shown)
        raise


class Progress:
    """A line on a terminal that says how far a long send is; in a log a line now and then."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._said_s = time.monotonic()
        self._is_shown = False

    def show(self, sent: Sent) -> None:
        """Say how far it is, when it was not said lately."""
        now_s = time.monotonic()
        if now_s - self._said_s >= (0.2 if self._is_terminal else 10.0):
            self._said_s = now_s
            self._is_shown = self._is_terminal
            end = "\r" if self._is_terminal else "\n"
            _write(f"sent {sent.records} records ...{end}")

    def end(self, sent: Sent) -> None:
        """Say what became of it."""
        if self._is_shown:
            _write("\x1b[K")
        for number, reason in sent.rejected[:SHOWN_REJECTED]:
            say(f"line {number}: {reason}")
        if len(sent.rejected) > SHOWN_REJECTED:
            say(f"... and {len(sent.rejected) - SHOWN_REJECTED} more lines")
        receipt = f"; last receipt {sent.receipt}" if sent.receipt else ""
        say(f"sent {sent.records} records in {sent.requests} requests{receipt}")
