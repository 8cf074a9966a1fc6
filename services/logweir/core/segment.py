"""A segment: thousands of records of one pipeline as compressed columns, one row of PostgreSQL.

    Columns -> encode() -> Segment (the row's values) -> decode() -> Columns

The body holds the columns one after the other, in the order of `COLUMNS`; a query reads the ones
that it needs with `substring()`. The layout, 9 bytes a column, little-endian, says for each:

    codec u8 | length u32 | CRC32C u32 of its bytes

| codec | holds |
| 0 | nothing: every text empty, every number 0 |
| 1 | zstd of NUL-joined texts |
| 2 | zstd of byte planes of zigzag deltas, 4 planes of uint32 after an int64 start |
| 3 | the same with 8 planes of uint64 |
| 4 | zstd of byte planes: u8 width (1, 2, 4), then the planes of an unsigned number |
| 5 | zstd of hex ids: u8 bytes of one id, a bitmap of the records that have one, their raw bytes |
| 6 | zstd of NUL-joined texts that refers to the message column, which is read first |

Better encodings join later with a codec id of their own. `VERSION` counts changes that a reader
must know beyond that; version N reads all up to N:

1. label sets are JSON, counts zstd of three rows of int64 (minute, label set, count)
2. both are a CRC32C u32 and the zstd frame that it is of: label sets of JSON, counts of
   codec u8 | n u32 | label sets u32 | first minute i64 | deltas | 4 planes of n uint32, the counts,
   where the deltas (codec 2 or 3, as above) are of (minute - first) * label sets + label set
"""

from __future__ import annotations

import binascii
import itertools
import struct
from collections.abc import Mapping, Sequence
from typing import Final

import google_crc32c
import msgspec
import numpy as np

from logweir.core import beside, columns, errors, frames, planes, scan
from logweir.core import filter as segment_filter
from logweir.core.columns import Columns, Int64s
from logweir.core.names import PipelineId
from logweir.core.record import Labels

VERSION: Final = beside.VERSION
COLUMNS: Final = (
    "time",
    "label_set",
    "message",
    "trace",
    "span",
    "attributes",
    "flags",
    "extra",
    "block",
    "index",
)
HOT_LEVEL: Final = 1
"""zstd level of a collector: 3 saves 2 % for a third more time (reference run, 8 k records)."""
MERGED_LEVEL: Final = 9
"""zstd level of a merge, which is done once and off the hot path."""

_TEXT: Final = 1
_HEX: Final = 5
_AFTER_MESSAGE: Final = 6
_ENTRY = struct.Struct("<BII")
_DENSE: Final = 4
"""Attributes that do not shrink to one byte of so many hold ids; the messages may hold them too."""
_WORTH: Final = 8
"""A column refers to another one when that saves one byte of so many."""
_MAX_AFTER_BYTES: Final = 64 << 20
"""Messages and attributes together; the window of a frame must hold them, here and in readers."""
_MAX_COLUMN_BYTES: Final = 1 << 30
_MAX_ID_BYTES: Final = 32


class Segment(msgspec.Struct, frozen=True):
    """The values of one row of `segments`, without its id.

    `min_ts`, `max_ts` are nanoseconds, both inclusive; of `label_sets` and `counts`
    see `core.beside`; `filter` is read as `filter_version` says.
    """

    pipeline: PipelineId
    min_ts: int
    max_ts: int
    n: int
    raw_bytes: int
    codec: int
    layout: bytes
    label_sets: bytes
    counts: bytes
    filter_version: int
    filter: bytes
    body: bytes


def encode(
    pipeline: PipelineId, records: Columns, raw_bytes: int, *, level: int = HOT_LEVEL
) -> Segment:
    """Return the segment of these records; there must be at least one."""
    encoded = [
        _packed(planes.deltas(records.time_ns), level),
        _packed(planes.planes(records.label_set), level),
        _text(records.message, level),
        _hex_ids(records.trace, records.n, level),
        _hex_ids(records.span, records.n, level),
        _attributes(records.attributes, records.message, level),
        _packed(planes.planes(records.flags), level),
        _text(records.extra, level),
        _packed(planes.deltas(records.block.view(np.int64)), level),
        _packed(planes.deltas(records.index.astype(np.int64)), level),
    ]
    layout = b"".join(
        _ENTRY.pack(codec, len(piece), google_crc32c.value(piece)) for codec, piece in encoded
    )
    return Segment(
        pipeline=pipeline,
        min_ts=int(records.time_ns.min()),
        max_ts=int(records.time_ns.max()),
        n=records.n,
        raw_bytes=raw_bytes,
        codec=VERSION,
        layout=layout,
        label_sets=beside.encode_label_sets(records.label_sets),
        counts=beside.encode_counts(records.time_ns, records.label_set),
        filter_version=segment_filter.VERSION,
        filter=segment_filter.build(
            message=records.message,
            trace=records.trace,
            span=records.span,
            attributes=records.attributes,
        ),
        body=b"".join(piece for _, piece in encoded),
    )


