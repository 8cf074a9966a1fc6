"""The ingest role as a process of its own, and what it takes of memory."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import ingest_door
import msgspec
from world import Tenant

from logweir.standalone import servers

PROGRAM = """
import sys
from pathlib import Path
from logweir.ingest import app
from logweir.runtime.settings import Listen, Settings

http, ops = (Listen(port=int(port)) for port in sys.argv[2:])
app.main(Settings("ingest", Path(sys.argv[1]), ops=ops, http=http, log_format="json"))
"""


class Process:
    """One running process; `url` is of its API."""

    def __init__(self, popen: subprocess.Popen[bytes], port: int, ops_port: int) -> None:
        self.popen = popen
        self.url = f"http://127.0.0.1:{port}"
        self._ready_url = f"http://127.0.0.1:{ops_port}/readyz"

    async def until_ready(self) -> None:
        async with asyncio.timeout(20), httpx2.AsyncClient() as http:
            while not await self._is_ready(http):
                await asyncio.sleep(0.02)

    async def _is_ready(self, http: httpx2.AsyncClient) -> bool:
        try:
            return (await http.get(self._ready_url)).status_code == 200
        except httpx2.TransportError:
            return False

    def memory_bytes(self) -> int:
        """What it has resident now."""
        return self._status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """The most that it had resident since `forget_peak`."""
        return self._status_bytes("VmHWM")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.popen.pid}/clear_refs").write_text("5")

    def _status_bytes(self, name: str) -> int:
        lines = Path(f"/proc/{self.popen.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


@contextlib.contextmanager
def running(tenant: Tenant, folder: Path) -> Iterator[Process]:
    """A process that serves a tenant; leaving kills it."""
    path = folder / "binding.json"
    path.write_bytes(msgspec.json.encode(ingest_door.binding(tenant)))
    ports = servers.free_port(), servers.free_port()
    popen = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path), *map(str, ports)], stderr=subprocess.PIPE
    )
    try:
        yield Process(popen, *ports)
    finally:
        popen.kill()
        popen.wait()
        popen.stderr.close()  # type: ignore[union-attr]
