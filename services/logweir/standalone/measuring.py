"""What tenants have stored, as their keepers note it: for the objects' status and the quotas.

storage of each tenant's schema --every 2 s--> status.storage, and "over" in its journal
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from redis import asyncio as redis

from logweir.backends import provision
from logweir.backends.control import Control, Storage, Tenant
from logweir.core import bounds, moments
from logweir.core.names import TenantId


class Measures:
    """What was noted last, of all tenants."""

    def __init__(self, control: Control, journal: redis.Redis) -> None:
        self._control = control
        self._journal = journal
        self._found: dict[TenantId, Storage] = {}
        self._told: dict[TenantId, bool] = {}
        self._read_at_s = float("-inf")

    async def follow(self, tenants: Iterable[Tenant]) -> None:
        """Read what is noted of these tenants when it is time to, and tell their journals.

        Raises:
            UnavailableError: the store does not answer.
        """
        now_s = time.monotonic()
        is_due = now_s >= self._read_at_s + bounds.STORED_READ_S
        if is_due:
            self._read_at_s = now_s
            self._found = {}
        told, self._told = self._told, {}
        for tenant in tenants:
            if is_due and (found := await self._control.storage(tenant.id)):
                self._found[tenant.id] = found
            is_over = tenant.is_over(self._found.get(tenant.id, Storage()))
            if told.get(tenant.id) != is_over:
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
