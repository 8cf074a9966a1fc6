"""A plain HTTP client that hides nothing of an answer: its bytes, as they came."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

Headers = Sequence[tuple[str, str]]

WAIT_S: Final = 30.0
_LIVE: Final = b'"live":true'
_UPGRADE: Final = (
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
)


class Answer(msgspec.Struct, frozen=True):
    """Status line and headers as bytes, and the body."""

    status: int
    head: bytes
    body: bytes

    def without(self, *names: bytes) -> bytes:
        """All of the answer but for these headers."""
        lines = self.head.split(b"\r\n")
        kept = [one for one in lines if one.split(b":")[0].lower() not in names]
        return b"\r\n".join([*kept, self.body])


class Client:
    """Asks one server over one connection at a time, one request after the other."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, target: str, headers: Headers = (), body: bytes = b""
    ) -> Answer:
        """Send a request and return what came back."""
        async with asyncio.timeout(WAIT_S):
            reader, writer = await self._connected()
            writer.write(_request(method, target, headers, body))
            head = await reader.readuntil(b"\r\n\r\n")
            size = 0 if method == "HEAD" else _content_length(head)
            answer = Answer(int(head.split()[1]), head, await reader.readexactly(size))
        if b"connection: close" in head.lower():
            await self.close()
        return answer

    async def open_socket(self, target: str, headers: Headers = ()) -> Answer:
        """Ask for a WebSocket. Of one that opens, the body is its frames until it is live."""
        await self.close()
        async with asyncio.timeout(WAIT_S):
            reader, writer = await self._connected()
            writer.write(_request("GET", target, [*_UPGRADE, *headers]))
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split()[1])
            if status == 101:
                body = await reader.readuntil(_LIVE)
            else:
                body = await reader.readexactly(_content_length(head))
        await self.close()
        return Answer(status, head, body)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 22)
        return self._streams

    async def close(self) -> None:
        """Close the connection; the next request makes another."""
        if self._streams is not None:
            writer, self._streams = self._streams[1], None
            writer.close()
            await writer.wait_closed()


def _request(method: str, target: str, headers: Headers, body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "host: test", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0
