"""HTTP/1 for anybody: uvicorn's reading of it, with bounds on what comes before a role is asked.

Roles behind NGINX need none of this; `asgi.Front` is served with it.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from logweir.gateway import failures, rules
from logweir.runtime import web

HEADER_TIMEOUT_S: Final = 15.0
"""From the first byte of a connection, or of a further request, to the end of the headers."""

BODY_TIMEOUT_S: Final = 60.0
"""From there to the end of the body. A role may have a shorter time of its own."""

MAX_LINE_BYTES: Final = 16 << 10
"""A URL, or one header."""

MAX_HEAD_BYTES: Final = 64 << 10


class PublicProtocol(HttpToolsProtocol):
    """One connection of a client that need not mean well."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*args, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._is_in_head = True
        self._found = failures.MALFORMED

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._within(HEADER_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._within(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the connection is given up."""
        if self.transport.is_closing():
            return
        if self._is_in_head and self._deadline is None:
            self._within(HEADER_TIMEOUT_S)
        super().data_received(data)

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        self._count(len(url))
        super().on_url(url)
        if len(self.url) > MAX_LINE_BYTES:
            self._give_up(failures.URL_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header."""
        self._count(len(name) + len(value))
        if len(name) + len(value) > MAX_LINE_BYTES:
            self._give_up(failures.HEADER_TOO_LARGE)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application, and wait for its body."""
        self._is_in_head = False
        self._within(BODY_TIMEOUT_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for nothing, until the next request begins."""
        self._is_in_head, self._head_bytes = True, 0
        self._within(None)
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to a WebSocket, which may be silent."""
        self._within(None)
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be read, in our one shape."""
        failure = failures.failure(self._found)
        body = web.error_body(failure.error)
        headers = (
            *(("Content-Type", "application/json"), ("Content-Length", str(len(body)))),
            *(*rules.HEADERS, ("X-Request-Id", secrets.token_hex(16)), ("Connection", "close")),
        )
        head = f"HTTP/1.1 {failure.status} \r\n" + "".join(f"{n}: {t}\r\n" for n, t in headers)
        self.transport.write(head.encode() + b"\r\n" + body)
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._give_up(failures.HEADER_TOO_LARGE)

    def _give_up(self, found: int) -> None:
        """Have the parser stop, which makes `send_400_response` answer."""
        self._found = found
        raise ValueError(found)

    def _within(self, wait_s: float | None) -> None:
        """Cut the connection after so long; None: not at all."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if wait_s is not None:
            self._deadline = self.loop.call_later(wait_s, self.transport.abort)
