"""The operations endpoints of every role, and addresses that cannot be had."""

from __future__ import annotations

import asyncio
import socket

import httpx2
import pytest
import uvloop
import websockets
from serving import listening
from websockets.asyncio.client import connect

from logweir.core import errors
from logweir.runtime import web
from logweir.runtime.life import Life
from logweir.runtime.settings import Listen


async def ask(life: Life, *paths: str) -> list[httpx2.Response]:
    made = listening()
    url = f"http://127.0.0.1:{made.getsockname()[1]}"
    serving = asyncio.create_task(web.serve_ops(Listen(fd=made.detach()), life), name="ops")
    async with httpx2.AsyncClient(base_url=url) as client:
        answers = [await client.get(path) for path in paths]
    life.stopping.set()
    await serving
    return answers


async def test_a_role_is_ready_only_when_every_part_has_reported():
    life = Life()
    life.expect("journal", "binding")
    life.report("binding")

    (answer,) = await ask(life, "/readyz")

    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "problems": {"journal": "starting"}}


async def test_a_role_whose_parts_work_is_ready_and_alive():
    life = Life()
    life.expect("journal")
    life.report("journal")

    ready, live, figures, other = await ask(life, "/readyz", "/livez", "/metrics", "/x")

    assert ready.json() == {"ready": True, "problems": {}}
    assert live.status_code == 200
    assert figures.headers["content-type"].startswith("text/plain")
    assert other.status_code == 404
    assert other.json()["error"]["code"] == "not_found"


def test_a_taken_address_is_refused_with_the_fix():
    with listening() as taken:
        port = taken.getsockname()[1]

        with pytest.raises(errors.SetupError, match=f"Cannot listen on 127.0.0.1:{port}") as found:
            web.bind(Listen("127.0.0.1", port))

    assert "choose another" in found.value.hint


def test_all_addresses_of_ipv6_are_none_of_ipv4():
    """As NGINX has it; the two can stand side by side on one port."""
    with web.bind(Listen("::", 0)) as of_ipv6:
        port = of_ipv6.getsockname()[1]

        socket.create_connection(("::1", port), timeout=10).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)


def test_an_unavailable_answer_says_when_to_come_back():
    assert web.error_headers(errors.UnavailableError("x", retry_after_s=2.2)) == (
        (b"retry-after", b"3"),
    )


def test_a_busy_role_takes_new_senders_in_few_turns_of_its_loop():
    """uvloop takes one connection a turn and listener; a turn of ingest under load takes 20 ms."""
    senders = 48

    async def main() -> int:
        life, answered, turns = Life(), 0, 0
        made = listening()
        address = made.getsockname()

        async def app(scope, receive, send):
            nonlocal answered
            answered += 1
            await web.answer(send, 200, b"{}")

        serving = asyncio.create_task(web.serve(app, Listen(fd=made.detach()), life))
        clients = [socket.create_connection(address) for _ in range(senders)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while answered < senders and turns < 10 * senders:
            turns += 1
            await asyncio.sleep(0)
        for client in clients:
            client.close()
        life.stopping.set()
        await serving
        assert answered == senders
        return turns

    assert uvloop.run(main()) < senders


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("x" * (web.MESSAGE_BYTES + 1), id="in one frame"),
        pytest.param(["x" * web.MESSAGE_BYTES, "x"], id="in two frames"),
    ],
)
async def test_a_message_over_the_bound_ends_a_websocket_and_is_never_handed_on(message):
    life, taken = Life(), []
    made = listening()
    url = f"ws://127.0.0.1:{made.getsockname()[1]}"

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while (got := await receive())["type"] == "websocket.receive":
            taken.append(len(got["text"]))
            await send({"type": "websocket.send", "text": "taken"})

    serving = asyncio.create_task(web.serve(app, Listen(fd=made.detach()), life))
    async with connect(url) as link:
        await link.send("x" * web.MESSAGE_BYTES)
        await link.recv()
        await link.send(message)
        with pytest.raises(websockets.ConnectionClosedError) as ended:
            await asyncio.wait_for(link.recv(), 10)
    life.stopping.set()
    await serving

    assert ended.value.rcvd.code == 1009
    assert taken == [web.MESSAGE_BYTES]
