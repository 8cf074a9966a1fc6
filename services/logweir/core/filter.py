"""A segment's filter: which needles cannot be in it, so that a query need not open it. Pure.

    columns -> build() -> bytes of the segment          literal -> literal_keys() -> u64 keys
    filter[block_offset(key)] -> block_has(block, key): False means that no record holds it

Law: a filter never hides a record. What a filter holds, as 64-bit hashes ("keys"):

- *rare tokens*: runs of `[0-9A-Za-z.-]` that, without trailing `.` and `-`, have 5 to 31 bytes
  and a digit among their first 8;
- of each run of 32 bytes or more, for each window of 32 bytes with a digit in it, the smallest
  hash of the window's 8-byte pieces (one key for a 32-hex id, 1.3 for a UUID);
- trace and span ids, whole.

A literal is cut by the same class. Only a token with a separator on both sides inside the literal
is known to be whole, so only such tokens must be present; windows must be present for every piece
of 32 bytes or more, whole or not, as any window of it is a window of the record's run. A literal
without any key is not answered by the filter: the segment is scanned. Attributes are searched by
their values, so those that JSON escapes are looked at decoded, too.

Version 1 is a split-block bloom filter: blocks of 32 bytes, a key sets one bit in each of the
eight words of one block, `BITS_PER_KEY` for a false opening in some 1 of 80. Constants below are
part of the format. A filter of an unknown version is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from logweir.core import columns
from logweir.core.columns import Bools, Int64s, UInt8s, UInt64s

VERSION: Final = 1
BLOCK_BYTES: Final = 32
BITS_PER_KEY: Final = 10

MIN_TOKEN_BYTES: Final = 5
MAX_TOKEN_BYTES: Final = 31
DIGIT_WITHIN: Final = 8
WINDOW_BYTES: Final = 32
PIECE_BYTES: Final = 8

_PIECES_PER_WINDOW: Final = WINDOW_BYTES - PIECE_BYTES + 1
_PORTION_BYTES: Final = 1 << 17
"""Long runs whose windows are looked at together: each byte takes some 50 bytes meanwhile, which
should stay in the processor's cache."""
_ALIKE_BYTES: Final = 40
"""Runs up to this size have few windows, that are looked at one by one."""
_PAD: Final = b"\0" * 40
"""Room behind a text, so that reading the last token's 32 bytes stays inside."""

_IN_RUN: Final = 1
_DIGIT: Final = 2
_TRIMMED: Final = 4
_CLASS: Final = bytes(
    _IN_RUN | _DIGIT * (byte in b"0123456789") | _TRIMMED * (byte in b".-")
    if byte in b".-" or (byte < 128 and chr(byte).isalnum())
    else 0
    for byte in range(256)
)
"""What each byte is, as flags: part of a run, a digit, not part of a token's end."""

_DIGITS_OF_WORD: Final = np.uint64(0x0101_0101_0101_0101 * _DIGIT)
_TRIMS_AT_ONCE: Final = 3

_KEEP: Final = np.array([(1 << 8 * n) - 1 for n in range(8)] + [(1 << 64) - 1], np.uint64)
"""Masks that keep the first n bytes of a little-endian word."""

_TOKEN_SEED: Final = np.uint64(0x9E3779B97F4A7C15)
_WINDOW_SEED: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_ID_SEED: Final = np.uint64(0x165667B19E3779F9)
_MIX_A: Final = np.uint64(0xFF51AFD7ED558CCD)
_MIX_B: Final = np.uint64(0xC4CEB9FE1A85EC53)
_SALTS: Final = np.array(
    [
        0x47B6137B,
        0x44974D91,
        0x8824AD5B,
        0xA2B7289D,
        0x705495C7,
        0x2DF1424B,
        0x9EFC4947,
        0x5C6BFB31,
    ],
    np.uint32,
)
"""Odd multipliers of split-block bloom filters, as Parquet's format specifies them."""


# ---- the filter's bytes ----------------------------------------------------------------------


