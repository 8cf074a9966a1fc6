"""Secrets and keys, all derived from four root keys; nothing that is secret stands in a table.

    root --HMAC(tenant|login|revision)--> password of a Postgres login or a Redis user
    sign --HMAC(tenant|ingest|revision)--> k_ingest  --MAC--> lwi_... (ingest keys of that tenant)
    sign --HMAC(platform|access|revision)--> access secret --MAC--> lwa_... (access keys)

Who holds only `k_ingest` can check and make ingest keys of one tenant, and no access key.

An API key's text is prefix, base32 of the bytes below, base32 of their CRC32 (a typo is told from
a forgery by it):

    version u8 | signing revision u16 | key id u64 | pipeline u32 (0: all) | scopes u8
    | expiry u32 (seconds since the epoch, 0: never) | tenant (rest) | MAC 16 bytes
"""

from __future__ import annotations

import base64
import binascii
import functools
import hmac
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from logweir.core import errors, names
from logweir.core.names import PipelineId, TenantId

PLATFORM = names.PLATFORM
"""Stands for the tenant in passwords of the platform's own logins; no tenant may have this id."""

ROOT_BYTES = 32

SCOPE_INGEST: Final = 1
SCOPE_QUERY: Final = 2
SCOPE_ADMIN: Final = 4
SCOPE_NAMES: Final[Mapping[str, int]] = {
    "ingest": SCOPE_INGEST,
    "query": SCOPE_QUERY,
    "admin": SCOPE_ADMIN,
}

INGEST_PREFIX = "lwi_"
ACCESS_PREFIX = "lwa_"

_VERSION = 1
_HEAD = struct.Struct(">BHQIBI")
_MAC_BYTES = 16
_CRC_TEXT_BYTES = 7
_MAX_TEXT_BYTES = 160
"""Longest text that can be a key; a longer one is refused before it is decoded."""

RootName = Literal["write", "maintain", "read", "sign"]


_MAX_HEADER_BYTES: Final = 1024
"""A key has some 110 characters, and a user's name may stand before it."""


class ApiKey(msgspec.Struct, frozen=True):
    """What an API key says. `scopes` is a sum of SCOPE_*, `expires_at_s` 0 for never."""

    tenant: TenantId
    key_id: int
    pipeline: PipelineId
    scopes: int
    expires_at_s: int
    revision: int

    @property
    def is_ingest(self) -> bool:
        """Ingest keys and access keys are signed by different secrets."""
        return self.scopes == SCOPE_INGEST

    def permits(self, scope: int) -> bool:
        """Whether the key has `scope`, one of SCOPE_*."""
        return bool(self.scopes & scope)


class SignedKey(msgspec.Struct, frozen=True, cache_hash=True):
    """A key's text taken apart, its MAC not checked yet."""

    key: ApiKey
    signed: bytes
    mac: bytes


def password(root: bytes, tenant: TenantId, login: str, revision: int) -> str:
    """The password of `login`, 64 hex digits. The login's root says who can derive it."""
    return _derive(root, f"{tenant}|{login}|{revision}").hex()


def ingest_secret(sign_root: bytes, tenant: TenantId, revision: int) -> bytes:
    """`k_ingest`, 32 bytes: checks and signs the ingest keys of one tenant."""
    return _derive(sign_root, f"{tenant}|ingest|{revision}")


def access_secret(sign_root: bytes, revision: int) -> bytes:
    """The secret of all access keys, 32 bytes; only platform roles can derive it."""
    return _derive(sign_root, f"{PLATFORM}|access|{revision}")


def root_version(signed_since: Sequence[int], revision: int) -> int:
    """Which version of the sign root a signing revision comes from.

    Args:
        signed_since: the first revision of root version 1, 2, ..., rising.
        revision: of a key, from 1 on.
    """
    return sum(1 for first in signed_since if first <= revision)


def _derive(root: bytes, what: str) -> bytes:
    if len(root) != ROOT_BYTES:
        raise errors.SetupError(f"A root key has {ROOT_BYTES} bytes, this one {len(root)}.")
    return hmac.digest(root, what.encode(), "sha256")


