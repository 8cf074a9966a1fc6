"""UUIDv7 of blocks, their short form, and receipt ids. Clock and chance are handed in.

UUIDv7  = 48 bits of milliseconds | version | 12 random | variant | 62 random   (RFC 9562)
short   = the low 42 bits of the milliseconds | the last 22 random bits
receipt = <uuid>.<index of the request in the block>
"""

from __future__ import annotations

import re
import uuid

import msgspec

from logweir.core import errors

SHORT_RANDOM_BITS = 22
"""Random bits of a short form; above them stand its milliseconds."""

_MS_MASK = (1 << 42) - 1
_RECEIPT = re.compile(
    r"([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})\.(0|[1-9][0-9]{0,5})"
)


def uuid7(now_ms: int, chance: bytes) -> bytes:
    """Return a UUIDv7, 16 bytes, of a time in milliseconds and 10 random bytes."""
    value = (now_ms & ((1 << 48) - 1)) << 80 | int.from_bytes(chance[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return value.to_bytes(16, "big")


def time_ms(block: bytes) -> int:
    """The time in a UUIDv7, in milliseconds since the epoch."""
    return int.from_bytes(block[:6], "big")


def short(block: bytes) -> int:
    """The block's short form of 64 bits; grows with time, and is part of every record's id."""
    random_bits = int.from_bytes(block[-3:], "big") & ((1 << SHORT_RANDOM_BITS) - 1)
    return (time_ms(block) & _MS_MASK) << SHORT_RANDOM_BITS | random_bits


def short_time_ms(value: int) -> int:
    """The milliseconds in a short form."""
    return value >> SHORT_RANDOM_BITS


class Receipt(msgspec.Struct, frozen=True, order=True):
    """Names one request that was accepted: its block, and its index there."""

    block: bytes
    index: int

    def __str__(self) -> str:
        text = self.block.hex()  # a UUID object would take five times as long
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}.{self.index}"

    @classmethod
    def parse(cls, text: str) -> Receipt:
        """Read what `str` wrote.

        Raises:
            BadRequestError: the text is not a receipt id.
        """
        found = _RECEIPT.fullmatch(text)
        if found is None:
            raise errors.BadRequestError(
                f"{text[:80]!r} is not a receipt id.",
                hint="It is the `receipt` of an answer of POST /ingest.",
            )
        return cls(uuid.UUID(found[1]).bytes, int(found[2]))
