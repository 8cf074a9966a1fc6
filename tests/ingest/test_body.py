"""Reading and decompressing a body within bounds, and counting what is in memory."""

from __future__ import annotations

import gzip
import time

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from logweir.core import bounds, errors
from logweir.ingest import body


def receiving(*messages: dict):
    """An ASGI `receive` of these messages."""
    left = list(messages)

    async def receive() -> dict:
        return left.pop(0)

    return receive


def piece(data: bytes, more_body: bool = True) -> dict:
    return {"type": "http.request", "body": data, "more_body": more_body}


async def read(*messages: dict, held: body.Held | None = None) -> bytes:
    with body.Holding(held or body.Held()) as holding:
        return await body.read(receiving(*messages), holding, timeout_s=5)


async def test_pieces_are_joined_in_their_order():
    assert await read(piece(b"ab"), piece(b""), piece(b"c"), piece(b"d", False)) == b"abcd"


async def test_a_body_of_exactly_the_bound_is_taken():
    half = bytes(bounds.MAX_BODY_BYTES // 2)

    assert len(await read(piece(half), piece(half, False))) == bounds.MAX_BODY_BYTES


@pytest.mark.parametrize("more", [True, False], ids=["in pieces", "at once"])
async def test_a_byte_over_the_bound_is_too_large(more):
    with pytest.raises(errors.TooLargeError):
        await read(piece(bytes(bounds.MAX_BODY_BYTES + 1), more))


async def test_a_sender_who_goes_away_is_not_a_short_body():
    with pytest.raises(ConnectionResetError):
        await read(piece(b"[1,"), {"type": "http.disconnect"})


async def test_only_what_has_come_is_held():
    held = body.Held(max_bytes=100)
    seen = []

    async def receive() -> dict:
        seen.append(held.size_bytes)
        return piece(bytes(30), more_body=len(seen) < 3)

    with body.Holding(held) as holding:
        await body.read(receive, holding, timeout_s=5)
        seen.append(held.size_bytes)

    assert seen == [0, 30, 60, 90]
    assert held.size_bytes == 0


async def test_more_than_a_process_can_hold_is_refused_while_it_comes():
    held = body.Held(max_bytes=100)

    with body.Holding(held) as other:
        other.now(50)
        with pytest.raises(errors.UnavailableError):
            await read(piece(bytes(30)), piece(bytes(30)), piece(b"", False), held=held)

        assert held.size_bytes == 50
    assert await read(piece(bytes(99), False), held=held) == bytes(99)


def test_a_text_counts_twice_as_it_is_decoded():
    held = body.Held(max_bytes=100)

    with body.Holding(held) as holding:
        holding.now(60)
        holding.text(50)

        assert held.size_bytes == 100
        with pytest.raises(errors.UnavailableError):
            holding.text(51)


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"0x10", b" 5", b"5, 5"])
def test_a_length_that_is_no_number_is_refused(length):
    with pytest.raises(errors.BadRequestError):
        body.check_length(length)


@pytest.mark.parametrize("length", [str(bounds.MAX_BODY_BYTES + 1).encode(), b"9" * 5000])
def test_a_length_over_the_bound_is_refused_however_many_digits_it_has(length):
    with pytest.raises(errors.TooLargeError):
        body.check_length(length)


COMPRESS = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "unsized zstd": zstandard.ZstdCompressor(write_content_size=False).compress,
    "checked zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@given(st.sampled_from(sorted(COMPRESS)), st.lists(st.binary(max_size=200), max_size=4))
def test_all_frames_are_one_text(form, contents):
    compressed = b"".join(map(COMPRESS[form], contents))

    assert body.decompress(compressed, form.split()[-1].encode()) == b"".join(contents)


@given(
    st.sampled_from(sorted(COMPRESS)), st.binary(max_size=200), st.binary(max_size=20), st.data()
)
def test_a_body_cut_anywhere_is_refused_and_never_shortened(form, content, before, data):
    first = COMPRESS[form](before)
    whole = COMPRESS[form](content)
    cut = data.draw(st.integers(1, len(whole) - 1))

    with pytest.raises(errors.BadRequestError):
        body.decompress(first + whole[:cut], form.split()[-1].encode())


@given(st.sampled_from([b"gzip", b"zstd"]), st.binary(max_size=100))
def test_rubbish_is_refused_in_words(encoding, rubbish):
    start = {b"gzip": b"\x1f\x8b\x08", b"zstd": b"\x28\xb5\x2f\xfd"}[encoding]

    for one in (b"\xff" + rubbish, start + b"\xff" + rubbish):
        with pytest.raises(errors.BadRequestError):
            body.decompress(one, encoding)


@pytest.mark.parametrize("form", sorted(COMPRESS))
def test_a_text_of_exactly_the_bound_is_taken_and_one_more_byte_is_not(form):
    encoding = form.split()[-1].encode()

    fits = body.decompress(COMPRESS[form](bytes(bounds.MAX_DECODED_BYTES)), encoding)
    assert len(fits) == bounds.MAX_DECODED_BYTES
    with pytest.raises(errors.TooLargeError):
        body.decompress(COMPRESS[form](bytes(bounds.MAX_DECODED_BYTES + 1)), encoding)


@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        pytest.param(b"gzip", gzip.compress(b"") * 400_000, id="gzip members"),
        pytest.param(b"zstd", zstandard.compress(b"") * 900_000, id="zstd frames"),
    ],
)
def test_a_body_of_nothing_but_empty_frames_takes_no_time(encoding, bomb):
    started_s = time.process_time()

    with pytest.raises(errors.BadRequestError, match="4096 frames"):
        body.decompress(bomb[: bounds.MAX_BODY_BYTES], encoding)

    assert time.process_time() - started_s < 0.5


def test_a_zstd_of_a_larger_window_than_the_bound_is_refused():
    options = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=options).compressobj()
    large = compressor.compress(b"{}") + compressor.flush()

    with pytest.raises(errors.BadRequestError, match="no zstd"):
        body.decompress(large, b"zstd")
