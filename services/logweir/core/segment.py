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

Better encodings join later with a codec id of their own. `VERSION` counts changes that a reader
must know beyond that; version N reads all up to N.
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
import numpy.typing as npt
import zstandard

from logweir.core import columns, errors, frames
from logweir.core import filter as segment_filter
from logweir.core.columns import Columns, Int64s
from logweir.core.names import PipelineId
from logweir.core.record import Labels

VERSION: Final = 1
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

MINUTE_NS: Final = 60_000_000_000

_ABSENT, _TEXT, _DELTA32, _DELTA64, _PLANES, _HEX = range(6)
_ENTRY = struct.Struct("<BII")
_MAX_COLUMN_BYTES: Final = 1 << 30
_MAX_ID_BYTES: Final = 32
_labels_encoder = msgspec.json.Encoder()
_labels_decoder = msgspec.json.Decoder(tuple[Labels, ...])


class Segment(msgspec.Struct, frozen=True):
    """The values of one row of `segments`, without its id.

    `min_ts`, `max_ts` are nanoseconds, both inclusive; `label_sets` is JSON, `counts` see
    `encode_counts`; `filter` is read as `filter_version` says.
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
        _deltas(records.time_ns),
        _planes(records.label_set),
        _text(records.message),
        _hex_ids(records.trace, records.n),
        _hex_ids(records.span, records.n),
        _text(records.attributes),
        _planes(records.flags),
        _text(records.extra),
        _deltas(records.block.view(np.int64)),
        _deltas(records.index.astype(np.int64)),
    ]
    pieces = [frames.compress(data, level) if data else b"" for _, data in encoded]
    layout = b"".join(
        _ENTRY.pack(codec, len(piece), google_crc32c.value(piece))
        for (codec, _), piece in zip(encoded, pieces, strict=True)
    )
    return Segment(
        pipeline=pipeline,
        min_ts=int(records.time_ns.min()),
        max_ts=int(records.time_ns.max()),
        n=records.n,
        raw_bytes=raw_bytes,
        codec=VERSION,
        layout=layout,
        label_sets=_labels_encoder.encode(records.label_sets),
        counts=encode_counts(records.time_ns, records.label_set),
        filter_version=segment_filter.VERSION,
        filter=segment_filter.build(
            message=records.message,
            trace=records.trace,
            span=records.span,
            attributes=records.attributes,
        ),
        body=b"".join(pieces),
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
    if codec_version > VERSION:
        raise errors.UnknownVersionError(
            f"The segment has version {codec_version}, this program knows up to {VERSION}."
        )
    if len(layout) != _ENTRY.size * len(COLUMNS):
        raise errors.FormatError(f"A segment's layout of {len(layout)} bytes is damaged.")
    entries = list(_ENTRY.iter_unpack(layout))
    if any(codec > _HEX for codec, _, _ in entries):
        raise errors.UnknownVersionError("A segment's column has a codec of a newer program.")
    if any(codec == _ABSENT and length for codec, length, _ in entries):
        raise errors.FormatError("A segment's layout has bytes for a column that holds nothing.")
    offsets = itertools.accumulate((length for _, length, _ in entries), initial=0)
    return {
        name: Place(codec, offset, length, crc)
        for name, offset, (codec, length, crc) in zip(COLUMNS, offsets, entries, strict=False)
    }


def label_sets(data: bytes) -> tuple[Labels, ...]:
    """Return the label sets of a segment's row.

    Raises:
        FormatError: the bytes are damaged.
    """
    try:
        return _labels_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise errors.FormatError(f"A segment's label sets cannot be read: {cause}.") from cause


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
    return decode_columns(segment.n, where, raw, label_sets(segment.label_sets))


def decode_columns(
    n: int, where: Mapping[str, Place], raw: Mapping[str, bytes], labels: tuple[Labels, ...]
) -> Columns:
    """Return n records of which some columns were read; a column not in `raw` comes out empty.

    `raw` holds a column's bytes as they stand in the body.

    Raises:
        FormatError: a column is damaged, or does not fit the others.
    """

    def text(name: str) -> bytes:
        found = column_text(where[name], raw[name], n) if name in raw else b""
        if found and columns.count(found) != n:
            raise errors.FormatError(f"A segment's column {name} does not have {n} texts.")
        return found

    def numbers(name: str) -> Int64s:
        return column_numbers(where[name], raw[name], n) if name in raw else np.zeros(n, np.int64)

    label_set = numbers("label_set").astype(np.uint32)
    if "label_set" in raw and int(label_set.max()) >= len(labels):
        raise errors.FormatError("A segment names a label set that it does not hold.")
    return Columns(
        n=n,
        time_ns=numbers("time"),
        label_set=label_set,
        label_sets=labels,
        message=text("message"),
        trace=text("trace"),
        span=text("span"),
        attributes=text("attributes"),
        extra=text("extra"),
        flags=numbers("flags").astype(np.uint8),
        block=numbers("block").view(np.uint64),
        index=numbers("index").astype(np.uint32),
    )


def column_text(place: Place, raw: bytes, n: int) -> bytes:
    """Return a text column, NUL-joined.

    Raises:
        FormatError: its bytes are damaged, or no text.
    """
    if place.codec == _ABSENT:
        return b""
    data = _decompress(place, raw)
    if place.codec == _TEXT:
        return data
    if place.codec == _HEX:
        return _decode_hex(data, n)
    raise errors.FormatError(f"Codec {place.codec} is not one of texts.")


def column_numbers(place: Place, raw: bytes, n: int) -> Int64s:
    """Return a column of numbers as int64, shape (n,).

    Raises:
        FormatError: its bytes are damaged, or no numbers.
    """
    if place.codec == _ABSENT:
        return np.zeros(n, np.int64)
    data = _decompress(place, raw)
    if place.codec in (_DELTA32, _DELTA64):
        return _decode_deltas(data, n, 4 if place.codec == _DELTA32 else 8)
    if place.codec == _PLANES:
        return _decode_planes(data, n)
    raise errors.FormatError(f"Codec {place.codec} is not one of numbers.")


def _decompress(place: Place, raw: bytes) -> bytes:
    if len(raw) != place.length or google_crc32c.value(raw) != place.crc:
        raise errors.FormatError("A segment's column does not match its checksum.")
    return frames.decompress(raw, "A segment's column", max_bytes=_MAX_COLUMN_BYTES)


def _text(column: bytes) -> tuple[int, bytes]:
    return (_TEXT, column) if column else (_ABSENT, b"")


def _deltas(values: Int64s) -> tuple[int, bytes]:
    steps = np.diff(values)
    zigzag = ((steps << 1) ^ (steps >> 63)).view(np.uint64)
    start = struct.pack("<q", int(values[0]))
    if not len(zigzag) or int(zigzag.max()) < 1 << 32:
        return _DELTA32, start + _byte_planes(zigzag.astype(np.uint32), 4)
    return _DELTA64, start + _byte_planes(zigzag, 8)


def _decode_deltas(data: bytes, n: int, width: int) -> Int64s:
    if n < 1 or len(data) != 8 + width * (n - 1):
        raise errors.FormatError(f"A segment's column of numbers does not have {n} of them.")
    planes = np.frombuffer(data, np.uint8, offset=8).reshape(width, n - 1)
    kind: npt.DTypeLike = np.uint32 if width == 4 else np.uint64
    zigzag = np.ascontiguousarray(planes.T).view(kind).reshape(n - 1).astype(np.uint64)
    values = np.empty(n, np.int64)
    values[0] = struct.unpack_from("<q", data)[0]
    values[1:] = (zigzag >> np.uint64(1)).view(np.int64) ^ -(zigzag & np.uint64(1)).view(np.int64)
    return np.cumsum(values, out=values)


def _byte_planes(values: npt.NDArray[np.unsignedinteger], width: int) -> bytes:
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, width).T).tobytes()


def _planes(values: npt.NDArray[np.unsignedinteger]) -> tuple[int, bytes]:
    top = int(values.max())
    if top == 0:
        return _ABSENT, b""
    if top < 1 << 8:
        return _PLANES, b"\1" + values.astype(np.uint8).tobytes()
    if top < 1 << 16:
        return _PLANES, b"\2" + _byte_planes(values.astype(np.uint16), 2)
    return _PLANES, b"\4" + _byte_planes(values.astype(np.uint32), 4)


def _decode_planes(data: bytes, n: int) -> Int64s:
    kinds: dict[int, npt.DTypeLike] = {1: np.uint8, 2: np.uint16, 4: np.uint32}
    width = data[0] if data else 0
    if width not in kinds or len(data) != 1 + width * n:
        raise errors.FormatError(f"A segment's column of numbers does not have {n} of them.")
    planes = np.frombuffer(data, np.uint8, offset=1).reshape(width, n)
    return np.ascontiguousarray(planes.T).view(kinds[width]).reshape(n).astype(np.int64)


def _hex_ids(column: bytes, n: int) -> tuple[int, bytes]:
    """Lower-case ids of one even length as raw bytes, half of their text; any other as text."""
    if not column:
        return _ABSENT, b""
    texts = columns.split(column, n)
    sizes = set(map(len, texts)) - {0}
    size = sizes.pop()
    if sizes or size % 2 or size > 2 * _MAX_ID_BYTES or column != column.lower():
        return _TEXT, column
    try:
        raw = binascii.unhexlify(column.replace(columns.SEPARATOR, b""))
    except binascii.Error:
        return _TEXT, column
    has_id = np.packbits(np.fromiter(map(bool, texts), np.bool_, n)).tobytes()
    return _HEX, bytes([size // 2]) + has_id + raw


def _decode_hex(data: bytes, n: int) -> bytes:
    size = data[0] if data else 0
    bitmap_bytes = (n + 7) // 8
    if not 1 <= size <= _MAX_ID_BYTES or len(data) < 1 + bitmap_bytes:
        raise errors.FormatError("A segment's column of ids is damaged.")
    has_id = np.unpackbits(np.frombuffer(data, np.uint8, bitmap_bytes, 1), count=n).tolist()
    raw = data[1 + bitmap_bytes :]
    if len(raw) != size * sum(has_id):
        raise errors.FormatError("A segment's column of ids has another number than its bitmap.")
    if all(has_id):
        return binascii.hexlify(raw, columns.SEPARATOR, size)
    texts = iter([raw[i : i + size].hex().encode() for i in range(0, len(raw), size)])
    return columns.join([next(texts) if has else b"" for has in has_id])


class Counts(msgspec.Struct, frozen=True, eq=False):
    """How many records each minute and label set has; arrays of one shape.

    `minute` counts since the epoch, `label_set` indexes the segment's label sets.
    """

    minute: Int64s
    label_set: Int64s
    count: Int64s


def encode_counts(time_ns: Int64s, label_set: columns.UInt32s) -> bytes:
    """Return the counts per minute and label set: zstd of three rows of int64."""
    minute = time_ns // MINUTE_NS
    first = int(minute.min())
    sets = int(label_set.max()) + 1
    keys, count = np.unique((minute - first) * sets + label_set, return_counts=True)
    rows = np.stack([keys // sets + first, keys % sets, count])
    # Counts have no place in the layout, so their frame carries the checksum.
    compressor = zstandard.ZstdCompressor(level=HOT_LEVEL, write_checksum=True)
    return compressor.compress(rows.astype("<i8").tobytes())


def decode_counts(data: bytes) -> Counts:
    """Return what `encode_counts` wrote.

    Raises:
        FormatError: the bytes are damaged.
    """
    raw = frames.decompress(data, "A segment's counts", max_bytes=_MAX_COLUMN_BYTES)
    if not raw or len(raw) % (3 * 8):
        raise errors.FormatError(f"A segment's counts of {len(raw)} bytes are damaged.")
    minute, label_set, count = np.frombuffer(raw, "<i8").reshape(3, -1)
    return Counts(minute, label_set, count)


def merge(
    pipeline: PipelineId, segments: Sequence[Segment], *, level: int = MERGED_LEVEL
) -> Segment:
    """Return one segment with the records of several, in their order; its filter is built anew."""
    records = columns.concat([decode(segment) for segment in segments])
    raw_bytes = sum(segment.raw_bytes for segment in segments)
    return encode(pipeline, records, raw_bytes, level=level)
