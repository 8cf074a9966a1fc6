"""A TCP proxy between a role and a server that can go silent: the network cut of this machine.

    role -> link (a port of its own) -> server, by the `up`'s ports.json

It runs as a process of its own and takes words on its standard input: `LINK flow`, `LINK silent`
(nothing passes, nothing is said), `LINK mute` (questions pass, answers do not), `LINK cut` (what
was held is gone, the connections are reset, new ones flow). It ends when that input does, and
with it the mount namespace in which the folders of the servers are small disks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgspec

from logweir.standalone import servers

LINKS = {
    "client-gateway": "gateway",
    "ingest-valkey": "valkey",
    "collector-valkey": "valkey",
    "collector-postgres": "postgres",
    "query-valkey": "valkey",
    "query-postgres": "postgres",
    "keeper-postgres": "postgres",
}
"""Who talks to whom, and the server's name in ports.json."""

_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)


class Link:
    """One way between two, with all its connections."""

    def __init__(self, target: str, ports: Path) -> None:
        self._target, self._ports = target, ports
        self._asks, self._answers = asyncio.Event(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self.do("flow")

    def do(self, word: str) -> None:
        for gate, is_open in ((self._asks, word != "silent"), (self._answers, word != "mute")):
            gate.set() if is_open and word != "silent" else gate.clear()
        if word == "cut":
            for one in self._writers:
                _reset(one)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._asks.wait()
        ends = [writer]
        self._writers.add(writer)
        try:
            port = msgspec.json.decode(self._ports.read_bytes())[self._target]
            there, answer = await asyncio.open_connection(servers.LOOPBACK, port)
            ends.append(answer)
            self._writers.add(answer)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(reader, answer, self._asks))
                tasks.create_task(_pump(there, writer, self._answers))
        except* OSError:
            pass
        finally:
            for one in ends:
                self._writers.discard(one)
                _reset(one)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
) -> None:
    while data := await reader.read(_CHUNK):
        await gate.wait()
        writer.write(data)
        await writer.drain()
    await gate.wait()
    with contextlib.suppress(OSError):
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once; the other end is told by a reset that what it waits for does not come."""
    found = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _serve(ports: Path, listen: dict[str, int]) -> None:
    links = {name: Link(LINKS[name], ports) for name in listen}
    for name, port in listen.items():
        await asyncio.start_server(links[name].accept, servers.LOOPBACK, port)
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(words), sys.stdin
    )
    print("ready", flush=True)
    while line := (await words.readline()).decode().split():
        links[line[0]].do(line[1])
    os._exit(0)  # whatever is still connected


class Proxy:
    """The process, with a port for each link.

    Args:
        ports: the ports.json of the `up`.
        disks: folders that become small disks, and their bytes; for root only.
        log: where its errors go.
    """

    def __init__(self, ports: Path, disks: dict[Path, int], log: Path) -> None:
        self.listen = {name: servers.free_port() for name in LINKS}
        command = [sys.executable, "-m", "chaos.proxy", str(ports)]
        command += [f"{name}={port}" for name, port in self.listen.items()]
        if disks:
            mounts = [
                f"mount -t tmpfs -o size={size_bytes},mode=0711 none {place}"
                for place, size_bytes in disks.items()
            ]
            script = " && ".join([*mounts, 'exec "$@"'])
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
            command += [sys.executable, "-m", "chaos.proxy", str(ports)]
            command += [f"{name}={port}" for name, port in self.listen.items()]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=Path(__file__).parent.parent,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, link: str, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{link} {word}\n".encode())
        self._process.stdin.flush()

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


if __name__ == "__main__":
    pairs = (one.partition("=") for one in sys.argv[2:])
    asyncio.run(_serve(Path(sys.argv[1]), {name: int(port) for name, _, port in pairs}))
