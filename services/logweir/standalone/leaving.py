"""Deletes what nobody wants any more: a pipeline drains first, a tenant waits for its pipelines.

    LogPipeline: refuse appends -> wait until the journal is drained -> forget
    LogTenant:   revoke keys, close its doors -> deletionPolicy Delete: drop all of it -> forget

Every step may run again; what cannot be done now is tried at the next pass.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from redis import asyncio as redis

from logweir.backends import deprovision, failpoint
from logweir.backends.control import Control, Pipeline, StoredObject, Tenant
from logweir.standalone.objects import Key, key_of, tenant_name

logger = logging.getLogger(__name__)

Rows = Mapping[tuple[str, str], Tenant]


class Leaver:
    """Goes on with deletions, and knows what each of them waits for."""

    def __init__(self, control: Control, journal: redis.Redis, conninfo: str) -> None:
        self._control = control
        self._journal = journal
        self._conninfo = conninfo
        self._waits_for: dict[Key, str] = {}

    def waits_for(self, key: Key) -> str:
        """Return what an object's deletion waits for."""
        return self._waits_for.get(key, "It is being deleted.")

    async def go_on(
        self, found: Sequence[StoredObject], rows: Rows, pipelines: Sequence[Pipeline]
    ) -> list[StoredObject]:
        """Take the next step of each deletion; return what is gone now."""
        gone = []
        for one in found:
            if one.deleted_at is None:
                continue
            key = key_of(one)
            try:
                if one.kind == "LogPipeline":
                    waits_for = await self._pipeline(one, rows, pipelines)
                else:
                    waits_for = await self._tenant(one, rows, found)
            except Exception as error:
                waits_for = str(error) or type(error).__name__
                if self._waits_for.get(key) != waits_for:
                    logger.exception(
                        "deletion failed", extra={"kind": one.kind, "object": one.name}
                    )
            if waits_for:
                self._waits_for[key] = waits_for
                continue
            await self._control.purge_object(*key)
            self._waits_for.pop(key, None)
            gone.append(one)
            logger.info("deleted", extra={"kind": one.kind, "object": one.name})
        return gone

    async def _pipeline(self, one: StoredObject, rows: Rows, pipelines: Sequence[Pipeline]) -> str:
        row = rows.get((one.namespace, tenant_name(one)))
        for mine in pipelines:
            if row is None or mine.tenant != row.id or mine.name != one.name:
                continue
            # Only then is an empty journal the last word: nothing can be acknowledged any more.
            await deprovision.close_pipeline(self._journal, mine.tenant, mine.id)
            left = await deprovision.backlog(self._journal, mine.tenant, [mine.id])
            if left:
                return f"{left} blocks of its journal are not stored yet."
            # The row last: while it is there, an interrupted pass comes back to the journal.
            await deprovision.drop_pipeline(self._journal, mine.tenant, mine.id)
            failpoint.reach("operator.mid_pipeline_deletion")
            await self._control.delete_pipeline(mine.id)
        return ""

    async def _tenant(self, one: StoredObject, rows: Rows, found: Sequence[StoredObject]) -> str:
        if any(
            other.kind == "LogPipeline"
            and other.namespace == one.namespace
            and tenant_name(other) == one.name
            for other in found
        ):
            return "It still has pipelines."
        row = rows.get((one.namespace, one.name))
        if row is None:
            return ""
        await self._control.set_tenant(row.id, "deleting", row.retention_days, one.spec)
        await deprovision.close_journal(self._journal, row.id)
        await self._control.revoke_all_api_keys(row.id)
        await asyncio.to_thread(deprovision.close_store, self._conninfo, row.id)
        failpoint.reach("operator.mid_tenant_deletion")
        if one.spec.get("deletionPolicy") == "Delete":
            await deprovision.drop_journal(self._journal, row.id)
            await asyncio.to_thread(deprovision.drop_store, self._conninfo, row.id)
            await self._control.set_tenant_deleted(row.id)
        return ""
