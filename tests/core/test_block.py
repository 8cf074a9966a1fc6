"""Blocks: what goes in comes out, and bytes that are not a block are refused, never misread."""

from __future__ import annotations

import struct

import google_crc32c
import msgspec
import pytest
import zstandard
from generated import COUNT, INT64, TEXT, UUID, part_rows, parts, requests, to_rows
from hypothesis import example, given
from hypothesis import strategies as st

from logweir.core import block, errors, ids
from logweir.core.names import PipelineId, TenantId

BLOCK_ID = ids.uuid7(1_700_000_000_000, bytes(range(10)))
PLAIN = struct.pack("<3sBI", b"LWB", 1, 0)


def encode(of, refused=None, uuid: bytes = BLOCK_ID) -> bytes:
    return block.encode(uuid, TenantId("acme"), PipelineId(7), of, refused or {})


def small() -> bytes:
    """A block of two records, with something in every column."""
    part = block.part(
        times_ns=[1, 2],
        label_set=[0, 0],
        label_sets=[(("level", "info"), ("service", "shop"))],
        messages=["hello", ""],
        traces=["ab", ""],
        spans=["", "cd"],
        attributes=[b'{"a":1}', b""],
        flags=[0, 1],
        extras=[b"", b"{}"],
    )
    return encode([(block.Request(2, 0, 10, 1, key=bytes(16)), part)])


def sealed(header: bytes, body: bytes) -> bytes:
    """A block with a right checksum over whatever it holds."""
    rest = struct.pack("<I", len(header)) + header + body
    return struct.pack("<3sBI", b"LWB", 1, google_crc32c.value(rest)) + rest


def opened(data: bytes) -> tuple[list, dict[str, bytes]]:
    """A good block's header as a list, and its columns."""
    length = struct.unpack_from("<I", data, 8)[0]
    header = msgspec.msgpack.decode(data[12 : 12 + length])
    content = zstandard.ZstdDecompressor().decompress(data[12 + length :])
    found, at = {}, 0
    names = "time label_set flags label_sets message trace span attributes extra"
    for name, size in zip(names.split(), header[4], strict=True):
        found[name] = content[at : at + size]
        at += size
    return header, found


def forged(of: dict[str, bytes] | None = None, **header: object) -> bytes:
    """The small block with other columns, or other fields of its header; the checksum is right."""
    fields, column = opened(small())
    column |= of or {}
    fields[4] = [len(one) for one in column.values()]
    names = ["uuid", "tenant", "pipeline", "requests", "lengths", "refused"]
    for name, value in header.items():
        fields[names.index(name)] = value
    body = zstandard.ZstdCompressor().compress(b"".join(column.values()))
    return sealed(msgspec.msgpack.encode(fields), body)


def refuses(data: bytes) -> bool:
    """Whether the bytes are refused as damaged; any other error but that is the test's failure."""
    try:
        header, records = block.decode(data)
    except errors.FormatError:
        return True
    assert len(to_rows(records)) == header.records
    return False


@given(
    UUID,
    st.lists(requests(), max_size=4),
    st.dictionaries(TEXT, COUNT, max_size=2),
    st.integers(1, 2**31 - 1),
)
def test_decoding_undoes_encoding(uuid, of, refused, pipeline):
    data = block.encode(uuid, TenantId("acme"), PipelineId(pipeline), of, refused)

    header, records = block.decode(data)

    assert (header.uuid, header.tenant, header.pipeline) == (uuid, "acme", pipeline)
    assert header.requests == tuple(request for request, _ in of)
    assert header.refused == refused
    assert to_rows(records) == part_rows([part for _, part in of], ids.short(uuid))
    assert block.header(data) == header


@given(st.lists(requests(), max_size=4))
def test_each_request_finds_its_records_again(of):
    header, records = block.decode(encode(of))

    slices = block.request_slices(header)

    rows = part_rows([part for _, part in of], ids.short(BLOCK_ID))
    assert [to_rows(records)[where] for where in slices] == [
        [row for row in rows if row.index in range(*where.indices(len(rows)))] for where in slices
    ]
    assert [where.stop - where.start for where in slices] == [r.records for r, _ in of]


@given(st.lists(requests(), min_size=1, max_size=4))
def test_the_header_accounts_for_all_requests(of):
    header = block.header(encode(of))

    assert header.records == sum(request.records for request, _ in of)
    assert header.accepted == sum(request.records + request.expired for request, _ in of)
    assert header.size_bytes == sum(request.size_bytes for request, _ in of)


def test_a_block_without_a_request_carries_refusals():
    header, records = block.decode(encode([], {"too_large": 3}))

    assert header.refused == {"too_large": 3}
    assert (header.accepted, records.n) == (0, 0)


def test_requests_share_their_label_sets():
    part = block.part([1], [0], [(("service", "shop"),)], ["x"])

    _, records = block.decode(encode([(block.Request(1, 0, 1, 1), part)] * 3))

    assert records.label_sets == ((("service", "shop"),),)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_found(flip):
    data = small()

    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
        with pytest.raises(errors.FormatError):
            block.decode(damaged)
        with pytest.raises(errors.FormatError):
            block.header(damaged)


def test_every_truncation_is_found():
    data = small()

    for end in range(len(data)):
        with pytest.raises(errors.FormatError):
            block.decode(data[:end])


def test_bytes_behind_a_block_are_found():
    with pytest.raises(errors.FormatError):
        block.decode(small() + b"\0")


def test_a_newer_version_is_left_to_newer_programs():
    data = bytearray(small())
    data[3] = 2

    with pytest.raises(errors.UnknownVersionError, match="version 2"):
        block.decode(bytes(data))


