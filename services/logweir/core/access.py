"""Who may do what: the decision of every role, from a key and what is known of its tenant. Pure.

    headers -> keys.from_headers() -> read() -> SignedKey
    SignedKey + Facts (of the role) + Wanted (of the route) -> decide() -> ApiKey, or an error

Ingest knows its facts from its binding and the journal; roles that read the control schema have a
`Directory` of it, and `grant()` does all of the above with one. Whatever is wrong with a key, a
tenant or a pipeline gets one answer, and takes the same steps; only a typo is called a typo,
because a key's checksum says so without any secret.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from logweir.core import errors, keys
from logweir.core.names import PipelineId, TenantId

STALE_AFTER_S: Final = 900.0
"""Without news of revoked keys for so long nobody is let in: a stolen key must not outlive that."""

_NOBODY: Final = secrets.token_bytes(keys.ROOT_BYTES)
"""Signs nothing: keys of unknown tenants are checked against it, to take the same time."""


class MistypedKeyError(errors.UnauthorizedError):
    """The key's checksum does not fit: a typo or a cut, and no forgery."""

    def __init__(self) -> None:
        super().__init__("mistyped")
        self.message = "The key is mistyped or cut: its checksum does not fit."
        self.hint = (
            "Copy it again, whole; keys are one word of letters and digits after lwi_ or lwa_."
        )


class StaleNewsError(errors.UnavailableError):
    """Nothing was heard of revocations for so long that no key is trusted."""

    def __init__(self) -> None:
        super().__init__(
            "Which keys are revoked was not heard for too long, so none is trusted.",
            retry_after_s=5.0,
            hint="Send again later; the role's /readyz says what does not answer.",
        )


class Facts(msgspec.Struct, frozen=True):
    """What a process knows of a key and of the tenant that it names.

    `secret` would have signed the key; empty when the process has none. `pipelines` are those that
    the tenant has here, `heard_s` is when the process last heard which keys are revoked.
    """

    secret: bytes = b""
    pipelines: Collection[PipelineId] = ()
    is_revoked: bool = False
    heard_s: float = 0.0
    is_leaving: bool = False


UNKNOWN: Final = Facts()
"""Of a tenant that is not there."""


class Wanted(msgspec.Struct, frozen=True):
    """What a request asks for.

    `scopes` is a sum of keys.SCOPE_*, one of which the key must have. `tenant` and `pipeline` are
    those that the address names: "" and 0 for none, None for a pipeline that is not there.
    `organisation` is the value of `X-Scope-OrgID`.
    """

    scopes: int
    tenant: str = ""
    pipeline: PipelineId | None = PipelineId(0)
    organisation: bytes = b""


def read(text: str | None) -> keys.SignedKey:
    """Take a key's text apart.

    Raises:
        UnauthorizedError: there is none, or it is none; a MistypedKeyError where one can tell.
    """
    found = _taken_apart(text) if text else None
    if found is None:
        if text and keys.is_like_a_key(text):
            raise MistypedKeyError
        raise errors.UnauthorizedError("missing")
    return found


_taken_apart = functools.lru_cache(maxsize=1024)(keys.decode)
"""A sender has the same key in each request; to take it apart costs more than to check it."""


def decide(found: keys.SignedKey, facts: Facts, wanted: Wanted, now_s: float) -> keys.ApiKey:
    """Return the key when it may do what is wanted.

    Args:
        found: the key as it was sent.
        facts: of its tenant; UNKNOWN when there is no such tenant here.
        wanted: what the request asks for.
        now_s: seconds since the epoch.

    Raises:
        UnauthorizedError: the key is not good for this address.
        BadRequestError: `X-Scope-OrgID` names several tenants.
        ForbiddenError: a scope is missing, or the tenant is being deleted.
        UnavailableError: the process heard nothing of revocations for too long.
    """
    key = found.key
    if not keys.is_signed(found, facts.secret or _NOBODY):
        raise errors.UnauthorizedError("unsigned")
    if facts.is_revoked:
        raise errors.UnauthorizedError("revoked")
    if 0 < key.expires_at_s <= now_s:
        raise errors.UnauthorizedError("expired")
    if not _is_here(key, facts, wanted):
        raise errors.UnauthorizedError("elsewhere")
    _check_organisation(wanted.organisation, key.tenant)
    if not key.scopes & wanted.scopes:
        raise _missing(wanted.scopes)
    check_news(facts.heard_s, now_s)
    if facts.is_leaving:
        raise errors.ForbiddenError("The tenant is being deleted.", reason="leaving")
    return key


def check_in_force(*, is_ended: bool) -> None:
    """Refuse a key that was let in, when the control schema says by now that it has ended.

    Raises:
        UnauthorizedError: it has.
    """
    if is_ended:
        raise errors.UnauthorizedError


def check_news(heard_s: float, now_s: float) -> None:
    """Fail closed when it was last heard of revocations at `heard_s`, and that is too long ago.

    Raises:
        StaleNewsError: so it is.
    """
    if now_s - heard_s > STALE_AFTER_S:
        raise StaleNewsError


