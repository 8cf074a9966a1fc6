"""HTTP of a role: its API on one socket, and /livez, /readyz, /metrics on another.

uvicorn serves both in the role's event loop; the process's signals stay with `life`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn

from logweir.core import errors
from logweir.runtime import metrics
from logweir.runtime.life import Life
from logweir.runtime.settings import Listen, Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Serve = Callable[[Asgi], Awaitable[None]]
"""Serves an application until the process stops and no request is left."""

GRACE_S = 10
"""How long an open request may go on after SIGTERM."""

LISTENERS: Final = 16
"""Of one socket: the event loop takes one connection from each in a turn, and a turn of a busy role
takes 20 ms, so with one of them a crowd of new senders would wait for seconds. Each new connection
wakes all of them, which costs some microseconds."""

MESSAGE_BYTES: Final = 4 << 10
"""The largest message that a WebSocket's client may send; nothing is asked by them. uvicorn reads
on only when the application has taken what came."""

_encoder = msgspec.json.Encoder()


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    app: Asgi,
    listen: Listen,
    life: Life,
    listeners: int = LISTENERS,
    tls: ssl.SSLContext | None = None,
    protocol: type[asyncio.Protocol] | None = None,
) -> None:
    """Serve `app` until `life.stopping`, then finish the requests that are open.

    Args:
        app: the application.
        listen: where.
        life: of the process.
        listeners: of the one socket; see LISTENERS.
        tls: what is spoken to clients; None for plain HTTP.
        protocol: in place of uvicorn's own reading of HTTP/1.
    """
    config = uvicorn.Config(
        app,
        loop="none",
        http=protocol or "httptools",
        ssl_context_factory=(lambda *_: tls) if tls is not None else None,
        ws="auto",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=1024,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
        ws_max_size=MESSAGE_BYTES,
        ws_per_message_deflate=False,  # it would run in the event loop, for each frame
    )
    server = _Server(config)
    listening = bind(listen)
    sockets = [listening, *(listening.dup() for _ in range(listeners - 1))]
    serving = asyncio.create_task(server.serve(sockets=sockets), name="http")
    stopping = asyncio.create_task(life.stopping.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    stopping.cancel()


async def serve_role(
    settings: Settings, life: Life, work: Callable[[Path, Life, Serve], Awaitable[None]]
) -> None:
    """Run a role in a process of its own; `work` is the role, told how to serve its application.

    Raises:
        SetupError: it has no address, or that is taken.
    """
    http = settings.http
    if http is None:
        raise errors.SetupError(f"The {settings.role} role needs an address for its API.")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve_ops(settings.ops, life))
        await work(settings.binding, life, lambda app: serve(app, http, life))


async def serve_ops(listen: Listen, life: Life) -> None:
    """Serve /livez, /readyz and /metrics until `life.stopping`; they have few clients."""
    await serve(ops_app(life), listen, life, listeners=1)


def bind(listen: Listen) -> socket.socket:
    """Return the listening socket, inherited or made here; one of IPv6 takes no IPv4, as NGINX's.

    Raises:
        SetupError: the address is taken.
    """
    if listen.fd is not None:
        return socket.socket(fileno=listen.fd)
    made = socket.socket(socket.AF_INET6 if ":" in listen.host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        made.bind((listen.host, listen.port))
    except OSError as cause:
        made.close()
        raise errors.SetupError(
            f"Cannot listen on {listen.host}:{listen.port}: {cause.strerror}.",
            hint="Stop what uses the port, or choose another.",
        ) from cause
    made.listen(1024)
    return made


def ops_app(life: Life) -> Asgi:
    """Return the ASGI application of /livez, /readyz and /metrics."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/metrics":
            await answer(send, 200, metrics.text(), metrics.CONTENT_TYPE)
        elif path == "/livez":
            await answer(send, 200, b'{"live":true}')
        elif path == "/readyz":
            problems = life.problems()
            body = _encoder.encode({"ready": not problems, "problems": problems})
            await answer(send, 503 if problems else 200, body)
        else:
            await answer_error(send, errors.NotFoundError("There is no such page here."))

    return app


def headers_of(pairs: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return a request's headers; what is sent twice is joined, so that no value hides another."""
    found = dict(pairs)
    if len(found) < len(pairs):
        found = {}
        for name, value in pairs:
            found[name] = b"%b, %b" % (found[name], value) if name in found else value
    return found


async def answer(
    send: Send,
    status: int,
    body: bytes,
    content_type: str = "application/json",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """Send one whole answer."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type.encode()),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def answer_empty(send: Send, status: int) -> None:
    """Send an answer without a body, such as a 204."""
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def answer_error(
    send: Send, error: errors.LogweirError, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Send an error in the one shape that all of them have."""
    extra = error_headers(error)
    await answer(send, error.status, error_body(error), headers=(*extra, *headers))


def error_body(error: errors.LogweirError) -> bytes:
    """Return the JSON of an error: `{"error": {"code", "message", "hint"}}`."""
    return _encoder.encode(
        {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    )


def error_headers(error: errors.LogweirError) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that an error's answer needs, by its kind."""
    if isinstance(error, errors.OverLimitError | errors.UnavailableError):
        return ((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()),)
    if isinstance(error, errors.UnauthorizedError):
        return ((b"www-authenticate", b"Bearer"),)
    return ()
