"""Keeper: keeps the stores of all tenants of an installation in order. Where to start reading.

    control schema, activity --every 10 s--> Round -> duties.due() -> Visit (one tenant, a lease)
                                               ^-------- duties.done() ---'

Any number of keepers may run, and none is needed to read or to write. A keeper holds a connection
to the control schema, one for the activity of all tenants, and one for each tenant that it serves
at the moment. A tenant that fails waits longer each time and holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from logweir.backends import control, store
from logweir.backends.keeper_store import Activity
from logweir.backends.retention_store import RetentionStore
from logweir.core import errors, keys, names, states
from logweir.core.binding import KeeperBinding, Login, roots
from logweir.core.names import PipelineId, TenantId
from logweir.keeper import duties, retaining
from logweir.keeper.retention import Rules
from logweir.keeper.visit import Lease, LeaseHeldError, Left, RetentionFailedError, Visit
from logweir.runtime import bindings, life, logs, metrics, web
from logweir.runtime.settings import Settings

logger = logging.getLogger(__name__)

POLL_S: Final = duties.LOOK_S
"""How often tenants and their activity are read."""

IDLE_S: Final = 1.0
"""How long a server of tenants waits when none is due."""

AT_ONCE: Final = 4
"""Tenants that are served at the same time: each takes a connection, and most of them wait."""

MERGES_AT_ONCE: Final = 1
"""Each takes a core, and the memory of `merges.MAX_RAW_BYTES`; more cores need more keepers."""

SERVED_STATES: Final = states.MADE
"""A tenant that is provisioned may have no schema yet, one that is deleted has none soon."""


class _Tenant(msgspec.Struct):
    """What this process knows of a tenant, and whether one of its tasks serves it now."""

    row: control.Tenant
    pipelines: frozenset[PipelineId]
    rules: Rules
    standing: duties.Standing = duties.Standing()
    left: Left = msgspec.field(default_factory=Left)
    is_served: bool = False
    problem: str = ""


def _kept(row: control.Tenant, rules: Rules) -> tuple[object, ...]:
    """What says how long and how much is kept."""
    return rules, row.spec.get("retention"), row.spec.get("quotas")


class Round:
    """Goes round all tenants with one binding, until it is stopped."""

    def __init__(self, binding: KeeperBinding, running: life.Life) -> None:
        self._binding = binding
        self._roots = roots(binding.maintain_roots)
        self._running = running
        self._own = life.Life()
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._control = control.Control(
            store.conninfo(binding.store, binding.control_login, "logweir keeper")
        )
        self._activity = Activity(binding.store, binding.control_login)
        self._tenants: dict[TenantId, _Tenant] = {}
        self._merging = asyncio.Semaphore(MERGES_AT_ONCE)
        self._leases: dict[TenantId, Lease] = {}

    async def run(self) -> None:
        """Serve all tenants until `stop`; then let other keepers have them at once."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._poll())
                for _ in range(AT_ONCE):
                    tasks.create_task(self._serve())
            with contextlib.suppress(errors.UnavailableError):
                for lease in self._leases.values():
                    if lease.is_ours:
                        await lease.release()
        finally:
            await self._control.close()
            await self._activity.close()

    def stop(self) -> None:
        """Let `run` end soon: after the transactions that are open."""
        self._own.stopping.set()

    # ---- who is there ------------------------------------------------------------------------

    async def _poll(self) -> None:
        while not self._own.stopping.is_set():
            try:
                await self._refresh()
                self._running.report("control schema")
            except errors.LogweirError as error:
                # Tenants that are known are served on; their leases will say whether they may be.
                self._running.report("control schema", str(error))
            except Exception:
                logger.exception("tenants not read")
            await self._own.pause(POLL_S)

    async def _refresh(self) -> None:
        rows = [one for one in await self._control.tenants() if one.state in SERVED_STATES]
        # What a deleted pipeline has left is kept as long as it would have been.
        pipelines: dict[TenantId, list[control.Pipeline]] = {one.id: [] for one in rows}
        for pipeline in await self._control.pipelines(with_deleted=True):
            pipelines.get(pipeline.tenant, []).append(pipeline)
        inserted = await self._activity.inserted()
        self._know(rows, pipelines, inserted)

    def _know(
        self,
        rows: Sequence[control.Tenant],
        pipelines: dict[TenantId, list[control.Pipeline]],
        inserted: dict[str, int],
    ) -> None:
        now_s = time.monotonic()
        before, self._tenants = self._tenants, {}
        for row in rows:
            own = pipelines[row.id]
            rules = Rules(row.retention_days, {one.id: one.retention_days for one in own})
            found = before.get(row.id) or _Tenant(row, frozenset(), rules)
            if _kept(found.row, found.rules) != _kept(row, rules):
                found.standing = duties.ruled(found.standing, now_s)
            found.row, found.rules = row, rules
            found.pipelines = frozenset(one.id for one in own if one.state != "deleted")
            count = inserted.get(names.schema(row.id), 0)
            found.standing = duties.seen(found.standing, count, now_s)
            self._tenants[row.id] = found
        for gone in self._leases.keys() - self._tenants.keys():
            del self._leases[gone]
            retaining.hide(gone)

    # ---- who is served -----------------------------------------------------------------------

    async def _serve(self) -> None:
        while not self._own.stopping.is_set():
            now_s = time.monotonic()
            found = self._next(now_s)
            if found is None:
                await self._own.pause(IDLE_S)
                continue
            tenant, work = found
            tenant.is_served = True
            try:
                await self._visit(tenant, work, now_s)
            finally:
                tenant.is_served = False

    def _next(self, now_s: float) -> tuple[_Tenant, duties.Work] | None:
        """The tenant that waits longest of those for which something is due."""
        waiting = [
            (tenant, work)
            for tenant in self._tenants.values()
            if not tenant.is_served and (work := duties.due(tenant.standing, now_s))
        ]
        return min(waiting, key=lambda one: one[0].standing.began_s, default=None)

    async def _visit(self, tenant: _Tenant, work: duties.Work, began_s: float) -> None:
        row = tenant.row
        lease = self._leases.setdefault(row.id, Lease(self._control, row.id, self._holder))
        try:
            login = self._login(row)
        except errors.SetupError as error:
            self._fail(tenant, str(error))
            return
        place = RetentionStore(self._binding.store, login, row.id)
        visit = Visit(row.id, place, lease, tenant.left, self._merging, self._own)
        try:
            is_finished = await visit.run(work, tenant.pipelines, tenant.rules)
        except LeaseHeldError:
            retaining.hide(row.id)
            tenant.standing = duties.refused(tenant.standing, time.monotonic())
        except RetentionFailedError as error:
            tenant.standing = duties.partly_done(
                tenant.standing, work, began_s, time.monotonic(), is_finished=error.is_finished
            )
            self._report(tenant, str(error))
        except errors.LogweirError as error:
            self._fail(tenant, str(error))
        except Exception as error:
            logger.exception("visit failed", extra={"tenant": row.id, "work": work})
            self._fail(tenant, type(error).__name__)
        else:
            is_over = row.is_over(tenant.left.storage)
            tenant.standing = duties.done(
                tenant.standing, work, began_s, is_finished=is_finished, is_over=is_over
            )
            self._report(tenant, "")
        finally:
            await place.close()

    def _login(self, row: control.Tenant) -> Login:
        """The tenant's keeper login, of the slot and revision that are in use.

        Raises:
            SetupError: the root that it comes from is not in the binding (yet).
        """
        root = self._roots.get(row.root_version)
        if root is None:
            raise errors.SetupError(f"The binding lacks version {row.root_version} of the root.")
        login = names.login(row.id, "k", "b" if row.keeper_slot == "b" else "a")
        return Login(login, keys.password(root, row.id, login, row.keeper_revision))

    def _fail(self, tenant: _Tenant, problem: str) -> None:
        tenant.standing = duties.failed(tenant.standing, time.monotonic())
        self._report(tenant, problem)

    def _report(self, tenant: _Tenant, problem: str) -> None:
        """Log when a tenant begins to fail, fails for another reason, or works again."""
        if problem != tenant.problem:
            level = logging.WARNING if problem else logging.INFO
            extra = {"tenant": tenant.row.id, "problem": problem}
            logger.log(level, "tenant changed", extra=extra)
        tenant.problem = problem
        failing = sum(1 for one in self._tenants.values() if one.problem)
        metrics.KEEPER_FAILING_TENANTS.set(failing)


