"""Timestamps as senders write them, turned into nanoseconds since the epoch, UTC.

RFC 3339 text, or an integer whose number of digits names its unit: up to 11 seconds, 14
milliseconds, 17 microseconds, else nanoseconds.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from logweir.core import errors

NS_PER_S: Final = 1_000_000_000
NS_PER_DAY: Final = 86_400 * NS_PER_S
_INT64_MAX: Final = (1 << 63) - 1
_MAX_S: Final = _INT64_MAX // NS_PER_S - 86_400
"""Whole days up to here, and before its negative, are inside of 64 bits of nanoseconds."""
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:[.,](\d{1,18}))?"
    r"([Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
_CACHE_SIZE: Final = 4096
_ZERO: Final = np.uint8(ord("0"))
_TABLE_FORM: Final = "0000-00-00T00:00:00.000000000Z"
_TABLE_WIDTHS: Final = frozenset({20, *range(22, 31)})
_seconds: dict[str, int] = {}


def from_integer(value: int) -> int:
    """Return nanoseconds of an integer in the unit that its digits name.

    Raises:
        BadRequestError: it does not fit into 64 bits.
    """
    size = abs(value)
    scale = 1
    if size < 10**11:
        scale = NS_PER_S
    elif size < 10**14:
        scale = 1_000_000
    elif size < 10**17:
        scale = 1000
    if size * scale > _INT64_MAX:
        raise errors.BadRequestError(
            "timestamp does not fit into 64 bits of nanoseconds",
            hint="Send seconds, milliseconds, microseconds or nanoseconds since 1970.",
        )
    return value * scale


def from_text(text: str) -> int:
    """Return nanoseconds of an RFC 3339 text; digits after the ninth are dropped.

    Raises:
        BadRequestError: it is no such text, or outside the years that 64 bits can hold.
    """
    # Almost all of a batch share a few seconds: the part up to them is looked up.
    seconds = _seconds.get(text[:19])
    if seconds is not None and text[-1:] == "Z":
        rest = text[19:-1]
        if not rest:
            return seconds * NS_PER_S
        if rest[0] == "." and rest[1:].isascii() and rest[1:].isdigit() and len(rest) <= 19:
            return seconds * NS_PER_S + int(rest[1:10].ljust(9, "0"))
    return _parse(text)


def from_integers(values: Sequence[int]) -> array[int]:
    """Return `from_integer` of each, as int64.

    Raises:
        BadRequestError: as `from_integer`.
    """
    try:
        found = array("q", values)
    except OverflowError:
        found = array("q")
    if found and int(np.frombuffer(found, np.int64).min()) >= 10**17:
        return found
    return array("q", [from_integer(value) for value in values])


def from_texts(texts: Sequence[str]) -> list[int]:
    """Return `from_text` of each; a batch of one form and one day is read as a table of digits.

    Raises:
        BadRequestError: as `from_text`.
    """
    if not texts:
        return []
    width = len(texts[0])
    joined = "".join(texts)
    if len(joined) == width * len(texts) and width in _TABLE_WIDTHS and joined.isascii():
        table = np.frombuffer(joined.encode(), np.uint8).reshape(-1, width)
        form = np.frombuffer((_TABLE_FORM[: width - 1] + "Z").encode(), np.uint8)
        is_digit = form == _ZERO
        if (
            (table[:, :11] == table[0, :11]).all()
            and (table[:, ~is_digit] == form[~is_digit]).all()
            and (table[:, is_digit] - _ZERO <= 9).all()
        ):
            # By its noon: of the first day that 64 bits hold, they do not hold the beginning.
            day_ns = _parse(texts[0][:10] + "T12:00:00Z") - NS_PER_DAY // 2
            if abs(day_ns) <= _MAX_S * NS_PER_S:
                return _from_table(table, day_ns)
    return [from_text(text) for text in texts]


def _from_table(table: npt.NDArray[np.uint8], day_ns: int) -> list[int]:
    """Nanoseconds of rows `YYYY-MM-DDThh:mm:ss[.f]Z` of one day; shape (n, width)."""
    digits = (table - _ZERO).astype(np.int64)
    hours, minutes, seconds = (digits[:, i] * 10 + digits[:, i + 1] for i in (11, 14, 17))
    if int(hours.max()) > 23 or int(minutes.max()) > 59 or int(seconds.max()) > 59:
        raise errors.BadRequestError("timestamp has an hour, minute or second that does not exist")
    places = table.shape[1] - 21
    scale = 10 ** np.arange(8, 8 - places, -1, dtype=np.int64) if places > 0 else np.zeros(0)
    fraction = digits[:, 20 : 20 + max(places, 0)] @ scale.astype(np.int64)
    clock = (hours * 60 + minutes) * 60 + seconds
    found: list[int] = (day_ns + clock * NS_PER_S + fraction).tolist()
    return found


def _parse(text: str) -> int:
    found = _RFC3339.fullmatch(text)
    if found is None:
        raise errors.BadRequestError(
            f"timestamp {text[:40]!r} is neither RFC 3339 nor an integer",
            hint="2026-01-31T12:00:00.123Z is RFC 3339.",
        )
    day, clock, fraction, zone = found.groups()
    try:
        whole = datetime.fromisoformat(f"{day}T{clock}+00:00")
        offset = datetime.fromisoformat(f"{day}T00:00:00{zone.upper().replace('Z', '+00:00')}")
    except ValueError as cause:
        raise errors.BadRequestError(f"timestamp {text[:40]!r} is no date: {cause}") from cause
    seconds = int(whole.timestamp())
    if len(_seconds) >= _CACHE_SIZE:
        _seconds.clear()
    if text[10] == "T" and abs(seconds) <= _MAX_S:
        _seconds[text[:19]] = seconds
    shift = offset.utcoffset()
    seconds -= int(shift.total_seconds()) if shift else 0
    value = seconds * NS_PER_S + int((fraction or "0")[:9].ljust(9, "0"))
    if abs(value) > _INT64_MAX:
        raise errors.BadRequestError(f"timestamp {text[:40]!r} does not fit into 64 bits")
    return value


def to_text(time_ns: int) -> str:
    """Return RFC 3339 with nine digits, in UTC."""
    seconds, fraction = divmod(time_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"
