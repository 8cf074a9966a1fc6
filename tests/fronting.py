"""A real NGINX with the rendered configuration, in front of roles that tell what they saw."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs

import httpx2
import msgspec

from logweir.gateway import config, routes
from logweir.runtime import web
from logweir.runtime.life import Life
from logweir.runtime.settings import Listen
from logweir.standalone import binaries, servers

PIECE_BYTES = 1 << 20
KEY = "lwi_" + "a" * 70
"""Looks like a key, which is all that the gateway asks for; `Echo` takes any."""


SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def parsed(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Take an answer's bytes apart: status, headers, body."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): text.strip() for name, _, text in (one.partition(":") for one in rest)}
    return int(first.split()[1]), headers, body


def check_error(
    status: int, headers: Mapping[str, str], body: bytes, expected: tuple[int, str]
) -> None:
    """The answer is an error in our shape, with the headers that every answer has."""
    error = json.loads(body)["error"]

    assert (status, error["code"]) == expected
    assert set(error) == {"code", "message", "hint"}
    assert headers["content-type"] == "application/json"
    assert {name: headers.get(name) for name in SECURITY} == SECURITY
    assert headers["x-request-id"]


class Echo:
    """A role that answers with what it saw of a request; its query string may ask for more.

    status=401, header=NAME:VALUE, bytes=5000 (of JSON), held=1 (until `release` is set), lines=1
    (NDJSON, the rest when `release` is set). A WebSocket echoes (and adds bytes=...), and is
    refused with refuse=1.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.protocol: type[asyncio.Protocol] | None = None
        self.seen: list[dict[str, Any]] = []
        self.checks: list[dict[str, str]] = []
        """Headers of requests with HEAD: the gateway's, before it reads a large body."""

        self.check_status = 405
        self.answered = 0
        """Answers that the other end has taken whole."""

        self.release = threading.Event()
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(128)
        self.port: int = self.socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        wishes = {k: v[0] for k, v in parse_qs(scope["query_string"].decode()).items()}
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send, wishes)
            return
        if scope["method"] == "HEAD":
            self.checks.append(_texts(scope))
            await web.answer(send, self.check_status, b"{}")
            return
        body, pieces = b"", 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            pieces += 1
            if not message.get("more_body"):
                break
        seen = {
            "role": self.name,
            "method": scope["method"],
            "path": scope["path"],
            "raw_path": scope["raw_path"].decode("latin-1"),
            "query": scope["query_string"].decode("latin-1"),
            "scheme": scope["scheme"],
            "headers": _texts(scope),
            "body_bytes": len(body),
            "body_sha": hashlib.sha256(body).hexdigest(),
        }
        self.seen.append(seen)
        await self._answer(send, seen, wishes)
        self.answered += 1

    async def _answer(self, send: web.Send, seen: dict[str, Any], wishes: dict[str, str]) -> None:
        if "held" in wishes:
            await asyncio.to_thread(self.release.wait, 10)
        if "lines" in wishes:
            await self._lines(send)
            return
        more = [tuple(wishes["header"].encode().split(b":", 1))] if "header" in wishes else []
        body = json.dumps(seen | {"filling": "x" * int(wishes.get("bytes", 0))}).encode()
        status = int(wishes.get("status", 200))
        if len(body) > PIECE_BYTES:
            await self._pieces(send, body)
            return
        await web.answer(send, status, body, headers=tuple(more))  # type: ignore[arg-type]

    async def _pieces(self, send: web.Send, body: bytes) -> None:
        """Send a long answer piece by piece: each waits until those before it are taken."""
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for at in range(0, len(body), PIECE_BYTES):
            piece = body[at : at + PIECE_BYTES]
            more = at + PIECE_BYTES < len(body)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _lines(self, send: web.Send) -> None:
        headers = [(b"content-type", b"application/x-ndjson"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"line":1}\n', "more_body": True})
        await asyncio.to_thread(self.release.wait, 10)
        await send({"type": "http.response.body", "body": b'{"line":2}\n'})

    async def _socket(
        self, scope: web.Scope, receive: web.Receive, send: web.Send, wishes: dict[str, str]
    ) -> None:
        self.seen.append({"websocket": scope["path"], "headers": _texts(scope)})
        await receive()
        if "refuse" in wishes:
            head = {"status": 401, "headers": [(b"content-type", b"application/json")]}
            await send({"type": "websocket.http.response.start", **head})
            await send({"type": "websocket.http.response.body", "body": b'{"refused":true}'})
            return
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            text = message["text"] + "x" * int(wishes.get("bytes", 0))
            await send({"type": "websocket.send", "text": text})


class Dropping:
    """A role that reads each request and hangs up; `requests` is what it got."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the end: the socket is shut
            while True:
                link, _ = self._server.accept()
                with link:
                    self.requests.append(link.recv(65536))

    def __enter__(self) -> Dropping:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._server.close()


def _texts(scope: web.Scope) -> dict[str, str]:
    return {name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]}


class Rendered(servers.Server):
    """NGINX with the text of `config.render`, and a log of its own."""

    name = "NGINX"

    def __init__(self, gateway: config.Gateway) -> None:
        super().__init__()
        self.gateway = gateway
        self.log = gateway.folder / "log"
        self.url = f"http{'s' if gateway.tls else ''}://127.0.0.1:{gateway.port}"

    def prepare(self) -> None:
        (self.gateway.folder / "nginx.conf").write_text(config.render(self.gateway))

    def command(self) -> servers.Command:
        program = binaries.nginx()
        assert program is not None
        folder = self.gateway.folder
        return servers.Command(
            argv=(
                *(str(program.program), "-e", "stderr", "-p", str(folder)),
                *("-c", str(folder / "nginx.conf"), "-g", "daemon off;"),
            ),
            cwd=folder,
            env={},
            stop_signal=signal.SIGTERM,
        )

    def ready(self) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(self.url + routes.PROBE, verify=False).status_code == 204
        return False

    def raw(self, sent: bytes, *, until_closed: bool = True) -> bytes:
        """Send bytes as they are, and return all that comes back until the end."""
        with socket.create_connection(("127.0.0.1", self.gateway.port), timeout=10) as link:
            link.sendall(sent)
            return read_all(link) if until_closed else link.recv(65536)

    def lines(self, request_id: str) -> list[dict[str, Any]]:
        """Return the log's lines of a request, when they are there."""
        deadline_s = time.monotonic() + 5
        while time.monotonic() < deadline_s:
            found = [json.loads(line) for line in self.log.read_bytes().splitlines()]
            of_request = [line for line in found if line["request_id"] == request_id]
            if of_request:
                return of_request
            time.sleep(0.005)
        raise AssertionError(f"{request_id} is not in the log")


def read_all(link: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while got := link.recv(65536):
            answer += got
    return answer


def fed_until_cut(link: socket.socket, byte: bytes) -> bool:
    """Send a byte now and then; whether the other end has cut the connection within 8 s."""
    link.settimeout(0.05)
    deadline_s = time.monotonic() + 8
    while time.monotonic() < deadline_s:
        try:
            link.sendall(byte)
            if not link.recv(1):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


class Front(msgspec.Struct):
    """A gateway with its roles."""

    nginx: Rendered
    ingest: Echo
    query: Echo
    auth: Echo | None = None

    @property
    def url(self) -> str:
        return self.nginx.url

    @property
    def seen(self) -> list[dict[str, Any]]:
        """What reached a role, whichever."""
        return [seen for one in self._roles for seen in one.seen]

    @property
    def _roles(self) -> list[Echo]:
        return [one for one in (self.ingest, self.query, self.auth) if one is not None]

    def forget(self) -> None:
        for one in self._roles:
            one.seen.clear()
            one.checks.clear()
            one.check_status = 405
            one.release.clear()


@contextlib.contextmanager
def serving_in_a_thread(*roles: Echo) -> Iterator[None]:
    """Serve the roles as real ones are served, in an event loop of a thread."""
    life = Life()
    loop = asyncio.new_event_loop()

    async def serve_all() -> None:
        await asyncio.gather(
            *(
                web.serve(one, Listen(fd=one.socket.detach()), life, protocol=one.protocol)
                for one in roles
            )
        )

    thread = threading.Thread(target=loop.run_until_complete, args=[serve_all()])
    thread.start()
    try:
        yield
    finally:
        for one in roles:
            one.release.set()
        loop.call_soon_threadsafe(life.stopping.set)
        thread.join(15)
        loop.close()


@contextlib.contextmanager
def running(gateway: config.Gateway) -> Iterator[Rendered]:
    """Start an NGINX for the block."""
    nginx = Rendered(gateway)
    nginx.start(nginx.log)
    try:
        yield nginx
    finally:
        nginx.stop()
