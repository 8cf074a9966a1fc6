"""The laws of all decoders, on inputs made from valid ones and from the corpus."""

from __future__ import annotations

import functools
import random

import pytest
from fuzz import seeds, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = 300

TOKENS = [
    *(bytes([one]) for one in b'\0\xff\x80"\\{}[]:,\n\r .-+0eE~=|`('),
    b"\\ud800",
    b"\\u0000",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"9" * 20,
    b"1e999",
    b"NaN",
    b"[" * 40,
    b'{"a":' * 40,
    b'"message"',
    b"metadata",
    b"\x28\xb5\x2f\xfd",
    b"\x1f\x8b\x08",
]


@functools.cache
def known(name: str) -> list[bytes]:
    return sorted(seeds.of(name), key=len)


@st.composite
def inputs(draw: st.DrawFn, name: str) -> bytes:
    """A known input with pieces cut out, put in twice, replaced or joined with another's."""
    chance: random.Random = draw(st.randoms(use_true_random=False))
    data = draw(st.sampled_from(known(name)) | st.binary(max_size=64))
    for _ in range(draw(st.integers(0, 4))):
        data = changed(data, known(name), chance)
    return data


def changed(data: bytes, of: list[bytes], chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    stop = min(len(data), start + chance.choice([0, 1, 1, 2, 4, 16, 64]))
    other = chance.choice(of)
    at = chance.randrange(len(other) + 1)
    between = chance.choice(
        [
            b"",
            chance.choice(TOKENS),
            chance.randbytes(stop - start),
            data[start:stop] * 2,
            other[at : at + 16],
            bytes(one ^ 1 << chance.randrange(8) for one in data[start : start + 1]),
        ]
    )
    return data[:start] + between + data[stop:]


@pytest.mark.parametrize("name", targets.TARGETS)
def test_no_input_breaks_a_decoders_law(name):
    target = targets.TARGETS[name]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(inputs(name))
    def law(data: bytes) -> None:
        target(data)

    law()
