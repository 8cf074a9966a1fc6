"""A record: one log line, as the platform knows it after ingest and before a query's answer.

Flags say what ingest changed; nothing is changed in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from logweir.core import errors

Labels = tuple[tuple[str, str], ...]
"""Labels as sorted (name, value) pairs: equal maps are equal values, and hashable."""

FLAG_SANITISED: Final = 1
"""NUL or text that UTF-8 forbids was replaced by U+FFFD."""

FLAG_FUTURE: Final = 2
"""The timestamp lay more than 10 minutes ahead; it is the arrival's, `extra` has the original."""

_RECORD_ID = re.compile(r"(0|-?[1-9][0-9]{0,18})-([0-9a-f]{16})-(0|[1-9][0-9]{0,9})")
_MAX_TIME_NS: Final = (1 << 63) - 1
_MAX_INDEX: Final = (1 << 32) - 1

LEVELS: Final = ("trace", "debug", "info", "warn", "error", "fatal", "unknown")

_LEVEL_NAMES: Final[Mapping[str, str]] = {
    **{name: name for name in LEVELS},
    "verbose": "trace",
    "finest": "trace",
    "silly": "trace",
    "fine": "debug",
    "dbg": "debug",
    "information": "info",
    "informational": "info",
    "notice": "info",
    "warning": "warn",
    "err": "error",
    "severe": "error",
    "critical": "fatal",
    "crit": "fatal",
    "alert": "fatal",
    "emerg": "fatal",
    "emergency": "fatal",
    "panic": "fatal",
}


def level(text: str) -> str:
    """Return the normalised level of what a sender calls it; `unknown` for what has no meaning."""
    return _LEVEL_NAMES.get(text.strip().lower(), "unknown")


def labels(pairs: Mapping[str, str]) -> Labels:
    """Return the map as labels; empty values count as absent."""
    return tuple(sorted((name, value) for name, value in pairs.items() if value))


class RecordId(msgspec.Struct, frozen=True, order=True):
    """Names one record for ever, and orders all records of a tenant.

    `block` is the short form of the block's UUIDv7 (`core.ids`), `index` the place in the block.
    """

    time_ns: int
    block: int
    index: int

    def __str__(self) -> str:
        return f"{self.time_ns}-{self.block:016x}-{self.index}"

    @classmethod
    def parse(cls, text: str) -> RecordId:
        """Read what `str` wrote.

        Raises:
            BadRequestError: the text is not of this form.
        """
        found = _RECORD_ID.fullmatch(text)
        if found is not None:
            one = cls(int(found[1]), int(found[2], 16), int(found[3]))
            if abs(one.time_ns) <= _MAX_TIME_NS and one.index <= _MAX_INDEX:
                return one
        raise errors.BadRequestError(f"{text[:80]!r} is not a record id.")


class Record(msgspec.Struct, frozen=True):
    """One record of an answer. `attributes` and `extra` are raw JSON objects, or empty."""

    id: RecordId
    labels: Labels
    message: str
    trace_id: str
    span_id: str
    attributes: bytes
    flags: int
    extra: bytes
