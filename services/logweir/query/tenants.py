"""The open doors of the tenants that are being read: a store's reader and a tail hub each.

Made at the first query of a tenant with the logins that its row names, closed when the tenant is
gone. When the logins are rotated there are new doors at once: queries that run finish with the old
ones, and live tails go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Final

import msgspec

from logweir.backends.heads import HeadCache
from logweir.backends.journal_tail import TailReader
from logweir.backends.segments_reader import Reader
from logweir.core import errors, keys, names
from logweir.core.access import Directory, Tenant
from logweir.core.binding import Login, QueryBinding, roots
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


class Load(msgspec.Struct, eq=False):
    """How many queries and tails of a tenant there are."""

    running: int = 0
    tails: int = 0


class Doors(msgspec.Struct, eq=False):
    """One tenant's doors; `version` says what they were made for.

    After a rotation there are others, with the same hub and load; old ones are closed when the
    last of their `users`, queries and tails, has left.
    """

    version: object
    reader: Reader
    source: TailReader
    hub: Hub
    histories: asyncio.Semaphore
    load: Load
    users: int = 0
    is_old: bool = False

    @property
    def running(self) -> int:
        """Queries of the tenant."""
        return self.load.running

    @property
    def tails(self) -> int:
        """Live tails of the tenant."""
        return self.load.tails


class Tenants:
    """All tenants' doors; `bind` before use."""

    def __init__(self) -> None:
        self._binding: QueryBinding | None = None
        self._roots: dict[int, bytes] = {}
        self._doors: dict[TenantId, Doors] = {}
        self._heads = HeadCache()
        self._closing: set[asyncio.Task[None]] = set()

    def bind(self, binding: QueryBinding) -> None:
        """Open doors to these servers with these roots from now on.

        Raises:
            SetupError: a root is no root; what was bound before still is.
        """
        read_roots = roots(binding.read_roots)
        before, self._binding, self._roots = self._binding, binding, read_roots
        if before and (before.store, before.journal) == (binding.store, binding.journal):
            return  # doors with other passwords replace those that are open (`doors`)
        for tenant in list(self._doors):
            self._close(tenant)

    def doors(self, tenant: Tenant) -> Doors:
        """Return the tenant's doors; nothing connects before they are used.

        Raises:
            UnavailableError: the role has no binding yet, or not the root of this tenant.
        """
        if self._binding is None:
            raise errors.UnavailableError("The query role has no binding yet.")
        found = self._doors.get(tenant.id)
        root = self._roots.get(tenant.root_version)
        if root is None:
            if found is not None:
                return found  # its logins are good until the rotation's end
            raise errors.UnavailableError(
                "The query role does not know the tenant's new logins yet.", hint="Ask again."
            )
        version = (
            tenant.reader_slot,
            tenant.reader_revision,
            tenant.redis_revision,
            tenant.concurrency,
            root,
        )
        if found is None:
            found = self._doors[tenant.id] = _open(
                self._binding, tenant, root, version, self._heads
            )
        elif found.version != version:
            fresh = _open(self._binding, tenant, root, version, self._heads, found)
            self._doors[tenant.id] = fresh
            self._grow_old(found)
            found = fresh
        return found

    def _grow_old(self, doors: Doors) -> None:
        """Close doors as soon as nobody uses them; their hub has moved on."""
        doors.is_old = True
        if not doors.users:
            self._in_background(_close_all((doors.source.close, doors.reader.close)))

    @contextlib.contextmanager
    def _using(self, doors: Doors) -> Iterator[Doors]:
        doors.users += 1
        try:
            yield doors
        finally:
            doors.users -= 1
            if doors.is_old:
                self._grow_old(doors)

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
        doors.load.running += 1
        try:
            with self._using(doors):
                yield doors
        finally:
            doors.load.running -= 1

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
        doors.load.tails += 1
        try:
            with self._using(doors):
                yield doors
        finally:
            doors.load.tails -= 1

    def follow(self, directory: Directory) -> None:
        """Close the doors of tenants that are gone; let tails have logins that were changed."""
        for name in list(self._doors):
            tenant = directory.tenants.get(name)
            if tenant is None:
                self._close(name)
            else:
                self.doors(tenant)

    def _close(self, tenant: TenantId) -> None:
        doors = self._doors.pop(tenant)
        self._in_background(_close_all((doors.hub.close, doors.source.close, doors.reader.close)))

    def _in_background(self, closing: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all doors."""
        for tenant in list(self._doors):
            self._close(tenant)
        await asyncio.gather(*self._closing)


async def _close_all(parts: Sequence[Callable[[], Awaitable[None]]]) -> None:
    for close in parts:
        try:
            await close()
        except Exception:
            logger.exception("a door did not close")


def _open(
    binding: QueryBinding,
    tenant: Tenant,
    root: bytes,
    version: object,
    heads: HeadCache,
    before: Doors | None = None,
) -> Doors:
    """Make a tenant's doors, in place of those from before its logins were changed."""
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
    if before is None:
        histories = asyncio.Semaphore(HISTORIES)
        return Doors(version, reader, source, Hub(source, reader), histories, Load())
    before.hub.move(source, reader)
    return Doors(version, reader, source, before.hub, before.histories, before.load)
