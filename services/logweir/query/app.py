"""Query: the read API over the store and the journal. This file is HTTP; api.py answers.

    request -> key (access.py) -> parameters -> api.py -> 200        /api/v1/query, /histogram, ...
            -> key -> tail.py, hub.py -> WebSocket frames            /api/v1/tail

A client that goes away ends its query. Every error has the one shape of `runtime.web`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, WebSocket
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from logweir.core import access, errors, keys
from logweir.core.binding import QueryBinding, roots
from logweir.query import api, live, params, usage
from logweir.query.engine import CancelledQueryError
from logweir.query.tenants import Tenants
from logweir.runtime import bindings, life, logs, metrics, web
from logweir.runtime.api import error_response, new_app
from logweir.runtime.settings import Settings
from logweir.runtime.watch import POLL_S, Watch

logger = logging.getLogger(__name__)

DISCONNECT_POLL_S: Final = 0.25
"""How often a running query looks whether its client is still there."""

RECEIPT_SCOPES: Final = keys.SCOPE_QUERY | keys.SCOPE_INGEST
"""Who sent records may ask what became of them."""

Endpoint = Callable[[api.Asked], Awaitable[api.Answer]]


class Query:
    """The role's state: who may read what, and the doors of the tenants being read."""

    def __init__(self) -> None:
        self.watch = Watch("query")
        self.tenants = Tenants()
        self._sign_roots: dict[int, bytes] = {}

    async def bind(self, binding: QueryBinding) -> None:
        """Read with these logins and roots from now on."""
        self._sign_roots = roots(binding.sign_roots)
        self.tenants.bind(binding)
        await self.watch.bind(binding.store, binding.control_login)

    def check(
        self, headers: Sequence[tuple[bytes, bytes]], scopes: int = keys.SCOPE_QUERY
    ) -> access.Grant:
        """Return what a request's key grants; see `access.grant`."""
        given, now_s = web.headers_of(headers), time.time()
        try:
            return access.grant(self.watch.directory, self._sign_roots, given, now_s, scopes=scopes)
        except errors.LogweirError as error:
            metrics.refused(error)
            raise

    async def answer(
        self,
        request: Request,
        name: str,
        known: Sequence[str],
        endpoint: Endpoint,
        scopes: int = keys.SCOPE_QUERY,
    ) -> Response:
        """Answer one request of the endpoint `name`, which takes the parameters `known`."""
        started_s = time.monotonic()
        status = 200
        try:
            grant = self.check(request.scope["headers"], scopes)
            texts = await _texts(request, known)
            with self.tenants.query(grant.tenant) as doors:
                run = api.new_run(grant.tenant)
                asked = api.Asked(grant, texts, doors, run, api.now_ns())
                found = await _until_gone(request, endpoint(asked), asked)
            metrics.QUERY_SCANNED_BYTES.inc(run.stats.scanned_bytes)
            return Response(found.body, media_type=found.content_type)
        except errors.LogweirError as error:
            status = error.status
            if status >= errors.UnavailableError.status:
                logger.warning("query failed", extra={"endpoint": name, "why": str(error)})
            return error_response(error)
        except (CancelledQueryError, ClientDisconnect):
            status = 499
            return Response(status_code=499)
        except Exception:
            logger.exception("query failed", extra={"endpoint": name})
            status = 503
            return error_response(
                errors.UnavailableError("The query failed; the reason is in the role's log.")
            )
        finally:
            metrics.QUERY_REQUESTS.labels(name, status).inc()
            metrics.QUERY_SECONDS.labels(name).observe(time.monotonic() - started_s)

    async def keep(self, running: life.Life) -> None:
        """Close and change the doors as the control schema says, until the process stops."""
        while not await running.pause(POLL_S):
            if self.watch.directory.as_of_s:
                self.tenants.follow(self.watch.directory)

    async def close(self) -> None:
        """Close all doors."""
        await self.tenants.close()
        await self.watch.close()


