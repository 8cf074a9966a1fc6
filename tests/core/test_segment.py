"""Segments: every record survives storing and merging, and damaged columns are refused."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter

import google_crc32c
import msgspec
import numpy as np
import pytest
import zstandard
from generated import HEX, ROW, Row, to_columns, to_rows
from hypothesis import example, given
from hypothesis import strategies as st

from logweir.core import beside, errors, frames, segment
from logweir.core import filter as segment_filter
from logweir.core.names import PipelineId

PIPELINE = PipelineId(7)
INT64 = st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(ROW, min_size=1, max_size=6)
LABELS = (("level", "info"), ("service", "shop"))
MINUTE_NS = 60_000_000_000


def row(time_ns: int = 0, **fields) -> Row:
    return Row(time_ns, **({"block": 1, "index": 0, "labels": LABELS, "message": "m"} | fields))


def encode(rows, raw_bytes: int = 1, **options) -> segment.Segment:
    return segment.encode(PIPELINE, to_columns(rows), raw_bytes, **options)


def small() -> segment.Segment:
    """A segment with something in every column."""
    rows = [
        row(
            at,
            index=at,
            labels=(("service", f"shop-{at}"),),
            message=f"message {at}",
            trace=HEX * 2,
            span=HEX if at else "",
            attributes=b'{"a":1}',
            extra=b"{}",
            flags=at,
        )
        for at in range(3)
    ]
    return encode(rows)


def place(codec: int, raw: bytes) -> segment.Place:
    return segment.Place(codec, 0, len(raw), google_crc32c.value(raw))


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def codecs(of: segment.Segment) -> dict[str, int]:
    return {name: one.codec for name, one in segment.places(of.layout, of.codec).items()}


def label_sets(of: segment.Segment):
    return beside.decode_label_sets(of.label_sets, of.codec)


def counted(of: segment.Segment) -> Counter:
    counts = beside.decode_counts(of.counts, of.codec)
    sets = label_sets(of)
    rows = np.stack([counts.minute, counts.label_set, counts.count], axis=1).tolist()
    return Counter({(minute, sets[at]): count for minute, at, count in rows})


def read_all(of: segment.Segment) -> None:
    segment.decode(of)
    beside.decode_counts(of.counts, of.codec)


@given(ROWS, st.integers(0, 2**40), st.sampled_from([segment.HOT_LEVEL, segment.MERGED_LEVEL]))
@example([row(-(2**63)), row(2**63 - 1), row(-(2**63))], 1, 1)
@example([row(0, block=2**64 - 1), row(0, block=0), row(0, block=2**63)], 1, 1)
@example([row(0, index=2**32 - 1), row(0, index=0)], 1, 1)
@example([row(0, trace="AB" * 16)], 1, 1)
@example([row(0, trace="ab"), row(0, trace="")], 1, 1)
@example([row(0, trace="abc")], 1, 1)
@example([row(0, trace="zz")], 1, 1)
@example([row(0, trace="ab" * 33)], 1, 1)
def test_decoding_undoes_encoding(rows, raw_bytes, level):
    made = encode(rows, raw_bytes, level=level)

    assert to_rows(segment.decode(made)) == rows
    assert (made.n, made.raw_bytes, made.pipeline) == (len(rows), raw_bytes, PIPELINE)
    assert made.min_ts == min(row.time_ns for row in rows)
    assert made.max_ts == max(row.time_ns for row in rows)


@given(ROWS)
@example([row(-1), row(-MINUTE_NS), row(-MINUTE_NS - 1), row(0)])
@example([row(-(2**63)), row(2**63 - 1)])
def test_counts_are_those_of_each_minute_and_label_set(rows):
    made = encode(rows)

    assert counted(made) == Counter((row.time_ns // MINUTE_NS, row.labels) for row in rows)


@given(st.lists(ROWS, min_size=1, max_size=3))
def test_merging_changes_no_record_and_no_count(groups):
    parts = [encode(rows, len(rows)) for rows in groups]

    merged = segment.merge(PIPELINE, parts)

    assert to_rows(segment.decode(merged)) == [row for rows in groups for row in rows]
    assert counted(merged) == sum((counted(part) for part in parts), Counter())
    assert merged.raw_bytes == sum(part.raw_bytes for part in parts)
    assert len(label_sets(merged)) == len({row.labels for rows in groups for row in rows})


def test_a_merged_segment_has_a_filter_of_all_its_records():
    parts = [encode([row(message=f"request id-{number} done")]) for number in (12345, 67890)]

    merged = segment.merge(PIPELINE, parts)

    for literal in (b" id-12345 ", b" id-67890 "):
        (key,) = segment_filter.literal_keys(literal)
        assert segment_filter.has(merged.filter, key)


def test_a_segment_can_be_merged_again_and_again():
    rows = [row(at, index=at, trace=HEX) for at in range(4)]
    merged = encode(rows[:1])

    for one in rows[1:]:
        merged = segment.merge(PIPELINE, [merged, encode([one])])

    assert to_rows(segment.decode(merged)) == rows


@pytest.mark.parametrize(
    ("sets", "width"),
    [
        pytest.param(256, 1, id="one byte"),
        pytest.param(257, 2, id="two bytes"),
        pytest.param(65_537, 4, id="four bytes"),
    ],
)
def test_label_sets_are_numbered_as_wide_as_they_must_be(sets, width):
    numbers = np.arange(sets - 1, -1, -1, dtype=np.uint32)
    whole = to_columns([row()])
    many = msgspec.structs.replace(
        whole,
        n=sets,
        label_sets=tuple((("service", str(number)),) for number in range(sets)),
        **{
            name: np.zeros(sets, getattr(whole, name).dtype)
            for name in ("time_ns", "flags", "block", "index")
        },
        label_set=numbers,
        message=b"",
    )

    made = segment.encode(PIPELINE, many, 1)

    where = segment.places(made.layout, made.codec)["label_set"]
    content = zstandard.ZstdDecompressor().decompress(
        made.body[where.offset : where.offset + where.length]
    )
    assert (where.codec, content[0]) == (4, width)
    assert (segment.decode(made).label_set == numbers).all()


def test_a_column_that_says_nothing_takes_no_bytes():
    made = encode([row(5, message="", labels=())])

    assert {name for name, codec in codecs(made).items() if codec == 0} == {
        *("label_set", "message", "trace", "span", "attributes", "flags", "extra")
    }


def test_columns_that_were_not_read_come_out_empty():
    made = small()
    where = segment.places(made.layout, made.codec)
    place = where["message"]
    raw = {"message": made.body[place.offset : place.offset + place.length]}

    found = segment.decode_columns(made.n, where, raw, label_sets(made))

    assert found.message == b"message 0\0message 1\0message 2"
    assert (found.trace, found.time_ns.tolist()) == (b"", [0, 0, 0])


def test_a_column_with_another_number_of_texts_is_found():
    made = small()
    where = segment.places(made.layout, made.codec)
    raw = {name: made.body[at.offset : at.offset + at.length] for name, at in where.items()}
    raw["message"] = zstd(b"one\0two")
    where["message"] = place(1, raw["message"])

    with pytest.raises(errors.FormatError, match="message"):
        segment.decode_columns(made.n, where, raw, label_sets(made))


def twice(count: int = 300) -> segment.Segment:
    """A segment whose attributes repeat an id of each message."""
    ids = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(count)]
    return encode(
        [
            row(at, index=at, message=f"for {one}", attributes=f'{{"id":"{one}"}}'.encode())
            for at, one in enumerate(ids)
        ]
    )


def test_an_id_in_message_and_attributes_is_stored_once():
    made = twice()
    where = segment.places(made.layout, made.codec)

    assert segment.needs_message(where["attributes"])
    assert where["attributes"].length * 3 < where["message"].length
    assert [one.attributes for one in to_rows(segment.decode(made))] == [
        b'{"id":"%b"}' % one.message[4:].encode() for one in to_rows(segment.decode(made))
    ]


def test_attributes_that_share_nothing_with_the_messages_stand_alone():
    rows = [row(at, index=at, attributes=b'{"status":200,"pool":"blue"}') for at in range(300)]

    assert codecs(encode(rows))["attributes"] == 1


def test_attributes_that_refer_to_another_message_are_damaged():
    made = twice()
    where = segment.places(made.layout, made.codec)["attributes"]
    raw = made.body[where.offset : where.offset + where.length]

    with pytest.raises(errors.FormatError):
        segment.column_text(where, raw, made.n, b"short")


@given(st.binary(min_size=1, max_size=200), st.binary(max_size=200))
def test_what_refers_to_another_text_is_read_with_it(before, content):
    frame = frames.compress_after(before, content)

    assert frames.decompress(frame, "It", max_bytes=200, before=before) == content


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.sampled_from([1, 9]))
def test_parts_of_a_frame_are_read_as_one(parts, level):
    frame = frames.compress_parts(parts, level)

    assert frames.decompress(frame, "It", max_bytes=250) == b"".join(parts)


# ---- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("name", ["body", "layout", "counts", "label_sets"])
def test_every_flipped_byte_is_found(name, flip):
    made = small()
    data = getattr(made, name)

    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
        with pytest.raises(errors.FormatError):
            read_all(msgspec.structs.replace(made, **{name: damaged}))


@pytest.mark.parametrize("name", ["body", "layout", "counts", "label_sets"])
def test_every_truncation_is_found(name):
    made = small()

    for end in range(len(getattr(made, name))):
        with pytest.raises(errors.FormatError):
            read_all(msgspec.structs.replace(made, **{name: getattr(made, name)[:end]}))


@pytest.mark.parametrize("n", [-1, 0, 1, 2, 4, 2**31 - 1])
def test_another_number_of_records_is_found(n):
    with pytest.raises(errors.FormatError):
        segment.decode(msgspec.structs.replace(small(), n=n))


def test_a_label_set_that_the_segment_does_not_hold_is_found():
    with pytest.raises(errors.FormatError, match="label set"):
        segment.decode(msgspec.structs.replace(small(), label_sets=beside.encode_label_sets(())))


def test_a_newer_version_is_left_to_newer_programs():
    with pytest.raises(errors.UnknownVersionError, match="version 3"):
        segment.decode(msgspec.structs.replace(small(), codec=3))


def test_what_stands_beside_the_columns_of_a_newer_version_is_left_to_newer_programs():
    made = small()

    with pytest.raises(errors.UnknownVersionError):
        beside.decode_counts(made.counts, 3)
    with pytest.raises(errors.UnknownVersionError):
        beside.decode_label_sets(made.label_sets, 3)


def test_what_label_sets_take_is_known_from_their_beginning():
    many = tuple((("service", f"service-{number}"),) for number in range(5000))
    data = beside.encode_label_sets(many)

    found = beside.label_sets_bytes(data[: beside.PREFIX_BYTES], 2)

    assert found == len(msgspec.json.encode(many)) > 5 * len(data)


def test_a_codec_of_a_newer_program_is_told_from_damage():
    made = small()

    with pytest.raises(errors.UnknownVersionError):
        segment.decode(msgspec.structs.replace(made, layout=b"\x07" + made.layout[1:]))


@given(st.sampled_from(range(8)), st.integers(0, 9), st.binary(max_size=40), st.booleans())
@example(2, 0, b"1234", True)
@example(3, 0, b"", True)
@example(2, 1, b"12345678", True)
@example(4, 1, b"", True)
@example(4, 1, b"\3123", True)
@example(5, 1, b"", True)
@example(5, 9, b"\0\0\0", True)
@example(5, 1, b"\x01", True)
@example(5, 2, b"\0\0", True)
def test_any_content_under_a_right_checksum_is_refused_or_fits(codec, n, content, is_zstd):
    raw = zstd(content) if is_zstd else content
    where = place(codec, raw)

    try:
        numbers = segment.column_numbers(where, raw, n)
    except errors.FormatError:
        pass
    else:
        assert numbers.shape == (n,)
    try:
        text = segment.column_text(where, raw, n)
    except errors.FormatError:
        pass
    else:
        assert codec != 5 or text.count(b"\0") in (0, n - 1)


@given(st.binary(max_size=40), st.booleans())
@example(b"", True)
@example(bytes(25), True)
def test_any_bytes_as_counts_are_refused_or_are_counts(data, is_zstd):
    frame = zstd(data) if is_zstd else data
    check_counts(frame, 1)
    check_counts(struct.pack("<I", google_crc32c.value(frame)) + frame, 2)


@given(
    st.sampled_from([0, 2, 3]), st.integers(0, 3), st.integers(0, 3), INT64, st.binary(max_size=60)
)
def test_any_content_of_counts_is_refused_or_is_counts(codec, n, sets, first, content):
    frame = zstd(struct.pack("<BIIq", codec, n, sets, first) + content)
    check_counts(struct.pack("<I", google_crc32c.value(frame)) + frame, 2)


def check_counts(data, version):
    try:
        counts = beside.decode_counts(data, version)
    except errors.FormatError:
        return

    assert len(counts.minute) == len(counts.label_set) == len(counts.count) > 0


@given(st.binary(max_size=20))
@example(b'[[["service","\xff"]]]')
@example(b'[[["service","\\ud800"]]]')
@example(b'{"service":"shop"}')
@example(b"[" * 100_000)
def test_any_bytes_as_label_sets_are_refused_or_are_label_sets(data):
    try:
        found = beside.decode_label_sets(data, 1)
    except errors.FormatError:
        return

    assert all(isinstance(text, str) for labels in found for pair in labels for text in pair)


def test_no_memory_is_taken_for_a_size_that_is_only_claimed():
    raw = bytes.fromhex("28b52ffd e0") + (1 << 40).to_bytes(8, "little") + b"\1\0\0"

    with pytest.raises(errors.FormatError, match="claims"):
        segment.column_text(place(1, raw), raw, 1)
    with pytest.raises(errors.FormatError, match="claims"):
        beside.decode_counts(raw, 1)


def test_numbers_of_texts_and_texts_of_numbers_are_refused():
    raw = zstd(b"\1\0")

    with pytest.raises(errors.FormatError, match="not one of numbers"):
        segment.column_numbers(place(1, raw), raw, 1)
    with pytest.raises(errors.FormatError, match="not one of texts"):
        segment.column_text(place(4, raw), raw, 1)