def _is_here(key: keys.ApiKey, facts: Facts, wanted: Wanted) -> bool:
    """Whether tenant and pipelines of key and address are there, and the same."""
    if wanted.tenant and wanted.tenant != key.tenant:
        return False
    if wanted.pipeline is None or (key.pipeline and key.pipeline not in facts.pipelines):
        return False
    return not (key.pipeline and wanted.pipeline) or key.pipeline == wanted.pipeline


def _check_organisation(header: bytes, tenant: TenantId) -> None:
    if not header:
        return
    if b"|" in header:
        raise errors.BadRequestError(
            "X-Scope-OrgID names several tenants.", hint="A key is of one tenant."
        )
    if header.decode("latin-1").strip() != tenant:
        raise errors.UnauthorizedError("elsewhere")


def _missing(scopes: int) -> errors.ForbiddenError:
    names = " or ".join(f"'{name}'" for name, scope in keys.SCOPE_NAMES.items() if scope & scopes)
    return errors.ForbiddenError(
        f"The key does not have the scope {names}.",
        hint="Ingest keys (lwi_) send records; access keys (lwa_) read, or administer.",
        reason="scope",
    )


# ---- roles that read the control schema ------------------------------------------------------


class Pipeline(msgspec.Struct, frozen=True):
    """One pipeline as readers need it. What a deleted one has left is read until the retention."""

    id: PipelineId
    name: str
    retention_days: int
    is_deleted: bool = False


class Tenant(msgspec.Struct, frozen=True):
    """One tenant as readers need it: who may read, how, and how much.

    `signed_since` is as `keys.root_version` takes it. While a rotation `is_spreading`, keys may
    come to be signed with the next revision.
    """

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
    root_version: int = 1
    signed_since: tuple[int, ...] = (1,)
    is_spreading: bool = False


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
    """What a request may use: these pipelines of this tenant. `only` is the one of a key for one
    pipeline."""

    tenant: Tenant
    pipelines: Mapping[PipelineId, Pipeline]
    only: PipelineId | None
    key_id: int


def grant(
    directory: Directory,
    sign_roots: Mapping[int, bytes],
    headers: Mapping[bytes, bytes],
    now_s: float,
    *,
    scopes: int = keys.SCOPE_QUERY,
) -> Grant:
    """Return what the request's key grants.

    Args:
        directory: as last heard from the control schema.
        sign_roots: the roots of all keys' secrets, 32 bytes each, by version.
        headers: lower-case names, as ASGI has them.
        now_s: seconds since the epoch.
        scopes: a sum of keys.SCOPE_*, one of which the key must have.

    Raises:
        UnauthorizedError, BadRequestError, ForbiddenError, UnavailableError: as `decide`.
    """
    # Before the first news nothing is known of any tenant, and a good key must not be called bad.
    check_news(directory.as_of_s, now_s)
    text = keys.from_headers(headers.get(b"authorization", b""), headers.get(b"x-api-key", b""))
    found = read(text)
    wanted = Wanted(scopes, organisation=headers.get(b"x-scope-orgid", b""))
    key = decide(found, _facts(directory, sign_roots, found.key), wanted, now_s)
    tenant = directory.tenants[key.tenant]
    if not key.pipeline:
        return Grant(tenant, tenant.pipelines, None, key.key_id)
    own = {key.pipeline: tenant.pipelines[key.pipeline]}
    return Grant(tenant, own, key.pipeline, key.key_id)


def administer(
    directory: Directory,
    sign_roots: Mapping[int, bytes],
    headers: Mapping[bytes, bytes],
    now_s: float,
) -> Grant:
    """Return what the request's key grants when it may administer its tenant.

    Raises:
        UnauthorizedError, BadRequestError, ForbiddenError, UnavailableError: as `grant`.
    """
    found = grant(directory, sign_roots, headers, now_s, scopes=keys.SCOPE_ADMIN)
    if found.only is not None:
        raise errors.ForbiddenError(
            "A key of one pipeline does not administer its tenant.",
            hint="Use an access key with the scope 'admin' and no pipeline.",
            reason="scope",
        )
    return found


def _facts(directory: Directory, sign_roots: Mapping[int, bytes], key: keys.ApiKey) -> Facts:
    tenant = directory.tenants.get(key.tenant)
    # The secret is derived for an unknown tenant too: that costs the same work as a known one.
    signed_since = tenant.signed_since if tenant else (1,)
    root = sign_roots.get(keys.root_version(signed_since, key.revision), _NOBODY)
    secret = keys.secret_of(key, root)
    if tenant is None:
        return UNKNOWN
    return Facts(
        secret=secret,
        pipelines=tenant.pipelines.keys(),
        is_revoked=not _is_in_force(directory, tenant, key),
        heard_s=directory.as_of_s,
        is_leaving=tenant.is_deleting,
    )


def _is_in_force(directory: Directory, tenant: Tenant, key: keys.ApiKey) -> bool:
    known = directory.keys.get(key.key_id)
    if known is not None:
        return known.tenant == key.tenant and not known.is_revoked
    # A key younger than the last look: signed with the revision of today, or the one that comes.
    revision = tenant.ingest_revision if key.is_ingest else tenant.access_revision
    return key.revision == revision or (tenant.is_spreading and key.revision == revision + 1)
