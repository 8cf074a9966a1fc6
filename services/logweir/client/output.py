"""Records on a terminal or in a pipe: coloured lines, JSON, raw messages, logfmt."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

Form = Literal["default", "json", "raw", "logfmt"]

_RESET: Final = "\x1b[0m"
_DIM: Final = "\x1b[2m"
_LEVELS: Final[Mapping[str, str]] = {
    "trace": "\x1b[2m",
    "debug": "\x1b[36m",
    "info": "\x1b[32m",
    "warn": "\x1b[33m",
    "error": "\x1b[31m",
    "fatal": "\x1b[1;31m",
}
_SERVICES: Final = tuple(f"\x1b[{code}m" for code in (34, 35, 36, 94, 95, 96, 92, 93))
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))} | {
    9: "\t",
    10: "\n",
}
"""A log may hold what would move a terminal's cursor or worse: it is shown, not obeyed."""

_BYTES: Final = ("B", "kB", "MB", "GB", "TB", "PB")

Record = Mapping[str, Any]


def formatter(form: Form, *, colour: bool) -> Callable[[Record], str]:
    """Return the function that makes a line, without its line break, of a record."""
    if form == "json":
        return lambda record: msgspec.json.encode(record).decode()
    if form == "raw":
        return lambda record: str(record["message"])
    if form == "logfmt":
        return _logfmt
    return lambda record: _line(record, colour)


def _line(record: Record, colour: bool) -> str:
    labels = record["labels"]
    level, service = labels.get("level", ""), labels.get("service", "")
    at = _time(record["timestamp"])
    message = record["message"].translate(_CONTROLS)
    if not colour:
        return f"{at} {level.upper():<7} {service}  {message}"
    of_service = _SERVICES[zlib.crc32(service.encode()) % len(_SERVICES)]
    of_level = _LEVELS.get(level, "")
    return (
        f"{_DIM}{at}{_RESET} {of_level}{level.upper():<7}{_RESET} "
        f"{of_service}{service}{_RESET}  {message}"
    )


def _time(timestamp: str) -> str:
    """Local time with milliseconds."""
    seconds, rest = divmod(int(timestamp), 1_000_000_000)
    at = datetime.fromtimestamp(seconds, UTC).astimezone()
    return f"{at:%Y-%m-%d %H:%M:%S}.{rest // 1_000_000:03d}"


def _logfmt(record: Record) -> str:
    pairs = {"ts": record["timestamp"], **record["labels"], "msg": record["message"]}
    for name in ("trace_id", "span_id"):
        if record.get(name):
            pairs[name] = record[name]
    for name, value in (record.get("attributes") or {}).items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        pairs.setdefault(name, text)
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in pairs.items())


def _quoted(text: str) -> str:
    if text and not any(c in ' "=\n\t\\' or ord(c) < 32 for c in text):
        return text
    return msgspec.json.encode(text).decode()


def size(size_bytes: int) -> str:
    """Return bytes for a person: `1.2 MB`, `-340 kB`."""
    value, unit = float(size_bytes), _BYTES[0]
    for unit in _BYTES:
        if abs(value) < 999.5 or unit == _BYTES[-1]:
            break
        value /= 1000
    return f"{value:.3g} {unit}"
