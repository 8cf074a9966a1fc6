"""A request's body: read within bounds and time, then decompressed within bounds.

Nothing here trusts a length that the sender claims.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

import zstandard

from logweir.core import bounds, errors
from logweir.runtime.web import Message, Receive

_CHUNK_BYTES: Final = 1 << 18
_CONTENT_TYPES: Final = frozenset(
    {
        b"",
        b"application/json",
        b"application/x-ndjson",
        b"application/ndjson",
        b"application/jsonl",
        b"application/x-jsonlines",
        b"application/octet-stream",
        b"application/x-www-form-urlencoded",  # what `curl -d` sends
        b"text/plain",
        b"text/json",
    }
)
_HELD_MAX_BYTES: Final = 128 * bounds.MIB
"""Bodies that may be in memory at once, over all senders of a process."""


class Held:
    """Counts the bytes of bodies in memory, and refuses more than a process can hold."""

    def __init__(self, max_bytes: int = _HELD_MAX_BYTES) -> None:
        self.size_bytes = 0
        self._max_bytes = max_bytes

    def take(self, size_bytes: int) -> None:
        """Count more bytes.

        Raises:
            UnavailableError: the process holds as much as it may.
        """
        if self.size_bytes + size_bytes > self._max_bytes:
            raise errors.UnavailableError(
                "This process holds as many request bodies as its memory allows.",
                hint="Send again, in smaller requests.",
            )
        self.size_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Count bytes as gone."""
        self.size_bytes -= size_bytes


def check_content_type(content_type: bytes) -> None:
    """Raise UnsupportedMediaError when the type cannot hold native records."""
    plain = content_type.partition(b";")[0].strip().lower()
    if plain not in _CONTENT_TYPES and not plain.endswith(b"+json"):
        raise errors.UnsupportedMediaError(
            f"Content type {plain.decode('ascii', 'replace')[:80]!r} is not taken here.",
            hint="Send application/json or application/x-ndjson.",
        )


def check_length(content_length: bytes) -> int:
    """Return the announced length, 0 when there is none.

    Raises:
        TooLargeError: it is over the bound.
        BadRequestError: it is no number.
    """
    if not content_length:
        return 0
    if not content_length.isdigit():
        raise errors.BadRequestError("Content-Length is no number.")
    length = int(content_length)
    if length > bounds.MAX_BODY_BYTES:
        raise _too_large(f"The body has {length} bytes")
    return length


async def read(receive: Receive, timeout_s: float = bounds.BODY_TIMEOUT_S) -> bytes:
    """Return the body as it was sent.

    Raises:
        TooLargeError: it is over the bound; the rest is not read.
        TimeoutReachedError: the sender stalled.
        ConnectionResetError: the sender went away.
    """
    message = await _receive(receive, timeout_s)
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > bounds.MAX_BODY_BYTES:
            raise _too_large("The body has more")
        return body
    pieces = [body]
    size_bytes = len(body)
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while message.get("more_body"):
        message = await _receive(receive, deadline_s - asyncio.get_running_loop().time())
        piece = message.get("body", b"")
        size_bytes += len(piece)
        if size_bytes > bounds.MAX_BODY_BYTES:
            raise _too_large("The body has more")
        pieces.append(piece)
    return b"".join(pieces)


async def _receive(receive: Receive, timeout_s: float) -> Message:
    try:
        async with asyncio.timeout(timeout_s):
            message = await receive()
    except TimeoutError as cause:
        raise errors.TimeoutReachedError(
            f"The body did not arrive within {bounds.BODY_TIMEOUT_S:.0f} s.",
            hint="Send smaller requests, or over a faster line.",
        ) from cause
    if message["type"] == "http.disconnect":
        raise ConnectionResetError("the sender went away")
    return message


def _too_large(found: str) -> errors.TooLargeError:
    return errors.TooLargeError(
        f"{found}; the most is {bounds.MAX_BODY_BYTES} bytes as sent and "
        f"{bounds.MAX_DECODED_BYTES} bytes decompressed.",
        hint="Send several requests.",
    )


def decompress(body: bytes, encoding: bytes) -> bytes:
    """Return the body without its Content-Encoding: none, gzip or zstd.

    Raises:
        UnsupportedMediaError: another encoding.
        TooLargeError: it decompresses to more than the bound; it was stopped there.
        BadRequestError: it is not what the encoding says, or ends too early.
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return body
    if name in (b"gzip", b"x-gzip"):
        return _gunzip(body)
    if name == b"zstd":
        return _unzstd(body)
    raise errors.UnsupportedMediaError(
        f"Content encoding {name.decode('ascii', 'replace')[:40]!r} is not taken here.",
        hint="Send gzip, zstd or no Content-Encoding.",
    )


def _gunzip(body: bytes) -> bytes:
    pieces: list[bytes] = []
    room = bounds.MAX_DECODED_BYTES
    rest = body
    while rest:  # a gzip body may be several members
        member = zlib.decompressobj(wbits=31)
        try:
            piece = member.decompress(rest, room + 1)
        except zlib.error as cause:
            raise errors.BadRequestError(f"The body is no gzip: {cause}.") from cause
        room -= len(piece)
        if room < 0:
            raise _too_large("The body decompresses to more")
        if not member.eof:
            raise errors.BadRequestError("The gzip body ends before its end.")
        pieces.append(piece)
        rest = member.unused_data.lstrip(b"\0")
    return b"".join(pieces)


def _unzstd(body: bytes) -> bytes:
    claimed = zstandard.frame_content_size(body) if len(body) > 4 else -1
    if claimed > bounds.MAX_DECODED_BYTES:
        raise _too_large("The body decompresses to more")
    pieces: list[bytes] = []
    room = bounds.MAX_DECODED_BYTES
    decompressor = zstandard.ZstdDecompressor(max_window_size=bounds.MAX_DECODED_BYTES)
    try:
        with decompressor.stream_reader(body, read_across_frames=True) as reader:
            while piece := reader.read(_CHUNK_BYTES):
                room -= len(piece)
                if room < 0:
                    raise _too_large("The body decompresses to more")
                pieces.append(piece)
    except zstandard.ZstdError as cause:
        raise errors.BadRequestError(f"The body is no zstd: {cause}.") from cause
    return b"".join(pieces)
