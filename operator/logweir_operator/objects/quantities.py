"""Quantities as the API server writes them back, so that what is applied equals what is read. Pure.

"1000m" -> "1"    0.5 -> "500m"    "1024Mi" -> "1Gi"    "1.5Gi" -> "1536Mi"
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

_TEXT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([numkMGTPE]|[KMGTPE]i)?")
_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL: Final = ("n", "u", "m", "", "k", "M", "G", "T", "P", "E")
_ONE: Final = _DECIMAL.index("")
_NANO: Final = 10**9


def canonical(value: int | str) -> str:
    """Return a quantity in its canonical form.

    Raises:
        ValueError: it is none.
    """
    found = _TEXT.fullmatch(str(value))
    if found is None:
        raise ValueError(f"{value!r} is no quantity")
    number, suffix = Fraction(found[1]), found[2] or ""
    if suffix in _BINARY[1:]:
        exact = number * 1024 ** _BINARY.index(suffix)
        if exact >= 1024:
            return _written(math.ceil(exact), 1024, _BINARY)
    else:
        exact = number * Fraction(1000) ** (_DECIMAL.index(suffix) - _ONE)
    return _written(math.ceil(exact * _NANO), 1000, _DECIMAL)


def _written(count: int, base: int, suffixes: tuple[str, ...]) -> str:
    """Write a count of the first suffix with the largest one that leaves a whole number."""
    if count == 0:
        return "0"
    at = 0
    while count % base == 0 and at + 1 < len(suffixes):
        count //= base
        at += 1
    return f"{count}{suffixes[at]}"


def all_canonical(values: Mapping[str, int | str]) -> dict[str, str]:
    """Return quantities by name, each in its canonical form."""
    return {name: canonical(value) for name, value in values.items()}
