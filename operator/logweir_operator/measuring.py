"""What tenants have stored, as their keepers note it: for the objects' status and the quotas.

storage of each tenant's schema --every 2 s--> status.storage, and "over" in its journal
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from redis import asyncio as redis

from logweir.backends import provision
from logweir.backends.control import Control, Storage, Tenant
from logweir.core import bounds, moments
from logweir.core.names import TenantId

logger = logging.getLogger(__name__)


class Measures:
    """What was noted last, of all tenants."""

    def __init__(self, control: Control, journal: redis.Redis) -> None:
        self._control = control
        self._journal = journal
        self._found: dict[TenantId, Storage] = {}
        self._told: dict[TenantId, bool] = {}
        self._problems: dict[TenantId, str] = {}
        self._read_at_s = float("-inf")

    async def follow(self, tenants: Iterable[Tenant]) -> None:
        """Read what is noted of these tenants when it is time to, and tell their journals.

        A tenant for which that fails keeps what was found and said of it last: its ingest stays
        as it is, and the others are followed all the same.
        """
        now_s = time.monotonic()
        is_due = now_s >= self._read_at_s + bounds.STORED_READ_S
        if is_due:
            self._read_at_s = now_s
        followed = {tenant.id: tenant for tenant in tenants}
        for tenant in followed.values():
            try:
                if is_due or tenant.id not in self._found:
                    await self._read(tenant.id)
                await self._tell(tenant)
            except Exception as error:
                if repr(error) != self._problems.get(tenant.id):  # else it is in the log already
                    logger.exception("stored bytes not followed", extra={"tenant": tenant.id})
                self._problems[tenant.id] = repr(error)
            else:
                if is_due:
                    self._problems.pop(tenant.id, None)
        for known in (self._found, self._told, self._problems):
            for gone in known.keys() - followed.keys():
                del known[gone]

    async def _read(self, tenant: TenantId) -> None:
        found = await self._control.storage(tenant)
        if found is not None:
            self._found[tenant] = found

    async def _tell(self, tenant: Tenant) -> None:
        """Tell a journal what it does not know yet; nothing when nothing was measured."""
        found = self._found.get(tenant.id)
        if found is None:
            return
        is_over = tenant.is_over(found)
        if self._told.get(tenant.id) != is_over:
            # Until it is surely told it is not known what the journal believes.
            self._told.pop(tenant.id, None)
            await provision.set_stored(self._journal, tenant.id, is_over=is_over)
            self._told[tenant.id] = is_over

    def status(self, tenant: TenantId) -> dict[str, object]:
        """Return `status.storage` of a tenant's object; empty when nothing is known."""
        found = self._found.get(tenant)
        if found is None:
            return {}
        status: dict[str, object] = {"storedBytes": found.stored_bytes}
        if found.oldest_ns is not None:
            status["oldestRecord"] = _seconds(found.oldest_ns)
        if found.next_drop_ns is not None:
            status["nextDrop"] = _seconds(found.next_drop_ns)
        return status


def _seconds(time_ns: int) -> str:
    """A time as Kubernetes writes it."""
    return moments.to_text(time_ns)[:19] + "Z"
