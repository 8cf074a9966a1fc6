"""The operator of `up`: a control schema and a folder of YAML in place of an API server.

    manifests/*.yaml, control.objects -> gather -> plan (logweir_operator) -> apply
        schemas, logins, journal (backends.provision), binding files, keys/, objects' status

Level-triggered: each pass compares what is wanted with what is there, and may run again at any
time. A tenant that cannot be made right is tried again later and holds up no other.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from redis import asyncio as redis

from logweir.backends import deprovision, provision, redis_client, store
from logweir.backends.control import (
    Control,
    IdentityClaimedError,
    Pipeline,
    StoredObject,
    Tenant,
)
from logweir.core import errors, keys
from logweir.core.binding import Login
from logweir.core.names import PipelineId, TenantId
from logweir.runtime import life, logs, web
from logweir.runtime.settings import Settings
from logweir.standalone import bindings, objects
from logweir.standalone.bindings import Served, Site
from logweir.standalone.cluster_files import Access, TenantKeys
from logweir.standalone.folder import Folder, write_json
from logweir_operator import manifest, model, plan
from logweir_operator.model import LogPipeline, LogTenant
from logweir_operator.plan import SeenPipeline, SeenTenant, Verdict

logger = logging.getLogger(__name__)

CLUSTER: Final = "up"
PASS_S: Final = 1.0
RETRY_S: Final = (1.0, 30.0)

_SCOPES: Final = {"ingest": keys.SCOPE_INGEST, "query": keys.SCOPE_QUERY, "admin": keys.SCOPE_ADMIN}


class _Work(msgspec.Struct, eq=False):
    """What is known of one LogTenant between passes."""

    done: str = ""
    problem: str = ""
    failures: int = 0
    retry_at_s: float = 0.0
    claimed_by_other: bool = False
    key_texts: dict[str, str] = {}


class Cluster:
    """Reconciles the resources of one `up`."""

    def __init__(self, folder: Folder, site: Site, journal_operator: Login, url: str) -> None:
        self._folder = folder
        self._site = site
        self._url = url
        self._conninfo = store.conninfo(
            site.store, site.login(provision.OPERATOR), "logweir operator"
        )
        self._control = Control(self._conninfo)
        self._redis: redis.Redis = redis_client.client(site.journal, journal_operator)
        self._works: dict[objects.Key, _Work] = {}
        self._seen_files: dict[str, str] = {}
        self._file_problems: dict[str, str] = {}

    async def bootstrap(self, superuser: str) -> None:
        """Make what all tenants share, and refuse servers that would break the promise.

        Raises:
            SetupError: a server's settings are wrong.
            UnavailableError: a server does not answer.
        """
        await asyncio.to_thread(provision.bootstrap_store, superuser, self._site.roots)
        await asyncio.to_thread(provision.upgrade_control, self._conninfo)
        await provision.bootstrap_journal(self._redis)
        provision.check(await provision.journal_problems(self._redis))
        provision.check(await asyncio.to_thread(provision.store_problems, self._conninfo))

    async def close(self) -> None:
        """Close all connections."""
        await self._control.close()
        await self._redis.aclose()

    # ---- manifests ---------------------------------------------------------------------------

    async def take_manifests(self) -> None:
        """Apply each file of the folder whose content has changed since it was applied."""
        applied_path = self._folder.path / "applied.json"
        if not self._seen_files and applied_path.exists():
            self._seen_files = msgspec.json.decode(applied_path.read_bytes(), type=dict[str, str])
        found = sorted(
            path
            for path in self._folder.manifests.iterdir()
            if path.suffix in (".yaml", ".yml") and path.is_file()
        )
        for path in found:
            try:
                content = path.read_bytes()
            except OSError as error:
                self._file_problems[path.name] = f"{path.name}: {error.strerror}"
                continue
            digest = hashlib.sha256(content).hexdigest()
            if self._seen_files.get(path.name) != digest:
                await self._take_manifest(path, content, digest)
                write_json(applied_path, self._seen_files)
        for name in self._file_problems.keys() - {path.name for path in found}:
            del self._file_problems[name]

    async def _take_manifest(self, path: Path, content: bytes, digest: str) -> None:
        """Apply one file, or remember why it cannot be; a wrong one is looked at once."""
        try:
            resources = manifest.read(content.decode("utf-8", "replace"), path.name)
            applied = await objects.apply(
                self._control, resources, source=path.name, source_hash=digest
            )
        except manifest.ManifestError as error:
            self._file_problems[path.name] = error.message
            logger.error("manifest refused", extra={"file": path.name, "why": error.message})
        else:
            self._file_problems.pop(path.name, None)
            logger.info("manifest applied", extra={"what": ", ".join(map(str, applied))})
        self._seen_files[path.name] = digest

    # ---- one pass ----------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Bring everything one step closer to what the resources say.

        Raises:
            UnavailableError: the control schema does not answer.
        """
        await self.take_manifests()
        found = await self._control.objects()
        live = [one for one in found if one.deleted_at is None]
        await self._make_tenants(live)
        await self._delete([one for one in found if one.deleted_at is not None], live)
        tenants = {(one.namespace, one.name): one for one in await self._tenants()}
        pipelines = {(one.tenant, one.name): one for one in await self._control.pipelines()}
        seen = self._gather(live, tenants, pipelines)
        planned = plan.plan(seen)
        served = _served(found, planned, tenants, pipelines)
        self._write_bindings(served)
        self._write_keys(live, tenants, served)
        for one in live:
            await self._set_status(one, planned.verdicts.get(objects.key_of(one)), tenants, served)

    async def _tenants(self) -> list[Tenant]:
        return [one for one in await self._control.tenants() if one.cluster == CLUSTER]

    def _gather(
        self,
        live: Sequence[StoredObject],
        tenants: dict[tuple[str, str], Tenant],
        pipelines: dict[tuple[TenantId, str], Pipeline],
    ) -> plan.Seen:
        seen_tenants, seen_pipelines = [], []
        for one in live:
            resource = objects.resource_of(one)
            work = self._works.get(objects.key_of(one), _Work())
            if isinstance(resource, LogTenant):
                row = tenants.get((one.namespace, one.name))
                seen_tenants.append(
                    SeenTenant(
                        resource=resource,
                        tenant=row.id if row else None,
                        is_provisioned=bool(work.done),
                        problem=work.problem,
                        claimed_by_other=work.claimed_by_other,
                    )
                )
                continue
            row = tenants.get((one.namespace, resource.spec.tenant_ref.name))
            mine = pipelines.get((row.id, one.name)) if row else None
            seen_pipelines.append(
                SeenPipeline(
                    resource=resource,
                    made_at=one.created_at.timestamp(),
                    pipeline=mine.id if mine else None,
                    is_provisioned=mine is not None and bool(self._work_of(one, resource).done),
                    problem=self._work_of(one, resource).problem,
                )
            )
        return plan.Seen(seen_tenants, seen_pipelines)

    def _work_of(self, one: StoredObject, resource: LogPipeline) -> _Work:
        """What is known of the tenant that a pipeline belongs to."""
        return self._works.get(("LogTenant", one.namespace, resource.spec.tenant_ref.name), _Work())

    # ---- making ------------------------------------------------------------------------------

    async def _make_tenants(self, live: Sequence[StoredObject]) -> None:
        for one in live:
            resource = objects.resource_of(one)
            if not isinstance(resource, LogTenant) or resource.spec.suspend:
                continue
            work = self._works.setdefault(objects.key_of(one), _Work())
            own = [
                (other, pipeline)
                for other in live
                if isinstance(pipeline := objects.resource_of(other), LogPipeline)
                and other.namespace == one.namespace
                and pipeline.spec.tenant_ref.name == one.name
                and not pipeline.spec.suspend
            ]
            if time.monotonic() >= work.retry_at_s:
                await self._make_tenant(one, resource, own, work)

    async def _make_tenant(
        self,
        one: StoredObject,
        resource: LogTenant,
        own: Sequence[tuple[StoredObject, LogPipeline]],
        work: _Work,
    ) -> None:
        wanted = _fingerprint(one, [other for other, _ in own])
        if work.done == wanted:
            return
        try:
            await self._provision(one, resource, own, work)
        except IdentityClaimedError as error:
            work.claimed_by_other, work.problem = True, error.message
        except Exception as error:
            work.claimed_by_other, work.problem = False, str(error)
            logger.exception("tenant failed", extra={"tenant": one.name})
        else:
            work.claimed_by_other, work.problem, work.failures = False, "", 0
            work.done = wanted
            logger.info("tenant is as it should be", extra={"tenant": one.name})
            return
        low, high = RETRY_S
        work.retry_at_s = time.monotonic() + min(high, low * 2**work.failures)
        work.failures = min(work.failures + 1, 10)

    async def _provision(
        self,
        one: StoredObject,
        resource: LogTenant,
        own: Sequence[tuple[StoredObject, LogPipeline]],
        work: _Work,
    ) -> None:
        spec = resource.spec
        row = next(
            (
                r
                for r in await self._tenants()
                if (r.namespace, r.name) == (one.namespace, one.name)
            ),
            None,
        )
        wanted_id = spec.tenant_id or (row.id if row else plan.generated_tenant_id(os.urandom(16)))
        row = await self._control.claim_tenant(
            TenantId(wanted_id), CLUSTER, one.namespace, one.name
        )
        if spec.tenant_id and row.id != spec.tenant_id:
            raise IdentityClaimedError(f"This LogTenant has the id {row.id!r} already.")
        state = "readonly" if spec.read_only else "active"
        await self._control.set_tenant(row.id, state, spec.retention.days, one.spec)
        row = next(r for r in await self._tenants() if r.id == row.id)
        pipelines = [
            await self._control.ensure_pipeline(
                row.id, other.name, pipeline.spec.retention.days or spec.retention.days, other.spec
            )
            for other, pipeline in own
        ]
        limits = provision.Limits(
            buffer_bytes=spec.quotas.buffer_bytes,
            records_per_second=spec.quotas.records_per_second,
            bytes_per_second=spec.quotas.bytes_per_second,
            connection_limit=spec.postgres.connection_limit,
        )
        roots = self._site.roots
        await asyncio.to_thread(provision.provision_store, self._conninfo, row, roots, limits)
        await provision.provision_journal(self._redis, row, pipelines, roots, limits)
        work.key_texts = await self._make_keys(row, resource, pipelines)

    async def _make_keys(
        self, row: Tenant, resource: LogTenant, pipelines: Sequence[Pipeline]
    ) -> dict[str, str]:
        """Make the keys that the tenant's resource names, revoke all others; return their texts."""
        by_name = {one.name: one.id for one in pipelines}
        texts = {}
        for wanted in resource.spec.api_keys:
            if not wanted.enabled or (wanted.pipeline and wanted.pipeline not in by_name):
                continue
            pipeline = by_name[wanted.pipeline] if wanted.pipeline else PipelineId(0)
            scopes = sum(_SCOPES[scope] for scope in set(wanted.scopes))
            made = await self._control.ensure_api_key(
                row, wanted.name, pipeline, scopes, wanted.generation, wanted.expires_at
            )
            texts[wanted.name] = self._key_text(made.key())
        await self._control.revoke_api_keys(row.id, list(texts))
        revoked = [
            one.id
            for one in await self._control.api_keys()
            if one.tenant == row.id and one.revoked_at is not None
        ]
        await provision.publish_revocations(self._redis, row.id, revoked)
        return texts

    def _key_text(self, key: keys.ApiKey) -> str:
        sign = self._site.roots.sign
        if key.is_ingest:
            return keys.encode(key, keys.ingest_secret(sign, key.tenant, key.revision))
        return keys.encode(key, keys.access_secret(sign, key.revision))

    # ---- deleting ----------------------------------------------------------------------------

    async def _delete(self, leaving: Sequence[StoredObject], live: Sequence[StoredObject]) -> None:
        """Go on with deletions: a pipeline drains first, a tenant waits for its pipelines."""
        rows = {(one.namespace, one.name): one for one in await self._tenants()}
        for one in leaving:
            resource = objects.resource_of(one)
            try:
                if isinstance(resource, LogPipeline):
                    row = rows.get((one.namespace, resource.spec.tenant_ref.name))
                    await self._delete_pipeline(one, row)
                else:
                    await self._delete_tenant(one, resource, rows, [*live, *leaving])
            except Exception:
                logger.exception("deletion failed", extra={"kind": one.kind, "object": one.name})

    async def _delete_pipeline(self, one: StoredObject, row: Tenant | None) -> None:
        pipelines = await self._control.pipelines()
        mine = [p for p in pipelines if row and p.tenant == row.id and p.name == one.name]
        for pipeline in mine:
            if await deprovision.backlog(self._redis, pipeline.tenant, [pipeline.id]):
                return  # collectors drain it; the next pass looks again
            await self._control.delete_pipeline(pipeline.id)
            await deprovision.drop_pipeline(self._redis, pipeline.tenant, pipeline.id)
        await self._control.purge_object(one.kind, one.namespace, one.name)
        logger.info("pipeline deleted", extra={"pipeline": one.name})

    async def _delete_tenant(
        self,
        one: StoredObject,
        resource: LogTenant,
        rows: dict[tuple[str, str], Tenant],
        others: Sequence[StoredObject],
    ) -> None:
        if any(
            isinstance(pipeline := objects.resource_of(other), LogPipeline)
            and other.namespace == one.namespace
            and pipeline.spec.tenant_ref.name == one.name
            for other in others
        ):
            return
        row = rows.get((one.namespace, one.name))
        self._works.pop(objects.key_of(one), None)
        if row is not None:
            await self._control.set_tenant(row.id, "deleting", row.retention_days, one.spec)
            await deprovision.close_journal(self._redis, row.id)
            await self._control.revoke_api_keys(row.id, [])
            if resource.spec.deletion_policy == "Delete":
                await deprovision.drop_journal(self._redis, row.id)
                await asyncio.to_thread(deprovision.drop_store, self._conninfo, row.id)
                await self._control.set_tenant_deleted(row.id)
        self._keys_path(one).unlink(missing_ok=True)
        await self._control.purge_object(one.kind, one.namespace, one.name)
        logger.info("tenant deleted", extra={"tenant": one.name})

    # ---- writing -----------------------------------------------------------------------------

    def _write_bindings(self, served: Sequence[Served]) -> None:
        site, folder = self._site, self._folder.bindings
        write_json(folder / "ingest.json", bindings.ingest(served, site))
        write_json(folder / "collector.json", bindings.collector(served, site))
        write_json(folder / "query.json", bindings.query(site))
        write_json(folder / "keeper.json", bindings.keeper(site))

    def _keys_path(self, one: StoredObject) -> Path:
        return self._folder.keys / f"{one.namespace}.{one.name}.json"

    def _write_keys(
        self,
        live: Sequence[StoredObject],
        tenants: dict[tuple[str, str], Tenant],
        served: Sequence[Served],
    ) -> None:
        """Write each tenant's keys, and the first usable ones for `logweir status`."""
        first: Access | None = None
        for one in live:
            row = tenants.get((one.namespace, one.name))
            work = self._works.get(objects.key_of(one))
            if one.kind != "LogTenant" or row is None or work is None or not work.done:
                continue
            names = [s.pipeline.name for s in served if s.tenant.id == row.id and s.is_open]
            write_json(
                self._keys_path(one),
                TenantKeys(
                    tenant=row.id,
                    name=one.name,
                    namespace=one.namespace,
                    url=f"{self._url}/t/{row.id}",
                    pipelines=names,
                    keys=work.key_texts,
                ),
            )
            if first is None and names:
                first = self._access(row.id, names[0], work.key_texts)
        found = first or Access()
        problems = list(self._file_problems.values())
        write_json(
            self._folder.path / "access.json", msgspec.structs.replace(found, problems=problems)
        )

    def _access(self, tenant: TenantId, pipeline: str, texts: dict[str, str]) -> Access:
        def key(prefix: str) -> str:
            return next((text for text in texts.values() if text.startswith(prefix)), "")

        return Access(
            tenant=tenant,
            pipeline=pipeline,
            ingest_url=f"{self._url}/t/{tenant}/{pipeline}/ingest",
            ingest_key=key(keys.INGEST_PREFIX),
            query_key=key(keys.ACCESS_PREFIX),
        )

    async def _set_status(
        self,
        one: StoredObject,
        verdict: Verdict | None,
        tenants: dict[tuple[str, str], Tenant],
        served: Sequence[Served],
    ) -> None:
        status: dict[str, Any] = {
            "observedGeneration": one.generation,
            "conditions": plan.conditions(verdict, one.generation),
        }
        row = tenants.get((one.namespace, one.name))
        if one.kind == "LogTenant" and row is not None:
            status["tenantId"] = row.id
        for each in served:
            if one.kind == "LogPipeline" and each.resource is not None and _is(each.resource, one):
                status["pipelineId"] = each.pipeline.id
                status["url"] = f"{self._url}/t/{each.tenant.id}/{each.pipeline.name}"
        await self._control.set_object_status(one.kind, one.namespace, one.name, status)


