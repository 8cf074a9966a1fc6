"""The role as a process of its own: SIGTERM under load loses nothing that was acknowledged."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

import httpx2
import ingest_door
import msgspec
import pytest
from builders import record

from logweir.core import keys
from logweir.standalone import servers

PROGRAM = """
import sys
from pathlib import Path
from logweir.ingest import app
from logweir.runtime.settings import Listen, Settings

http, ops = (Listen(port=int(port)) for port in sys.argv[2:])
app.main(Settings("ingest", Path(sys.argv[1]), ops=ops, http=http, log_format="json"))
"""


@pytest.fixture
def process(tmp_path, tenant):
    """A running ingest process: its Popen and the ports of its API and its own pages."""
    path = tmp_path / "binding.json"
    path.write_bytes(msgspec.json.encode(ingest_door.binding(tenant)))
    ports = [str(servers.free_port()), str(servers.free_port())]
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path), *ports], stderr=subprocess.PIPE
    )
    yield started, *ports
    started.kill()
    started.wait()
    started.stderr.close()


async def until_ready(port: str) -> None:
    async with asyncio.timeout(20), httpx2.AsyncClient() as http:
        while True:
            try:
                got = await http.get(f"http://127.0.0.1:{port}/readyz")
            except httpx2.TransportError:
                await asyncio.sleep(0.02)
                continue
            if got.status_code == 200:
                return
            await asyncio.sleep(0.02)


async def test_sigterm_under_load_loses_no_acknowledged_request_and_ends_in_order(process, tenant):
    started, port, ops_port = process
    await until_ready(ops_port)
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
                started.send_signal(signal.SIGTERM)

    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        await asyncio.gather(*(send(sender, http) for sender in range(16)))
    code = await asyncio.to_thread(started.wait, 20)

    found = {one["message"] for one in await ingest_door.stored(tenant)}
    assert code == 0
    assert len(acknowledged) > 300
    assert set(acknowledged) <= found
    lines = started.stderr.read().decode().splitlines()
    assert all(json.loads(line)["level"] != "error" for line in lines), lines


async def test_two_processes_of_one_pipeline_answer_a_repeat_alike(process, tenant, ingest_server):
    _, port, ops_port = process
    await until_ready(ops_port)
    async with (
        ingest_server.door(tenant) as door,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        headers = {"X-API-Key": door.key, "Idempotency-Key": "k"}
        first = await door.post(json.dumps(record()).encode(), headers={"Idempotency-Key": "k"})

        again = await http.post("/ingest", content=first.request.content, headers=headers)

    assert again.json() == first.json() | {"repeated": True}
