"""Attribute paths of sampled records: how many have each, of which types, with which values. Pure.

attributes of records -> {"http.status": 812 times, number, 200: 640 times ...}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

MAX_PATHS: Final = 1000
MAX_VALUES: Final = 10
MAX_VALUE_CHARS: Final = 128
_MAX_DEPTH: Final = 16


class ValueCount(msgspec.Struct, frozen=True):
    """A value as text (JSON for what is no string), and how many sampled records have it."""

    value: str
    count: int


class Field(msgspec.Struct, frozen=True):
    """One path. `distinct` counts the different values of the sample, `values` are the top ones."""

    path: str
    count: int
    types: list[str]
    distinct: int
    values: list[ValueCount]


def fields(attributes: Iterable[bytes]) -> list[Field]:
    """Return the paths of these JSON objects, the commonest first."""
    counts: Counter[str] = Counter()
    types: dict[str, set[str]] = {}
    values: dict[str, Counter[str]] = {}
    for text in attributes:
        if not text:
            continue
        seen = dict(_leaves(msgspec.json.decode(text), ""))
        for path, value in seen.items():
            if path not in counts and len(counts) >= MAX_PATHS:
                continue
            counts[path] += 1
            types.setdefault(path, set()).add(_type(value))
            values.setdefault(path, Counter())[_text(value)] += 1
    return [
        Field(
            path=path,
            count=count,
            types=sorted(types[path]),
            distinct=len(values[path]),
            values=[ValueCount(*pair) for pair in values[path].most_common(MAX_VALUES)],
        )
        for path, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


def _leaves(value: object, path: str, depth: int = 0) -> Iterator[tuple[str, object]]:
    """Paths are keys joined by dots; a list is a value, not a path."""
    if isinstance(value, dict) and (value or not path) and depth < _MAX_DEPTH:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key, depth + 1)
    elif path:
        yield path, value


def _type(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    kinds = {str: "string", int: "number", float: "number", list: "array", dict: "object"}
    return kinds[type(value)]


def _text(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"
