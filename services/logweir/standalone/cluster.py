"""The operator of `up`: a control schema and a folder of YAML in place of an API server.

    manifests/*.yaml (manifests.py) -> control.objects -> gather -> plan (logweir_operator) -> apply
        making.py: schemas, logins, journal, keys      leaving.py: deletions
        binding files of the roles, keys/, access.json, the objects' status

Level-triggered: each pass compares what is wanted with what is there, and may run again at any
time. A tenant that cannot be made right is tried again later and holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Any, Final

from redis import asyncio as redis

from logweir.backends import closing, failpoint, provision, redis_client, rotations
from logweir.backends.control import ApiKeyRow, Pipeline, StoredObject, Tenant, revocations
from logweir.backends.rotations import LiveRevision, Rotations
from logweir.core import errors, states
from logweir.core.binding import CollectorBinding, Login
from logweir.core.names import PipelineId, TenantId
from logweir.runtime import life, logs, web
from logweir.runtime.settings import Settings
from logweir.standalone import bindings, cluster_files, objects, roots, rotating
from logweir.standalone.bindings import Served, Site
from logweir.standalone.cluster_files import TenantKeys
from logweir.standalone.folder import Folder, read_json, write_json
from logweir.standalone.leaving import Leaver
from logweir.standalone.making import Maker, Wanted, rows_by_object
from logweir.standalone.manifests import Manifests
from logweir.standalone.measuring import Measures
from logweir.standalone.objects import Live
from logweir.standalone.rotating import Rotator, rotates
from logweir_operator import plan
from logweir_operator.model import LogPipeline, LogTenant
from logweir_operator.plan import SeenPipeline, SeenTenant, Verdict

logger = logging.getLogger(__name__)

PASS_S: Final = 1.0
TELL_AGAIN_S: Final = 60.0

SPREAD_S: Final = 12.0
"""After which every process has what binding files and rows say: the keeper, the slowest, reads
its rows every 10 s."""

Rows = Mapping[tuple[str, str], Tenant]
"""Tenants by namespace and name of their LogTenants."""


class Cluster:
    """Reconciles the resources of one `up`."""

    def __init__(
        self,
        folder: Folder,
        site: Site,
        journal_operator: Login,
        url: str,
        spread_s: float = SPREAD_S,
    ) -> None:
        self._folder = folder
        self._site = site
        self._url = url
        self._conninfo = roots.conninfo(site)
        self._control = Rotations(self._conninfo)
        self._journal: redis.Redis = redis_client.client(site.journal, journal_operator)
        self._manifests = Manifests(folder, self._control)
        self._maker = Maker(self._control, self._journal, site, self._conninfo)
        self._tell_at_s = 0.0
        self._measures = Measures(self._control, self._journal)
        self._leaver = Leaver(self._control, self._journal, self._conninfo)
        self._root_keys = roots.RootKeys(folder, self._control, self._journal, spread_s)
        self._rotator = Rotator(self._control, self._journal, self._maker, spread_s)

    async def bootstrap(self, superuser: str) -> None:
        """Make what all tenants share, and refuse servers that would break the promise.

        Raises:
            SetupError: a server's settings are wrong.
            UnavailableError: a server does not answer.
        """
        site = self._site
        await asyncio.to_thread(provision.bootstrap_store, superuser, site.roots, site.version)
        await asyncio.to_thread(closing.close_other_databases, superuser, provision.DATABASE)
        failpoint.reach("operator.before_migration")
        await asyncio.to_thread(provision.upgrade_control, self._conninfo)
        failpoint.reach("operator.before_library")
        await provision.bootstrap_journal(self._journal)
        await provision.bootstrap_auth_user(self._journal, site.roots, site.before())
        provision.check(await provision.journal_problems(self._journal))
        provision.check(await asyncio.to_thread(provision.store_problems, self._conninfo))

    async def close(self) -> None:
        """Close all connections."""
        await self._control.close()
        await self._journal.aclose()

    # ---- one pass ----------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Bring everything one step closer to what the resources say.

        Raises:
            UnavailableError: the control schema does not answer.
            SetupError: a file cannot be written.
        """
        await self._manifests.take()
        found = await self._control.objects()
        rows = rows_by_object(await self._control.tenants())
        gone = await self._leaver.go_on(found, rows, await self._control.pipelines())
        for one in gone:
            self._maker.forget(objects.key_of(one))
        found = [one for one in found if one not in gone]
        live, wrong = objects.read(one for one in found if one.deleted_at is None)
        await self._maker.make(_wanted(live, rows))
        await self._rotate(live)
        rows = rows_by_object(await self._control.tenants())
        await self._measures.follow(one for one in rows.values() if _is_made(one))
        pipelines = await self._control.pipelines()
        planned = plan.plan(self._gather(live, rows, pipelines))
        served = _served(planned, rows, pipelines, self._collected())
        # Read after all steps: a key made before a Sign must not be missing in what comes after.
        self._write_bindings(served, await self._control.live_revisions())
        self._write_keys(found, live, rows, served)
        verdicts = {
            **planned.verdicts,
            **{key: Verdict("InvalidSpec", why, is_stalled=True) for key, why in wrong.items()},
            **{
                key: Verdict("Deleting", self._leaver.waits_for(key))
                for one in found
                if one.deleted_at is not None and (key := objects.key_of(one))
            },
        }
        await self._tell_again(rows)
        for one in found:
            await self._set_status(one, verdicts.get(objects.key_of(one)), rows, served)

    async def _tell_again(self, rows: Rows) -> None:
        """Tell all journals now and then which keys are revoked, as the role auth does: ingest
        trusts no key when nobody has for long, and either of the two is enough."""
        now_s = time.monotonic()
        if now_s < self._tell_at_s:
            return
        by_tenant: dict[TenantId, list[ApiKeyRow]] = {
            one.id: [] for one in rows.values() if _is_made(one)
        }
        for key in await self._control.api_keys():
            by_tenant.get(key.tenant, []).append(key)
        for tenant, found in by_tenant.items():
            await provision.publish_revocations(self._journal, tenant, *revocations(found))
        self._tell_at_s = now_s + TELL_AGAIN_S

    @property
    def is_between_roots(self) -> bool:
        """Whether a change of the roots was cut off, and `bootstrap` must put it right."""
        return self._root_keys.is_between

    async def _rotate(self, live: Sequence[Live]) -> None:
        """Take the next step of each rotation."""
        requests = await self._control.requests()
        revisions = await self._control.live_revisions()
        rows = await self._control.tenants()
        by_object = rows_by_object(rows)
        tenants = [
            (one.resource, row)
            for one in live
            if isinstance(one.resource, LogTenant)
            and (row := by_object.get((one.stored.namespace, one.stored.name)))
        ]
        moving = [row.id for resource, row in tenants if rotates(resource, row)]
        site = await self._root_keys.turn(
            self._site, rows, revisions, moving, requests.get(rotations.ROOTS)
        )
        if site is not self._site:
            self._use(site)
        await self._rotator.turn(tenants, site, requests, self._root_keys.overlap_s)

    def _use(self, site: Site) -> None:
        """Have other roots, and the operator's password of them, from now on."""
        self._site, self._conninfo = site, roots.conninfo(site)
        self._control.use(self._conninfo)
        self._maker.use(site, self._conninfo)
        self._leaver.use(self._conninfo)

    def _gather(self, live: Sequence[Live], rows: Rows, pipelines: Sequence[Pipeline]) -> plan.Seen:
        ids = {(one.tenant, one.name): one.id for one in pipelines}
        seen_tenants, seen_pipelines = [], []
        for one in live:
            namespace, name, resource = one.stored.namespace, one.stored.name, one.resource
            if isinstance(resource, LogTenant):
                row, work = rows.get((namespace, name)), self._maker.work(one.key)
                seen_tenants.append(
                    SeenTenant(
                        resource=resource,
                        tenant=row.id if row else None,
                        is_provisioned=_is_made(row),
                        problem=work.problem,
                        claimed_by_other=work.claimed_by_other,
                    )
                )
                continue
            tenant = resource.spec.tenant_ref.name
            row, work = (
                rows.get((namespace, tenant)),
                self._maker.work(("LogTenant", namespace, tenant)),
            )
            mine = ids.get((row.id, name)) if row else None
            seen_pipelines.append(
                SeenPipeline(
                    resource=resource,
                    made_at=one.stored.created_at.timestamp(),
                    pipeline=mine,
                    is_provisioned=mine is not None and _is_made(row),
                    problem=work.problem,
                )
            )
        return plan.Seen(seen_tenants, seen_pipelines)

    # ---- writing -----------------------------------------------------------------------------

    def _collected(self) -> set[PipelineId]:
        """The pipelines that collectors were told of last: their journals may hold records."""
        try:
            last = read_json(self._folder.bindings / "collector.json", CollectorBinding)
        except errors.SetupError:
            return set()
        return {one.id for tenant in last.tenants for one in tenant.pipelines}

    def _write_bindings(self, served: Sequence[Served], live: Sequence[LiveRevision]) -> None:
        site, folder = self._site, self._folder.bindings
        revisions: dict[TenantId, set[int]] = {}
        for one in live:
            if one.is_ingest:
                revisions.setdefault(one.tenant, set()).add(one.revision)
        write_json(folder / "ingest.json", bindings.ingest(served, site, revisions))
        write_json(folder / "collector.json", bindings.collector(served, site))
        write_json(folder / "query.json", bindings.query(site))
        write_json(folder / "keeper.json", bindings.keeper(site))
        write_json(folder / "auth.json", bindings.auth(site))

    def _write_keys(
        self,
        found: Sequence[StoredObject],
        live: Sequence[Live],
        rows: Rows,
        served: Sequence[Served],
    ) -> None:
        """Write the keys of tenants that are made; those of others stay until these are gone."""
        tenants = []
        for one in live:
            row, work = rows.get((one.stored.namespace, one.stored.name)), self._maker.work(one.key)
            if not isinstance(one.resource, LogTenant) or row is None or not work.done:
                continue
            tenants.append(
                TenantKeys(
                    tenant=row.id,
                    name=one.stored.name,
                    namespace=one.stored.namespace,
                    url=f"{self._url}/t/{row.id}",
                    pipelines=[
                        s.pipeline.name for s in served if s.tenant.id == row.id and s.is_open
                    ],
                    keys=work.key_texts,
                    only_for={
                        key.name: key.pipeline
                        for key in one.resource.spec.api_keys
                        if key.pipeline and key.name in work.key_texts
                    },
                )
            )
        kept = {
            cluster_files.file_name(one.namespace, one.name)
            for one in found
            if one.kind == "LogTenant"
        }
        cluster_files.write(self._folder, tenants, kept, self._manifests.problems)

    async def _set_status(
        self,
        one: StoredObject,
        verdict: Verdict | None,
        rows: Rows,
        served: Sequence[Served],
    ) -> None:
        status: dict[str, Any] = {
            "observedGeneration": one.generation,
            "conditions": _dated(plan.conditions(verdict, one.generation), one.status),
        }
        row = rows.get((one.namespace, one.name))
        if one.kind == "LogTenant" and row is not None:
            status["tenantId"] = row.id
            status["credentials"] = rotating.status_of(one.spec, row, self._rotator.problem(row.id))
            if storage := self._measures.status(row.id):
                status["storage"] = storage
        for each in served:
            if one.kind == "LogPipeline" and each.resource is not None and _is(each.resource, one):
                status["pipelineId"] = each.pipeline.id
                status["url"] = f"{self._url}/t/{each.tenant.id}/{each.pipeline.name}"
        if status != one.status:
            await self._control.set_object_status(one.kind, one.namespace, one.name, status)