async def _texts(request: Request, known: Sequence[str]) -> dict[str, str]:
    """The parameters of the query string or, with POST, of the body as well."""
    found = params.from_pairs(request.query_params.multi_items(), known)
    if request.method != "POST":
        return found
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > params.MAX_BODY_BYTES:
            raise errors.TooLargeError(
                f"The body has more than {params.MAX_BODY_BYTES} bytes of parameters."
            )
    more = params.from_body(body, request.headers.get("content-type", ""), known) if body else {}
    twice = found.keys() & more.keys()
    if twice:
        raise errors.BadRequestError(f"{min(twice)!r} stands in the URL and in the body.")
    return found | more


async def _until_gone(
    request: Request, answer: Awaitable[api.Answer], asked: api.Asked
) -> api.Answer:
    """Return the answer, or cancel the query when its client has gone away.

    Raises:
        CancelledQueryError: nobody waits for the answer any more.
    """
    task = asyncio.ensure_future(answer)
    try:
        while True:
            done, _ = await asyncio.wait([task], timeout=DISCONNECT_POLL_S)
            if done:
                return task.result()
            if await request.is_disconnected():
                raise CancelledQueryError
    finally:
        asked.run.cancel()
        if not task.done():
            with contextlib.suppress(CancelledQueryError, asyncio.CancelledError):
                task.cancel()
                await task


def make_app(query: Query) -> FastAPI:
    """Return the role's application."""
    app = new_app(
        "Logweir query",
        "The read API is /api/v1/query, /histogram, /labels, /fields, /receipts, /tail.",
    )
    methods = ["GET", "POST"]

    @app.api_route("/api/v1/query", methods=methods)
    async def _query(request: Request) -> Response:
        return await query.answer(request, "query", api.QUERY, api.query)

    @app.api_route("/api/v1/histogram", methods=methods)
    async def _histogram(request: Request) -> Response:
        return await query.answer(request, "histogram", api.HISTOGRAM, api.histogram)

    @app.api_route("/api/v1/labels", methods=methods)
    async def _labels(request: Request) -> Response:
        return await query.answer(request, "labels", api.LABELS, api.labels)

    @app.api_route("/api/v1/labels/{name:path}/values", methods=methods)
    async def _label_values(request: Request) -> Response:
        async def values(asked: api.Asked) -> api.Answer:
            return await api.label_values(asked, request.path_params["name"])

        return await query.answer(request, "label_values", api.LABELS, values)

    @app.api_route("/api/v1/fields", methods=methods)
    async def _fields(request: Request) -> Response:
        return await query.answer(request, "fields", api.FIELDS, api.fields_of)

    @app.api_route("/api/v1/usage", methods=methods)
    async def _usage(request: Request) -> Response:
        is_csv = usage.CSV in request.headers.get("accept", "")

        async def used(asked: api.Asked) -> api.Answer:
            return await usage.usage(asked, is_csv=is_csv)

        return await query.answer(request, "usage", usage.PARAMETERS, used)

    @app.get("/api/v1/receipts/{receipt}")
    async def _receipt(request: Request) -> Response:
        async def receipt(asked: api.Asked) -> api.Answer:
            return await api.receipt(asked, request.path_params["receipt"])

        return await query.answer(request, "receipts", (), receipt, RECEIPT_SCOPES)

    @app.websocket("/api/v1/tail")
    async def _tail(websocket: WebSocket) -> None:
        await live.serve(websocket, query.check, query.tenants)

    return app


async def work(binding: Path, running: life.Life, serve: web.Serve) -> None:
    """Be the role until `serve` returns: no request is left."""
    query = Query()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bindings.follow(binding, QueryBinding, query.bind, running))
        tasks.create_task(query.watch.follow(running))
        tasks.create_task(query.keep(running))
        await serve(make_app(query))
    await query.close()


async def run(settings: Settings, running: life.Life) -> None:
    """Serve in a process of its own until it is told to stop."""
    await web.serve_role(settings, running, work)


def main(settings: Settings) -> None:
    """Run the role in this process until SIGTERM."""
    logs.configure("query", settings.log_format)
    life.keep_freed_memory()
    life.run(lambda running: run(settings, running))
