"""What a body says, by a parser of JSON that is not ours: the oracle of what must come back."""

from __future__ import annotations

import json
import re
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_REPLACED = "\N{REPLACEMENT CHARACTER}"


def records(data: bytes) -> list[Any]:
    """The values of an array, or of values one after the other, as a plain parser sees them.

    Where it sees no such thing, the lines, each by itself; None for one that is no JSON.
    """
    text = data.decode("utf-8", "replace").replace("\0", _REPLACED)
    try:
        found = _all(text)
    except (ValueError, RecursionError):
        return [_line(line) for line in text.split("\n") if line.strip()]
    return found[0] if len(found) == 1 and isinstance(found[0], list) else found


def value(text: str) -> Any:
    """JSON with numbers as they are written, and without what JSON does not have."""
    return _clean(_decoder.decode(text))


def _no_number(word: str) -> float:
    raise ValueError(word)


_decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_no_number)


def _all(text: str) -> list[Any]:
    found = []
    at = 0
    while (at := _SPACE.match(text, at).end()) < len(text):  # type: ignore[union-attr]
        one, at = _decoder.raw_decode(text, at)
        found.append(_clean(one))
    return found


def _line(line: str) -> Any:
    try:
        return value(line)
    except (ValueError, RecursionError):
        return None


def _clean(one: Any) -> Any:
    """The value with U+FFFD for NUL and for lone surrogates, as ingest promises it."""
    if isinstance(one, str):
        return "".join(_REPLACED if c == "\0" or 0xD800 <= ord(c) < 0xE000 else c for c in one)
    if isinstance(one, list):
        return [_clean(each) for each in one]
    if isinstance(one, dict):
        return {_clean(name): _clean(each) for name, each in one.items()}
    return one
