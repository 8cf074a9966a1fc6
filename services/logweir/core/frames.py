"""zstd frames of stored bytes, opened without trust in what they claim. Pure."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import zstandard

from logweir.core import errors


class _OfThread(threading.local):
    """Contexts of zstd: each may be used by one thread at a time, and making one costs a while."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.wide: zstandard.ZstdCompressor | None = None

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        found = self.compressors.get(level)
        if found is None:
            found = self.compressors[level] = zstandard.ZstdCompressor(level=level)
        return found


_of_thread = _OfThread()

_FAST_LEVEL: Final = 1
_WIDE_HASH_LOG: Final = 17
_AFTER_HASH_LOG: Final = 20
"""Places that the fast level remembers: enough for one long text, and for two of them."""


def compress(content: bytes, level: int) -> bytes:
    """Return the content as one frame."""
    return _of_thread.compressor(level).compress(content)


def compress_parts(parts: Sequence[bytes], level: int) -> bytes:
    """Return the content of several parts as one frame; each part begins a block of its own, so
    that random bytes do not spoil the statistics of even ones."""
    if len(parts) == 1:
        return compress(parts[0], level)
    writer = _of_thread.compressor(level).compressobj(size=sum(map(len, parts)))
    pieces = []
    for part in parts:
        pieces += [writer.compress(part), writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*pieces, writer.flush()])


def compress_text(content: bytes, level: int) -> bytes:
    """Return a long text as one frame: also the fast level finds repeats that lie far apart."""
    if level != _FAST_LEVEL:
        return compress(content, level)
    if _of_thread.wide is None:
        _of_thread.wide = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters.from_level(
                _FAST_LEVEL, hash_log=_WIDE_HASH_LOG
            )
        )
    return _of_thread.wide.compress(content)


def compress_after(before: bytes, content: bytes) -> bytes:
    """Return the content as one frame that refers to what stands in another text.

    At the fast level: what slower ones find besides are short matches, which cost more than they
    save (ids in two columns: 48.7 bytes a record at level 1, 49.3 at 3).
    """
    size_bytes = len(before) + len(content)
    compressor = zstandard.ZstdCompressor(
        dict_data=_raw_dictionary(before),
        compression_params=zstandard.ZstdCompressionParameters.from_level(
            _FAST_LEVEL,
            hash_log=_AFTER_HASH_LOG,
            window_log=max(zstandard.WINDOWLOG_MIN, size_bytes.bit_length()),
        ),
    )
    return compressor.compress(content)


def _raw_dictionary(text: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(text, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def content_bytes(frame: bytes | memoryview, what: str) -> int:
    """Return what a frame says of its content's size.

    Raises:
        FormatError: it is no frame, or does not say.
    """
    try:
        size_bytes = zstandard.frame_content_size(frame)
    except zstandard.ZstdError as cause:
        raise errors.FormatError(f"{what} is no zstd frame: {cause}.") from cause
    if size_bytes < 0:
        raise errors.FormatError(f"{what} does not say how large it is.")
    return size_bytes


def decompress(
    frame: bytes | memoryview, what: str, *, max_bytes: int, before: bytes = b""
) -> bytes:
    """Return the content of one whole frame; `what` names it in errors.

    The content's size stands in the frame, and is looked at before memory is taken for it.
    `before` is the text that `compress_after` was given.

    Raises:
        FormatError: it is no frame, damaged, claims more than `max_bytes`, or has bytes behind it.
    """
    size_bytes = content_bytes(frame, what)
    if size_bytes > max_bytes:
        raise errors.FormatError(f"{what} claims {size_bytes} bytes, the most is {max_bytes}.")
    decompressor = _of_thread.decompressor
    if before:
        decompressor = zstandard.ZstdDecompressor(dict_data=_raw_dictionary(before))
    try:
        return decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as cause:
        raise errors.FormatError(f"{what} does not decompress: {cause}.") from cause
