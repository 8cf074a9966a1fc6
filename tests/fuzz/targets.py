"""What is fuzzed: a decoder each. A target takes any bytes, and returns whether they were taken.

The law of each: bytes are taken, and what was made of them is what they say; or they are refused
by the errors that the decoder documents. Anything else is raised, and is a defect.

What a checksum protects is tried in two ways, chosen by the first byte: as it comes, and under a
right checksum, so that what lies behind it is reached.
"""

from __future__ import annotations

import gzip
import io
import struct
import uuid
import zlib
from array import array
from collections.abc import Callable
from typing import Final

import google_crc32c
import msgspec
import zstandard
from corpus import plain

from logweir.backends import journal, journal_tail
from logweir.collector import buffer
from logweir.core import (
    beside,
    block,
    bounds,
    columns,
    errors,
    idempotency,
    ids,
    keys,
    moments,
    record,
    segment,
)
from logweir.core import binding as bindings_of
from logweir.core import filter as segment_filter
from logweir.core.logql import parser
from logweir.core.names import PipelineId, TenantId
from logweir.ingest import admission, body, native, pieces
from logweir.query import cursor, params
from logweir.runtime import bindings

Target = Callable[[bytes], bool]

NOW_NS: Final = 1_767_268_800_000_000_000
TENANT: Final = TenantId("acme")
PIPELINE: Final = PipelineId(7)
RULES: Final = native.Rules(NOW_NS, 3650)
QUERY: Final = "{}"
SECRET: Final = b"s" * 32


# ---- what senders send -----------------------------------------------------------------------


def native_form(data: bytes) -> bool:
    """Records of POST /ingest: both paths agree, a block keeps them, and JSON says the same."""
    try:
        found = native.decode(data, RULES)
    except (errors.BadRequestError, errors.TooLargeError):
        return False
    part = found.part
    request = block.Request(part.n, len(found.expired), len(data), 0)
    payload = block.encode(bytes(16), TENANT, PIPELINE, [(request, part)], {})
    header, records = block.decode(payload)
    assert header.accepted == found.accepted
    texts = columns.split(records.message, records.n) if records.n else []
    attributes = columns.split(records.attributes, records.n) if records.n else []
    assert texts == (columns.split(part.message, part.n) if part.n else [])
    _same_by_each(data, found)
    bad = {one.index for one in found.rejected} | set(found.expired)
    if not found.accepted:
        return False
    said = plain.records(data)
    assert len(said) == found.accepted + len(found.rejected)
    for at, text, raw, labels in zip(
        (at for at in range(len(said)) if at not in bad),
        texts,
        attributes,
        _labels(part),
        strict=True,
    ):
        assert text.decode() == said[at]["message"]
        assert plain.value(raw.decode() or "null") == said[at].get("metadata")
        assert labels["service"] == said[at]["service"]
    return True


def _same_by_each(data: bytes, found: native.Decoded) -> None:
    """One by one, records come out as they did together."""
    is_array = data.lstrip(b" \t\r\n")[:1] == b"["
    each = native._decode_each(*pieces.find(data, is_array), RULES)
    for name in ("n", "times", "message", "trace", "span", "attributes"):
        assert getattr(each.part, name) == getattr(found.part, name)
    assert _labels(each.part) == _labels(found.part)
    assert (each.rejected, each.expired) == (found.rejected, found.expired)


def _labels(part: block.Part) -> list[dict[str, str]]:
    return [dict(part.label_sets[at]) for at in array("I", part.label_set)]


_ENCODINGS: Final = (b"gzip", b"zstd", b"", b"br")


def compressed(data: bytes) -> bool:
    """A body with its Content-Encoding, which the first byte chooses."""
    encoding, sent = _ENCODINGS[data[0] % 4 if data else 2], data[1:]
    try:
        found = body.decompress(sent, encoding)
    except (errors.BadRequestError, errors.TooLargeError, errors.UnsupportedMediaError):
        return False
    assert len(found) <= bounds.MAX_DECODED_BYTES or not encoding
    if encoding == b"gzip" and sent:
        assert found == gzip.decompress(sent)
    if encoding == b"zstd" and sent:
        plain = zstandard.ZstdDecompressor()
        with plain.stream_reader(io.BytesIO(sent), read_across_frames=True) as reader:
            assert found == reader.read()
    return True


def headers(data: bytes) -> bool:
    """Content-Type, Content-Length and the path of a request, apart by line breaks."""
    first, _, rest = data.partition(b"\n")
    second, _, third = rest.partition(b"\n")
    assert admission.split_path("/" + third.decode("latin-1"))[2].startswith("/")
    try:
        body.check_content_type(first)
        body.check_length(second)
    except (errors.BadRequestError, errors.TooLargeError, errors.UnsupportedMediaError):
        return False
    return True


def idempotency_key(data: bytes) -> bool:
    """The header Idempotency-Key."""
    try:
        found = idempotency.identity(data, TENANT, PIPELINE)
    except errors.BadRequestError:
        return False
    assert len(found.key) == idempotency.KEY_BYTES
    if found.producer:
        text = f"p1.{uuid.UUID(bytes=found.producer)}.{found.epoch}.{found.sequence}"
        assert text.encode() == data
    return True


