"""Deletes what nobody wants any more; what is done at each step, `logweir_operator.life` decides.

    LogPipeline: refuse appends -> wait until the journal is drained -> forget
    LogTenant:   refuse -> drain -> seal -> keep the data, or drop all of it -> forget

A tenant goes on from the state in its row, whether its object is there or not: what a crash left,
or somebody who took the object away by force, the next pass finishes. Every step may run again;
what cannot be done now is tried at the next pass.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence

import msgspec
from redis import asyncio as redis

from logweir.backends import deprovision, failpoint
from logweir.backends.control import Control, Pipeline, StoredObject, Tenant
from logweir.core import states
from logweir.core.names import TenantId
from logweir.core.states import TenantState
from logweir_operator import life
from logweir_operator.resources import Key, key_of, tenant_name

logger = logging.getLogger(__name__)

Rows = Mapping[tuple[str, str], Tenant]


class Leaver:
    """Goes on with deletions, and knows what each of them waits for."""

    def __init__(self, control: Control, journal: redis.Redis, conninfo: str) -> None:
        self._control = control
        self._journal = journal
        self._conninfo = conninfo
        self._waits_for: dict[Key, str] = {}
        self._patience: dict[TenantId, life.Patience] = {}

    def use(self, conninfo: str) -> None:
        """Delete as another login from now on."""
        self._conninfo = conninfo

    def note(self, key: Key, problem: str) -> None:
        """Say why an object whose deletion is over is still there."""
        self._waits_for[key] = problem

    def waits_for(self, key: Key) -> str:
        """Return what an object's deletion waits for."""
        return self._waits_for.get(key, "It is being deleted.")

    async def go_on(
        self, found: Sequence[StoredObject], rows: Rows, pipelines: Sequence[Pipeline]
    ) -> list[StoredObject]:
        """Take the next steps of each deletion; return the objects whose deletion is over."""
        # Pipelines first: what a tenant's own deletion has removed, theirs must not write again.
        gone = [
            one
            for one in found
            if one.kind == "LogPipeline"
            and one.deleted_at is not None
            and await self._try(key_of(one), self._pipeline(one, rows, pipelines))
        ]
        gone += await self._tenants(found, rows, pipelines)
        return gone

    async def _tenants(
        self, found: Sequence[StoredObject], rows: Rows, pipelines: Sequence[Pipeline]
    ) -> list[StoredObject]:
        """Go on with tenants whose objects are deleted, and with those that a row alone names."""
        objects = {
            (one.namespace, one.name): one
            for one in found
            if one.kind == "LogTenant" and one.deleted_at is not None
        }
        left_over = [at for at, row in rows.items() if row.state in states.LEAVING]
        gone = []
        for at in dict.fromkeys([*objects, *left_over]):
            one, row = objects.get(at), rows.get(at)
            mine = [each for each in pipelines if row is not None and each.tenant == row.id]
            work = self._tenant(one, row, mine, _live_pipelines(found, at))
            if await self._try(("LogTenant", *at), work) and one is not None:
                gone.append(one)
        return gone

    async def _try(self, key: Key, work: Awaitable[str]) -> bool:
        """Do a deletion's next steps; true when it is over. Errors are what it waits for."""
        try:
            waits_for = await work
        except Exception as error:
            waits_for = str(error) or type(error).__name__
            if self._waits_for.get(key) != waits_for:
                logger.exception("deletion failed", extra={"kind": key[0], "object": key[2]})
        if waits_for:
            self._waits_for[key] = waits_for
            return False
        self._waits_for.pop(key, None)
        return True

    # ---- pipelines ---------------------------------------------------------------------------

    async def _pipeline(self, one: StoredObject, rows: Rows, pipelines: Sequence[Pipeline]) -> str:
        row = rows.get((one.namespace, tenant_name(one)))
        for mine in pipelines:
            if row is None or mine.tenant != row.id or mine.name != one.name:
                continue
            # Only then is an empty journal the last word: nothing can be acknowledged any more.
            await deprovision.close_pipeline(self._journal, mine.tenant, mine.id)
            left = await deprovision.left(self._journal, mine.tenant, [mine.id])
            if left.blocks:
                return f"{left.blocks} blocks of its journal are not stored yet."
            # The row last: while it is there, an interrupted pass comes back to the journal.
            await deprovision.drop_pipeline(self._journal, mine.tenant, mine.id)
            failpoint.reach("operator.mid_pipeline_deletion")
            await self._control.delete_pipeline(mine.id)
        return ""

    # ---- tenants -----------------------------------------------------------------------------

    async def _tenant(
        self,
        one: StoredObject | None,
        row: Tenant | None,
        pipelines: Sequence[Pipeline],
        live: tuple[str, ...],
    ) -> str:
        """Take a tenant as far as it can go now; return what it waits for, nothing at its end.

        Args:
            one: its object, if there is one that is deleted.
            row: of the tenant, if it has one that is not deleted.
            pipelines: its rows.
            live: names of LogPipelines that refer to it and are not deleted.
        """
        if row is None:
            return ""
        state, spec = msgspec.convert(row.state, TenantState), row.spec
        while True:
            if state not in states.LEAVING:
                if one is None:
                    return ""
                spec = one.spec  # of a deletion that has begun, the row has it
            policy = life.policy_of(spec)
            if life.is_over(state, policy):
                return ""
            seen = await self._work(row.id, state, pipelines, live)
            after = life.next_state(state, policy, seen)
            if after == state:
                return life.waits_for(state, seen)
            await self._move(row.id, state, after, spec, seen)
            if state == "draining" and pipelines:
                # Collectors are told to leave the tenant before it is closed to them.
                return f"{after}: its collectors leave it. {life.given_up(seen)}".rstrip()
            state = after

    async def _work(
        self,
        tenant: TenantId,
        state: TenantState,
        pipelines: Sequence[Pipeline],
        live: tuple[str, ...],
    ) -> life.Seen:
        """Do what a state is for; return what it leaves to do."""
        match state:
            case "refusing":
                await deprovision.close_journal(self._journal, tenant)
                await self._control.revoke_all_api_keys(tenant)
            case "draining":
                return await self._look(tenant, pipelines)
            case "sealed":
                await self._control.delete_pipelines(tenant)
                sessions = await asyncio.to_thread(deprovision.close_store, self._conninfo, tenant)
                await deprovision.drop_journal(self._journal, tenant)
                failpoint.reach("operator.mid_tenant_deletion")
                return life.Seen(sessions=sessions)
            case "tombstoned":
                partitions = await asyncio.to_thread(
                    deprovision.drop_partitions, self._conninfo, tenant
                )
                return life.Seen(partitions=partitions)
            case "dropped":
                await asyncio.to_thread(deprovision.drop_store, self._conninfo, tenant)
            case _:
                return life.Seen(pipelines=live)
        return life.Seen()

    async def _look(self, tenant: TenantId, pipelines: Sequence[Pipeline]) -> life.Seen:
        """Look at the journals, and how long they stand still."""
        left = await deprovision.left(self._journal, tenant, [one.id for one in pipelines])
        now_s = time.monotonic()
        before = self._patience.get(tenant) or life.Patience(left.blocks, now_s)
        patience = self._patience[tenant] = before.look(left.blocks, now_s)
        return life.Seen(
            blocks=left.blocks,
            records=left.records,
            pending=left.pending,
            still_s=patience.still_s,
        )

    async def _move(
        self,
        tenant: TenantId,
        before: TenantState,
        after: TenantState,
        spec: dict[str, object],
        seen: life.Seen,
    ) -> None:
        """Write the next state down, and what it gives up."""
        blocks, records = (seen.blocks, seen.records) if after == "sealed" else (0, 0)
        await self._control.move_tenant(
            tenant,
            before,
            after,
            spec=spec if after == "refusing" else None,
            lost_blocks=blocks,
            lost_records=records,
        )
        logger.info("tenant goes", extra={"tenant": tenant, "before": before, "after": after})
        if after == "sealed":
            self._patience.pop(tenant, None)
        if blocks:
            logger.warning(
                "journal given up", extra={"tenant": tenant, "blocks": blocks, "records": records}
            )


def _live_pipelines(found: Sequence[StoredObject], at: tuple[str, str]) -> tuple[str, ...]:
    return tuple(
        one.name
        for one in found
        if one.kind == "LogPipeline"
        and one.deleted_at is None
        and (one.namespace, tenant_name(one)) == at
    )