def build(*, message: bytes, trace: bytes, span: bytes, attributes: bytes) -> bytes:
    """Return the filter of these columns (NUL-joined texts, see `core.columns`)."""
    keys = np.concatenate(
        [
            _text_keys(message),
            _text_keys(attributes),
            _text_keys(_decoded_values(attributes)),
            _id_keys(trace),
            _id_keys(span),
        ]
    )
    return _bloom(keys)


def block_offset(key: int, filter_bytes: int) -> int:
    """Return where in a filter of so many bytes the block of a key begins."""
    return ((key >> 32) * (filter_bytes // BLOCK_BYTES) >> 32) * BLOCK_BYTES


def block_has(block: bytes, key: int) -> bool:
    """Whether the key's bits are set in its block; False: it was never put in."""
    if len(block) != BLOCK_BYTES:
        return True
    low = key & 0xFFFFFFFF
    for word, salt in enumerate(_SALTS.tolist()):
        bit = ((low * salt) & 0xFFFFFFFF) >> 27
        at = word * 4 + (bit >> 3)
        if not block[at] >> (bit & 7) & 1:
            return False
    return True


def has(data: bytes, key: int) -> bool:
    """Whether a whole filter may have the key."""
    offset = block_offset(key, len(data))
    return block_has(data[offset : offset + BLOCK_BYTES], key)


def _bloom(keys: UInt64s) -> bytes:
    keys = _distinct(keys)
    blocks = max(1, -(-len(keys) * BITS_PER_KEY // (BLOCK_BYTES * 8)))
    bits = np.zeros(blocks * BLOCK_BYTES * 8, np.bool_)
    block = (keys >> np.uint64(32)) * np.uint64(blocks) >> np.uint64(32)
    low = keys.astype(np.uint32)
    start = block.astype(np.int64) * (BLOCK_BYTES * 8)
    for word, salt in enumerate(_SALTS):
        bits[start + word * 32 + (low * salt >> np.uint32(27)).astype(np.int64)] = True
    return np.packbits(bits, bitorder="little").tobytes()


def _distinct(keys: UInt64s) -> UInt64s:
    """Sort and drop repeats; `np.unique` does the same at a multiple of the time."""
    if not len(keys):
        return keys
    keys = np.sort(keys)
    is_first: Bools = np.concatenate([[True], keys[1:] != keys[:-1]])
    return keys[is_first]


# ---- keys of what is searched for ------------------------------------------------------------


def literal_keys(literal: bytes) -> list[int]:
    """Return the keys that every text with this literal in it has; none: the filter cannot say."""
    runs = _runs(literal)
    inside = (runs.start > 0) & (runs.end < len(literal))
    return _as_list(_token_keys(runs, inside), _window_keys(runs))


def value_keys(value: bytes) -> list[int]:
    """Return the keys that every record has of which an attribute's value is this text."""
    runs = _runs(value)
    return _as_list(_token_keys(runs, np.ones(len(runs.start), np.bool_)), _window_keys(runs))


def id_key(text: bytes) -> int:
    """Return the key of a whole trace or span id, lower-case hex."""
    return int(_id_keys(text)[0])


def _as_list(*parts: UInt64s) -> list[int]:
    found: list[int] = _distinct(np.concatenate(parts)).tolist()
    return found


# ---- keys of texts ---------------------------------------------------------------------------


class _Runs(msgspec.Struct, frozen=True, eq=False):
    """Runs of a text: its bytes [start, end); shape (r,).

    `classes` are the flags of each byte, `words` and `class_words` eight bytes of the text and
    eight flags at each place. Words overlap, so any token is read with a few look-ups.
    """

    classes: UInt8s
    words: UInt64s
    class_words: UInt64s
    start: Int64s
    end: Int64s


def _runs(text: bytes) -> _Runs:
    padded = text + _PAD
    flags = padded.translate(_CLASS)
    classes = np.frombuffer(flags, np.uint8)
    is_inside = classes > 0
    edges = np.flatnonzero(is_inside[1:] != is_inside[:-1]) + 1
    if is_inside[0]:
        edges = np.concatenate([np.zeros(1, np.int64), edges])
    return _Runs(
        classes,
        _words(padded),
        _words(flags),
        edges[0::2],
        edges[1::2],
    )


def _words(padded: bytes) -> UInt64s:
    found: UInt64s = np.ndarray((len(padded) - 7,), "<u8", buffer=padded, strides=(1,))
    return found


def _text_keys(column: bytes) -> UInt64s:
    if not column:
        return np.zeros(0, np.uint64)
    runs = _runs(column)
    every = np.ones(len(runs.start), np.bool_)
    return np.concatenate([_token_keys(runs, every), _window_keys(runs)])


def _token_keys(runs: _Runs, which: Bools) -> UInt64s:
    which = which & (runs.end - runs.start >= MIN_TOKEN_BYTES)
    start, end = runs.start[which], runs.end[which].copy()
    _trim(runs.classes, start, end)
    size = end - start
    near = runs.class_words[start] & _KEEP[np.minimum(size, DIGIT_WITHIN)] & _DIGITS_OF_WORD
    good = (size >= MIN_TOKEN_BYTES) & (size <= MAX_TOKEN_BYTES) & (near > 0)
    return _hash(runs.words, start[good], size[good], _TOKEN_SEED)


def _trim(classes: UInt8s, start: Int64s, end: Int64s) -> None:
    """Move ends before trailing `.` and `-`: a few of all at once, long rulers one by one."""
    for _ in range(_TRIMS_AT_ONCE):
        end[(classes[end - 1] & _TRIMMED > 0) & (end > start)] -= 1
    for at in np.flatnonzero((classes[end - 1] & _TRIMMED > 0) & (end > start)).tolist():
        kept = classes[start[at] : end[at]].tobytes().rstrip(bytes([_IN_RUN | _TRIMMED]))
        end[at] = start[at] + len(kept)


def _hash(words: UInt64s, start: Int64s, size: Int64s, seed: np.uint64) -> UInt64s:
    """Hash texts of any length; each takes as many rounds as it has words of 8 bytes."""
    state = size.astype(np.uint64) * _MIX_A ^ seed
    longest = int(size.max()) if len(size) else 0
    for offset in range(0, longest, 8):
        at = np.flatnonzero(size > offset)
        word = words[start[at] + offset] & _KEEP[np.minimum(size[at] - offset, 8)]
        state[at] = _mix(state[at] ^ word)
    return state


def _mix(state: UInt64s) -> UInt64s:
    """The finaliser of MurmurHash3: every bit of the input moves every bit of the output."""
    mixed = state >> np.uint64(33)
    mixed ^= state
    mixed *= _MIX_A
    shifted = mixed >> np.uint64(33)
    mixed ^= shifted
    mixed *= _MIX_B
    np.right_shift(mixed, np.uint64(33), out=shifted)
    mixed ^= shifted
    return mixed


def _window_keys(runs: _Runs) -> UInt64s:
    is_long = runs.end - runs.start >= WINDOW_BYTES
    start, end = runs.start[is_long], runs.end[is_long]
    if not len(start):
        return np.zeros(0, np.uint64)
    flags = np.bitwise_or.reduceat(runs.classes, np.stack([start, end], axis=1).ravel())[::2]
    start, end = start[flags & _DIGIT > 0], end[flags & _DIGIT > 0]
    size = end - start
    found = [np.zeros(0, np.uint64)]
    is_alike = np.zeros(len(size), np.bool_)
    for one in np.flatnonzero(np.bincount(size)[: _ALIKE_BYTES + 1]).tolist():
        these = size == one
        portions = np.array_split(start[these], -(-one * int(these.sum()) // _PORTION_BYTES))
        found += [_window_keys_alike(runs, at, one) for at in portions]
        is_alike |= these
    start, size = start[~is_alike], size[~is_alike]
    cuts = np.flatnonzero(np.diff(np.cumsum(size) // _PORTION_BYTES)) + 1
    others = zip(np.split(start, cuts), np.split(size, cuts), strict=True)
    found += [_window_keys_of(runs, *portion) for portion in others]
    # The smallest of many hashes is small: mixed once more, it spreads over all blocks again.
    return _mix(_distinct(np.concatenate(found)))


def _window_keys_alike(runs: _Runs, start: Int64s, size: int) -> UInt64s:
    """Runs of one size, as ids are: their pieces are rows of a table, and all windows of a run
    share the middle of it."""
    pieces = size - PIECE_BYTES + 1
    hashes = _mix(runs.words[start + np.arange(pieces)[:, None]] ^ _WINDOW_SEED)
    windows = size - WINDOW_BYTES + 1
    lowest: UInt64s = hashes[windows - 1 : _PIECES_PER_WINDOW].min(axis=0)
    if windows == 1:
        return lowest
    has_digit = runs.classes[start + np.arange(size)[:, None]] & _DIGIT > 0
    found = []
    for window in range(windows):
        key = lowest.copy()
        for one in (
            *range(window, windows - 1),
            *range(_PIECES_PER_WINDOW, _PIECES_PER_WINDOW + window),
        ):
            np.minimum(key, hashes[one], out=key)
        found.append(key[has_digit[window : window + WINDOW_BYTES].any(axis=0)])
    return np.concatenate(found)


def _window_keys_of(runs: _Runs, start: Int64s, size: Int64s) -> UInt64s:
    # All places of long runs in one row: within a run they follow each other.
    first = np.cumsum(size) - size
    place = np.arange(int(size.sum())) + np.repeat(start - first, size)
    lowest = _mix(runs.words[place] ^ _WINDOW_SEED)
    width = 1
    while width * 2 <= _PIECES_PER_WINDOW:
        lowest = _minimum_of_neighbours(lowest, width)
        width *= 2
    lowest = _minimum_of_neighbours(lowest, _PIECES_PER_WINDOW - width)
    fits = place + WINDOW_BYTES <= np.repeat(start + size, size)
    digits = np.zeros(len(place) + 1, np.uint32)
    np.cumsum(runs.classes[place] & _DIGIT > 0, out=digits[1:], dtype=np.uint32)
    at = np.flatnonzero(fits)
    has_digit = digits[at + WINDOW_BYTES] > digits[at]
    found: UInt64s = lowest[fits][has_digit]
    return found


def _minimum_of_neighbours(values: UInt64s, distance: int) -> UInt64s:
    """Of each place and the one `distance` behind it the smaller; the last ones stay."""
    found = values.copy()
    np.minimum(values[:-distance], values[distance:], out=found[:-distance])
    return found


def _id_keys(column: bytes) -> UInt64s:
    """Keys of whole ids of up to 64 digits, NUL-joined."""
    if not column:
        return np.zeros(0, np.uint64)
    padded = column + _PAD + _PAD
    words = _words(padded)
    ends = columns.ends(column, columns.count(column))
    start = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    size = ends - start
    return _hash(words, start[size > 0], size[size > 0], _ID_SEED)


def _decoded_values(attributes: bytes) -> bytes:
    """The texts in attributes that JSON had to escape, joined by NUL; most records have none."""
    if b"\\" not in attributes:
        return b""
    texts: list[str] = []
    for raw in attributes.split(columns.SEPARATOR):
        if b"\\" in raw:
            try:
                texts.extend(_texts_in(msgspec.json.decode(raw)))
            except (msgspec.MsgspecError, RecursionError):
                continue  # ingest lets none pass; what cannot be decoded matches no value
    return columns.SEPARATOR.join(text.encode("utf-8", "replace") for text in texts)


def _texts_in(value: object) -> Iterator[str]:
    """All texts of a JSON value, keys among them."""
    pending: list[object] = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            pending.extend(one)
            pending.extend(one.values())
        elif isinstance(one, Sequence):
            pending.extend(one)
