"""Who may read what: from a request's headers to a Grant. Pure; the clock is handed in.

    control schema --watch.py--> Directory --check(headers)--> Grant (tenant, pipelines)

Query, histogram, labels, fields and the live tail ask for the `query` scope; a receipt may be
asked for with an ingest key too. Whatever is wrong with a key gets one answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from logweir.core import errors, keys
from logweir.core.names import PipelineId, TenantId

STALE_AFTER_S: Final = 900.0
"""Without news of revoked keys for so long nobody is let in: a stolen key must not outlive that."""


class Pipeline(msgspec.Struct, frozen=True):
    """One pipeline as queries need it. What a deleted one has left is read until the retention."""

    id: PipelineId
    name: str
    retention_days: int
    is_deleted: bool = False


class Tenant(msgspec.Struct, frozen=True):
    """One tenant as queries need it: who may read, how, and how much."""

    id: TenantId
    is_deleting: bool
    reader_slot: str
    reader_revision: int
    redis_revision: int
    ingest_revision: int
    access_revision: int
    concurrency: int
    scan_bytes: int
    pipelines: Mapping[PipelineId, Pipeline]


class KnownKey(msgspec.Struct, frozen=True):
    """What the control schema says of a key's id."""

    tenant: TenantId
    is_revoked: bool


class Directory(msgspec.Struct, frozen=True):
    """All that is known of tenants and keys, as of `as_of_s` (seconds since the epoch)."""

    as_of_s: float = 0.0
    tenants: Mapping[TenantId, Tenant] = {}
    keys: Mapping[int, KnownKey] = {}


class Grant(msgspec.Struct, frozen=True):
    """What a request may read: these pipelines of this tenant. `only` is the one of a key for one
    pipeline."""

    tenant: Tenant
    pipelines: Mapping[PipelineId, Pipeline]
    only: PipelineId | None
    key_id: int


def check(
    directory: Directory,
    sign_root: bytes,
    headers: Mapping[bytes, bytes],
    now_s: float,
    *,
    scope: int = keys.SCOPE_QUERY,
    with_ingest: bool = False,
) -> Grant:
    """Return what the request's key grants.

    Args:
        directory: as last heard from the control schema.
        sign_root: the root of all keys' secrets, 32 bytes.
        headers: lower-case names, as ASGI has them.
        now_s: seconds since the epoch.
        scope: one of keys.SCOPE_*, that an access key must have.
        with_ingest: whether an ingest key will do.

    Raises:
        UnavailableError: nothing was heard of revocations for too long.
        UnauthorizedError: no key, or one that is not good here.
        ForbiddenError: the scope is missing, or the tenant is being deleted.
        BadRequestError: `X-Scope-OrgID` names several tenants.
    """
    if now_s - directory.as_of_s > STALE_AFTER_S:
        raise errors.UnavailableError(
            "The list of revoked keys is too old to be trusted.",
            retry_after_s=5.0,
            hint="The query role cannot reach the control schema; its /readyz says why.",
        )
    text = keys.from_headers(headers.get(b"authorization", b""), headers.get(b"x-api-key", b""))
    found = keys.decode(text) if text else None
    if found is None:
        raise errors.UnauthorizedError
    key = found.key
    tenant = directory.tenants.get(key.tenant)
    # An unknown tenant costs the same work as a known one.
    is_good = keys.is_signed(found, _secret(sign_root, key)) & (tenant is not None)
    if not is_good or tenant is None or not _is_in_force(directory, tenant, key, now_s):
        raise errors.UnauthorizedError
    if key.pipeline and key.pipeline not in tenant.pipelines:
        raise errors.UnauthorizedError
    _check_org(headers.get(b"x-scope-orgid", b""), tenant.id)
    if not key.permits(scope) and not (with_ingest and key.is_ingest):
        raise errors.ForbiddenError(
            "The key does not have the scope 'query'.",
            hint="Ingest keys (lwi_) send records; reading needs an access key (lwa_).",
        )
    if tenant.is_deleting:
        raise errors.ForbiddenError("The tenant is being deleted.")
    if not key.pipeline:
        return Grant(tenant, tenant.pipelines, None, key.key_id)
    own = {key.pipeline: tenant.pipelines[key.pipeline]}
    return Grant(tenant, own, key.pipeline, key.key_id)


def _secret(sign_root: bytes, key: keys.ApiKey) -> bytes:
    if key.is_ingest:
        return keys.ingest_secret(sign_root, key.tenant, key.revision)
    return keys.access_secret(sign_root, key.revision)


def _is_in_force(directory: Directory, tenant: Tenant, key: keys.ApiKey, now_s: float) -> bool:
    if key.expires_at_s and key.expires_at_s <= now_s:
        return False
    known = directory.keys.get(key.key_id)
    if known is not None:
        return known.tenant == key.tenant and not known.is_revoked
    # A key younger than the last look: signed with the revision of today, and of no other.
    revision = tenant.ingest_revision if key.is_ingest else tenant.access_revision
    return key.revision == revision


def _check_org(header: bytes, tenant: TenantId) -> None:
    if not header:
        return
    if b"|" in header:
        raise errors.BadRequestError(
            "X-Scope-OrgID names several tenants.", hint="A query reads one tenant."
        )
    if header.decode("latin-1").strip() != tenant:
        raise errors.UnauthorizedError
