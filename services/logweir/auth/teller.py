"""Tells the journals of tenants which keys are revoked, and when others end.

    control schema --every 2 s--> Teller --what is new--> the tenants' hashes `cfg` --2 s--> ingest

The control schema is written first, so what a crash leaves untold is told within 2 seconds of the
next start. Everything is told again now and then: a journal may have been restored, and ingest
trusts no key when nobody has told it anything for long (`core.access`). The operator does so, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from redis import asyncio as redis

from logweir.backends import api_keys, control, journal, provision, redis_client
from logweir.core import errors
from logweir.core.binding import AuthBinding
from logweir.core.names import TenantId
from logweir.runtime import life, metrics

logger = logging.getLogger(__name__)

POLL_S: Final = 2.0
AGAIN_S: Final = 60.0
"""How often all is told again."""

PRUNE_S: Final = 600.0
TELL_TIMEOUT_S: Final = 3.0

Told = tuple[frozenset[int], tuple[tuple[int, int], ...]]
"""Ids of keys that are revoked, and those that end, with their moments."""


class Teller:
    """Tells what the control schema says; `bind` before use."""

    def __init__(self) -> None:
        self._keys: api_keys.ApiKeys | None = None
        self._journal: redis.Redis | None = None
        self._told: dict[TenantId, Told] = {}
        self._again_s = self._prune_s = 0.0

    async def bind(self, keys: api_keys.ApiKeys, binding: AuthBinding) -> None:
        """Tell these journals from now on."""
        before = self._journal
        self._keys = keys
        self._journal = redis_client.client(
            binding.journal, binding.journal_login, command_timeout_s=TELL_TIMEOUT_S
        )
        self._told.clear()
        if before is not None:
            await before.aclose()

    async def follow(self, running: life.Life) -> None:
        """Tell what is new until the process stops."""
        problem = ""
        while not running.stopping.is_set():
            before, problem = problem, await self._try()
            if problem != before:
                logger.log(
                    logging.WARNING if problem else logging.INFO,
                    "revocations changed",
                    extra={"problem": problem},
                )
            await running.pause(POLL_S if self._keys is not None else 0.05)

    async def _try(self) -> str:
        """Tell what is new; return what is wrong with one that could not be told."""
        try:
            return next(iter((await self.tell()).values()), "")
        except errors.LogweirError as error:
            return str(error)
        except Exception as error:
            logger.exception("revocations not told")
            return repr(error)

    async def tell(self) -> dict[TenantId, str]:
        """Tell each tenant's journal what is new; return the problems of those that do not hear.

        Raises:
            UnavailableError: the control schema does not answer.
        """
        if self._keys is None:
            return {}
        now_s = time.monotonic()
        if now_s >= self._again_s:
            self._told.clear()
            self._again_s = now_s + AGAIN_S
        if now_s >= self._prune_s:
            await self._prune()
            self._prune_s = now_s + PRUNE_S
        kept = await self._keys.kept()
        found = await asyncio.gather(*map(self._tell_one, kept))
        problems = {one.tenant: why for one, why in zip(kept, found, strict=True) if why}
        metrics.AUTH_UNTOLD_TENANTS.set(len(problems))
        return problems

    async def _tell_one(self, kept: api_keys.Kept) -> str:
        revoked, ends = control.revocations(kept.rows)
        what = (frozenset(revoked), tuple(sorted(ends.items())))
        if self._told.get(kept.tenant) == what:
            return ""
        before = self._told.get(kept.tenant, (frozenset(), ()))
        fresh_ends = dict(set(what[1]) - set(before[1]))
        try:
            async with journal.door("take revocations", TELL_TIMEOUT_S):
                await provision.publish_revocations(
                    self._journal_client(), kept.tenant, sorted(what[0] - before[0]), fresh_ends
                )
        except errors.UnavailableError as error:
            return f"{kept.tenant}: {error}"
        self._told[kept.tenant] = what
        return ""

    async def _prune(self) -> None:
        """Forget keys whose own expiry has passed long ago: nobody needs to hear of them."""
        if self._keys is None:
            return
        by_tenant: dict[TenantId, list[int]] = {}
        for tenant, key_id in await self._keys.outlived():
            by_tenant.setdefault(tenant, []).append(key_id)
        for tenant, ids in by_tenant.items():
            try:
                async with journal.door("forget revocations", TELL_TIMEOUT_S):
                    await provision.forget_revocations(self._journal_client(), tenant, ids)
            except errors.UnavailableError as error:
                logger.warning("keys not forgotten", extra={"tenant": tenant, "why": str(error)})
                continue
            await self._keys.forget(ids)

    def _journal_client(self) -> redis.Redis:
        if self._journal is None:
            raise errors.UnavailableError("The role has no binding yet.")
        return self._journal

    async def close(self) -> None:
        """Close the connection."""
        if self._journal is not None:
            await self._journal.aclose()
