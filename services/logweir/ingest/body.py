"""A request's body: read within bounds and time, then decompressed within bounds.

    receive -> read() -> bytes as sent -> decompress() -> text; a Holding counts what is in memory

Nothing here trusts a length that the sender claims.
"""

from __future__ import annotations

import asyncio
import functools
import io
import zlib
from collections.abc import Callable
from typing import Final, Protocol, Self, cast

import zstandard

from logweir.core import bounds, errors
from logweir.runtime.web import Receive

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
_MAX_LENGTH_DIGITS: Final = 20
"""Of a Content-Length; int() refuses thousands of them, and not in our words."""

_HELD_MAX_BYTES: Final = 128 * bounds.MIB
"""What requests may have in memory at once, over all senders of a process."""

_DECODED_RATIO: Final = 2
"""A text that waits for the journal is in memory twice: as it came, and as records."""

_GZIP_PIECE_BYTES: Final = 1 << 13
_ZSTD_PIECE_BYTES: Final = 1 << 8
"""Input at a time: a byte of gzip becomes at most 1 KiB, one of zstd 32 KiB, so that a bomb is
found at most 8 MiB over the bound, and a piece of it takes no more."""

_MAX_FRAMES: Final = 4096
"""Members of a gzip, frames of a zstd body. Many empty ones cost time and have no content."""


class Held:
    """Counts the bytes of requests in memory, and refuses more than a process can hold."""

    def __init__(self, max_bytes: int = _HELD_MAX_BYTES) -> None:
        self.size_bytes = 0
        self._max_bytes = max_bytes

    def change(self, by_bytes: int) -> None:
        """Count bytes that came, or (below zero) that are gone.

        Raises:
            UnavailableError: the process holds as much as it may.
        """
        if by_bytes > 0 and self.size_bytes + by_bytes > self._max_bytes:
            raise errors.UnavailableError(
                "This process holds as many requests as its memory allows.",
                hint="Send again, in smaller requests.",
            )
        self.size_bytes += by_bytes


class Holding:
    """What one request has in memory; nothing once the `with` block ends."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._size_bytes = 0

    def now(self, size_bytes: int) -> None:
        """Say how much it is from now on.

        Raises:
            UnavailableError: the process holds as much as it may.
        """
        self._held.change(size_bytes - self._size_bytes)
        self._size_bytes = size_bytes

    def text(self, size_bytes: int) -> None:
        """Say that it is a decompressed text from now on, and soon its records.

        Raises:
            UnavailableError: the process holds as much as it may.
        """
        self.now(_DECODED_RATIO * size_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.now(0)


@functools.lru_cache(maxsize=64)
def check_content_type(content_type: bytes) -> None:
    """Raise UnsupportedMediaError when the type cannot hold native records."""
    plain = content_type.partition(b";")[0].strip().lower()
    if plain not in _CONTENT_TYPES and not plain.endswith(b"+json"):
        raise errors.UnsupportedMediaError(
            f"Content type {plain.decode('ascii', 'replace')[:80]!r} is not taken here.",
            hint="Send application/json or application/x-ndjson.",
        )


def check_length(content_length: bytes) -> None:
    """Refuse an announced length before anything is read; there may be none.

    Raises:
        TooLargeError: it is over the bound.
        BadRequestError: it is no number.
    """
    if not content_length:
        return
    if not content_length.isdigit():
        raise errors.BadRequestError("Content-Length is no number.")
    if len(content_length) > _MAX_LENGTH_DIGITS or int(content_length) > bounds.MAX_BODY_BYTES:
        raise _too_large(f"The body has {content_length[:_MAX_LENGTH_DIGITS].decode()} bytes")


async def read(receive: Receive, holding: Holding, timeout_s: float) -> bytes:
    """Return the body as it was sent; only what has come is held.

    Raises:
        TooLargeError: it is over the bound; the rest is not read.
        TimeoutReachedError: it was not whole in time.
        UnavailableError: the process holds as much as it may.
        ConnectionResetError: the sender went away.
    """
    # As asyncio.timeout does it, which takes a twentieth of a small request's time.
    task, is_late = cast("asyncio.Task[object]", asyncio.current_task()), False

    def end() -> None:
        nonlocal is_late
        is_late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(timeout_s, end)
    try:
        return await _read(receive, holding)
    except asyncio.CancelledError as cause:
        if not is_late or task.uncancel():  # somebody else wants its end, too
            raise
        raise errors.TimeoutReachedError(
            f"The body did not arrive within {timeout_s:g} s.",
            hint="Send smaller requests, or over a faster line.",
        ) from cause
    finally:
        timer.cancel()


async def _read(receive: Receive, holding: Holding) -> bytes:
    pieces: list[bytes] = []
    size_bytes = 0
    is_whole = False
    while not is_whole:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the sender went away")
        piece: bytes = message.get("body", b"")
        is_whole = not message.get("more_body", False)
        pieces.append(piece)
        size_bytes += len(piece)
        if size_bytes > bounds.MAX_BODY_BYTES:
            raise _too_large("The body has more")
        holding.now(size_bytes)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


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
    try:
        return _inflate(body, _GZIP_PIECE_BYTES, lambda: zlib.decompressobj(wbits=31))
    except zlib.error as cause:
        raise errors.BadRequestError(f"The body is no gzip: {cause}.") from cause


def _unzstd(body: bytes) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=bounds.MAX_DECODED_BYTES)
    try:
        if body and zstandard.frame_content_size(body) > bounds.MAX_DECODED_BYTES:
            raise _too_large("The body decompresses to more")
        return _inflate(body, _ZSTD_PIECE_BYTES, decompressor.decompressobj)
    except zstandard.ZstdError as cause:
        raise errors.BadRequestError(f"The body is no zstd: {cause}.") from cause


class _Frame(Protocol):
    """What zlib and zstandard have in common: one member, or one frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _inflate(body: bytes, piece_bytes: int, begin: Callable[[], _Frame]) -> bytes:
    """Return the content of all frames, which must end where the body does."""
    text = io.BytesIO()  # of pieces in a list the joined text would be a second copy
    room = bounds.MAX_DECODED_BYTES
    frames = 0
    frame: _Frame | None = None
    for start in range(0, len(body), piece_bytes):
        rest = body[start : start + piece_bytes]
        while rest:
            if frame is None:
                frame, frames = begin(), frames + 1
            room -= text.write(frame.decompress(rest))
            if room < 0:
                raise _too_large("The body decompresses to more")
            if frames > _MAX_FRAMES:
                raise errors.BadRequestError(
                    f"The compressed body has more than {_MAX_FRAMES} frames.",
                    hint="Compress the whole body at once.",
                )
            rest = b""
            if frame.eof:
                rest, frame = frame.unused_data, None
    if frame is not None:
        raise errors.BadRequestError("The compressed body ends before its end.")
    return text.getvalue()
