"""Who may send where: keys, addresses and states, from the binding file alone.

    path, headers -> admit() -> Target (the tenant, the pipeline), or UnauthorizedError

No database is asked. What is allowed is decided by `core.access`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from logweir.core import access, errors, keys
from logweir.core.binding import IngestBinding, IngestPipeline, IngestTenant
from logweir.core.names import PipelineId, TenantId


class Target(msgspec.Struct, frozen=True):
    """Where a request's records go."""

    tenant: TenantId
    pipeline: IngestPipeline


class News(msgspec.Struct, frozen=True):
    """The ids of a tenant's revoked keys, when it was noticed that somebody had told them, and when
    others of its keys end (seconds since the epoch).

    A journal that answers is no news: nobody may have told it for long. `told` changes when it is.
    """

    revoked: frozenset[int]
    at_s: float
    ends: Mapping[int, int] = {}
    told: bytes = b""

    def is_revoked(self, key_id: int, now_s: float) -> bool:
        """Whether a key is revoked at this moment."""
        return key_id in self.revoked or self.ends.get(key_id, math.inf) <= now_s


NO_NEWS: Final = News(frozenset(), -math.inf)
"""Of a tenant whose journal has never answered."""


class Directory(msgspec.Struct, frozen=True):
    """The binding, arranged for look-ups."""

    secrets: Mapping[tuple[TenantId, int], bytes] = {}
    by_name: Mapping[tuple[str, str], IngestPipeline] = {}
    by_tenant: Mapping[TenantId, tuple[IngestPipeline, ...]] = {}
    ids: Mapping[TenantId, frozenset[PipelineId]] = {}

    @property
    def only(self) -> tuple[TenantId, IngestPipeline] | None:
        """The one pipeline that this process serves, if it is one."""
        if len(self.by_tenant) != 1:
            return None
        ((tenant, pipelines),) = self.by_tenant.items()
        return (tenant, pipelines[0]) if len(pipelines) == 1 else None


def directory(binding: IngestBinding) -> Directory:
    """Return the directory of a binding.

    Raises:
        SetupError: a secret is no hex, or its revision no number.
    """
    try:
        known = {
            (tenant.tenant, int(revision)): bytes.fromhex(secret)
            for tenant in binding.tenants
            for revision, secret in tenant.secrets.items()
        }
    except ValueError as cause:
        raise errors.SetupError("The binding has a secret that is no hex.") from cause
    return Directory(
        secrets=known,
        by_name={
            (tenant.tenant, pipeline.name): pipeline
            for tenant in binding.tenants
            for pipeline in tenant.pipelines
        },
        by_tenant={tenant.tenant: _sorted(tenant) for tenant in binding.tenants},
        ids={one.tenant: frozenset(each.id for each in one.pipelines) for one in binding.tenants},
    )


def _sorted(tenant: IngestTenant) -> tuple[IngestPipeline, ...]:
    return tuple(sorted(tenant.pipelines, key=lambda pipeline: pipeline.id))


def split_path(path: str) -> tuple[str, str, str]:
    """Return (tenant, pipeline, rest) of a path; the first two are empty without a prefix."""
    if path.startswith("/t/"):
        parts = path.split("/", 4)
        if len(parts) == 5:
            return parts[2], parts[3], "/" + parts[4]
        return "", "?", "/"  # an address that nothing has
    return "", "", path


def admit(
    known: Directory,
    address: tuple[str, str],
    headers: Mapping[bytes, bytes],
    now_s: float,
    news: Mapping[TenantId, News],
) -> Target:
    """Return where the request may go.

    Args:
        known: what this process serves.
        address: tenant and pipeline of the path, empty when it names none.
        headers: of the request; lower-case names.
        now_s: the time, for expiry.
        news: of revoked keys, by tenant.

    Raises:
        UnauthorizedError, ForbiddenError, UnavailableError: as `access.decide`.
        BadRequestError: so too; and a key for all pipelines, when the path names none.
    """
    found = access.read(
        keys.from_headers(headers.get(b"authorization", b""), headers.get(b"x-api-key", b""))
    )
    tenant, name = address
    pipeline = known.by_name.get(address) if tenant or name else None
    wanted = access.Wanted(
        keys.SCOPE_INGEST,
        tenant=tenant,
        pipeline=_pipeline_id(address, pipeline),
        organisation=headers.get(b"x-scope-orgid", b""),
    )
    key = access.decide(found, _facts(known, found.key, news, now_s), wanted, now_s)
    return Target(key.tenant, pipeline or _implied(known, key))


def _pipeline_id(address: tuple[str, str], pipeline: IngestPipeline | None) -> PipelineId | None:
    if address == ("", ""):
        return PipelineId(0)
    return pipeline.id if pipeline else None


def _facts(
    known: Directory, key: keys.ApiKey, news: Mapping[TenantId, News], now_s: float
) -> access.Facts:
    heard = news.get(key.tenant, NO_NEWS)
    return access.Facts(
        # The ingest secret makes no access keys, whatever it has signed.
        secret=known.secrets.get((key.tenant, key.revision), b"") if key.is_ingest else b"",
        pipelines=known.ids.get(key.tenant, frozenset()),
        is_revoked=heard.is_revoked(key.key_id, now_s),
        heard_s=heard.at_s,
    )


def _implied(known: Directory, key: keys.ApiKey) -> IngestPipeline:
    """The pipeline of a request whose path names none."""
    if key.pipeline:
        return next(one for one in known.by_tenant[key.tenant] if one.id == key.pipeline)
    if known.only and known.only[0] == key.tenant:
        return known.only[1]
    raise errors.BadRequestError(
        "This key is good for all pipelines of its tenant, and the URL names none.",
        hint=f"Send to /t/{key.tenant}/PIPELINE/ingest.",
    )
