"""A reload under load: no request is dropped and no WebSocket, whatever is new after it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import certificates
import httpx2
import pytest
from fronting import KEY, Echo, serving_in_a_thread
from machine import family, is_running, until
from websockets.asyncio.client import connect

from logweir.core import errors
from logweir.runtime.settings import Tls
from logweir.standalone import accounts, servers
from logweir.standalone.nginx import Nginx

SENDERS = 12
TAILS = 12
RELOADS = 4
GOES_ON_S = 3.0
"""For so long after the last reload: longer than a gateway that stops leaves them open."""


@pytest.fixture(scope="module")
def roles() -> Iterator[dict[str, Echo]]:
    found = {name: Echo(name) for name in ("ingest", "query", "other")}
    with serving_in_a_thread(*found.values()):
        yield found


both = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"], indirect=True)


@pytest.fixture
def tls(place: Path, request: pytest.FixtureRequest) -> Tls | None:
    return certificates.make(place) if getattr(request, "param", True) else None


@pytest.fixture
def server(place: Path, roles: dict[str, Echo], tls: Tls | None) -> Iterator[Nginx]:
    made = Nginx(
        place / "gateway",
        servers.free_port(),
        {name: roles[name].port for name in ("ingest", "query")},
        run_as=accounts.choose(),
        tls=tls,
    )
    made.start(place / "log")
    yield made
    made.stop()


class Load:
    """Senders and tails that are busy all the time; `problems` is what went wrong."""

    def __init__(self, server: Nginx, context: ssl.SSLContext | None) -> None:
        self.address = f"127.0.0.1:{server.port}"
        self.context = context
        self.is_over = False
        self.problems: list[str] = []
        self.sent = 0
        self.echoed = [0] * TAILS

    async def send(self) -> None:
        url = f"http{'s' if self.context else ''}://{self.address}/ingest"
        verify = self.context or True
        async with httpx2.AsyncClient(verify=verify, headers={"X-API-Key": KEY}) as client:
            while not self.is_over:
                try:
                    answer = await client.post(url, content=b'{"message":"x"}', timeout=30)
                    if answer.status_code != 200:
                        self.problems.append(f"{answer.status_code} {answer.text}")
                except httpx2.HTTPError as error:
                    self.problems.append(repr(error))
                self.sent += 1

    async def tail(self, number: int) -> None:
        try:
            async with self.connected() as link:
                while not self.is_over:
                    await link.send(str(self.echoed[number]))
                    assert await asyncio.wait_for(link.recv(), 30) == str(self.echoed[number])
                    self.echoed[number] += 1
                    await asyncio.sleep(0.01)
        except Exception as error:
            self.problems.append(repr(error))

    def connected(self) -> connect:
        scheme = "wss" if self.context else "ws"
        return connect(f"{scheme}://{self.address}/api/v1/tail", ssl=self.context)

    async def progress(self) -> None:
        """Wait until each tail and the senders together have got on."""
        sent, echoed = self.sent + 2 * SENDERS, [one + 2 for one in self.echoed]
        async with asyncio.timeout(60):
            while self.sent < sent or any(
                one < wanted for one, wanted in zip(self.echoed, echoed, strict=True)
            ):
                if self.problems:
                    return
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def loading(server: Nginx, context: ssl.SSLContext | None) -> AsyncIterator[Load]:
    load = Load(server, context)
    async with asyncio.TaskGroup() as tasks:
        for number in range(TAILS):
            tasks.create_task(load.tail(number))
        for _ in range(SENDERS):
            tasks.create_task(load.send())
        try:
            await load.progress()
            yield load
        finally:
            load.is_over = True


def workers(server: Nginx) -> set[int]:
    assert server.process is not None
    return {one.pid for one in family(server.process.pid)[1:]}


def shown(server: Nginx) -> bytes:
    """The certificate that a new connection is shown."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain,
        anybody().wrap_socket(plain) as link,
    ):
        found = link.getpeercert(binary_form=True)
    assert found is not None
    return found


def anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@both
async def test_a_reload_under_load_drops_no_request_and_no_websocket(server, place, roles, tls):
    first = workers(server)
    async with loading(server, anybody() if tls else None) as load:
        for number in range(RELOADS):
            if tls is not None:
                certificates.make(place)
            server.roles["ingest"] = roles["ingest" if number % 2 else "other"].port
            server.reload()
            await load.progress()
        kept = [one for one in first if is_running(one)]
        over_s = asyncio.get_running_loop().time() + GOES_ON_S
        while asyncio.get_running_loop().time() < over_s and not load.problems:
            await load.progress()

    assert load.problems == []
    assert load.sent > RELOADS * 2 * SENDERS
    assert kept, "the tails of the first workers were to go on"
    await asyncio.to_thread(until, lambda: not any(map(is_running, first)))


async def test_a_new_certificate_is_shown_after_a_reload_and_the_old_one_before(server, place, tls):
    old = certificates.der(tls)
    new = certificates.der(certificates.make(place))
    before = await asyncio.to_thread(shown, server)
    server.reload()
    await asyncio.to_thread(until, lambda: shown(server) == new)

    assert before == old


def test_a_reload_with_half_a_certificate_changes_nothing(server, place, tls):
    good = (server.folder / "nginx.conf").read_text()
    old = certificates.der(tls)
    key = Path(tls.key).read_bytes()
    certificates.make(place)
    Path(tls.key).write_bytes(key)  # the old one
    with pytest.raises(errors.SetupError, match="does not take its configuration"):
        server.reload()

    assert shown(server) == old
    assert (server.folder / "nginx.conf").read_text() == good


@both
async def test_it_stops_soon_whatever_is_open(server, tls):
    load = Load(server, anybody() if tls else None)
    pids = workers(server)
    async with load.connected() as link:
        await link.send("open")
        await link.recv()
        server.reload()
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        await asyncio.to_thread(server.stop)
        took_s = loop.time() - begun_s

    assert took_s < 5
    assert not any(map(is_running, pids))
