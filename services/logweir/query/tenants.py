"""The open doors of the tenants that are being read: a store's reader and a tail hub each.

Made at the first query of a tenant with the logins that its row names, made anew when these are
rotated, closed when the tenant is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Final

import msgspec

from logweir.backends.heads import HeadCache
from logweir.backends.journal_tail import TailReader
from logweir.backends.segments_reader import Reader
from logweir.core import errors, keys, names
from logweir.core.access import Directory, Tenant
from logweir.core.binding import Login, QueryBinding
from logweir.core.names import TenantId
from logweir.query.hub import Hub

logger = logging.getLogger(__name__)

BUSY_RETRY_S: Final = 1.0
TAILS_RETRY_S: Final = 5.0

MAX_TAILS: Final = 64
"""Open tails of a tenant; each costs the scan of every block."""

HISTORIES: Final = 2
"""Tails of a tenant whose last lines are read at the same time."""

HUB_CONNECTIONS: Final = 1


class Doors(msgspec.Struct, eq=False):
    """One tenant's doors, and how many queries and tails are in them. `version` says what they
    were made for."""

    version: object
    reader: Reader
    hub: Hub
    histories: asyncio.Semaphore
    running: int = 0
    tails: int = 0


class Tenants:
    """All tenants' doors; `bind` before use."""

    def __init__(self) -> None:
        self._binding: QueryBinding | None = None
        self._doors: dict[TenantId, Doors] = {}
        self._heads = HeadCache()
        self._closing: set[asyncio.Task[None]] = set()

    def bind(self, binding: QueryBinding) -> None:
        """Open doors to these servers with these roots from now on."""
        self._binding = binding
        for tenant in list(self._doors):
            self._close(tenant)

    def doors(self, tenant: Tenant) -> Doors:
        """Return the tenant's doors; nothing connects before they are used.

        Raises:
            UnavailableError: the role has no binding yet.
        """
        if self._binding is None:
            raise errors.UnavailableError("The query role has no binding yet.")
        version = (
            tenant.reader_slot,
            tenant.reader_revision,
            tenant.redis_revision,
            tenant.concurrency,
        )
        found = self._doors.get(tenant.id)
        if found is not None and found.version != version:
            self._close(tenant.id)
            found = None
        if found is None:
            found = self._doors[tenant.id] = _open(self._binding, tenant, version, self._heads)
        return found

    @contextlib.contextmanager
    def query(self, tenant: Tenant) -> Iterator[Doors]:
        """Count a query of the tenant while it runs.

        Raises:
            OverLimitError: the tenant runs as many as it may.
            UnavailableError: as `doors`.
        """
        doors = self.doors(tenant)
        if doors.running >= tenant.concurrency:
            raise errors.OverLimitError(
                f"{doors.running} queries of this tenant are running, as many as may.",
                retry_after_s=BUSY_RETRY_S,
                hint="Wait for them; the bound is quotas.queryConcurrency.",
            )
        doors.running += 1
        try:
            yield doors
        finally:
            doors.running -= 1

    @contextlib.contextmanager
    def tail(self, tenant: Tenant) -> Iterator[Doors]:
        """Count a live tail of the tenant while it is open.

        Raises:
            OverLimitError: the tenant has as many as it may.
            UnavailableError: as `doors`.
        """
        doors = self.doors(tenant)
        if doors.tails >= MAX_TAILS:
            raise errors.OverLimitError(
                f"{doors.tails} tails of this tenant are open, as many as may.",
                retry_after_s=TAILS_RETRY_S,
            )
        doors.tails += 1
        try:
            yield doors
        finally:
            doors.tails -= 1

    def forget_others(self, directory: Directory) -> None:
        """Close the doors of tenants that are not in the directory any more."""
        for tenant in self._doors.keys() - directory.tenants.keys():
            self._close(tenant)

    def _close(self, tenant: TenantId) -> None:
        doors = self._doors.pop(tenant)
        task = asyncio.create_task(_close(doors))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all doors."""
        for tenant in list(self._doors):
            self._close(tenant)
        await asyncio.gather(*self._closing)


async def _close(doors: Doors) -> None:
    for close in (doors.hub.close, doors.reader.close):
        try:
            await close()
        except Exception:
            logger.exception("a door did not close")


def _open(binding: QueryBinding, tenant: Tenant, version: object, heads: HeadCache) -> Doors:
    root = bytes.fromhex(binding.read_root)
    login = names.login(tenant.id, "r", "b" if tenant.reader_slot == "b" else "a")
    secret = keys.password(root, tenant.id, login, tenant.reader_revision)
    reader = Reader(
        binding.store,
        Login(login, secret),
        tenant.id,
        max_connections=tenant.concurrency + HISTORIES + HUB_CONNECTIONS,
        heads=heads,
    )
    user = names.redis_user(tenant.id, "tail")
    secret = keys.password(root, tenant.id, user, tenant.redis_revision)
    source = TailReader(binding.journal, Login(user, secret), tenant.id)
    return Doors(version, reader, Hub(source, reader), asyncio.Semaphore(HISTORIES))
