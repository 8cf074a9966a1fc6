"""`Idempotency-Key`: what makes two requests the same one.

p1.<uuidv7>.<epoch>.<sequence>   a producer's number: remembered as ranges, without a window
anything else                    hashed with tenant and pipeline: remembered for 72 hours
"""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import Final

import google_crc32c
import msgspec

from logweir.core import bounds, errors
from logweir.core.names import PipelineId, TenantId

KEY_BYTES: Final = 16
_PRODUCER = re.compile(
    r"p1\.([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})"
    r"\.(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,17})"
)
_VISIBLE = re.compile(rb"[\x21-\x7e]+(?: [\x21-\x7e]+)*")


class Identity(msgspec.Struct, frozen=True):
    """A request's key: 16 bytes of hash (empty without a key), and the producer's number if any."""

    key: bytes = b""
    producer: bytes = b""
    epoch: int = 0
    sequence: int = 0


NONE: Final = Identity()


def identity(header: bytes | None, tenant: TenantId, pipeline: PipelineId) -> Identity:
    """Return the identity that an `Idempotency-Key` gives a request; NONE without a header.

    Raises:
        BadRequestError: the key is too long or not visible ASCII.
    """
    if header is None:
        return NONE
    if len(header) > bounds.MAX_IDEMPOTENCY_KEY_BYTES or not _VISIBLE.fullmatch(header):
        raise errors.BadRequestError(
            f"The Idempotency-Key of {len(header)} bytes is not visible ASCII of up to "
            f"{bounds.MAX_IDEMPOTENCY_KEY_BYTES}.",
            hint="A UUID for each batch, the same at each retry, is a good key.",
        )
    key = hashlib.blake2b(
        b"%b\0%d\0%b" % (tenant.encode(), pipeline, header), digest_size=KEY_BYTES
    ).digest()
    found = _PRODUCER.fullmatch(header.decode())
    if found is None:
        return Identity(key)
    return Identity(key, uuid.UUID(found[1]).bytes, int(found[2]), int(found[3]))


def fingerprint(body: bytes) -> int:
    """Return 63 bits of a decompressed body: CRC32C and length. It tells misuse, not attacks."""
    checksum: int = google_crc32c.value(body)
    return (checksum & 0x7FFF_FFFF) << 32 | len(body) & 0xFFFF_FFFF
