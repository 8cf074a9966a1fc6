"""The role as a process of its own: SIGTERM under load loses nothing that was acknowledged."""

from __future__ import annotations

import asyncio
import json
import signal

import httpx2
import ingest_door
import ingest_process
import pytest
from builders import record

from logweir.core import keys


@pytest.fixture
async def process(tenant, tmp_path):
    """A running ingest process that is ready."""
    with ingest_process.running(tenant, tmp_path) as found:
        await found.until_ready()
        yield found


async def test_sigterm_under_load_loses_no_acknowledged_request_and_ends_in_order(process, tenant):
    key = await tenant.api_key(keys.SCOPE_INGEST)
    acknowledged: list[str] = []
    stopped = asyncio.Event()

    async def send(sender: int, http: httpx2.AsyncClient) -> None:
        for number in range(100_000):
            message = f"{sender} {number}"
            try:
                got = await http.post("/ingest", json=record(message), headers={"X-API-Key": key})
            except httpx2.TransportError:
                return
            assert got.status_code in (200, 503), got.text
            if got.status_code == 200:
                acknowledged.append(message)
            if len(acknowledged) > 300 and not stopped.is_set():
                stopped.set()
                process.popen.send_signal(signal.SIGTERM)

    async with httpx2.AsyncClient(base_url=process.url) as http:
        await asyncio.gather(*(send(sender, http) for sender in range(16)))
    code = await asyncio.to_thread(process.popen.wait, 20)

    found = {one["message"] for one in await ingest_door.stored(tenant)}
    assert code == 0
    assert len(acknowledged) > 300
    assert set(acknowledged) <= found
    lines = process.popen.stderr.read().decode().splitlines()
    assert all(json.loads(line)["level"] != "error" for line in lines), lines


async def test_two_processes_of_one_pipeline_answer_a_repeat_alike(process, tenant, ingest_server):
    async with (
        ingest_server.door(tenant) as door,
        httpx2.AsyncClient(base_url=process.url) as http,
    ):
        headers = {"X-API-Key": door.key, "Idempotency-Key": "k"}
        first = await door.post(json.dumps(record()).encode(), headers={"Idempotency-Key": "k"})

        again = await http.post("/ingest", content=first.request.content, headers=headers)

    assert again.json() == first.json() | {"repeated": True}
