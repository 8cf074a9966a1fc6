"""Where fuzzing begins: valid inputs of each target, made by the encoders, and the corpus."""

from __future__ import annotations

import gzip
import struct

import builders
import msgspec
import zstandard
from corpus import cases
from fuzz import targets

from logweir.core import binding, columns, keys, segment
from logweir.core.record import RecordId
from logweir.core.scan import Bound
from logweir.query import cursor
from logweir.query.params import Window

MAX_SEED_BYTES = 1 << 16
_ONE = {"message": "GET /a 200 id=7f3a-99", "level": "info", "service": "shop"}
_TRACE = "0af7651916cd43dd8448eb211c80319c"


def of(name: str) -> list[bytes]:
    """The inputs of a target."""
    own = _made().get(name, [])
    known = [one.data for one in cases.of_target(name) if len(one.data) <= MAX_SEED_BYTES]
    return [*own, *known]


def _records() -> list[dict[str, object]]:
    return [
        _ONE,
        _ONE | {"timestamp": targets.NOW_NS, "trace_id": _TRACE, "span_id": _TRACE[:16]},
        _ONE | {"timestamp": "2026-01-01T12:00:00.123+01:00", "metadata": {"a": [1, {"b": "\\"}]}},
        _ONE | {"labels": {"zone": "z1"}, "host": "node-1", "metadata": {"n": 1e3, "u": "ü€"}},
    ]


def _made() -> dict[str, list[bytes]]:
    array = msgspec.json.encode(_records())
    lines = b"\n".join(map(msgspec.json.encode, _records()))
    one_key = keys.ApiKey(targets.TENANT, 9, targets.PIPELINE, keys.SCOPE_INGEST, 0, 1)
    text = keys.encode(one_key, targets.SECRET).encode()
    page = cursor.Cursor(Bound(RecordId(5, 6, 7), True), Window(1, 9))
    uuid_text = b"0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
    return {
        "native": [
            array,
            lines,
            msgspec.json.encode(_ONE),
            b"[" + lines.replace(b"\n", b",") + b"]",
        ],
        "compressed": [
            b"\0" + gzip.compress(array, mtime=0),
            b"\1" + zstandard.compress(array),
            b"\2" + array,
            b"\0" + gzip.compress(b"a", mtime=0) * 2,
        ],
        "headers": [b"application/json; charset=utf-8\n12\nt/acme/default/ingest"],
        "idempotency": [b"free key", b"p1.%b.1.17" % uuid_text],
        "api_key": [b"\0" + text, b"\1" + text, b"\2" + b"OmFi"],
        "timestamp": [
            b"2026-01-31T12:00:00.123456789Z",
            b"1767268800",
            b"2026-01-31 12:00:00+01:00",
        ],
        "logql": [
            b'{service="shop", level=~"err.*"} |= "a" or `b` != "c" |~ "x\\\\d+" # end',
            b'{"a.b"!~"\\u00e4"}',
        ],
        "cursor": [b"\0" + cursor.encode(page, targets.TENANT, targets.QUERY).encode()],
        "parameters": [b"\0start=-15m&end=now&step=1m&offset=-1h", b'\1{"start":1,"buckets":20}'],
        "ids": [uuid_text + b".3", str(RecordId(-5, 6, 7)).encode()],
        "block": _blocks(),
        "segment": _segments(),
        "filter": [b"\2\x20user 7f3a99 id=0af7651916cd43dd8448eb211c80319c end"],
        "entry": [b"\xff".join([bytes(16), b"1", b"0,2", b"x"]), b"7:0,2:payload"],
        "binding": _bindings(),
    }


def _blocks() -> list[bytes]:
    good = builders.encode(
        targets.TENANT, targets.PIPELINE, [builders.request(_records(), key="k")], uuid=bytes(16)
    )
    (size,) = struct.unpack_from("<I", good, 8)
    header, packed = good[12 : 12 + size], good[12 + size :]
    content = zstandard.decompress(packed)
    length = struct.pack("<H", size)
    return [b"\0" + good, b"\1" + length + header + packed, b"\3" + length + header + content]


def _segments() -> list[bytes]:
    delivery = builders.delivery(targets.TENANT, targets.PIPELINE, _records())
    records = delivery.records or columns.empty()
    made = segment.encode(targets.PIPELINE, records, 100)
    packed, plain = bytearray([0, made.n]), bytearray([1, made.n])
    for place in segment.places(made.layout, made.codec).values():
        piece = made.body[place.offset : place.offset + place.length]
        content = zstandard.decompress(piece) if place.codec else b""
        packed += struct.pack("<BH", place.codec, len(piece)) + piece
        plain += struct.pack("<BH", place.codec, len(content)) + content
    return [bytes(one) + made.label_sets for one in (packed, plain)]


def _bindings() -> list[bytes]:
    journal = binding.JournalServer("127.0.0.1", 6379)
    login = binding.Login("u", "p")
    pipe = binding.IngestPipeline(targets.PIPELINE, "default", 30, ("a.b",))
    ingest = binding.IngestTenant(targets.TENANT, journal, login, {"1": "ab" * 32}, (pipe,))
    store = binding.PostgresServer("127.0.0.1", 5432, "logweir")
    return [
        msgspec.json.encode(binding.IngestBinding((ingest,))),
        msgspec.json.encode(binding.QueryBinding(store, journal, login, "ab", "cd")),
        msgspec.json.encode(binding.KeeperBinding(store, login, "ab")),
    ]
