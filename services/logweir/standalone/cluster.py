"""The operator of `up`: a control schema and a folder of YAML in place of an API server.

manifests/*.yaml (manifests.py) -> control.objects -> tenancy (logweir_operator) -> Outcome
    -> binding files of the roles, keys/, access.json, the objects' status
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from redis import asyncio as redis

from logweir.backends import redis_client
from logweir.backends.control import StoredObject
from logweir.backends.rotations import Rotations
from logweir.core import errors
from logweir.core.binding import CollectorBinding, Login
from logweir.core.names import PipelineId
from logweir.runtime import life, logs, web
from logweir.runtime.settings import Settings
from logweir.standalone import cluster_files
from logweir.standalone.cluster_files import TenantKeys
from logweir.standalone.folder import Folder, Secrets, read_json, write_json
from logweir.standalone.manifests import Manifests
from logweir.standalone.node_scaling import NodeScaling
from logweir_operator import bindings, plan, roots
from logweir_operator.bindings import Site
from logweir_operator.model import LogPipeline, LogTenant
from logweir_operator.resources import key_of
from logweir_operator.rootsets import RootSecrets
from logweir_operator.tenancy import SPREAD_S, Outcome, Tenancy

logger = logging.getLogger(__name__)

CLUSTER: Final = "up"
PASS_S: Final = 1.0


class FolderVault:
    """The roots in secrets.json."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    async def read(self) -> RootSecrets:
        """Return what secrets.json holds."""
        return self._folder.read_secrets()

    async def write(self, changed: RootSecrets) -> None:
        """Write secrets.json."""
        assert isinstance(changed, Secrets)  # noqa: S101 - what `read` has returned, changed
        self._folder.write_secrets(changed)


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
        self._url = url
        self._control = Rotations(roots.conninfo(site))
        self._journal: redis.Redis = redis_client.client(site.journal, journal_operator)
        self._manifests = Manifests(folder, self._control)
        self._scaling = NodeScaling(folder, self._journal)
        self._tenancy = Tenancy(
            CLUSTER, site, self._control, self._journal, FolderVault(folder), spread_s
        )

    async def bootstrap(self, superuser: str) -> None:
        """Make what all tenants share, and refuse servers that would break the promise.

        Raises:
            SetupError: a server's settings are wrong.
            UnavailableError: a server does not answer.
        """
        await self._tenancy.bootstrap(superuser)

    async def close(self) -> None:
        """Close all connections."""
        await self._control.close()
        await self._journal.aclose()

    async def reconcile(self) -> None:
        """Bring everything one step closer to what the resources say.

        Raises:
            UnavailableError: the control schema does not answer.
            SetupError: a file cannot be written.
        """
        await self._manifests.take()
        found = await self._control.objects()
        collected = self._collected()
        outcome = await self._tenancy.turn(
            found, lambda pipeline, _: pipeline.id in collected, self._purge
        )
        self._write_bindings(outcome)
        self._write_keys(outcome)
        self._scaling.use(outcome.served, _connection_limits(outcome))
        for one in outcome.found:
            await self._set_status(one, outcome)

    async def scale(self, running: life.Life) -> None:
        """Look at the journals, and count collectors, until the process stops."""
        await self._scaling.run(running)

    @property
    def is_between_roots(self) -> bool:
        """Whether a change of the roots was cut off, and `bootstrap` must put it right."""
        return self._tenancy.is_between_roots

    async def _purge(self, one: StoredObject) -> None:
        await self._control.purge_object(*key_of(one))
        logger.info("deleted", extra={"kind": one.kind, "object": one.name})

    # ---- writing -----------------------------------------------------------------------------

    def _collected(self) -> set[PipelineId]:
        """The pipelines that collectors were told of last: their journals may hold records."""
        try:
            last = read_json(self._folder.bindings / "collector.json", CollectorBinding)
        except errors.SetupError:
            return set()
        return {one.id for tenant in last.tenants for one in tenant.pipelines}

    def _write_bindings(self, outcome: Outcome) -> None:
        site, folder, served = self._tenancy.site, self._folder.bindings, outcome.served
        write_json(folder / "ingest.json", bindings.ingest(served, site, outcome.revisions))
        write_json(folder / "collector.json", bindings.collector(served, site))
        write_json(folder / "query.json", bindings.query(site))
        write_json(folder / "keeper.json", bindings.keeper(site))
        write_json(folder / "auth.json", bindings.auth(site))

    def _write_keys(self, outcome: Outcome) -> None:
        """Write the keys of tenants that are made; those of others stay until these are gone."""
        tenants = []
        for one in outcome.live:
            row = outcome.rows.get((one.stored.namespace, one.stored.name))
            texts = self._tenancy.key_texts(one.key)
            if not isinstance(one.resource, LogTenant) or row is None or texts is None:
                continue
            tenants.append(
                TenantKeys(
                    tenant=row.id,
                    name=one.stored.name,
                    namespace=one.stored.namespace,
                    url=f"{self._url}/t/{row.id}",
                    pipelines=[
                        s.pipeline.name
                        for s in outcome.served
                        if s.tenant.id == row.id and s.is_open
                    ],
                    keys=dict(texts),
                    only_for={
                        key.name: key.pipeline
                        for key in one.resource.spec.api_keys
                        if key.pipeline and key.name in texts
                    },
                )
            )
        kept = {
            cluster_files.file_name(one.namespace, one.name)
            for one in outcome.found
            if one.kind == "LogTenant"
        }
        cluster_files.write(self._folder, tenants, kept, self._manifests.problems)

    async def _set_status(self, one: StoredObject, outcome: Outcome) -> None:
        verdict = outcome.verdicts.get(key_of(one))
        conditions = plan.conditions(verdict, one.generation)
        if verdict is None:
            conditions += self._scaling.conditions(one)
        status: dict[str, Any] = {
            "observedGeneration": one.generation,
            "conditions": _dated(conditions, one.status),
        }
        row = outcome.rows.get((one.namespace, one.name))
        if one.kind == "LogTenant" and row is not None:
            status |= self._tenancy.tenant_status(one, row)
        for each in outcome.served:
            if one.kind == "LogPipeline" and each.resource is not None and _is(each.resource, one):
                status["pipelineId"] = each.pipeline.id
                status["url"] = f"{self._url}/t/{each.tenant.id}/{each.pipeline.name}"
                status |= self._scaling.lag(one)
        if status != one.status:
            await self._control.set_object_status(one.kind, one.namespace, one.name, status)


def _is(resource: LogPipeline, one: StoredObject) -> bool:
    return (resource.metadata.namespace, resource.metadata.name) == (one.namespace, one.name)


def _connection_limits(outcome: Outcome) -> set[int]:
    return {
        one.resource.spec.postgres.connection_limit
        for one in outcome.live
        if isinstance(one.resource, LogTenant)
    }


def _dated(conditions: list[dict[str, Any]], before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add to each condition since when it has its status."""
    old = {one["type"]: one for one in before.get("conditions", ())}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for one in conditions:
        last = old.get(one["type"], {})
        is_same = last.get("status") == one["status"]
        one["lastTransitionTime"] = last.get("lastTransitionTime", now) if is_same else now
    return conditions


async def run(cluster: Cluster, superuser: str, settings: Settings, running: life.Life) -> None:
    """Reconcile until the process is told to stop."""
    running.expect("servers", "resources")
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(web.serve_ops(settings.ops, running))
            tasks.create_task(_reconcile(cluster, superuser, running))
            tasks.create_task(cluster.scale(running))
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
                part = "resources"
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
