"""An operator that dies after the k-th write of what it does, for every k: the next one goes on.

A write is any request that changes something at the API server. What PostgreSQL and Redis hold at
each of their own crash points is tested in tests/standalone, where the same pass runs for `up`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from operating import Place, until

from logweir_operator import kube
from logweir_operator.config import LeaseTerms

MOST_WRITES = 80
KINDS = (
    "Secret",
    "ServiceAccount",
    "NetworkPolicy",
    "Deployment",
    "Service",
    "PodDisruptionBudget",
)


class Dying(kube.Kube):
    """A way to the API server that is closed for good after the k-th write."""

    def __init__(self, access: kube.Access, writes: int) -> None:
        super().__init__(access)
        self._left = writes
        self.is_closed = asyncio.Event()

    async def request(
        self, method: str, path: str, body: object = None, **options: Any
    ) -> dict[str, Any]:
        if self._left <= 0:
            await asyncio.Event().wait()
        if method != "get" and "/leases/" not in path and not path.endswith("/leases"):
            self._left -= 1
        is_last = self._left == 0
        try:
            return await super().request(method, path, body, **options)
        finally:
            if is_last:
                self.is_closed.set()


async def die_after(operated: Place, writes: int) -> Dying:
    """Start an operator that dies so."""
    made: list[Dying] = []

    def door(access: kube.Access) -> kube.Kube:
        made.append(Dying(access, writes))
        return made[-1]

    await operated.start(door=door)
    return made[0]


async def has_died(operated: Place, door: Dying, is_done: Any) -> bool:
    """Wait until an operator is dead or has done all; true when it died before. Its task is ended
    all the same."""

    async def either() -> bool:
        return door.is_closed.is_set() or await is_done()

    await until(either, 30)
    died = door.is_closed.is_set()
    await operated.kill()
    return died


async def is_ready(operated: Place) -> bool:
    for kind, name in (("LogTenant", "acme"), ("LogPipeline", "web")):
        if (await operated.condition(kind, name)).get("status") != "True":
            return False
    return True


async def is_gone(operated: Place) -> bool:
    return not await operated.list("LogTenant") and not await operated.list("LogPipeline")


async def make(operated: Place) -> None:
    await operated.apply_tenant(deletionPolicy="Delete")
    await operated.apply_pipeline()


async def unmake(operated: Place) -> None:
    await operated.delete("LogPipeline", "web")
    await operated.delete("LogTenant", "acme")


@pytest.mark.endurance
@pytest.mark.timeout(400)
async def test_an_operator_that_dies_at_any_write_leaves_what_the_next_one_makes_whole(
    operated: Place,
):
    # Who dies does not give its Lease back.
    lease = LeaseTerms(duration_s=1.0, renew_s=0.9, retry_s=0.1)
    operated.config = msgspec.structs.replace(operated.config, lease=lease)
    await make(operated)
    await operated.start()
    await until(lambda: is_ready(operated))
    whole = await operated.children()
    await unmake(operated)
    await until(lambda: is_gone(operated))
    await operated.kill()

    deaths = {"making": 0, "deleting": 0}
    for writes in range(1, MOST_WRITES):
        door = await die_after(operated, writes)
        await make(operated)
        died = await has_died(operated, door, lambda: is_ready(operated))
        deaths["making"] += died

        await operated.start()
        await until(lambda: is_ready(operated))
        assert await operated.children() == whole, writes
        assert await operated.states() == ["active"], writes
        await operated.stop()

        door = await die_after(operated, writes)
        await unmake(operated)
        deaths["deleting"] += await has_died(operated, door, lambda: is_gone(operated))
        await operated.start()
        await until(lambda: is_gone(operated))
        assert await operated.states() == [], writes
        await operated.stop()
        if not died:
            break

    # Else nothing was interrupted, and all of this says nothing.
    assert deaths["making"] >= len(whole)
    assert deaths["deleting"] >= 2
