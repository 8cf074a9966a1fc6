"""The WebSocket of a live tail: `/api/v1/tail?query=&start=&limit=`.

Frames are JSON objects: `{"records": [...]}`, after the last lines once `{"live": true}`, for a
client that reads too slowly `{"gap": {"records": n}}`, and `{"error": {...}}` before a close.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from fastapi import WebSocket
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from logweir.core import access, errors, moments
from logweir.query import history, params, plan
from logweir.query.engine import Budget, Run
from logweir.query.params import Window
from logweir.query.tail import Tail
from logweir.query.tenants import Doors, Tenants
from logweir.runtime import life, metrics, web

KNOWN: Final = ("query", "start", "limit")

RECHECK_S: Final = 2.0
"""How often the key of an open tail is looked at again: a revoked one ends within 5 s."""

SEND_TIMEOUT_S: Final = 60.0
"""A client that takes no byte for so long is not there any more."""

GOODBYE_S: Final = 2.0
FUTURE_NS: Final = 3600 * moments.NS_PER_S

CLOSE_POLICY: Final = 1008
CLOSE_TRY_AGAIN: Final = 1013

Check = Callable[[Sequence[tuple[bytes, bytes]]], access.Grant]


async def serve(websocket: WebSocket, check: Check, tenants: Tenants) -> None:
    """Serve one tail until its client goes, its key is refused, or its doors are closed."""
    headers = websocket.scope["headers"]
    with contextlib.ExitStack() as stack:
        try:
            grant = check(headers)
            limit, planned = _asked(websocket, grant)
            doors = stack.enter_context(tenants.tail(grant.tenant))
        except errors.LogweirError as error:
            await _refuse(websocket, error)
            return
        stack.enter_context(metrics.TAIL_CLIENTS.track_inprogress())
        tail, run = Tail(planned), Run(Budget(history.TIME_S, grant.tenant.scan_bytes))
        stack.callback(run.cancel)
        stack.callback(doors.hub.detach, tail)
        try:
            await websocket.accept()
            await _first_of(
                _show(websocket, doors, tail, limit, run),
                _receive(websocket),
                _recheck(lambda: check(headers)),
            )
        except errors.LogweirError as error:
            await _say_goodbye(websocket, error)
        except (WebSocketDisconnect, TimeoutError):
            pass  # nobody reads any more


def _asked(websocket: WebSocket, grant: access.Grant) -> tuple[int, plan.Plan]:
    """Return how many last lines are wanted, and the plan of the query."""
    texts = params.from_pairs(websocket.query_params.multi_items(), KNOWN)
    limit = params.count(texts, "limit", params.DEFAULT_LIMIT, params.MAX_LIMIT)
    now_ns = time.time_ns()
    window = Window(params.window(texts, now_ns).start_ns, now_ns + FUTURE_NS)
    live = {one.id: one for one in grant.pipelines.values() if not one.is_deleted}
    return limit, plan.plan(texts.get("query") or "{}", window, live, now_ns)


async def _refuse(websocket: WebSocket, error: errors.LogweirError) -> None:
    """Answer the handshake as a request would be answered."""
    headers = {name.decode(): value.decode() for name, value in web.error_headers(error)}
    with contextlib.suppress(WebSocketDisconnect):
        await websocket.send_denial_response(
            Response(web.error_body(error), error.status, headers, media_type="application/json")
        )


async def _say_goodbye(websocket: WebSocket, error: errors.LogweirError) -> None:
    """Tell the client why its tail ends, when it still listens."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(GOODBYE_S):
            await websocket.send_text(web.error_body(error).decode())
            await websocket.close(CLOSE_TRY_AGAIN if error.retry else CLOSE_POLICY)


async def _first_of(*parts: Coroutine[Any, Any, None]) -> None:
    """Run all until the first one ends, and end as it did."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await life.end(*tasks)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for task, problem in zip(tasks, ended, strict=True):
        if task in done and isinstance(problem, BaseException):
            raise problem


async def _show(websocket: WebSocket, doors: Doors, tail: Tail, limit: int, run: Run) -> None:
    """Attach first, then read the history: whatever moves on meanwhile is seen once."""
    await doors.hub.attach(tail)
    async with doors.histories:
        tail.begin(await history.last_records(doors.source, doors.reader, tail.plan, limit, run))
    async for frame in tail.frames():
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await websocket.send_text(frame.decode())


async def _receive(websocket: WebSocket) -> None:
    """Wait until the client goes; nothing that it says matters."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))


async def _recheck(check: Callable[[], object]) -> None:
    while True:
        await asyncio.sleep(RECHECK_S)
        check()
