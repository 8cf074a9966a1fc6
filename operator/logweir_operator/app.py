"""The operator in Kubernetes: takes the Lease, watches, and brings all closer to what is wanted.

    watching (kopf) -> knowing (cache) --keys--> queue -> passes -> children, status, events
                            |                      ^
                            +-> turns (databases) -+- scaler (journals)

Each part runs until the process stops; one that fails ends the process, and the pod begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from typing import Final

from redis import asyncio as redis

from logweir.backends import redis_client
from logweir.backends.rotations import Rotations
from logweir.core import errors
from logweir.runtime import life, logs, metrics, web
from logweir.runtime.life import Life
from logweir.runtime.settings import Listen
from logweir_operator import kube, watching
from logweir_operator.bindings import Site
from logweir_operator.cache import Cache
from logweir_operator.config import Config, Servers
from logweir_operator.guarding import Guard
from logweir_operator.knowing import Knowing
from logweir_operator.kube import CORE_KINDS, KEDA_KINDS, MONITORING_KINDS, QUOTA_KINDS, ROUTE_KINDS
from logweir_operator.lease import Lease, Terms
from logweir_operator.own_secrets import RoleSecrets, SecretVault
from logweir_operator.passes import Passes
from logweir_operator.resources import Key
from logweir_operator.roots import conninfo, site_of
from logweir_operator.scaler import Scaler
from logweir_operator.tenancy import Tenancy
from logweir_operator.turns import Turns
from logweir_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

SERVED_S: Final = 60.0
"""How often the API server is asked which optional kinds it knows."""

GAUGES_S: Final = 5.0
MOVED_S: Final = 5.0
RETRY_S: Final = 3.0


def kinds_of(config: Config) -> list[str]:
    """Return the kinds of children that the configuration lets the operator have."""
    features = config.features
    return [
        *CORE_KINDS,
        *(QUOTA_KINDS if features.namespace_quota else ()),
        *(ROUTE_KINDS if features.http_routes else ()),
        *(KEDA_KINDS if features.keda else ()),
        *(MONITORING_KINDS if features.monitoring else ()),
    ]


class Operator:
    """All parts of one operator, over one API server and one pair of databases."""

    def __init__(self, config: Config, access: kube.Access, api: kube.Kube) -> None:
        self._config = config
        self._access = access
        self._kube = api
        self._kinds = kinds_of(config)
        self._served: frozenset[str] = frozenset()

    async def run(self, running: Life) -> None:
        """Run until the process stops.

        Raises:
            Lost: another operator has the Lease.
        """
        config = self._config
        terms = Terms(
            namespace=config.namespace,
            name=config.lease.name or f"{config.release}-operator",
            duration_s=config.lease.duration_s,
            renew_s=config.lease.renew_s,
            retry_s=config.lease.retry_s,
        )
        # A container that is started again has the name and the process id of its predecessor.
        lease = Lease(self._kube, terms, f"{socket.gethostname()}-{secrets.token_hex(4)}")
        running.expect("lease", "resources", "databases")
        if not await lease.take(lambda why: running.report("lease", why), running):
            return
        metrics.OPERATOR_LEADER.set(1)
        async with asyncio.TaskGroup() as tasks:
            done = asyncio.Event()
            tasks.create_task(_keep(lease, done, running))
            await self._reconcile(running)
            done.set()

    async def _reconcile(self, running: Life) -> None:
        servers = self._config.servers()
        vault = SecretVault(self._kube, self._config.namespace, self._config.release)
        site: Site | None = None
        while site is None:
            try:
                site = site_of(servers.store, servers.journal, await vault.read())
            except errors.LogweirError as error:
                running.report("databases", str(error))
                if await running.pause(RETRY_S):
                    return
        control = Rotations(conninfo(site))
        journal = redis_client.client(servers.journal, servers.journal_login)
        tenancy = Tenancy(
            self._config.cluster, site, control, journal, vault, self._config.spread_s
        )
        try:
            await self._with(running, tenancy, control, journal, servers)
        finally:
            await control.close()
            await journal.aclose()

    async def _with(
        self,
        running: Life,
        tenancy: Tenancy,
        control: Rotations,
        journal: redis.Redis,
        servers: Servers,
    ) -> None:
        config, known = self._config, Cache()
        queue: WorkQueue[Key] = WorkQueue(lambda key: passes.work(key), config.workers)
        roles = RoleSecrets(self._kube, config.namespace, config.release, servers)
        turns = Turns(tenancy, control, known, roles, queue.add, lambda one: passes.let_go(one))
        scaler = Scaler(journal, lambda: passes.scaled(), queue.add)
        passes = Passes(config, self._kube, known, turns, scaler, servers, lambda: self._served)
        knowing = Knowing(
            self._kube, known, config.scope.namespaces, self._kinds, queue.add, turns.changed
        )
        guard = Guard(
            self._kube, known, config.scope.namespaces, f"{config.release}-operator-resources"
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                watching.watch(
                    self._access,
                    config.scope.namespaces,
                    self._kinds,
                    knowing.seen,
                    running.stopping,
                )
            )
            tasks.create_task(knowing.run(config.resync_s, running))
            tasks.create_task(self._look_at_served(running, known, queue))
            tasks.create_task(_show(running, queue, turns))
            tasks.create_task(_end_when_moved(config, servers, running))
            if await running.pause_until(knowing.is_synced, float("inf")):
                return
            running.report("resources")
            working = [
                tasks.create_task(part)
                for part in (queue.run(), turns.run(running), scaler.run(running))
            ]
            tasks.create_task(guard.run(running))
            await running.stopping.wait()
            # All of it may be cut off anywhere, and a pass over slow servers takes minutes.
            await life.end(*working)

    async def _look_at_served(self, running: Life, known: Cache, queue: WorkQueue[Key]) -> None:
        """Know which optional kinds there are; when that changes, all resources may differ."""
        while not running.stopping.is_set():
            try:
                served = await self._kube.served() & frozenset(self._kinds)
            except kube.KubeError as error:
                logger.warning("kinds not looked at", extra={"problem": str(error)})
            else:
                if served != self._served:
                    self._served = served
                    logger.info("kinds served", extra={"kinds": sorted(served)})
                    for key in known.resources:
                        queue.add(key)
            await running.pause(SERVED_S)


async def _keep(lease: Lease, done: asyncio.Event, running: Life) -> None:
    try:
        await lease.keep(done)
    except BaseException:
        # A cancellation may be swallowed (redis-py), this is not: who lost the Lease must end.
        running.stopping.set()
        raise


async def _end_when_moved(config: Config, servers: Servers, running: Life) -> None:
    """End the process when the mounted Secrets say something else: another password, address or
    certificate is of everything, so all begins anew."""
    while not await running.pause(MOVED_S):
        try:
            now = config.servers()
        except errors.SetupError:
            continue  # it is being written
        if now != servers:
            logger.info("the servers' Secrets have changed; the process begins anew")
            running.stopping.set()


async def _show(running: Life, queue: WorkQueue[Key], turns: Turns) -> None:
    while not running.stopping.is_set():
        metrics.OPERATOR_QUEUE_DEPTH.set(len(queue))
        metrics.OPERATOR_QUEUE_OLDEST_SECONDS.set(queue.oldest_s())
        if turns.is_begun:
            running.report("databases", turns.problem)
        await running.pause(GAUGES_S)


async def run(config: Config, kubeconfig: str, ops: Listen, running: Life) -> None:
    """Run the operator, and its page of metrics, until the process is told to stop."""
    access = await kube.access(kubeconfig)
    api = kube.Kube(access)
    try:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(web.serve_ops(ops, running))
            await Operator(config, access, api).run(running)
            running.stopping.set()
            await serving
    finally:
        await api.close()


def main(config: Config, kubeconfig: str, ops: Listen) -> None:
    """Run the operator in this process until SIGTERM."""
    life.share_one_heap()
    logs.configure("operator", config.log_format)
    life.run(lambda running: run(config, kubeconfig, ops, running))