def api_key(data: bytes) -> bool:
    """A key as it stands in a header; the first byte chooses how it is sent."""
    how, sent = (data[0] % 3 if data else 0), data[1:]
    if how == 0:
        text = keys.from_headers(b"", sent)
    elif how == 1:
        text = keys.from_headers(b"Bearer " + sent, b"")
    else:
        text = keys.from_headers(b"Basic " + sent, b"")
    found = keys.decode(text) if text else None
    if found is None:
        return False
    assert keys.decode(keys.encode(found.key, SECRET)).key == found.key  # type: ignore[union-attr]
    assert text.startswith((keys.INGEST_PREFIX, keys.ACCESS_PREFIX))  # type: ignore[union-attr]
    assert not keys.is_signed(found, b"another secret".ljust(32))
    return True


def timestamp(data: bytes) -> bool:
    """A timestamp as text, or as an integer when it is one."""
    text = data.decode("utf-8", "replace")
    taken = _integer(text)
    try:
        found = moments.from_text(text)
    except errors.BadRequestError:
        for batch in ([text], [text, text]):
            try:
                moments.from_texts(batch)
            except errors.BadRequestError:
                continue
            raise AssertionError(f"{text!r} alone is refused") from None
        return taken
    assert abs(found) < 1 << 63
    assert moments.from_text(text) == found, "the second time it is looked up"
    assert moments.from_texts([text, text]) == [found, found]
    assert moments.from_texts([text, "2026-01-31T12:00:00Z"])[0] == found
    if -62_135_596_800 * 10**9 <= found < 253_402_300_800 * 10**9:
        assert moments.from_text(moments.to_text(found)) == found
    return True


def _integer(text: str) -> bool:
    try:
        value = int(text)
    except ValueError:
        return False
    try:
        found = moments.from_integer(value)
    except errors.BadRequestError:
        return False
    assert list(moments.from_integers([value, value])) == [found, found]
    return abs(found) < 1 << 63


# ---- what readers ask ------------------------------------------------------------------------


def logql(data: bytes) -> bool:
    """A query, and the place that an error names."""
    text = data.decode("utf-8", "replace")
    try:
        found = parser.parse(text)
    except errors.BadRequestError as error:
        if isinstance(error, parser.QueryError) and not 0 <= error.at <= len(text):
            raise AssertionError(f"no place of the query: {error.at}") from error
        return False
    assert all(0 <= one.at < len(text) for one in [*found.matchers, *found.filters])
    return True


def page_cursor(data: bytes) -> bool:
    """A cursor; an odd first byte puts a right checksum behind the others."""
    if data[:1] and data[0] % 2:
        packed = data[1:]
        text = cursor.base64.urlsafe_b64encode(
            packed + struct.pack(">I", zlib.crc32(packed))
        ).decode()
        text = text.rstrip("=")
    else:
        text = data[1:].decode("utf-8", "replace")
    try:
        found = cursor.decode(text, TENANT, QUERY)
    except errors.BadRequestError:
        return False
    assert cursor.decode(cursor.encode(found, TENANT, QUERY), TENANT, QUERY) == found
    return True


def parameters(data: bytes) -> bool:
    """Parameters of a read as JSON or as a form, which the first byte chooses."""
    kind = "application/json" if data[:1] and data[0] % 2 else "application/x-www-form-urlencoded"
    try:
        found = params.from_body(data[1:], kind, ("start", "end", "step", "buckets", "offset"))
        asked = params.window(found, NOW_NS)
        counted = params.buckets(found, asked)
    except errors.BadRequestError:
        return False
    assert -(1 << 63) < asked.start_ns < asked.end_ns < 1 << 63
    assert counted.first_ns <= asked.start_ns < counted.first_ns + counted.step_ns
    assert 0 < counted.count <= params.MAX_BUCKETS
    return True


def names_of_things(data: bytes) -> bool:
    """Receipts and records' ids: one text each."""
    text = data.decode("utf-8", "replace")
    taken = False
    for kind in (ids.Receipt, record.RecordId):
        try:
            found = kind.parse(text)
        except errors.BadRequestError:
            continue
        assert str(found) == text
        taken = True
    return taken


# ---- what is stored --------------------------------------------------------------------------


def _sealed(header: bytes, content: bytes) -> bytes:
    rest = struct.pack("<I", len(header)) + header + content
    return struct.pack("<3sBI", b"LWB", 1, google_crc32c.value(rest)) + rest