def test_the_version_before_the_first_is_damage():
    data = bytearray(small())
    data[3] = 0

    with pytest.raises(errors.FormatError) as caught:
        block.decode(bytes(data))

    assert not isinstance(caught.value, errors.UnknownVersionError)


@given(st.binary(max_size=60))
@example(b"LWB\x01")
def test_random_bytes_are_no_block(data):
    assert refuses(data)
    assert refuses(PLAIN + data)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_a_checksum_makes_no_block_of_random_bytes(header, body):
    assert refuses(sealed(header, body))


@given(st.data())
def test_a_mutated_header_under_a_right_checksum_is_refused_or_consistent(data):
    good = small()
    length = struct.unpack_from("<I", good, 8)[0]
    header, body = bytearray(good[12 : 12 + length]), good[12 + length :]
    for _ in range(data.draw(st.integers(1, 3))):
        header[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))

    refuses(sealed(bytes(header), body))


@given(st.data())
def test_mutated_columns_under_a_right_checksum_are_refused_or_consistent(data):
    _, column = opened(small())
    name = data.draw(st.sampled_from(sorted(column)))
    mutated = bytearray(column[name])
    if data.draw(st.booleans()):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    else:
        mutated = data.draw(st.binary(max_size=30))

    refuses(forged({name: bytes(mutated)}))


ONE = [2, 0, 10, 1]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: forged(requests=[[-2, 0, 10, 1]]), id="a negative number of records"),
        pytest.param(lambda: forged(requests=[[2**62, 0, 10, 1]]), id="more records than memory"),
        pytest.param(lambda: forged(requests=[[2**64 - 1, 0, 10, 1]]), id="more than 63 bits"),
        pytest.param(lambda: forged(requests=[[3, 0, 10, 1]]), id="a record too many"),
        pytest.param(lambda: forged(requests=[]), id="records of no request"),
        pytest.param(lambda: forged(requests=[[*ONE, b"short"]]), id="a key of another length"),
        pytest.param(lambda: forged(requests=[[*ONE, b"", b"x"]]), id="a producer of one byte"),
        pytest.param(lambda: forged(requests=[[*ONE, b"", b"", -1]]), id="a negative epoch"),
        pytest.param(lambda: forged(uuid=b"short"), id="an id that is no UUID"),
        pytest.param(lambda: forged(tenant=7), id="a tenant that is no text"),
        pytest.param(lambda: forged(lengths=[2**20]), id="one length"),
        pytest.param(lambda: forged(lengths=[*opened(small())[0][4], 0]), id="a length too many"),
        pytest.param(
            lambda: forged({"extra": b""}, lengths=opened(forged({"extra": b""}))[0][4][:-1]),
            id="a length too few",
        ),
        pytest.param(lambda: forged(lengths=[2**40] * 9), id="lengths beyond memory"),
        pytest.param(lambda: forged(refused={"x": -1}), id="refusals below zero"),
        pytest.param(lambda: forged({"time": bytes(15)}), id="half a time"),
        pytest.param(lambda: forged({"time": bytes(8)}), id="a time too few"),
        pytest.param(lambda: forged({"flags": b"\1"}), id="a flag too few"),
        pytest.param(lambda: forged({"label_set": b"\1\0\0\0" * 2}), id="a label set too far"),
        pytest.param(lambda: forged({"label_sets": b"\xff"}), id="label sets that are none"),
        pytest.param(
            lambda: forged({"label_sets": b"\x91\x91\x92\xa1\xff\xa1a"}), id="labels of no UTF-8"
        ),
        pytest.param(lambda: forged({"message": b"a\0b\0c"}), id="a message too many"),
        pytest.param(lambda: forged({"message": b"a"}), id="a message too few"),
        pytest.param(lambda: forged({"message": b"\xff\0"}), id="a message of no UTF-8"),
    ],
)
def test_a_forged_block_is_refused(data):
    with pytest.raises(errors.FormatError):
        block.decode(data())


def test_a_tenant_that_is_no_utf8_is_refused():
    good = small()
    length = struct.unpack_from("<I", good, 8)[0]
    header = good[12 : 12 + length].replace(b"acme", b"\xff\xfe\xfd\xfc")

    with pytest.raises(errors.FormatError):
        block.header(sealed(header, good[12 + length :]))


def test_no_memory_is_taken_for_a_size_that_is_only_claimed():
    good = small()
    length = struct.unpack_from("<I", good, 8)[0]
    tebibyte = bytes.fromhex("28b52ffd e0") + (1 << 40).to_bytes(8, "little") + b"\1\0\0"

    with pytest.raises(errors.FormatError, match="claims"):
        block.decode(sealed(good[12 : 12 + length], tebibyte))


def test_a_frame_without_its_size_is_refused():
    good = small()
    length = struct.unpack_from("<I", good, 8)[0]
    content = zstandard.ZstdDecompressor().decompress(good[12 + length :])
    bare = zstandard.ZstdCompressor(write_content_size=False).compress(content)

    with pytest.raises(errors.FormatError):
        block.decode(sealed(good[12 : 12 + length], bare))


def test_bytes_behind_the_body_are_refused():
    good = small()
    length = struct.unpack_from("<I", good, 8)[0]

    with pytest.raises(errors.FormatError):
        block.decode(sealed(good[12 : 12 + length], good[12 + length :] + b"more"))


@given(parts(), INT64)
def test_a_fingerprint_of_any_sign_is_kept(part, fingerprint):
    request = block.Request(part.n, 0, 1, fingerprint)

    assert block.header(encode([(request, part)])).requests == (request,)