def secret_of(key: ApiKey, sign_root: bytes) -> bytes:
    """The secret that signs a key, 32 bytes; it depends on the key's class and revision."""
    if key.is_ingest:
        return ingest_secret(sign_root, key.tenant, key.revision)
    return access_secret(sign_root, key.revision)


def text_of(key: ApiKey, sign_root: bytes) -> str:
    """Return the key's text, which stands nowhere: it is derived."""
    return encode(key, secret_of(key, sign_root))


def encode(key: ApiKey, secret: bytes) -> str:
    """Return the key's text, signed by `secret`."""
    prefix = INGEST_PREFIX if key.is_ingest else ACCESS_PREFIX
    head = _HEAD.pack(
        _VERSION, key.revision, key.key_id, key.pipeline, key.scopes, key.expires_at_s
    )
    signed = head + key.tenant.encode()
    data = signed + _mac(secret, prefix, signed)
    return prefix + _base32(data) + _base32(struct.pack(">I", zlib.crc32(prefix.encode() + data)))


def decode(text: str) -> SignedKey | None:
    """Take a key's text apart; None when it is no key (a typo among them). Checks no MAC."""
    prefix = text[:4]
    if prefix not in (INGEST_PREFIX, ACCESS_PREFIX) or len(text) > _MAX_TEXT_BYTES:
        return None
    data = _unbase32(text[4:-_CRC_TEXT_BYTES])
    crc = _unbase32(text[-_CRC_TEXT_BYTES:])
    if data is None or crc is None or len(data) <= _HEAD.size + _MAC_BYTES:
        return None
    if struct.pack(">I", zlib.crc32(prefix.encode() + data)) != crc:
        return None
    signed, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    version, revision, key_id, pipeline, scopes, expires_at_s = _HEAD.unpack_from(signed)
    tenant = signed[_HEAD.size :]
    if version != _VERSION or not tenant.isascii():
        return None
    key = ApiKey(
        tenant=TenantId(tenant.decode()),
        key_id=key_id,
        pipeline=PipelineId(pipeline),
        scopes=scopes,
        expires_at_s=expires_at_s,
        revision=revision,
    )
    if key.is_ingest != (prefix == INGEST_PREFIX):
        return None
    return SignedKey(key=key, signed=signed, mac=mac)


def is_like_a_key(text: str) -> bool:
    """Whether a text that is no key was probably meant to be one."""
    return text.startswith((INGEST_PREFIX, ACCESS_PREFIX)) and len(text) <= _MAX_TEXT_BYTES


@functools.lru_cache(maxsize=1024)
def is_signed(found: SignedKey, secret: bytes) -> bool:
    """Whether `secret` made the key's MAC; takes the same time for every MAC that is seen first. A
    sender has the same key in each request."""
    prefix = INGEST_PREFIX if found.key.is_ingest else ACCESS_PREFIX
    return hmac.compare_digest(found.mac, _mac(secret, prefix, found.signed))


def from_headers(authorization: bytes, x_api_key: bytes) -> str | None:
    """The key's text from the values of `Authorization` and `X-API-Key` (empty: absent).

    `Authorization` may be Bearer or Basic, where the key is the password. What is far too long for
    a key is none.
    """
    if len(authorization) > _MAX_HEADER_BYTES or len(x_api_key) > _MAX_HEADER_BYTES:
        return None
    return _from_headers(authorization, x_api_key)


@functools.lru_cache(maxsize=1024)
def _from_headers(authorization: bytes, x_api_key: bytes) -> str | None:
    if x_api_key:
        return x_api_key.decode("ascii", "replace").strip()
    scheme, _, value = authorization.partition(b" ")
    value = value.strip()
    if scheme.lower() == b"bearer":
        return value.decode("ascii", "replace")
    if scheme.lower() == b"basic":
        try:
            _, colon, secret = base64.b64decode(value, validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return None
        return secret.decode("ascii", "replace") if colon else None
    return None


def _mac(secret: bytes, prefix: str, signed: bytes) -> bytes:
    return hmac.digest(secret, prefix.encode() + signed, "sha256")[:_MAC_BYTES]


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _unbase32(text: str) -> bytes | None:
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        return None
    # The last letter has bits to spare: with any other ones there it is a typo.
    return data if _base32(data) == text else None
