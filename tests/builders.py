"""Short ways to say records, blocks and deliveries in tests."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import google_crc32c
import msgspec
import world

from logweir.core import block, settle
from logweir.core.names import PipelineId, TenantId


def record(message: str = "hello", **fields: Any) -> dict[str, Any]:
    """One record of the native form, with what is required filled in."""
    return {"message": message, "level": "info", "service": "shop"} | fields


def records(count: int, **fields: Any) -> list[dict[str, Any]]:
    """So many records, told apart by their messages."""
    return [record(f"message {number}", **fields) for number in range(count)]


def key_bytes(text: str) -> bytes:
    """An idempotency key's hash, for blocks that are made by hand."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def request(
    of: Sequence[dict[str, Any]], *, key: str = "", arrival_ns: int | None = None, **fields: Any
) -> tuple[block.Request, block.Part]:
    """One request of a block, decoded as ingest does; `fields` are of `block.Request`."""
    decoded = world.part_of(of, arrival_ns or time.time_ns())
    assert not decoded.rejected, decoded.rejected
    body = msgspec.json.encode(list(of))
    made = block.Request(
        records=decoded.part.n,
        expired=len(decoded.expired),
        size_bytes=len(body),
        fingerprint=hash(body) & 0x7FFF_FFFF_FFFF_FFFF,
        key=key_bytes(key) if key else b"",
    )
    return msgspec.structs.replace(made, **fields), decoded.part


def encode(
    tenant: TenantId,
    pipeline: PipelineId,
    requests: Sequence[tuple[block.Request, block.Part]],
    *,
    uuid: bytes | None = None,
    refused: dict[str, int] | None = None,
) -> bytes:
    """A block of these requests."""
    return block.encode(uuid or world.new_uuid(), tenant, pipeline, requests, refused or {})


def delivery(
    tenant: TenantId,
    pipeline: PipelineId,
    of: Sequence[dict[str, Any]],
    *,
    key: str = "",
    uuid: bytes | None = None,
) -> settle.Delivery:
    """A delivered block of one request."""
    payload = encode(tenant, pipeline, [request(of, key=key)], uuid=uuid)
    return delivered(payload)


def delivered(payload: bytes) -> settle.Delivery:
    """What a collector makes of a good block."""
    header, columns = block.decode(payload)
    return settle.Delivery("1-0", header.uuid, header.accepted, payload, header, columns)


def checksum(data: bytes) -> bytes:
    """The CRC32C of a block, as it stands in it."""
    return google_crc32c.value(data).to_bytes(4, "little")