class Place(msgspec.Struct, frozen=True):
    """Where one column stands in the body: bytes [offset, offset + length)."""

    codec: int
    offset: int
    length: int
    crc: int


def places(layout: bytes, codec_version: int) -> dict[str, Place]:
    """Return the place of each column.

    Raises:
        UnknownVersionError: a newer program wrote the segment, or one of its columns.
        FormatError: the layout is damaged.
    """
    beside.check_version(codec_version)
    if len(layout) != _ENTRY.size * len(COLUMNS):
        raise errors.FormatError(f"A segment's layout of {len(layout)} bytes is damaged.")
    entries = list(_ENTRY.iter_unpack(layout))
    if any(codec > _AFTER_MESSAGE for codec, _, _ in entries):
        raise errors.UnknownVersionError("A segment's column has a codec of a newer program.")
    if any(codec == planes.ABSENT and length for codec, length, _ in entries):
        raise errors.FormatError("A segment's layout has bytes for a column that holds nothing.")
    offsets = itertools.accumulate((length for _, length, _ in entries), initial=0)
    return {
        name: Place(codec, offset, length, crc)
        for name, offset, (codec, length, crc) in zip(COLUMNS, offsets, entries, strict=False)
    }


def decode(segment: Segment) -> Columns:
    """Return all records of a segment.

    Raises:
        UnknownVersionError, FormatError: as `places` and `column` say.
    """
    where = places(segment.layout, segment.codec)
    if segment.n < 1:
        raise errors.FormatError(f"A segment of {segment.n} records.")
    body = memoryview(segment.body)
    raw = {name: bytes(body[p.offset : p.offset + p.length]) for name, p in where.items()}
    labels = beside.decode_label_sets(segment.label_sets, segment.codec)
    return decode_columns(segment.n, where, raw, labels)


def decode_columns(
    n: int, where: Mapping[str, Place], raw: Mapping[str, bytes], labels: tuple[Labels, ...]
) -> Columns:
    """Return n records of which some columns were read; a column not in `raw` comes out empty.

    `raw` holds a column's bytes as they stand in the body; attributes need the message there, too.

    Raises:
        FormatError: a column is damaged, or does not fit the others.
    """

    def text(name: str, before: bytes = b"") -> bytes:
        found = column_text(where[name], raw[name], n, before) if name in raw else b""
        if found and columns.count(found) != n:
            raise errors.FormatError(f"A segment's column {name} does not have {n} texts.")
        return found

    def numbers(name: str) -> Int64s:
        return column_numbers(where[name], raw[name], n) if name in raw else np.zeros(n, np.int64)

    label_set = numbers("label_set").astype(np.uint32)
    if "label_set" in raw and int(label_set.max()) >= len(labels):
        raise errors.FormatError("A segment names a label set that it does not hold.")
    message = text("message")
    return Columns(
        n=n,
        time_ns=numbers("time"),
        label_set=label_set,
        label_sets=labels,
        message=message,
        trace=text("trace"),
        span=text("span"),
        attributes=text("attributes", message),
        extra=text("extra"),
        flags=numbers("flags").astype(np.uint8),
        block=numbers("block").view(np.uint64),
        index=numbers("index").astype(np.uint32),
    )


def column_text(place: Place, raw: bytes, n: int, before: bytes = b"") -> bytes:
    """Return a text column, NUL-joined. `before` is the message column, see `needs_message`.

    Raises:
        FormatError: its bytes are damaged, or no text.
    """
    if place.codec == planes.ABSENT:
        return b""
    data = _decompress(place, raw, before if needs_message(place) else b"")
    if place.codec in (_TEXT, _AFTER_MESSAGE):
        return data
    if place.codec == _HEX:
        return _decode_hex(data, n)
    raise errors.FormatError(f"Codec {place.codec} is not one of texts.")


def column_rows(
    place: Place, raw: bytes, n: int, rows: Sequence[int], before: bytes = b""
) -> list[bytes]:
    """Return the texts of some rows of a column, in the order of `rows`; as `column_text`.

    Raises:
        FormatError: its bytes are damaged, or no text.
    """
    if place.codec == _HEX:
        return _hex_rows(_decompress(place, raw), n, rows)
    texts = scan.Texts(column_text(place, raw, n, before), n)
    return [texts.text(row) for row in rows]


def content_bytes(place: Place, raw: bytes) -> int:
    """Return how many bytes a column takes when it is decompressed.

    Raises:
        FormatError: its bytes are damaged.
    """
    return 0 if place.codec == planes.ABSENT else frames.content_bytes(raw, "A segment's column")


