"""The cursor of a query's answer: where the next page begins. Pure.

It holds the last record's id, the direction and the range as they were resolved, so that a page
that was asked for with `start=-15m` goes on in the same range, and merges change nothing. It is
bound to the tenant and to the text of the query; it is no secret and grants nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import zlib
from typing import Final

import msgspec

from logweir.core import errors
from logweir.core.names import TenantId
from logweir.core.record import RecordId
from logweir.core.scan import Bound
from logweir.query.params import Window

_VERSION: Final = 1
_FORM = struct.Struct(">BBqQIqq8s")
_CRC = struct.Struct(">I")
_MAX_TEXT_BYTES: Final = 128


class Cursor(msgspec.Struct, frozen=True):
    """Where to go on, and in which range."""

    bound: Bound
    window: Window


def _binding(tenant: TenantId, query: str) -> bytes:
    return hashlib.blake2b(f"{tenant}\0{query}".encode(), digest_size=8).digest()


def encode(cursor: Cursor, tenant: TenantId, query: str) -> str:
    """Return the cursor as text for a client."""
    last = cursor.bound.id
    packed = _FORM.pack(
        _VERSION,
        cursor.bound.is_backward,
        last.time_ns,
        last.block,
        last.index,
        cursor.window.start_ns,
        cursor.window.end_ns,
        _binding(tenant, query),
    )
    data = packed + _CRC.pack(zlib.crc32(packed))
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode(text: str, tenant: TenantId, query: str) -> Cursor:
    """Read what `encode` wrote.

    Raises:
        BadRequestError: it is no cursor, or one of another query or tenant.
    """
    try:
        if len(text) > _MAX_TEXT_BYTES:
            raise ValueError("too long")  # noqa: TRY301 - one place words the refusal
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        packed, crc = data[: -_CRC.size], data[-_CRC.size :]
        if _CRC.pack(zlib.crc32(packed)) != crc:
            raise ValueError("damaged")  # noqa: TRY301 - as above
        version, backward, time_ns, block, index, start_ns, end_ns, binding = _FORM.unpack(packed)
        if version != _VERSION or backward > 1 or start_ns >= end_ns:
            raise ValueError("not of this version")  # noqa: TRY301 - as above
    except (binascii.Error, struct.error, ValueError) as cause:
        raise errors.BadRequestError(
            "The cursor is not one that this server gave.",
            hint="Send the `cursor` of an answer unchanged.",
        ) from cause
    if binding != _binding(tenant, query):
        raise errors.BadRequestError(
            "The cursor belongs to another query.",
            hint="Send it with the same `query` as the answer that it came with.",
        )
    return Cursor(Bound(RecordId(time_ns, block, index), bool(backward)), Window(start_ns, end_ns))
