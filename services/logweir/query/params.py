"""Parameters of a request, from its query string or body to typed values. Pure.

    ?query=...&start=-15m   or   a form   or   a JSON object   ->  {name: text}  ->  Window, ...

A name that is not known is refused: a typo in `limt` should not be answered with 100 records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from logweir.core import errors, moments

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 5000
"""Records of one page; all of them are in memory at once."""

DEFAULT_RANGE_NS: Final = 3600 * moments.NS_PER_S
MAX_BUCKETS: Final = 11_000
"""Buckets of a histogram: as many as a screen could show, and far more."""

DEFAULT_BUCKETS: Final = 60
MAX_BODY_BYTES: Final = 128 << 10
"""Twice the longest query, for what a form escapes; so little that NGINX keeps it in memory."""

_UNITS_NS: Final[Mapping[str, int]] = {
    "ms": 1_000_000,
    "s": moments.NS_PER_S,
    "m": 60 * moments.NS_PER_S,
    "h": 3600 * moments.NS_PER_S,
    "d": moments.NS_PER_DAY,
    "w": 7 * moments.NS_PER_DAY,
}
_DURATION = re.compile(r"(?:\d{1,12}(?:ms|[smhdw]))+", re.ASCII)
_PART = re.compile(r"(\d+)(ms|[smhdw])", re.ASCII)
_RELATIVE = re.compile(r"(?:now)?(?:([+-])((?:\d{1,12}(?:ms|[smhdw]))+))?", re.ASCII)
_PLUS_LOST = re.compile(r" (\d\d:\d\d)$")
_INT64_MAX = (1 << 63) - 1

Texts = Mapping[str, str]
"""Parameters by name, as text."""


class Window(msgspec.Struct, frozen=True):
    """A range of time in nanoseconds: `start_ns` inclusive, `end_ns` exclusive."""

    start_ns: int
    end_ns: int


class Buckets(msgspec.Struct, frozen=True):
    """Buckets of a histogram: `count` of them, `step_ns` wide, the first begins at `first_ns`."""

    first_ns: int
    step_ns: int
    count: int

    def starts_ns(self) -> list[int]:
        """Return where each begins."""
        return [self.first_ns + at * self.step_ns for at in range(self.count)]


def from_pairs(pairs: Iterable[tuple[str, str]], known: Sequence[str]) -> dict[str, str]:
    """Return parameters by name.

    Raises:
        BadRequestError: a name is unknown, or given twice.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise errors.BadRequestError(
                f"There is no parameter {name[:64]!r} here.", hint=f"Known: {', '.join(known)}."
            )
        if name in found:
            raise errors.BadRequestError(f"The parameter {name!r} is given twice.")
        found[name] = value
    return found