def needs_message(place: Place) -> bool:
    """Whether a column can be read only with the message column at hand."""
    return place.codec == _AFTER_MESSAGE


def column_numbers(place: Place, raw: bytes, n: int) -> Int64s:
    """Return a column of numbers as int64, shape (n,).

    Raises:
        FormatError: its bytes are damaged, or no numbers.
    """
    if place.codec == planes.ABSENT:
        return np.zeros(n, np.int64)
    data = _decompress(place, raw)
    if place.codec in (planes.DELTA32, planes.DELTA64):
        return planes.decode_deltas(data, n, 4 if place.codec == planes.DELTA32 else 8)
    if place.codec == planes.PLANES:
        return planes.decode_planes(data, n)
    raise errors.FormatError(f"Codec {place.codec} is not one of numbers.")


def _decompress(place: Place, raw: bytes, before: bytes = b"") -> bytes:
    if len(raw) != place.length or google_crc32c.value(raw) != place.crc:
        raise errors.FormatError("A segment's column does not match its checksum.")
    return frames.decompress(raw, "A segment's column", max_bytes=_MAX_COLUMN_BYTES, before=before)


def _text(column: bytes, level: int) -> tuple[int, bytes]:
    return (_TEXT, frames.compress_text(column, level)) if column else (planes.ABSENT, b"")


def _attributes(column: bytes, message: bytes, level: int) -> tuple[int, bytes]:
    """As any text, but ids that stand in the message, too, are not stored twice."""
    codec, plain = _text(column, level)
    is_dense = len(plain) * _DENSE > len(column)
    if not is_dense or not message or len(message) + len(column) > _MAX_AFTER_BYTES:
        return codec, plain
    after = frames.compress_after(message, column)
    is_worth_it = len(plain) - len(after) > len(plain) // _WORTH
    return (_AFTER_MESSAGE, after) if is_worth_it else (codec, plain)


def _packed(column: planes.Packed, level: int) -> tuple[int, bytes]:
    codec, parts = column
    return codec, frames.compress_parts(parts, level) if parts else b""


def _hex_ids(column: bytes, n: int, level: int) -> tuple[int, bytes]:
    """Lower-case ids of one even length as raw bytes, half of their text; any other as text."""
    if not column:
        return planes.ABSENT, b""
    texts = columns.split(column, n)
    sizes = set(map(len, texts)) - {0}
    size = sizes.pop()
    if sizes or size % 2 or size > 2 * _MAX_ID_BYTES or column != column.lower():
        return _text(column, level)
    try:
        raw = binascii.unhexlify(column.replace(columns.SEPARATOR, b""))
    except binascii.Error:
        return _text(column, level)
    has_id = np.packbits(np.fromiter(map(bool, texts), np.bool_, n)).tobytes()
    return _packed((_HEX, [bytes([size // 2]) + has_id, raw]), level)


def _decode_hex(data: bytes, n: int) -> bytes:
    size, has_id, raw = _open_hex(data, n)
    if has_id.all():
        return binascii.hexlify(raw, columns.SEPARATOR, size)
    texts = iter([raw[i : i + size].hex().encode() for i in range(0, len(raw), size)])
    return columns.join([next(texts) if has else b"" for has in has_id.tolist()])


def _hex_rows(data: bytes, n: int, rows: Sequence[int]) -> list[bytes]:
    size, has_id, raw = _open_hex(data, n)
    end = np.cumsum(has_id).astype(np.int64) * size
    return [
        raw[int(end[row]) - size : int(end[row])].hex().encode() if has_id[row] else b""
        for row in rows
    ]


def _open_hex(data: bytes, n: int) -> tuple[int, columns.Bools, bytes]:
    """The bytes of one id, which records have one, shape (n,), and all of these ids."""
    size = data[0] if data else 0
    bitmap_bytes = (n + 7) // 8
    if not 1 <= size <= _MAX_ID_BYTES or len(data) < 1 + bitmap_bytes:
        raise errors.FormatError("A segment's column of ids is damaged.")
    bits = np.unpackbits(np.frombuffer(data, np.uint8, bitmap_bytes, 1), count=n)
    raw = data[1 + bitmap_bytes :]
    if len(raw) != size * int(np.count_nonzero(bits)):
        raise errors.FormatError("A segment's column of ids has another number than its bitmap.")
    return size, bits.astype(np.bool_), raw


def merge(
    pipeline: PipelineId, segments: Sequence[Segment], *, level: int = MERGED_LEVEL
) -> Segment:
    """Return one segment with the records of several, in their order; its filter is built anew."""
    records = columns.concat([decode(segment) for segment in segments])
    raw_bytes = sum(segment.raw_bytes for segment in segments)
    return encode(pipeline, records, raw_bytes, level=level)