def _is(resource: LogPipeline, one: StoredObject) -> bool:
    return (resource.metadata.namespace, resource.metadata.name) == (one.namespace, one.name)


def _fingerprint(tenant: StoredObject, pipelines: Sequence[StoredObject]) -> str:
    """What a tenant's place in the servers depends on."""
    parts = [tenant.spec, sorted((one.name, msgspec.json.encode(one.spec)) for one in pipelines)]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def _served(
    found: Sequence[StoredObject],
    planned: plan.Plan,
    tenants: dict[tuple[str, str], Tenant],
    pipelines: dict[tuple[TenantId, str], Pipeline],
) -> list[Served]:
    """What roles serve: planned pipelines, and for collectors those that still drain."""
    rows = {one.id: one for one in pipelines.values()}
    by_tenant = {one.id: one for one in tenants.values()}
    served = []
    for one in planned.served:
        row = rows.get(one.pipeline) if one.pipeline is not None else None
        if row is not None and row.tenant in by_tenant:
            served.append(Served(by_tenant[row.tenant], row, one.resource, is_open=True))
    open_ids = {one.pipeline.id for one in served}
    leaving = {(one.namespace, one.name) for one in found if one.deleted_at is not None}
    for row in rows.values():
        tenant = by_tenant.get(row.tenant)
        if row.id in open_ids or tenant is None:
            continue
        if (tenant.namespace, row.name) in leaving:
            served.append(Served(tenant, row, None, is_open=False))
    return served


