"""Operators that lose the API server again and again, or are two at once: the end is the same."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from operating import Object, Place, operating, until

from logweir_operator.config import LeaseTerms

pytestmark = [pytest.mark.endurance, pytest.mark.timeout(400)]

KILLS = 12
KILL_EACH_S = 10.0
DOWN_S = 2.0
TOGETHER_S = 60.0
LABELS = (["app"], ["app", "host"], ["region"])


async def insist(work: Callable[[], Awaitable[Any]]) -> None:
    """Do something at an API server that may be away, as a person would: again until it is done."""

    async def is_done() -> bool:
        try:
            await work()
        except Exception:
            return False
        return True

    await until(is_done, 60)


async def change(operated: Place, turn: int) -> None:
    """Another change of what is wanted each time: each pipeline comes, changes, rests, goes."""
    name = f"p{turn // 4 % 5}"
    if turn % 4 == 3:
        await insist(lambda: operated.delete("LogPipeline", name))
        return
    labels, is_suspended = LABELS[turn % len(LABELS)], turn % 4 == 2
    await insist(lambda: operated.apply_pipeline(name, labels=labels, suspend=is_suspended))


async def settle(operated: Place) -> dict[str, Object]:
    """Ask for the same end each time; return the children once all are made. Pods are not waited
    for: how soon the cluster's own controllers come back is not the operator's."""

    async def none_goes() -> bool:
        found = await operated.list("LogPipeline")
        return not any("deletionTimestamp" in one["metadata"] for one in found)

    await until(none_goes, 60)
    for number in range(5):
        await insist(
            lambda number=number: operated.apply_pipeline(
                f"p{number}", labels=["app"], suspend=False
            )
        )
    for number in range(5):
        name = f"p{number}"
        await until(
            lambda name=name: is_made(operated, name),
            60,
            lambda name=name: operated.find("LogPipeline", name),
        )
    return await operated.children()


async def is_made(operated: Place, name: str) -> bool:
    """Whether the newest spec of a pipeline was carried out."""
    found = await operated.get("LogPipeline", name)
    status = found.get("status") or {}
    reasons = {one["type"]: one["reason"] for one in status.get("conditions", ())}
    return (
        status.get("observedGeneration") == found["metadata"]["generation"]
        and reasons["Ready"] in ("Reconciled", "Progressing")
        and "NotServed" not in reasons.values()
    )


@pytest.fixture
async def reference(operated: Place) -> dict[str, Object]:
    """The children of an operator that nothing disturbs."""
    await operated.start()
    await operated.apply_tenant()
    found = await settle(operated)
    await operated.stop()
    return found


async def test_an_api_server_that_dies_each_ten_seconds_changes_nothing_at_the_end(
    reference: dict[str, Object], tmp_path: Path, start_plane: Any, databases: Any, roots: Any
):
    folder = tmp_path / "disturbed"
    folder.mkdir()
    plane = await asyncio.to_thread(lambda: start_plane(controllers=True))
    lease = LeaseTerms(duration_s=15.0, renew_s=10.0, retry_s=1.0)
    namespace = plane.make_namespace()
    async with operating(folder, plane, namespace, *databases, roots, lease=lease) as operated:
        life = await operated.start()
        await operated.apply_tenant()
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        async def disturb() -> None:
            for number in range(1, KILLS + 1):
                await asyncio.sleep(max(0.0, began_s + number * KILL_EACH_S - loop.time()))
                await asyncio.to_thread(plane.restart_api_server, DOWN_S)

        disturbing = asyncio.create_task(disturb())
        for turn in itertools.count():
            if disturbing.done():
                break
            await change(operated, turn)
            await asyncio.sleep(0.2)
        disturbing.result()
        print(f"{KILLS} kills of the API server, {turn} changes")
        assert await settle(operated) == reference
        assert not life.problems()
        await operated.stop()


async def test_two_operators_that_both_believe_to_be_alone_end_in_the_same_state_and_rest(
    reference: dict[str, Object], tmp_path: Path, cluster: Any, databases: Any, roots: Any
):
    folder = tmp_path / "two"
    folder.mkdir()
    namespace = cluster.make_namespace()
    async with operating(folder, cluster, namespace, *databases, roots) as operated:
        await operated.start()
        operated.config = msgspec.structs.replace(
            operated.config, lease=LeaseTerms(name="another", duration_s=3, renew_s=2, retry_s=0.3)
        )
        await operated.start()
        await operated.apply_tenant()
        ends_s = asyncio.get_running_loop().time() + TOGETHER_S
        for turn in itertools.count():
            if asyncio.get_running_loop().time() > ends_s:
                break
            await change(operated, turn)
            await asyncio.sleep(0.2)
        print(f"{turn} changes under two operators")

        assert await settle(operated) == reference
        before = await versions(operated)
        await asyncio.sleep(10)  # in which they would put right what the other one has
        assert await versions(operated) == before
        await operated.stop()


async def versions(operated: Place) -> dict[str, str]:
    found = {}
    for kind in ("Deployment", "Service", "Secret", "NetworkPolicy"):
        for one in await operated.list(kind):
            found[f"{kind}/{one['metadata']['name']}"] = str(
                one["metadata"]["generation" if kind == "Deployment" else "resourceVersion"]
            )
    return found
