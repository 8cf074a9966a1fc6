"""Binding files of `up`: one a role, for all pipelines of the node. Pure.

what is served + roots + servers -> ingest.json, collector.json, query.json, keeper.json, auth.json
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from logweir.backends import control, provision
from logweir.core import binding, keys, names
from logweir.core.binding import JournalServer, Login, PostgresServer
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
    """Where the servers are, and the roots that all passwords come from."""

    store: PostgresServer
    journal: JournalServer
    roots: provision.Roots

    def login(self, name: str) -> Login:
        """Return a login of the platform's own."""
        return Login(name, provision.platform_password(self.roots, name))

    def journal_login(self, tenant: control.Tenant, user: str) -> Login:
        """Return one of a tenant's Redis users."""
        return Login(user, provision.journal_password(self.roots, tenant, user))


def ingest(served: Sequence[Served], site: Site) -> binding.IngestBinding:
    """Return what ingest serves: the open pipelines."""
    tenants = []
    for tenant in _tenants(served):
        own = [one for one in served if one.tenant.id == tenant.id and one.is_open]
        if not own:
            continue
        secret = keys.ingest_secret(site.roots.sign, tenant.id, tenant.ingest_revision)
        tenants.append(
            binding.IngestTenant(
                tenant=tenant.id,
                journal=site.journal,
                login=site.journal_login(tenant, names.redis_user(tenant.id, "in")),
                secrets={str(tenant.ingest_revision): secret.hex()},
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
                store_login=Login(*provision.tenant_password(site.roots, tenant, "w")),
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
        read_root=site.roots.read.hex(),
        sign_root=site.roots.sign.hex(),
    )


def keeper(site: Site) -> binding.KeeperBinding:
    """Return the keeper's binding."""
    return binding.KeeperBinding(
        store=site.store,
        control_login=site.login(provision.KEEPER),
        maintain_root=site.roots.maintain.hex(),
    )


def auth(site: Site) -> binding.AuthBinding:
    """Return the auth role's binding."""
    return binding.AuthBinding(
        store=site.store,
        journal=site.journal,
        control_login=site.login(provision.AUTH),
        journal_login=site.login(provision.JOURNAL_AUTH),
        sign_root=site.roots.sign.hex(),
    )


def _days(one: Served) -> int:
    return min(one.pipeline.retention_days, one.tenant.retention_days)


def _tenants(served: Sequence[Served]) -> list[control.Tenant]:
    return list({one.tenant.id: one.tenant for one in served}.values())
