"""Frames of zstd, packed and opened by several threads at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from logweir.core import frames

TEXTS = [bytes([number % 251]) * (40_000 + number) for number in range(64)]


def test_threads_that_pack_and_open_at_the_same_time_do_not_disturb_each_other():
    def round_trip(text: bytes) -> bool:
        frame = frames.compress(text, 1)
        return all(frames.decompress(frame, "x", max_bytes=1 << 20) == text for _ in range(40))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(round_trip, TEXTS * 4))
