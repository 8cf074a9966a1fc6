"""Makes what a LogTenant says: its row, its place in the servers, its pipelines and keys.

    LogTenant + its LogPipelines -> claim the id -> rows -> schema, logins, journal -> API keys

Each step may run again. What was made is remembered by a fingerprint, so an unchanged tenant costs
nothing; one that fails is tried again later and holds up no other.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
import psycopg
from redis import asyncio as redis
from redis import exceptions

from logweir.backends import failpoint, provision
from logweir.backends.control import (
    IdentityClaimedError,
    Pipeline,
    StoredObject,
    Tenant,
    revocations,
)
from logweir.backends.rotations import Rotations
from logweir.core import keys, states
from logweir.core.names import PipelineId, TenantId
from logweir_operator import plan, rotation
from logweir_operator.bindings import Site
from logweir_operator.model import LogPipeline, LogTenant
from logweir_operator.resources import Key, Live

logger = logging.getLogger(__name__)

RETRY_S: Final = (1.0, 30.0)
AGAIN: Final = "again"
BUFFER_SHARE: Final = 2
"""One tenant may fill the journal's memory divided by this, whatever its quota says."""


Server = Literal["", "postgres", "redis"]


def server_of(error: BaseException) -> Server:
    """Return which server an error comes from; empty: it is not known."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, psycopg.Error):
            return "postgres"
        if isinstance(found, exceptions.RedisError):
            return "redis"
        found = found.__cause__ or found.__context__
    return ""


class Work(msgspec.Struct, eq=False):
    """What is known of one LogTenant; `done` and `tried` are fingerprints of what was made."""

    done: str = ""
    tried: str = ""
    problem: str = ""
    failing: Server = ""
    failures: int = 0
    retry_at_s: float = 0.0
    claimed_by_other: bool = False
    key_texts: dict[str, str] = {}


class Wanted(msgspec.Struct, frozen=True):
    """A LogTenant with the pipelines that refer to it; `is_made`: its row says so."""

    live: Live
    resource: LogTenant
    is_made: bool
    pipelines: Sequence[tuple[str, LogPipeline]]

    @property
    def fingerprint(self) -> str:
        """What a tenant's place in the servers depends on."""
        parts = [self.resource.spec, sorted((name, str(one.spec)) for name, one in self.pipelines)]
        return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


