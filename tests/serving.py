"""Runs a role inside of a test's event loop, on sockets of its own, until the test is done."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx2
import msgspec

from logweir.runtime.life import Life
from logweir.runtime.settings import Listen, Settings

Run = Callable[[Settings, Life], Awaitable[None]]


class Role(msgspec.Struct):
    """A running role: its addresses, its life, and its binding file, which may be rewritten."""

    url: str
    ops_url: str
    life: Life
    binding: Path

    def bind(self, binding: msgspec.Struct) -> None:
        """Write another binding; the role reads it within half a second."""
        fresh = self.binding.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(binding))
        fresh.replace(self.binding)


def listening() -> socket.socket:
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen(128)
    return made


@contextlib.asynccontextmanager
async def serving(
    run: Run, folder: Path, binding: msgspec.Struct | None, name: str = "role", consumer: str = ""
) -> AsyncIterator[Role]:
    """Run a role with a binding, ready when this yields (without a binding: not waited for)."""
    sockets = [listening(), listening()]
    life = Life()
    urls = [f"http://127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    role = Role(urls[0], urls[1], life, folder / f"{name}.json")
    if binding is not None:
        role.bind(binding)
    settings = Settings(
        role=name,
        binding=role.binding,
        ops=Listen(fd=sockets[1].detach()),
        http=Listen(fd=sockets[0].detach()),
        consumer=consumer,
    )
    task = asyncio.ensure_future(run(settings, life))
    try:
        if binding is not None:
            await until_ready(role, task)
        yield role
    finally:
        life.stopping.set()
        async with asyncio.timeout(30):
            await task


async def until_ready(role: Role, task: asyncio.Future[None], wait_s: float = 20.0) -> None:
    async with asyncio.timeout(wait_s), httpx2.AsyncClient() as client:
        while True:
            if task.done():
                task.result()
            with contextlib.suppress(httpx2.TransportError):
                if (await client.get(f"{role.ops_url}/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.02)


async def until(true: Callable[[], Awaitable[bool]], wait_s: float = 20.0) -> None:
    """Wait until something is true, or fail."""
    async with asyncio.timeout(wait_s):
        while not await true():
            await asyncio.sleep(0.02)
