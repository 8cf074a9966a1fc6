"""Who may send where: keys, addresses and states, from the binding file alone.

    path, headers -> admit() -> Target (the tenant, the pipeline), or UnauthorizedError

No database is asked. One answer covers every wrong key and every wrong address, so that nothing
can be learnt from it; each takes the same steps.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping

import msgspec

from logweir.core import errors, keys
from logweir.core.binding import IngestBinding, IngestPipeline, IngestTenant
from logweir.core.names import PipelineId, TenantId

NEWS_MAX_AGE_S = 900.0
"""Without news of revoked keys for so long, no key is good: it may have been revoked."""

_taken_apart = functools.lru_cache(maxsize=1024)(keys.decode)
"""A sender has the same key in each request; to take it apart costs more than to check it."""

_NOBODY = secrets.token_bytes(keys.ROOT_BYTES)
"""Signs nothing: keys of unknown tenants are checked against it, to take the same time."""


class Target(msgspec.Struct, frozen=True):
    """Where a request's records go."""

    tenant: TenantId
    pipeline: IngestPipeline


class News(msgspec.Struct, frozen=True):
    """The ids of a tenant's revoked keys, and when the journal was asked for them."""

    revoked: frozenset[int]
    at_s: float


class Directory(msgspec.Struct, frozen=True):
    """The binding, arranged for look-ups."""

    secrets: Mapping[tuple[TenantId, int], bytes] = {}
    by_name: Mapping[tuple[str, str], IngestPipeline] = {}
    by_tenant: Mapping[TenantId, tuple[IngestPipeline, ...]] = {}

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
    key_text: str | None,
    now_s: float,
    news: Mapping[TenantId, News],
) -> Target:
    """Return where the request may go.

    Args:
        known: what this process serves.
        address: tenant and pipeline of the path, empty when it names none.
        key_text: the key as it was sent.
        now_s: the time, for expiry.
        news: of revoked keys, by tenant.

    Raises:
        UnauthorizedError: the key is not good for this address, or one of them does not exist.
        BadRequestError: a key for all pipelines, and the path names none.
        UnavailableError: the news is too old, so that the key may have been revoked.
    """
    found = _taken_apart(key_text) if key_text else None
    if found is None:
        raise errors.UnauthorizedError
    key = found.key
    is_good = keys.is_signed(found, known.secrets.get((key.tenant, key.revision), _NOBODY))
    if not is_good or not key.is_ingest or (0 < key.expires_at_s <= now_s):
        raise errors.UnauthorizedError
    heard = news.get(key.tenant)
    if heard is not None and key.key_id in heard.revoked:
        raise errors.UnauthorizedError
    pipeline = _pipeline(known, address, key)
    if heard is None or heard.at_s < now_s - NEWS_MAX_AGE_S:
        raise errors.UnavailableError(
            "The journal has not said for too long which keys are revoked.",
            hint="Send again later; the journal of this tenant does not answer.",
        )
    return Target(key.tenant, pipeline)


def _pipeline(known: Directory, address: tuple[str, str], key: keys.ApiKey) -> IngestPipeline:
    tenant, name = address
    if tenant or name:
        pipeline = known.by_name.get((tenant, name))
        if pipeline is None or tenant != key.tenant or key.pipeline not in (0, pipeline.id):
            raise errors.UnauthorizedError
        return pipeline
    serves = known.by_tenant.get(key.tenant, ())
    if key.pipeline:
        return _by_id(serves, key.pipeline)
    if known.only and known.only[0] == key.tenant:
        return known.only[1]
    raise errors.BadRequestError(
        "This key is good for all pipelines of its tenant, and the URL names none.",
        hint=f"Send to /t/{key.tenant}/PIPELINE/ingest.",
    )


def _by_id(pipelines: tuple[IngestPipeline, ...], wanted: PipelineId) -> IngestPipeline:
    for pipeline in pipelines:
        if pipeline.id == wanted:
            return pipeline
    raise errors.UnauthorizedError