def stored_block(data: bytes) -> bool:
    """A block: as it comes, or a header and columns (behind its length) under a right checksum."""
    if len(data) > 3 and data[0] % 2:
        (size,) = struct.unpack_from("<H", data, 1)
        content = data[3 + size :]
        if data[0] % 4 == 3:
            content = zstandard.ZstdCompressor(level=1).compress(content)
        data = _sealed(data[3 : 3 + size], content)
    else:
        data = data[1:]
    entry = journal.Entry("1-0", bytes(16), 1, frozenset(), data)
    try:
        header, records = block.decode(data)
    except errors.UnknownVersionError:
        return False
    except errors.FormatError:
        assert buffer.deliver(entry, TENANT, PIPELINE).problem
        return False
    buffer.deliver(entry, TENANT, PIPELINE)
    assert block.header(data) == header
    assert records.n == header.records
    _check_columns(records)
    assert sum(one.stop - one.start for one in block.request_slices(header)) == records.n
    return True


def _check_columns(records: columns.Columns) -> None:
    for name in columns.TEXTS:
        assert len(columns.split(getattr(records, name), records.n)) == records.n or not records.n
    for name in ("time_ns", "label_set", "flags", "block", "index"):
        assert getattr(records, name).shape == (records.n,)
    assert all(int(at) < len(records.label_sets) for at in records.label_set)


def stored_segment(data: bytes) -> bool:
    """A segment: its records' number, then of each column codec, length and bytes.

    Bit 0 of the first byte compresses the columns, bit 1 says version 2. What is left are label
    sets and counts.
    """
    if len(data) < 2:
        return False
    is_packed, n, at = data[0] % 2, data[1], 2
    layout, raw = [], []
    for _ in segment.COLUMNS:
        if at + 3 > len(data):
            return False
        codec, size = struct.unpack_from("<BH", data, at)
        piece = data[at + 3 : at + 3 + size]
        if is_packed and codec:
            piece = zstandard.ZstdCompressor(level=1).compress(piece)
        layout.append(struct.pack("<BII", codec, len(piece), google_crc32c.value(piece)))
        raw.append(piece)
        at += 3 + size
    rest = data[at:]
    version = 1 + bool(data[0] & 2)
    if version > 1:
        frame = zstandard.ZstdCompressor(level=1).compress(rest)
        rest = struct.pack("<I", google_crc32c.value(frame)) + frame
    for decode in (beside.decode_counts, beside.decode_label_sets):
        try:
            decode(rest, version)
        except errors.FormatError:
            continue
    row = segment.Segment(
        PIPELINE, 0, 0, n, 0, version, b"".join(layout), rest, b"", 1, b"", b"".join(raw)
    )
    try:
        found = segment.decode(row)
    except errors.FormatError:
        return False
    assert found.n == n
    _check_columns(found)
    return True


def segments_filter(data: bytes) -> bool:
    """Any bytes as a filter answer; one that is built of a text hides no part of it."""
    where, text = data[:2], data[2:]
    for key in (0, 1 << 63, (1 << 64) - 1, zlib.crc32(data) << 32 | zlib.crc32(where)):
        assert segment_filter.has(text, key) in (True, False)
    text = text.replace(b"\0", b"")
    built = segment_filter.build(message=text, trace=b"", span=b"", attributes=b"")
    start = where[0] % (len(text) + 1) if where else 0
    stop = start + (where[1] if len(where) > 1 else 0)
    for literal in (text, text[start:], text[start:stop]):
        for key in segment_filter.literal_keys(literal):
            assert segment_filter.has(built, key), literal
    return bool(text)


def stream_entry(data: bytes) -> bool:
    """An entry of the journal and a message of its channel, as any client can write them."""
    fields = data.split(b"\xff")
    raw = [part for one in zip(b"unrb", fields, strict=False) for part in (bytes([one[0]]), one[1])]
    [entry] = journal.entries_of([(b"1-0", raw)])
    assert entry.accepted >= -1
    try:
        delivery = buffer.deliver(entry, TENANT, PIPELINE)
    except errors.UnknownVersionError:
        return False
    assert len(delivery.uuid) == 16
    assert delivery.accepted >= 0
    heard = journal_tail._published(PIPELINE, data)
    return heard is not None or not delivery.problem


def binding_file(data: bytes) -> bool:
    """A binding file, read as that of each role."""
    taken = False
    for kind in (
        bindings_of.IngestBinding,
        bindings_of.CollectorBinding,
        bindings_of.QueryBinding,
        bindings_of.KeeperBinding,
    ):
        try:
            found = bindings.decode(data, kind, "binding.json")
            if isinstance(found, bindings_of.IngestBinding):
                admission.directory(found)
        except errors.SetupError:
            continue
        assert bindings.decode(msgspec.json.encode(found), kind, "again") == found
        taken = True
    return taken


TARGETS: Final[dict[str, Target]] = {
    "native": native_form,
    "compressed": compressed,
    "headers": headers,
    "idempotency": idempotency_key,
    "api_key": api_key,
    "timestamp": timestamp,
    "logql": logql,
    "cursor": page_cursor,
    "parameters": parameters,
    "ids": names_of_things,
    "block": stored_block,
    "segment": stored_segment,
    "filter": segments_filter,
    "entry": stream_entry,
    "binding": binding_file,
}
"""By the name that `make fuzz TARGET=` takes."""
