"""Roles as processes of their own, started by their command, with a failpoint armed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import msgspec

from logweir.standalone import servers

END_S = 30.0


def environment(spec: str, mode: str = "test") -> dict[str, str]:
    """The environment in which processes have these failpoints."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("LOGWEIR_")}
    return own | {"LOGWEIR_MODE": mode, "LOGWEIR_FAILPOINT": spec}


class Role:
    """A running role. `http_port` is of its API, when it has one."""

    def __init__(self, role: str, binding: msgspec.Struct, folder: Path, spec: str) -> None:
        path = folder / f"{role}.json"
        path.write_bytes(msgspec.json.encode(binding))
        self.http_port, self.ops_port = servers.free_port(), servers.free_port()
        command = ("run", role, "--binding", str(path), "--consumer", "c0")
        listen = ("--listen", f"127.0.0.1:{self.http_port}", "--ops", f"127.0.0.1:{self.ops_port}")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "logweir.cli", *command, *listen],
            env=environment(spec),
            stderr=subprocess.PIPE,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    async def ready(self) -> None:
        """Wait until it serves."""
        async with asyncio.timeout(END_S), httpx2.AsyncClient() as client:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    page = await client.get(f"http://127.0.0.1:{self.ops_port}/readyz")
                    if page.status_code == 200:
                        return
                await asyncio.sleep(0.02)

    def died_at(self) -> str:
        """Wait until it is killed, and return the failpoint that did it."""
        said = self.process.communicate(timeout=END_S)[1].decode()
        assert self.process.returncode == -signal.SIGKILL, said
        return str(msgspec.json.decode(said.splitlines()[-1])["point"])


@contextlib.contextmanager
def role(name: str, binding: msgspec.Struct, folder: Path, spec: str) -> Iterator[Role]:
    """Start a role; it is killed at the end if it still runs."""
    found = Role(name, binding, folder, spec)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()
        if found.process.stderr is not None:
            found.process.stderr.close()
