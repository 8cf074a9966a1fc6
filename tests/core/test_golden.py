"""Bytes and texts that earlier programs wrote are read as what they are, for ever.

The files in `golden/` are never changed. A new version of a format gets a file of its own:
`LOGWEIR_MAKE_GOLDEN=1 pytest tests/core/test_golden.py` writes those that are missing, and only
those. Times, ids and texts below are written out by hand, so that a file that is wrong is seen.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import pytest
from generated import Row, to_columns, to_rows

from logweir.core import beside, block, filter, idempotency, ids, keys, names, record, segment  # noqa: A004
from logweir.core.names import PipelineId, TenantId

GOLDEN = Path(__file__).parent / "golden"

NOON_NS = 1_767_268_800_000_000_000
"""2026-01-01T12:00:00Z"""
BLOCK_ID = bytes.fromhex("019b796dd60070018203040506070809")
SHORT = (0x019B_796D_D600 & (2**42 - 1)) << 22 | 0x070809
SHOP = (("level", "info"), ("service", "shop"))
CAFE = (("host", "h-1"), ("level", "warn"), ("service", "café"))
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
KEY = bytes(range(16))
PRODUCER = bytes.fromhex("019b7939000070008000000000000001")


def golden(name: str, made: bytes) -> bytes:
    """Return a golden file. One that is missing is written when that is asked for."""
    path = GOLDEN / name
    if not path.exists() and os.environ.get("LOGWEIR_MAKE_GOLDEN"):
        path.write_bytes(made)
    return path.read_bytes()


# ---- blocks ----------------------------------------------------------------------------------

WITH_KEY = block.Request(2, 0, 210, -3, key=KEY)
OF_PRODUCER = block.Request(1, 1, 120, 2**62, key=KEY[::-1], producer=PRODUCER, epoch=3, sequence=9)
ALL_EXPIRED = block.Request(0, 4, 400, 5)
BARE = block.Request(2, 0, 90, 0)

BLOCK_REQUESTS = [
    (
        WITH_KEY,
        block.part(
            times_ns=[NOON_NS, NOON_NS + 1],
            label_set=[1, 0],
            label_sets=[SHOP, CAFE],
            messages=["grüß dich, 世界 🪵", "first line\nsecond line\t\\"],
            traces=[TRACE, ""],
            spans=[SPAN, ""],
            attributes=[b'{"user":"\\u00e4","n":1}', b""],
            flags=[0, record.FLAG_SANITISED],
            extras=[b"", b'{"timestamp":99}'],
        ),
    ),
    (OF_PRODUCER, block.part([-1], [0], [CAFE], [""], traces=["ABC"])),
    (ALL_EXPIRED, block.part([], [], [], [])),
    (BARE, block.part([2**63 - 1, -(2**63)], [0, 0], [SHOP], ["", "last"])),
]
BLOCK_ROWS = [
    Row(
        NOON_NS,
        SHORT,
        0,
        CAFE,
        "grüß dich, 世界 🪵",
        TRACE,
        SPAN,
        attributes=b'{"user":"\\u00e4","n":1}',
    ),
    Row(
        NOON_NS + 1,
        SHORT,
        1,
        SHOP,
        "first line\nsecond line\t\\",
        extra=b'{"timestamp":99}',
        flags=1,
    ),
    Row(-1, SHORT, 2, CAFE, "", "ABC"),
    Row(2**63 - 1, SHORT, 3, SHOP, ""),
    Row(-(2**63), SHORT, 4, SHOP, "last"),
]


def block_v1() -> bytes:
    refused = {"too_large": 2, "bad_request": 1}
    return block.encode(BLOCK_ID, TenantId("acme-co"), PipelineId(7), BLOCK_REQUESTS, refused)


def block_v1_plain() -> bytes:
    one = (block.Request(1, 0, 42, 1), block.part([NOON_NS], [0], [SHOP], ["hello"]))
    return block.encode(BLOCK_ID, TenantId("acme-co"), PipelineId(7), [one], {})


@pytest.mark.parametrize("data", [golden("block_v1.bin", block_v1()), block_v1()])
def test_a_block_of_version_1_is_read(data):
    header, records = block.decode(data)

    assert header.uuid == BLOCK_ID
    assert (header.tenant, header.pipeline) == ("acme-co", 7)
    assert header.requests == (WITH_KEY, OF_PRODUCER, ALL_EXPIRED, BARE)
    assert header.refused == {"too_large": 2, "bad_request": 1}
    assert to_rows(records) == BLOCK_ROWS
    assert records.label_sets == (SHOP, CAFE)


@pytest.mark.parametrize("data", [golden("block_v1_plain.bin", block_v1_plain()), block_v1_plain()])
def test_a_block_of_version_1_with_empty_columns_is_read(data):
    header, records = block.decode(data)

    assert header.requests == (block.Request(1, 0, 42, 1),)
    assert to_rows(records) == [Row(NOON_NS, SHORT, 0, SHOP, "hello")]


# ---- segments --------------------------------------------------------------------------------

MANY_SETS = tuple((("service", f"s{number}"),) for number in range(300))
MIXED_ROWS = [
    *BLOCK_ROWS,
    Row(NOON_NS, 2**64 - 1, 2**32 - 1, SHOP, "the same labels", span=SPAN, flags=3),
]
PLAIN_ROWS = [Row(NOON_NS + at, SHORT, at, SHOP, "") for at in range(3)]
WIDE_ROWS = [Row(NOON_NS, SHORT, at, labels, "") for at, labels in enumerate(MANY_SETS)]
ONE_ROW = [Row(NOON_NS, SHORT, 5, SHOP, "alone", TRACE)]

SESSIONS = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(200)]
TWICE_ROWS = [
    Row(NOON_NS + at, SHORT, at, SHOP, f"session {one}", attributes=f'{{"id":"{one}"}}'.encode())
    for at, one in enumerate(SESSIONS)
]

SEGMENTS = {
    "mixed": MIXED_ROWS,
    "plain": PLAIN_ROWS,
    "wide": WIDE_ROWS,
    "one": ONE_ROW,
    "twice": TWICE_ROWS,
}
CODECS = {
    "mixed": [3, 4, 1, 1, 5, 1, 4, 1, 3, 3],
    "plain": [2, 0, 0, 0, 0, 0, 0, 0, 2, 2],
    "wide": [2, 4, 0, 0, 0, 0, 0, 0, 2, 2],
    "one": [2, 0, 1, 5, 0, 0, 0, 0, 2, 2],
    "twice": [2, 0, 1, 0, 0, 6, 0, 0, 2, 2],
}
"""Of time, label set, message, trace, span, attributes, flags, extra, block, index."""

NOON_MINUTE = 29_454_480
COUNTS = {
    "mixed": [
        (-153_722_868, 1, 1),
        (-1, 0, 1),
        (NOON_MINUTE, 0, 1),
        (NOON_MINUTE, 1, 2),
        (153_722_867, 1, 1),
    ],
    "plain": [(NOON_MINUTE, 0, 3)],
    "wide": [(NOON_MINUTE, at, 1) for at in range(300)],
    "one": [(NOON_MINUTE, 0, 1)],
    "twice": [(NOON_MINUTE, 0, 200)],
}


def segments_v2() -> bytes:
    made = {
        name: segment.encode(PipelineId(7), to_columns(rows), 1234)
        for name, rows in SEGMENTS.items()
    }
    return msgspec.msgpack.encode(made)


def read_segments(data: bytes) -> dict[str, segment.Segment]:
    return msgspec.msgpack.decode(data, type=dict[str, segment.Segment])


def check_segment(one: segment.Segment, name: str, version: int) -> None:
    rows = SEGMENTS[name]
    assert to_rows(segment.decode(one)) == rows
    assert (one.pipeline, one.n, one.raw_bytes, one.codec) == (7, len(rows), 1234, version)
    assert (one.min_ts, one.max_ts) == (
        min(row.time_ns for row in rows),
        max(row.time_ns for row in rows),
    )
    assert [place.codec for place in segment.places(one.layout, version).values()] == CODECS[name]
    counts = beside.decode_counts(one.counts, version)
    found = zip(
        counts.minute.tolist(), counts.label_set.tolist(), counts.count.tolist(), strict=True
    )
    assert list(found) == COUNTS[name]


@pytest.mark.parametrize("name", ["mixed", "plain", "wide", "one"])
def test_a_segment_of_version_1_is_read(name):
    check_segment(read_segments((GOLDEN / "segments_v1.msgpack").read_bytes())[name], name, 1)


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("data", [golden("segments_v2.msgpack", segments_v2()), segments_v2()])
def test_a_segment_of_version_2_is_read(data, name):
    check_segment(read_segments(data)[name], name, 2)


def test_the_golden_segments_have_every_codec():
    assert {codec for codecs in CODECS.values() for codec in codecs} == set(range(7))


def test_label_sets_of_version_1_are_json():
    one = read_segments((GOLDEN / "segments_v1.msgpack").read_bytes())["mixed"]

    assert beside.decode_label_sets(one.label_sets, 1) == (CAFE, SHOP)
    assert msgspec.json.decode(one.label_sets) == [
        [["host", "h-1"], ["level", "warn"], ["service", "café"]],
        [["level", "info"], ["service", "shop"]],
    ]


# ---- filters ---------------------------------------------------------------------------------

MESSAGES = (
    b"GET /cart?user=u-48151623&from=10.0.17.4 took 35.2ms",
    b"request 4bf92f3577b34da6a3ce929d0e0e4736 failed",
    b"order 0190f3c2-7e4a-7b1c-9d2e-5f6a7b8c9d0e..- sent.",
    "zähler-4711, größe 12345é".encode(),
    b"no token in here",
    b"a" * 70 + b"7" + b"b" * 40,
    b"(" + b" ".join(b"job-%d" % number for number in range(60)) + b")",
)
ATTRIBUTES = b'{"order":"A-2231-99","sku":77120934}\0{"path":"C:\\\\logs\\\\run-20260101.txt"}\0'


def filter_v1() -> bytes:
    return filter.build(
        message=b"\0".join(MESSAGES),
        trace=f"{TRACE}\0".encode(),
        span=f"\0{SPAN}".encode(),
        attributes=ATTRIBUTES,
    )


def filter_keys_v1() -> bytes:
    found = {message.decode(): filter.literal_keys(message) for message in MESSAGES}
    found |= {value: filter.value_keys(value.encode()) for value in ("A-2231-99", "77120934")}
    found["trace id"] = [filter.id_key(TRACE.encode())]
    found["span id"] = [filter.id_key(SPAN.encode())]
    return msgspec.json.format(msgspec.json.encode(found)) + b"\n"


def test_a_filter_of_version_1_is_built_to_the_byte():
    assert filter_v1() == golden("filter_v1.bin", filter_v1())


def test_keys_of_a_filter_of_version_1_are_the_same_for_ever():
    assert filter_keys_v1() == golden("filter_keys_v1.json", filter_keys_v1())


def test_a_filter_of_version_1_has_all_keys_of_its_records():
    data = golden("filter_v1.bin", filter_v1())
    found = msgspec.json.decode(golden("filter_keys_v1.json", filter_keys_v1()))

    assert {text: len(keys) for text, keys in found.items()} == {
        MESSAGES[0].decode(): 2,
        MESSAGES[1].decode(): 1,
        MESSAGES[2].decode(): 2,
        MESSAGES[3].decode(): 2,
        MESSAGES[4].decode(): 0,
        MESSAGES[5].decode(): 2,
        MESSAGES[6].decode(): 60,
        "A-2231-99": 1,
        "77120934": 1,
        "trace id": 1,
        "span id": 1,
    }
    assert len(data) == 3 * filter.BLOCK_BYTES
    assert all(filter.has(data, key) for keys in found.values() for key in keys)
    assert all(filter.has(data, key) for key in filter.value_keys(b"C:\\logs\\run-20260101.txt"))


# ---- texts -----------------------------------------------------------------------------------

SIGN_ROOT = bytes(range(32))
API_KEYS = {
    "ingest": keys.ApiKey(TenantId("acme-co"), 2**63, PipelineId(7), keys.SCOPE_INGEST, 0, 1),
    "access": keys.ApiKey(
        TenantId("a2b"),
        1,
        PipelineId(0),
        keys.SCOPE_QUERY | keys.SCOPE_ADMIN,
        1_893_456_000,
        65_535,
    ),
}


def secret_of(key: keys.ApiKey) -> bytes:
    if key.is_ingest:
        return keys.ingest_secret(SIGN_ROOT, key.tenant, key.revision)
    return keys.access_secret(SIGN_ROOT, key.revision)


def texts_v1() -> bytes:
    acme = TenantId("acme-co")
    identity = idempotency.identity(b"order-4711", acme, PipelineId(7))
    found = {
        "api_keys": {name: keys.encode(key, secret_of(key)) for name, key in API_KEYS.items()},
        "password": keys.password(SIGN_ROOT, acme, names.login(acme, "w", "a"), 1),
        "receipt": str(ids.Receipt(BLOCK_ID, 12)),
        "record_id": str(record.RecordId(-1, SHORT, 7)),
        "idempotency_key": identity.key.hex(),
        "fingerprint": idempotency.fingerprint(b'{"message":"hello"}'),
        "schema": names.schema(acme),
        "journal": names.journal_pipeline(acme, PipelineId(7)),
    }
    return msgspec.json.format(msgspec.json.encode(found)) + b"\n"


def test_texts_are_written_the_same_for_ever():
    assert texts_v1() == golden("texts_v1.json", texts_v1())


@pytest.mark.parametrize("name", API_KEYS)
def test_an_api_key_that_was_given_out_is_good_for_ever(name):
    text = msgspec.json.decode(golden("texts_v1.json", texts_v1()))["api_keys"][name]

    found = keys.decode(text)

    assert found.key == API_KEYS[name]
    assert keys.is_signed(found, secret_of(found.key))


def test_ids_that_were_given_out_are_understood_for_ever():
    texts = msgspec.json.decode(golden("texts_v1.json", texts_v1()))

    assert texts["receipt"] == "019b796d-d600-7001-8203-040506070809.12"
    assert ids.Receipt.parse(texts["receipt"]) == ids.Receipt(BLOCK_ID, 12)
    assert record.RecordId.parse(texts["record_id"]) == record.RecordId(-1, SHORT, 7)
    assert texts["schema"] == "t_acme_co"
