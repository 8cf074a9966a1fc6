"""Requests that two readers of HTTP could cut apart in two ways: one answer, and nothing behind it.

Each is sent raw, with a whole second request hidden in it. Ingest may refuse it or take its body,
but never take what is hidden, and never answer more than was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

import ingest_door
import pytest
from builders import record

OUTER = json.dumps(record("outer")).encode()
HIDDEN = json.dumps(record("hidden")).encode()


def hidden(key: str) -> bytes:
    return (
        f"POST /ingest HTTP/1.1\r\nHost: h\r\nX-API-Key: {key}\r\n"
        f"Content-Length: {len(HIDDEN)}\r\n\r\n"
    ).encode() + HIDDEN


WAIT_S = 1.0
CHUNKED_END = b"0\r\n\r\n"

CASES = {
    "length and chunked": (b"Content-Length: %(all)d\r\nTransfer-Encoding: chunked", CHUNKED_END),
    "chunked and length": (b"Transfer-Encoding: chunked\r\nContent-Length: %(all)d", CHUNKED_END),
    "chunked behind a space": (
        b"Content-Length: %(all)d\r\nTransfer-Encoding : chunked",
        CHUNKED_END,
    ),
    "chunked behind a tab": (
        b"Content-Length: %(all)d\r\nTransfer-Encoding:\tchunked",
        CHUNKED_END,
    ),
    "chunked in a list": (
        b"Content-Length: %(all)d\r\nTransfer-Encoding: identity, chunked",
        CHUNKED_END,
    ),
    "chunked twice": (
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\nContent-Length: %(all)d",
        CHUNKED_END,
    ),
    "another coding": (b"Content-Length: %(all)d\r\nTransfer-Encoding: xchunked", CHUNKED_END),
    "two lengths": (b"Content-Length: %(all)d\r\nContent-Length: %(own)d", OUTER),
    "two lengths the other way": (b"Content-Length: %(own)d\r\nContent-Length: %(all)d", OUTER),
    "lengths in a list": (b"Content-Length: %(own)d, %(all)d", OUTER),
    "a length with a sign": (b"Content-Length: +%(own)d", OUTER),
    "a negative length": (b"Content-Length: -1", OUTER),
    "a length with letters": (b"Content-Length: %(own)dx", OUTER),
    "a length in hex": (b"Content-Length: 0x10", OUTER),
    "a length of twenty digits": (b"Content-Length: 99999999999999999999", OUTER),
    "a folded header": (b"X-A: b\r\n Content-Length: 0\r\nContent-Length: %(all)d", OUTER),
    "a bare line feed": (b"X-A: b\nContent-Length: 0\r\nContent-Length: %(all)d", OUTER),
    "a bare carriage return": (b"X-A: b\rContent-Length: 0\r\nContent-Length: %(all)d", OUTER),
    "a NUL in a header": (b"X-A: b\0\r\nContent-Length: %(all)d", OUTER),
    "a name with a space": (b"Content Length: 0\r\nContent-Length: %(all)d", OUTER),
    "a header without a name": (b": b\r\nContent-Length: %(all)d", OUTER),
    "a chunk of no size": (b"Transfer-Encoding: chunked", b"x\r\n" + OUTER + b"\r\n0\r\n\r\n"),
    "a chunk of a huge size": (
        b"Transfer-Encoding: chunked",
        b"fffffffffffffffff\r\n" + OUTER + b"\r\n0\r\n\r\n",
    ),
    "a chunk that is too long": (
        b"Transfer-Encoding: chunked",
        b"1\r\n" + OUTER + b"\r\n0\r\n\r\n",
    ),
    "a chunk without its end": (b"Transfer-Encoding: chunked", b"5\r\nabcdeX\r\n0\r\n\r\n"),
}


LAST = b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


async def answers(door: ingest_door.Door, request: bytes) -> list[int]:
    """The statuses of all answers, until the server closes or waits for more of a body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(door.url.rsplit(":", 1)[1]))
    writer.write(request + LAST)
    said = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        async with asyncio.timeout(WAIT_S):
            while piece := await reader.read(1 << 16):
                said += piece
    writer.close()
    with contextlib.suppress(ConnectionResetError):
        await writer.wait_closed()
    return [int(part[1:4]) for part in said.split(b"HTTP/1.1")[1:]]


@pytest.mark.parametrize("name", CASES)
async def test_what_is_hidden_in_a_request_is_never_taken(door, name):
    headers, body = CASES[name]
    behind = hidden(door.key)
    numbers = {b"own": len(OUTER), b"all": len(body) + len(behind)}
    head = f"POST /ingest HTTP/1.1\r\nHost: h\r\nX-API-Key: {door.key}\r\n".encode()

    found = await answers(door, head + headers % numbers + b"\r\n\r\n" + body + behind)

    assert found, "no answer"
    assert len(found) <= 2, "one, and that of the last request"
    assert all(200 <= status < 500 for status in found), found
    assert [one["message"] for one in await ingest_door.stored(door.tenant)] in ([], ["outer"])
    assert (await door.post(record("after"))).status_code == 200


async def test_two_honest_requests_behind_each_other_are_both_taken(door):
    """What the cases above must not come to: the hidden request is one that would be taken."""
    first = hidden(door.key).replace(b"hidden", b"inside")

    found = await answers(door, first + hidden(door.key))

    assert found == [200, 200, 401]
    messages = {one["message"] for one in await ingest_door.stored(door.tenant)}
    assert messages == {"inside", "hidden"}
