"""Whatever ingest is doing when it dies or fails, a sender who tries again is heard once."""

from __future__ import annotations

import asyncio

import failing
import httpx2
import ingest_door
import pytest
from builders import record
from world import Tenant

from logweir.backends import failpoint
from logweir.core import keys

SENDERS = 20

POINTS = ("ingest.before_append", "ingest.after_append", "ingest.mid_group")


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoint.arm("")


def message(sender: int) -> str:
    return f"message {sender}"


async def post(http: httpx2.AsyncClient, key: str, sender: int) -> httpx2.Response | None:
    """Send a record under a key of the sender's own; None when no answer came."""
    headers = {"X-API-Key": key, "Idempotency-Key": f"of {sender}"}
    try:
        return await http.post("/ingest", json=record(message(sender)), headers=headers)
    except httpx2.TransportError:
        return None


async def post_all(url: str, key: str) -> list[httpx2.Response | None]:
    async with httpx2.AsyncClient(base_url=url, timeout=20) as http:
        return await asyncio.gather(*(post(http, key, sender) for sender in range(SENDERS)))


async def messages(tenant: Tenant) -> list[str]:
    """What is in the journal, without the requests that it names as repeats."""
    found = []
    for entry in await ingest_door.entries(tenant):
        records = list(ingest_door.records_of(entry.payload))
        found += [one["message"] for n, one in enumerate(records) if n not in entry.repeats]
    return sorted(found)


ALL = sorted(message(sender) for sender in range(SENDERS))


def test_every_point_of_ingest_is_tested():
    assert {one for one in failpoint.POINTS if one.startswith("ingest.")} == set(POINTS)


@pytest.mark.parametrize("point", POINTS)
async def test_senders_of_an_ingest_that_dies_there_are_heard_once(
    tenant, tmp_path, ingest_server, point
):
    key = await tenant.api_key(keys.SCOPE_INGEST)
    with failing.role("ingest", ingest_door.binding(tenant), tmp_path, f"{point}:crash:1") as role:
        await role.ready()
        told = await post_all(role.url, key)
        died_at = await asyncio.to_thread(role.died_at)
    before = await messages(tenant)

    async with ingest_server.door(tenant) as door:
        again = await post_all(door.url, key)

    answered = [one for one in told if one is not None]
    assert died_at == point
    assert bool(before) == (point != "ingest.before_append")
    assert bool(answered) == (point == "ingest.mid_group")
    assert [one.status_code for one in again] == [200] * SENDERS
    assert sum(one.json().get("repeated", False) for one in again) == len(before)
    assert len(answered) < len(before) or not before
    assert await messages(tenant) == ALL


@pytest.mark.parametrize("point", POINTS)
async def test_senders_of_an_ingest_that_fails_there_are_told_to_try_again(
    tenant, ingest_server, point
):
    async with ingest_server.door(tenant) as door:
        failpoint.arm(f"{point}:error:1")
        told = await post_all(door.url, door.key)
        failpoint.arm("")
        before = await messages(tenant)
        again = await post_all(door.url, door.key)

    statuses = [one.status_code for one in told]
    assert set(statuses) == ({200, 503} if point == "ingest.mid_group" else {503})
    assert all(one.headers["retry-after"] for one in told if one.status_code == 503)
    assert [one.status_code for one in again] == [200] * SENDERS
    assert sum(one.json().get("repeated", False) for one in again) == len(before)
    assert await messages(tenant) == ALL
