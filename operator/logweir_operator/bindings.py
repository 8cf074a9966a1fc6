"""Bindings of the roles: of all pipelines of a node in `up`, of one in Kubernetes. Pure.

what is served + roots + servers -> ingest.json, collector.json, query.json, keeper.json, auth.json
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from logweir.backends import control, provision
from logweir.core import binding, errors, keys, names
from logweir.core.binding import JournalServer, Login, PostgresServer
from logweir.core.names import TenantId
from logweir_operator import rotation
from logweir_operator.model import LogPipeline

MIN_LINGER_S: Final = 0.2
MAX_LINGER_S: Final = 10.0
LINGER_SHARE: Final = 4
"""Records wait for company for a quarter of the time in which they must be found."""


class Served(msgspec.Struct, frozen=True):
    """A pipeline with its rows. `is_open`: records may come in, not only drain."""

    tenant: control.Tenant
    pipeline: control.Pipeline
    resource: LogPipeline | None
    is_open: bool


class Site(msgspec.Struct, frozen=True):
    """Where the servers are, and the roots that all passwords come from.

    `roots` are those that the platform uses, of `version`; `others` those that something older
    still needs, and the newest while it is made known.
    """

    store: PostgresServer
    journal: JournalServer
    roots: provision.Roots
    version: int = 1
    others: Mapping[int, provision.Roots] = {}

    @property
    def held(self) -> dict[int, provision.Roots]:
        """All roots, by version."""
        return {**self.others, self.version: self.roots}

    def of(self, version: int) -> provision.Roots:
        """Return a version of the roots.

        Raises:
            SetupError: it is not held.
        """
        found = self.held.get(version)
        if found is None:
            raise errors.SetupError(
                f"Version {version} of the root keys is gone; {sorted(self.held)} are held.",
                hint="Put secrets.json back from a copy.",
            )
        return found

    def old(self, tenant: control.Tenant) -> provision.Roots | None:
        """Return the roots of a tenant's passwords before its rotation; None: not needed."""
        return None if tenant.rotation == "steady" else self.of(tenant.old_root_version)

    def login(self, name: str) -> Login:
        """Return a login of the platform's own."""
        login = provision.platform_login(name, self.version)
        return Login(login, provision.platform_password(self.roots, name))

    def journal_login(self, tenant: control.Tenant, user: str) -> Login:
        """Return one of a tenant's Redis users."""
        roots = self.of(tenant.root_version)
        return Login(user, provision.journal_password(roots, tenant, user))

    def before(self) -> provision.Roots | None:
        """Return the roots that the platform used before these; None: no login has them."""
        found = self.others.get(self.version - 1)
        return found if found is not None and found.write else None

    def has_sign_root(self, tenant: control.Tenant, revision: int) -> bool:
        """Whether the root of a revision is held: once no key of it is in force, it may not be."""
        return keys.root_version(tenant.signed_since, revision) in self.held

    def sign_root(self, tenant: control.Tenant, revision: int) -> bytes:
        """Return the root that signs a tenant's keys of a revision."""
        return self.of(keys.root_version(tenant.signed_since, revision)).sign


def ingest(
    served: Sequence[Served], site: Site, live: Mapping[TenantId, Collection[int]] = {}
) -> binding.IngestBinding:
    """Return what ingest serves: the open pipelines.

    Args:
        served: the pipelines.
        site: the servers and roots.
        live: signing revisions of each tenant's ingest keys that are in force.
    """
    tenants = []
    for tenant in _tenants(served):
        own = [one for one in served if one.tenant.id == tenant.id and one.is_open]
        if not own:
            continue
        revisions = {tenant.ingest_revision, *live.get(tenant.id, ())}
        if tenant.rotation == "spreading":
            revisions.add(rotation.next_signing(tenant))
        tenants.append(
            binding.IngestTenant(
                tenant=tenant.id,
                journal=site.journal,
                login=site.journal_login(tenant, names.redis_user(tenant.id, "in")),
                secrets={
                    str(one): keys.ingest_secret(site.sign_root(tenant, one), tenant.id, one).hex()
                    for one in sorted(revisions)
                    if site.has_sign_root(tenant, one)
                },
                pipelines=tuple(_ingest_pipeline(one) for one in own),
            )
        )
    return binding.IngestBinding(tuple(tenants))


def _ingest_pipeline(one: Served) -> binding.IngestPipeline:
    labels = tuple(one.resource.spec.labels) if one.resource else ()
    return binding.IngestPipeline(one.pipeline.id, one.pipeline.name, _days(one), labels)


def collector(served: Sequence[Served], site: Site) -> binding.CollectorBinding:
    """Return what collectors serve: all pipelines, the closed ones until they are drained."""
    return binding.CollectorBinding(
        tuple(
            binding.CollectorTenant(
                tenant=tenant.id,
                journal=site.journal,
                journal_login=site.journal_login(tenant, names.redis_user(tenant.id, "col")),
                store=site.store,
                store_login=Login(
                    *provision.tenant_password(site.of(tenant.root_version), tenant, "w")
                ),
                pipelines=tuple(
                    binding.CollectorPipeline(
                        one.pipeline.id, one.pipeline.name, _days(one), linger_s(one.resource)
                    )
                    for one in served
                    if one.tenant.id == tenant.id
                ),
            )
            for tenant in _tenants(served)
        )
    )


def linger_s(resource: LogPipeline | None) -> float:
    """Return how long collectors let records of a pipeline wait for company."""
    within_s = resource.spec.slo.queryable_within_seconds if resource else 2.0
    return min(MAX_LINGER_S, max(MIN_LINGER_S, within_s / LINGER_SHARE))


def query(site: Site) -> binding.QueryBinding:
    """Return the query role's binding."""
    return binding.QueryBinding(
        store=site.store,
        journal=site.journal,
        control_login=site.login(provision.QUERY),
        read_roots={str(version): one.read.hex() for version, one in _logins_of(site)},
        sign_roots=_sign_roots(site),
    )


def keeper(site: Site) -> binding.KeeperBinding:
    """Return the keeper's binding."""
    return binding.KeeperBinding(
        store=site.store,
        control_login=site.login(provision.KEEPER),
        maintain_roots={str(version): one.maintain.hex() for version, one in _logins_of(site)},
    )


def auth(site: Site) -> binding.AuthBinding:
    """Return the auth role's binding."""
    return binding.AuthBinding(
        store=site.store,
        journal=site.journal,
        control_login=site.login(provision.AUTH),
        journal_login=site.login(provision.JOURNAL_AUTH),
        sign_roots=_sign_roots(site),
    )


def _sign_roots(site: Site) -> dict[str, str]:
    return {str(version): one.sign.hex() for version, one in sorted(site.held.items())}


def _logins_of(site: Site) -> list[tuple[int, provision.Roots]]:
    """The roots that logins may come from: of some old ones only what signs keys is held."""
    return [(version, one) for version, one in sorted(site.held.items()) if one.read]


def _days(one: Served) -> int:
    return min(one.pipeline.retention_days, one.tenant.retention_days)


def _tenants(served: Sequence[Served]) -> list[control.Tenant]:
    return list({one.tenant.id: one.tenant for one in served}.values())
