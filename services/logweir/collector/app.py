"""Collector: drains the journals of the tenants in its binding into their stores.

One worker a tenant (worker.py), each with the tenant's own two logins. When the binding changes,
the workers whose tenant changed end after storing what they hold, and new ones begin.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from logweir.collector.buffer import Held
from logweir.collector.worker import Worker
from logweir.core.binding import CollectorBinding, CollectorTenant
from logweir.core.names import TenantId
from logweir.runtime import bindings, life, logs, web
from logweir.runtime.settings import Settings

logger = logging.getLogger(__name__)

RESTART_S = 1.0
"""Pause before a worker begins anew after an error that nobody foresaw."""


class Collector:
    """Keeps one worker running for each tenant of the binding."""

    def __init__(self, consumer: str, running: life.Life) -> None:
        self._held = Held()
        self._consumer = consumer
        self._running = running
        self._tasks: dict[TenantId, tuple[CollectorTenant, life.Life, asyncio.Task[None]]] = {}

    async def bind(self, binding: CollectorBinding) -> None:
        """Collect what the binding says from now on."""
        wanted = {tenant.tenant: tenant for tenant in binding.tenants}
        await self._end([n for n, (tenant, _, _) in self._tasks.items() if wanted.get(n) != tenant])
        for name, tenant in wanted.items():
            if name not in self._tasks and not self._running.stopping.is_set():
                own = _OwnLife(self._running)
                task = asyncio.create_task(self._keep(tenant, own), name=f"collect {name}")
                self._tasks[name] = (tenant, own, task)

    async def _keep(self, tenant: CollectorTenant, own: life.Life) -> None:
        """Run a worker until it is told to stop, again after an error that nobody foresaw."""
        while not own.stopping.is_set():
            try:
                await Worker(tenant, self._consumer, own, self._held).run()
            except Exception as error:
                logger.exception("worker failed", extra={"tenant": tenant.tenant})
                own.report(f"tenant {tenant.tenant}", f"failed: {error!r}")
                await own.pause(RESTART_S)

    async def _end(self, names: Sequence[TenantId]) -> None:
        """Let these workers store what they hold, all at once, and end."""
        ended = {name: self._tasks.pop(name) for name in names}
        for _, own, _ in ended.values():
            own.stopping.set()
        await asyncio.gather(*(task for _, _, task in ended.values()))
        for name in ended:
            self._running.forget(f"tenant {name}")

    async def drain(self) -> None:
        """Let all workers store what they hold."""
        await self._end(list(self._tasks))


class _OwnLife(life.Life):
    """The life of one worker: ends by itself, but reports as a part of the process."""

    def __init__(self, process: life.Life) -> None:
        super().__init__()
        self._process = process

    def report(self, part: str, problem: str = "") -> None:
        self._process.report(part, problem)

    def forget(self, part: str) -> None:
        self._process.forget(part)


async def run(settings: Settings, running: life.Life) -> None:
    """Collect until the process is told to stop."""
    collector = Collector(settings.consumer or "collector-0", running)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(web.serve_ops(settings.ops, running))
        tasks.create_task(
            bindings.follow(settings.binding, CollectorBinding, collector.bind, running)
        )
        await running.stopping.wait()
        await collector.drain()


def main(settings: Settings) -> None:
    """Run the role in this process until SIGTERM."""
    logs.configure("collector", settings.log_format)
    life.keep_freed_memory()
    life.run(lambda running: run(settings, running))