def demo() -> str:
    """Return the manifest that a first start begins with."""
    return f"""\
# The tenant and the pipeline that a first start begins with. A changed file is applied at once;
# 'logweir apply -f FILE' does the same for files elsewhere.
apiVersion: {model.API_VERSION}
kind: LogTenant
metadata:
  name: demo
spec:
  tenantId: demo
  retention:
    days: 30
  apiKeys:
    - name: ingest
      scopes: [ingest]
    - name: query
      scopes: [query]
---
apiVersion: {model.API_VERSION}
kind: LogPipeline
metadata:
  name: default
spec:
  tenantRef:
    name: demo
"""


async def run(cluster: Cluster, superuser: str, settings: Settings, running: life.Life) -> None:
    """Reconcile until the process is told to stop."""
    running.expect("servers", "resources")
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(web.serve(web.ops_app(running), settings.ops, running))
            tasks.create_task(_reconcile(cluster, superuser, running))
    finally:
        await cluster.close()


async def _reconcile(cluster: Cluster, superuser: str, running: life.Life) -> None:
    is_bootstrapped = False
    while not running.stopping.is_set():
        part = "resources" if is_bootstrapped else "servers"
        try:
            if not is_bootstrapped:
                await cluster.bootstrap(superuser)
                is_bootstrapped = True
                running.report("servers")
            await cluster.reconcile()
            running.report("resources")
        except errors.LogweirError as error:
            running.report(part, str(error))
        except Exception as error:
            logger.exception("pass failed")
            running.report(part, repr(error))
        await running.pause(PASS_S)


def main(cluster: Cluster, superuser: str, settings: Settings) -> None:
    """Run the reconciler in this process until SIGTERM."""
    logs.configure("operator", settings.log_format)
    life.run(lambda running: run(cluster, superuser, settings, running))
