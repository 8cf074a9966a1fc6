"""One operator at a time: a Lease of the API server, taken, renewed, and given back.

A holder's clock is not asked: a Lease that did not change for its duration, by our own monotonic
clock, is free. Who cannot renew in time ends its process before another one may begin; what such a
process had begun in PostgreSQL ends by its time limits, and may be done twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from logweir.core import errors
from logweir.runtime.life import Life, happens
from logweir_operator.kube import OTHER_KINDS, Kube, KubeError, Object

logger = logging.getLogger(__name__)

LEASE = OTHER_KINDS["Lease"]


class Terms(msgspec.Struct, frozen=True):
    """Of a Lease: free after `duration_s` without a change; its holder gives up when it could not
    renew for `renew_s`, and everybody looks each `retry_s`."""

    namespace: str
    name: str
    duration_s: float = 15.0
    renew_s: float = 10.0
    retry_s: float = 2.0


class Lost(errors.LogweirError):
    """The Lease is another's, or could not be renewed: this process must not go on."""

    code = "lease_lost"
    status = 503


class Lease:
    """Takes and keeps one Lease."""

    def __init__(self, kube: Kube, terms: Terms, holder: str) -> None:
        self._kube = kube
        self._terms = terms
        self._holder = holder
        self._held: Object | None = None

    async def take(self, say: Callable[[str], None], life: Life) -> bool:
        """Wait until the Lease is ours; false when the process is told to stop before.

        Args:
            say: called with whom it waits for, and with an empty text at the end.
            life: of the process.
        """
        seen, seen_s = "", 0.0
        loop = asyncio.get_running_loop()
        while True:
            try:
                found = await self._kube.get(LEASE, self._terms.namespace, self._terms.name)
                version = found["metadata"]["resourceVersion"] if found else ""
                if version != seen:
                    seen, seen_s = version, loop.time()
                holder = (found or {}).get("spec", {}).get("holderIdentity") or ""
                is_free = not holder or holder == self._holder
                if is_free or loop.time() - seen_s >= self._terms.duration_s:
                    self._held = await self._write(found)
                    say("")
                    logger.info("lease taken", extra={"lease": self._terms.name, "before": holder})
                    return True
                say(f"another operator holds the Lease: {holder}")
            except KubeError as error:
                if not error.is_conflict:
                    say(str(error))
            if await life.pause(self._terms.retry_s):
                return False

    async def keep(self, done: asyncio.Event) -> None:
        """Renew until all work is done, and give the Lease back.

        Raises:
            Lost: another holds it, or it could not be renewed in time.
        """
        loop = asyncio.get_running_loop()
        renewed_s = loop.time()
        while not await happens(done, self._terms.retry_s):
            # Before anything else: after a long sleep of the machine the Lease is not ours.
            if loop.time() - renewed_s > self._terms.duration_s:
                raise Lost("The Lease was not renewed in time.")
            began_s = loop.time()
            left_s = self._terms.renew_s - (began_s - renewed_s)
            try:
                async with asyncio.timeout(max(self._terms.retry_s, left_s)):
                    self._held = await self._renew()
                renewed_s = began_s
            except (KubeError, TimeoutError) as error:
                if loop.time() - renewed_s > self._terms.renew_s:
                    raise Lost(f"The Lease could not be renewed: {error}.") from error
        await self.give_back()

    async def _renew(self) -> Object:
        try:
            return await self._write(self._held)
        except KubeError as error:
            if not error.is_conflict:
                raise
            # A renewal that was carried out and not answered is ours all the same.
            found = await self._kube.get(LEASE, self._terms.namespace, self._terms.name)
            if found is None or found["spec"].get("holderIdentity") != self._holder:
                raise Lost("Another operator has taken the Lease.") from error
            return await self._write(found)

    async def give_back(self) -> None:
        """Let the next operator begin at once."""
        if self._held is None:
            return
        self._held["spec"]["holderIdentity"] = ""
        try:
            await self._put(self._held)
        except KubeError as error:
            logger.warning("lease not given back", extra={"problem": str(error)})
        self._held = None

    async def _write(self, found: Object | None) -> Object:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        before: dict[str, Any] = (found or {}).get("spec") or {}
        is_ours = before.get("holderIdentity") == self._holder
        spec = {
            **before,
            "holderIdentity": self._holder,
            "leaseDurationSeconds": int(self._terms.duration_s),
            "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if is_ours else now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (not is_ours),
        }
        if found is None:
            return await self._kube.create(
                {
                    "apiVersion": LEASE.api_version,
                    "kind": LEASE.name,
                    "metadata": {"namespace": self._terms.namespace, "name": self._terms.name},
                    "spec": spec,
                }
            )
        return await self._put({**found, "spec": spec})

    async def _put(self, document: Object) -> Object:
        path = LEASE.path(self._terms.namespace, self._terms.name)
        return await self._kube.request("put", path, document)