def from_body(body: bytes, content_type: str, known: Sequence[str]) -> dict[str, str]:
    """Return the parameters of a form or a JSON object.

    Raises:
        BadRequestError: the body is neither, or `from_pairs` refuses it.
        UnsupportedMediaError: the content type names something else.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return from_pairs(_json_pairs(body), known)
    if kind in ("application/x-www-form-urlencoded", ""):
        try:
            return from_pairs(parse_qsl(body.decode(), keep_blank_values=True), known)
        except ValueError as cause:
            raise errors.BadRequestError("The body is not a form in UTF-8.") from cause
    raise errors.UnsupportedMediaError(
        f"{kind[:64]!r} is not read here.",
        hint="Send application/x-www-form-urlencoded or application/json.",
    )


def _json_pairs(body: bytes) -> list[tuple[str, str]]:
    try:
        values = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise errors.BadRequestError(f"The body is not a JSON object: {cause}.") from cause
    pairs = []
    for name, value in values.items():
        if isinstance(value, bool | dict | list | float):
            raise errors.BadRequestError(f"{name[:64]!r} is neither a text nor an integer.")
        if value is not None:
            pairs.append((name, str(value)))
    return pairs


def duration_ns(text: str) -> int:
    """Return nanoseconds of `1h30m`, or of seconds without a unit.

    Raises:
        BadRequestError: it is no duration, or none that 64 bits can hold.
    """
    if re.fullmatch(r"\d{1,12}(?:\.\d{1,9})?", text, re.ASCII):
        whole, _, fraction = text.partition(".")
        value = int(whole) * moments.NS_PER_S + int(fraction.ljust(9, "0"))
    elif _DURATION.fullmatch(text):
        value = sum(int(number) * _UNITS_NS[unit] for number, unit in _PART.findall(text))
    else:
        raise errors.BadRequestError(
            f"{text[:40]!r} is not a duration.", hint="Seconds, or 30s, 5m, 1h30m, 7d."
        )
    if value > _INT64_MAX:
        raise errors.BadRequestError(f"{text[:40]!r} is too long a duration.")
    return value


def moment_ns(text: str, now_ns: int) -> int:
    """Return nanoseconds of RFC 3339, an integer, `now`, `-15m` or `now-15m`.

    Raises:
        BadRequestError: it is none of them.
    """
    relative = _RELATIVE.fullmatch(text)
    if relative and text:
        sign, length = relative.groups()
        shift_ns = duration_ns(length) if length else 0
        found = now_ns - shift_ns if sign == "-" else now_ns + shift_ns
    elif re.fullmatch(r"-?\d{1,19}", text, re.ASCII):
        found = moments.from_integer(int(text))
    else:
        # A '+' in a URL means a space, and is forgotten often enough.
        found = moments.from_text(_PLUS_LOST.sub(r"+\1", text))
    if abs(found) > _INT64_MAX:
        raise errors.BadRequestError(f"{text[:40]!r} does not fit into 64 bits of nanoseconds.")
    return found


def window(texts: Texts, now_ns: int) -> Window:
    """Return the range of `start` and `end`; by default the last hour.

    Raises:
        BadRequestError: one of them is no moment, or the range is empty.
    """
    end_ns = moment_ns(texts.get("end") or "now", now_ns)
    start = texts.get("start")
    start_ns = moment_ns(start, now_ns) if start else max(end_ns - DEFAULT_RANGE_NS, -_INT64_MAX)
    if start_ns >= end_ns:
        raise errors.BadRequestError(
            "The range is empty: start is not before end.",
            hint="start is inclusive, end exclusive; both as RFC 3339, an integer, or -15m.",
        )
    return Window(start_ns, end_ns)


def count(texts: Texts, name: str, default: int, most: int) -> int:
    """Return a whole number from 1 to `most`.

    Raises:
        BadRequestError: it is no such number.
    """
    text = texts.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not 1 <= int(text) <= most:
        raise errors.BadRequestError(
            f"{name} is {text[:40]!r}; a whole number from 1 to {most:,} is needed."
        )
    return int(text)


def choice(texts: Texts, name: str, choices: Sequence[str]) -> str:
    """Return one of the choices; the first by default.

    Raises:
        BadRequestError: it is another text.
    """
    text = texts.get(name) or choices[0]
    if text not in choices:
        raise errors.BadRequestError(
            f"{name} is {text[:40]!r}.", hint=f"It is one of: {', '.join(choices)}."
        )
    return text


def buckets(texts: Texts, asked: Window) -> Buckets:
    """Return the buckets of `step` or `buckets`, whose edges are multiples of the step from
    `offset` on (default: the epoch); the first one holds `start`.

    Raises:
        BadRequestError: both are given, one is no number, or there are too many buckets.
    """
    width_ns = asked.end_ns - asked.start_ns
    if texts.get("step") and texts.get("buckets"):
        raise errors.BadRequestError("Give step or buckets, not both.")
    if texts.get("step"):
        step_ns = duration_ns(texts["step"])
        if step_ns <= 0:
            raise errors.BadRequestError("step must be longer than 0.")
    else:
        wanted = count(texts, "buckets", DEFAULT_BUCKETS, MAX_BUCKETS)
        step_ns = -(-width_ns // wanted)
    offset = texts.get("offset") or "0"
    shift_ns = duration_ns(offset.removeprefix("-")) * (-1 if offset.startswith("-") else 1)
    if not texts.get("step"):
        # Buckets by number divide exactly the range that was asked for.
        shift_ns += asked.start_ns
    first_ns = (asked.start_ns - shift_ns) // step_ns * step_ns + shift_ns
    number = -(-(asked.end_ns - first_ns) // step_ns)
    if number > MAX_BUCKETS:
        raise errors.BadRequestError(
            f"These are {number:,} buckets; at most {MAX_BUCKETS:,} are counted.",
            hint="Choose a longer step or a shorter range.",
        )
    return Buckets(first_ns, step_ns, number)
