"""The records of a body as raw JSON, found in memory of the order of the body. Pure.

    body -> is_modest() -> may be decoded at once        body -> find() -> one piece a record

A body is up to 32 MiB, may have come as a kilobyte of zstd, and as few as two of its bytes make a
value that takes some 125. So values are counted before any of them is made.
"""

from __future__ import annotations

import io
import itertools
from typing import Final

import msgspec
import numpy as np

from logweir.core import bounds, errors
from logweir.ingest import fields

_DENSE_BYTES: Final = 1 << 18
"""A body up to this size costs no memory worth a look, whatever it holds."""

_MANY_COLONS: Final = 200_000
"""An entry of `labels` takes some 200 bytes, and as few as seven in a body."""

_PORTION_BYTES: Final = 1 << 17
_QUOTE, _COMMA, _SPACE, _BRACE, _COLON = (ord(one) for one in '", {:')
_STEPS: Final = bytes(1 if byte in b"{[" else 255 if byte in b"}]" else 0 for byte in range(256))
"""How a byte changes the nesting, as int8."""


_raw_array_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_raw_decoder = msgspec.json.Decoder(msgspec.Raw)


def check_count(count: int) -> None:
    """Raise TooLargeError when a request has more records than it may have."""
    if count > bounds.MAX_RECORDS:
        raise _too_many()


def _too_many() -> errors.TooLargeError:
    return errors.TooLargeError(
        f"The request has more than {bounds.MAX_RECORDS} records.", hint="Send several requests."
    )


def _is_crowded(body: bytes, is_array: bool) -> bool:
    """Whether a large body holds more values than it may have records, if it is JSON."""
    return len(body) > _DENSE_BYTES and values_at_most(body, is_array=is_array) > bounds.MAX_RECORDS


def is_modest(body: bytes, is_array: bool) -> bool:
    """Whether decoding all at once takes not many times the body's bytes."""
    if len(body) <= _DENSE_BYTES:
        return True
    braces = colons = 0
    for start in range(0, len(body), _PORTION_BYTES):
        # Faster than `bytes.count` of what is found every few bytes.
        row = np.frombuffer(body, np.uint8, min(_PORTION_BYTES, len(body) - start), start)
        braces += int(np.count_nonzero(row == _BRACE))
        colons += int(np.count_nonzero(row == _COLON))
    if braces <= bounds.MAX_RECORDS and colons <= _MANY_COLONS:
        return True
    try:
        return not (_is_crowded(body, is_array) or has_large(body, is_array))
    except (msgspec.MsgspecError, RecursionError):
        return False


def _raws(body: bytes, is_array: bool) -> list[msgspec.Raw]:
    """The records' own bytes, as the typed decoders find them: also several on a line.

    Raises:
        MsgspecError, RecursionError: some of the body is no JSON.
    """
    return _raw_array_decoder.decode(body) if is_array else _raw_decoder.decode_lines(body)


def find(body: bytes, is_array: bool) -> tuple[list[bytes], bool]:
    """The raw bytes of each record, and whether the body had to be sanitised to find them.

    Raises:
        BadRequestError: it is no array after all, or an empty one.
    """
    if not _is_crowded(body, is_array):
        pieces, is_cleaned = _walk(body, is_array)
    elif is_array:
        raise _too_many()
    else:
        pieces, is_cleaned = _lines(body), False
    check_count(len(pieces))
    if not pieces:
        raise errors.BadRequestError("The array holds no record.")
    return pieces, is_cleaned


def _walk(body: bytes, is_array: bool) -> tuple[list[bytes], bool]:
    try:
        return list(map(bytes, _raws(body, is_array))), False
    except (msgspec.MsgspecError, RecursionError):
        clean, is_changed = fields.sanitise(body)
    try:
        return list(map(bytes, _raws(clean, is_array))), is_changed
    except RecursionError as cause:
        if is_array:
            raise errors.BadRequestError(
                f"The array is nested deeper than {bounds.MAX_JSON_DEPTH} levels."
            ) from cause
    except msgspec.MsgspecError as cause:
        if is_array:
            raise errors.BadRequestError(f"The body is not a JSON array: {cause}.") from cause
    # A line that is no JSON by itself does not spoil the others.
    return _lines(body), False


def _lines(body: bytes) -> list[bytes]:
    """The lines that are not blank, as many as tell that they are too many."""
    lines = (line.removesuffix(b"\n") for line in io.BytesIO(body))
    return list(itertools.islice(filter(bytes.strip, lines), bounds.MAX_RECORDS + 1))


def has_large(body: bytes, is_array: bool) -> bool:
    """Whether a record has more bytes than it may: of such a one nothing is made."""
    sizes = map(len, _raws(body, is_array))
    return max(sizes, default=0) > bounds.MAX_RECORD_BYTES


def values_at_most(text: bytes, *, is_array: bool) -> int:
    """Return how many elements a JSON array has; of values one after the other, or of what is no
    JSON, a number that is not exceeded by what a decoder makes of it.

    Nothing is made of the values: a million of them that are empty take no memory.
    """
    # In JSON backslashes stand in strings only. What is left of quotes begins or ends a string.
    bare = text.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in text else text
    found = depth = quotes = 0
    for start in range(0, len(bare), _PORTION_BYTES):
        piece = bare[start : start + _PORTION_BYTES]
        row = np.frombuffer(piece, np.uint8)
        passed = np.cumsum(row == _QUOTE, dtype=np.int32) + quotes
        is_outside = passed & 1 == 0
        steps = np.frombuffer(piece.translate(_STEPS), np.int8) * is_outside
        before = np.cumsum(steps, dtype=np.int32) - steps + depth
        if is_array:
            found += int(np.count_nonzero(is_outside & (before == 1) & (row == _COMMA)))
        else:
            found += int(np.count_nonzero(is_outside & (before == 0) & (row > _SPACE)))
        depth, quotes = int(before[-1] + steps[-1]), int(passed[-1])
    return found + is_array