class Maker:
    """Makes tenants, and remembers what it has made of each."""

    def __init__(
        self, cluster: str, control: Rotations, journal: redis.Redis, site: Site, conninfo: str
    ) -> None:
        self._cluster = cluster
        self._control = control
        self._journal = journal
        self._site = site
        self._conninfo = conninfo
        self._works: dict[Key, Work] = {}

    def work(self, key: Key) -> Work:
        """Return what is known of a LogTenant."""
        return self._works.get(key, Work())

    def use(self, site: Site, conninfo: str) -> None:
        """Make tenants with other roots, as another login, from now on."""
        self._site, self._conninfo = site, conninfo

    def again(self, key: Key) -> None:
        """Make a tenant again, although it is what it should be as far as is known."""
        work = self._works.get(key)
        if work is not None and work.done:
            work.done = AGAIN  # not nothing: its keys are what they were

    def forget(self, key: Key) -> None:
        """A LogTenant is gone."""
        self._works.pop(key, None)

    async def make(self, all_wanted: Sequence[Wanted]) -> None:
        """Make each tenant that is not yet as it should be; problems are remembered.

        One after the other: Alembic migrates in one thread of a process only.
        """
        for one in all_wanted:
            if not one.resource.spec.suspend:
                await self._make(one)

    async def _make(self, wanted: Wanted) -> None:
        work = self._works.setdefault(wanted.live.key, Work())
        if work.done and not wanted.is_made:  # it was deleted since, and has come again
            work = self._works[wanted.live.key] = Work()
        now = wanted.fingerprint
        is_changed = now != work.tried
        if work.done == now or (time.monotonic() < work.retry_at_s and not is_changed):
            return
        work.tried = now
        name = wanted.live.stored.name
        try:
            texts = await self._provision(wanted)
        except IdentityClaimedError as error:
            work.claimed_by_other, work.problem = True, str(error)
        except Exception as error:
            problem = str(error) or type(error).__name__
            if problem != work.problem:
                logger.exception("tenant failed", extra={"tenant": name})
            work.claimed_by_other, work.problem = False, problem
            work.failing = server_of(error)
        else:
            self._works[wanted.live.key] = Work(now, now, key_texts=texts)
            logger.info("tenant is as it should be", extra={"tenant": name})
            return
        low, high = RETRY_S
        work.retry_at_s = time.monotonic() + min(high, low * 2**work.failures)
        work.failures = min(work.failures + 1, 10)

    async def _provision(self, wanted: Wanted) -> dict[str, str]:
        """Make all of a tenant; return the texts of its keys."""
        stored, spec = wanted.live.stored, wanted.resource.spec
        row = await self._with_roots_of_now(await self._claim(stored, spec.tenant_id))
        state, days = "readonly" if spec.read_only else "active", spec.retention.days
        row = msgspec.structs.replace(row, state=state, retention_days=days, spec=stored.spec)
        pipelines = [
            await self._control.ensure_pipeline(
                row.id, name, one.spec.retention.days or days, msgspec.to_builtins(one.spec)
            )
            for name, one in wanted.pipelines
        ]
        # First of all: a key that is to be revoked must not wait for what may fail.
        texts = await self._make_keys(row, wanted.resource, pipelines)
        failpoint.reach("operator.before_schema")
        roots, limits = self._site.of(row.root_version), await self.limits(wanted.resource)
        old_roots = self._site.old(row)
        await asyncio.to_thread(provision.provision_store, self._conninfo, row, roots, limits)
        failpoint.reach("operator.before_journal")
        await provision.provision_journal(self._journal, row, pipelines, roots, limits, old_roots)
        # Last of all: a row in one of these states says that its place was made once.
        await self._control.set_tenant(row.id, state, days, stored.spec)
        return texts

    async def _with_roots_of_now(self, row: Tenant) -> Tenant:
        """A tenant that is not made yet, or is made again, begins with the roots of now."""
        version = self._site.version
        if row.state in states.MADE or row.root_version == version:
            return row
        fresh = rotation.made_anew(row, version, datetime.now(UTC))
        await self._control.write(row, fresh, forget_keys=True)  # nobody has had their texts
        return fresh

    async def _claim(self, stored: StoredObject, wanted_id: str | None) -> Tenant:
        """Return the tenant of a LogTenant: its own, one that was kept for it, or a new one."""
        tenant_id = TenantId(wanted_id) if wanted_id else plan.generated_tenant_id(os.urandom(16))
        row = await self._control.claim_tenant(
            tenant_id, self._cluster, stored.namespace, stored.name
        )
        if wanted_id and row.id != wanted_id:
            raise IdentityClaimedError(
                f"This LogTenant has the id {row.id!r} already.",
                hint=f"Set spec.tenantId to it, or leave it out: its data is kept as {row.id!r}.",
            )
        if row.state == "retained":
            # Before anything is opened again: a deletion that comes now must close it again.
            await self._control.adopt_tenant(row.id)
        return row

    async def _make_keys(
        self, row: Tenant, resource: LogTenant, pipelines: Sequence[Pipeline]
    ) -> dict[str, str]:
        """Make the keys that the tenant's resource names, revoke its others; return their texts."""
        by_name = {one.name: one.id for one in pipelines}
        made = []
        for wanted in resource.spec.api_keys:
            if not wanted.enabled or (wanted.pipeline and wanted.pipeline not in by_name):
                continue
            pipeline = by_name[wanted.pipeline] if wanted.pipeline else PipelineId(0)
            scopes = sum(keys.SCOPE_NAMES[scope] for scope in set(wanted.scopes))
            made.append(
                await self._control.ensure_api_key(
                    row, wanted.name, pipeline, scopes, wanted.generation, wanted.expires_at
                )
            )
        await self._control.revoke_api_keys(row.id, [one.name for one in made])
        revoked, ends = revocations(await self._control.api_keys_of(row.id))
        await provision.publish_revocations(self._journal, row.id, revoked, ends)
        return {
            one.name: keys.text_of(one.key(), self._site.sign_root(row, one.revision))
            for one in made
            if self._site.has_sign_root(row, one.revision)  # of one that expired, it may be gone
        }

    async def limits(self, resource: LogTenant) -> provision.Limits:
        """The tenant's limits; its buffer is at most a share of what the journal may hold, so that
        one tenant whose records are not stored gets 429 before all others get 503."""
        spec = resource.spec
        found = await self._journal.config_get("maxmemory")
        room_bytes = int(found.get("maxmemory") or 0) // BUFFER_SHARE
        buffer_bytes = spec.quotas.buffer_bytes
        return provision.Limits(
            buffer_bytes=min(buffer_bytes, room_bytes) if room_bytes else buffer_bytes,
            records_per_second=spec.quotas.records_per_second,
            bytes_per_second=spec.quotas.bytes_per_second,
            connection_limit=spec.postgres.connection_limit,
        )


def rows_by_object(rows: Sequence[Tenant], cluster: str) -> Mapping[tuple[str, str], Tenant]:
    """Return a cluster's tenants by namespace and name of their LogTenants."""
    return {(one.namespace, one.name): one for one in rows if one.cluster == cluster}
