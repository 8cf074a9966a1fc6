"""The WebSocket of a live tail: `/api/v1/tail?query=&start=&limit=`.

Frames are JSON objects: `{"records": [...]}`, after the last lines once `{"live": true}`, for a
client that reads too slowly `{"gap": {"records": n}}`, and `{"error": {...}}` before a close.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from fastapi import WebSocket
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from logweir.core import errors, moments
from logweir.query import access, api, params, plan, search
from logweir.query.engine import OverBudgetError
from logweir.query.params import Window
from logweir.query.tail import Tail
from logweir.query.tenants import Doors, Tenants
from logweir.runtime import metrics, web

KNOWN: Final = ("query", "start", "limit")
MAX_TAILS: Final = 64
"""Open tails of a tenant; each costs the scan of every block."""

RECHECK_S: Final = 2.0
"""How often the key of an open tail is looked at again: a revoked one ends within 5 s."""

FUTURE_NS: Final = 3600 * moments.NS_PER_S

CLOSE_POLICY: Final = 1008
CLOSE_TRY_AGAIN: Final = 1013

Check = Callable[[Sequence[tuple[bytes, bytes]]], access.Grant]


async def serve(websocket: WebSocket, check: Check, tenants: Tenants) -> None:
    """Serve one tail until its client goes, its key is refused, or the journal is lost."""
    headers = websocket.scope["headers"]
    try:
        grant = check(headers)
        texts = params.from_pairs(websocket.query_params.multi_items(), KNOWN)
        limit = params.count(texts, "limit", params.DEFAULT_LIMIT, params.MAX_LIMIT)
        now_ns = time.time_ns()
        window = Window(params.window(texts, now_ns).start_ns, now_ns + FUTURE_NS)
        planned = plan.plan(texts.get("query") or "{}", window, grant.pipelines, now_ns)
        doors = tenants.doors(grant.tenant)
        if doors.hub.tails >= MAX_TAILS:
            raise errors.OverLimitError(
                f"{MAX_TAILS} tails of this tenant are open, as many as may.", retry_after_s=5.0
            )
    except errors.LogweirError as error:
        await _refuse(websocket, error)
        return
    await websocket.accept()
    metrics.TAIL_CLIENTS.inc()
    tail = Tail(planned)
    try:
        await _begin(doors, tail, grant.tenant, limit)
        await _stream(websocket, tail, lambda: check(headers))
    except errors.LogweirError as error:
        code = CLOSE_TRY_AGAIN if error.retry else CLOSE_POLICY
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await websocket.send_text(web.error_body(error).decode())
            await websocket.close(code)
    except WebSocketDisconnect:
        pass
    finally:
        doors.hub.detach(tail)
        metrics.TAIL_CLIENTS.dec()


async def _refuse(websocket: WebSocket, error: errors.LogweirError) -> None:
    """Answer the handshake as a request would be answered."""
    headers = {name.decode(): value.decode() for name, value in web.error_headers(error)}
    await websocket.send_denial_response(
        Response(web.error_body(error), error.status, headers, media_type="application/json")
    )


async def _begin(doors: Doors, tail: Tail, tenant: access.Tenant, limit: int) -> None:
    """Attach first, then read the journal, then the store: whatever moves on is seen once."""
    await doors.hub.attach(tail)
    buffered = await doors.hub.buffered(list(tail.plan.lows_ns))
    try:
        page = await search.search(doors.reader, tail.plan, limit, api.new_run(tenant))
        stored = page.records
    except OverBudgetError:
        stored = []  # the live part is worth more than a history that takes a minute
    tail.begin(buffered, stored, limit)


async def _stream(websocket: WebSocket, tail: Tail, check: Callable[[], object]) -> None:
    async def send() -> None:
        async for frame in tail.frames():
            await websocket.send_text(frame.decode())

    async def receive() -> None:
        while True:  # nothing that a client says matters, but that it goes
            await _receive(websocket)

    async def recheck() -> None:
        while True:
            await asyncio.sleep(RECHECK_S)
            check()

    tasks = [asyncio.create_task(one()) for one in (send, receive, recheck)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _receive(websocket: WebSocket) -> Mapping[str, object]:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    return message
