"""zstd frames of stored bytes, opened without trust in what they claim. Pure."""

from __future__ import annotations

import threading

import zstandard

from logweir.core import errors


class _OfThread(threading.local):
    """Contexts of zstd: each may be used by one thread at a time, and making one costs a while."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}


_of_thread = _OfThread()


def compress(content: bytes, level: int) -> bytes:
    """Return the content as one frame."""
    compressor = _of_thread.compressors.get(level)
    if compressor is None:
        compressor = _of_thread.compressors[level] = zstandard.ZstdCompressor(level=level)
    return compressor.compress(content)


def decompress(frame: bytes | memoryview, what: str, *, max_bytes: int) -> bytes:
    """Return the content of one whole frame; `what` names it in errors.

    The content's size stands in the frame, and is looked at before memory is taken for it.

    Raises:
        FormatError: it is no frame, damaged, claims more than `max_bytes`, or has bytes behind it.
    """
    try:
        size_bytes = zstandard.frame_content_size(frame)
        if not 0 <= size_bytes <= max_bytes:
            raise errors.FormatError(f"{what} claims {size_bytes} bytes, the most is {max_bytes}.")
        return _of_thread.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as cause:
        raise errors.FormatError(f"{what} does not decompress: {cause}.") from cause