class Keeper:
    """Runs a round for the binding of now."""

    def __init__(self, running: life.Life) -> None:
        self._running = running
        self._round: Round | None = None
        self._task: asyncio.Task[None] | None = None
        running.expect("control schema")

    async def bind(self, binding: KeeperBinding) -> None:
        """Keep the stores of this binding from now on."""
        begun = Round(binding, self._running)
        await self.stop()
        if not self._running.stopping.is_set():
            self._round = begun
            self._task = asyncio.create_task(begun.run(), name="keeper round")
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A round that ends by an error ends the process, which is started again."""
        if not task.cancelled() and task.exception() is not None:
            self._running.stopping.set()

    async def stop(self) -> None:
        """End the round after its open transactions."""
        if self._round is not None and self._task is not None:
            self._round.stop()
            await self._task
        self._round = self._task = None


async def run(settings: Settings, running: life.Life) -> None:
    """Keep until the process is told to stop."""
    keeper = Keeper(running)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(web.serve_ops(settings.ops, running))
        tasks.create_task(bindings.follow(settings.binding, KeeperBinding, keeper.bind, running))
        await running.stopping.wait()
        await keeper.stop()


def main(settings: Settings) -> None:
    """Run the role in this process until SIGTERM."""
    logs.configure("keeper", settings.log_format)
    life.keep_freed_memory()
    life.run(lambda running: run(settings, running))