def _is_made(row: Tenant | None) -> bool:
    return row is not None and row.state in states.MADE


def _is(resource: LogPipeline, one: StoredObject) -> bool:
    return (resource.metadata.namespace, resource.metadata.name) == (one.namespace, one.name)


def _dated(conditions: list[dict[str, Any]], before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add to each condition since when it has its status."""
    old = {one["type"]: one for one in before.get("conditions", ())}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for one in conditions:
        last = old.get(one["type"], {})
        is_same = last.get("status") == one["status"]
        one["lastTransitionTime"] = last.get("lastTransitionTime", now) if is_same else now
    return conditions


def _wanted(live: Sequence[Live], rows: Rows) -> list[Wanted]:
    """Each LogTenant with the pipelines that refer to it."""
    pipelines: dict[tuple[str, str], list[tuple[str, LogPipeline]]] = {}
    for one in live:
        if isinstance(one.resource, LogPipeline) and not one.resource.spec.suspend:
            at = (one.stored.namespace, one.resource.spec.tenant_ref.name)
            pipelines.setdefault(at, []).append((one.stored.name, one.resource))
    return [
        Wanted(one, one.resource, _is_made(rows.get(at)), pipelines.get(at, []))
        for one in live
        if isinstance(one.resource, LogTenant) and (at := (one.stored.namespace, one.stored.name))
    ]


def _served(
    planned: plan.Plan, tenants: Rows, pipelines: Sequence[Pipeline], collected: Set[PipelineId]
) -> list[Served]:
    """What roles serve: planned pipelines; to collectors also those that were open once, whatever
    is wrong with them now, until they are deleted: their journals may hold records."""
    rows = {one.id: one for one in pipelines}
    by_tenant = {one.id: one for one in tenants.values()}
    served = []
    for one in planned.served:
        row = rows.get(one.pipeline) if one.pipeline is not None else None
        if row is not None and row.tenant in by_tenant:
            served.append(Served(by_tenant[row.tenant], row, one.resource, is_open=True))
    open_ids = {one.pipeline.id for one in served}
    for row in rows.values():
        tenant = by_tenant.get(row.tenant)
        if row.id in open_ids or tenant is None or tenant.state not in states.COLLECTED:
            continue
        if row.id in collected:
            served.append(Served(tenant, row, None, is_open=False))
    return served


async def run(cluster: Cluster, superuser: str, settings: Settings, running: life.Life) -> None:
    """Reconcile until the process is told to stop."""
    running.expect("servers", "resources")
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(web.serve_ops(settings.ops, running))
            tasks.create_task(_reconcile(cluster, superuser, running))
    finally:
        await cluster.close()


async def _reconcile(cluster: Cluster, superuser: str, running: life.Life) -> None:
    is_bootstrapped, problem = False, ""
    while not running.stopping.is_set():
        part = "resources" if is_bootstrapped else "servers"
        try:
            if not is_bootstrapped:
                await cluster.bootstrap(superuser)
                is_bootstrapped = True
                running.report("servers")
            await cluster.reconcile()
            running.report("resources")
            problem = ""
        except errors.LogweirError as error:
            running.report(part, str(error))
        except Exception as error:
            if repr(error) != problem:  # else it is in the log already
                logger.exception("pass failed")
            problem = repr(error)
            running.report(part, problem)
        is_bootstrapped = is_bootstrapped and not cluster.is_between_roots
        await running.pause(PASS_S)


def main(cluster: Callable[[], Cluster], superuser: str, settings: Settings) -> None:
    """Run the reconciler in this process until SIGTERM."""
    logs.configure("operator", settings.log_format)
    life.run(lambda running: run(cluster(), superuser, settings, running))
