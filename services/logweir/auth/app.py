"""Auth: keys of tenants are made, listed, rolled and revoked here. This file is HTTP.

    request -> admin key (access.py) -> forms.py -> api_keys.py (a row) -> the key's text, once
                                                         `-> teller.py -> journals -> ingest

Nothing waits for this role: ingest and query check keys without it. Last use of a key is not
stored, as no database is asked when a key is checked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Final

import msgspec
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from logweir.auth import forms
from logweir.auth.teller import Teller
from logweir.backends import api_keys, store
from logweir.backends.control import ApiKeyRow
from logweir.core import access, bounds, errors, keys
from logweir.core.binding import AuthBinding, roots
from logweir.core.names import PipelineId, TenantId
from logweir.runtime import bindings, life, logs, metrics, web
from logweir.runtime.api import error_response, new_app
from logweir.runtime.settings import Settings
from logweir.runtime.watch import Watch

logger = logging.getLogger(__name__)

NO_STORE: Final = {"cache-control": "no-store"}
GONE_STATUS: Final = 499
"""Stands in metrics for a client who went away before its body was there."""

_encode = msgspec.json.Encoder().encode


class Asked(msgspec.Struct, frozen=True, eq=False):
    """One request: who asks, its body, the name in its path, and the door to the keys."""

    grant: access.Grant
    body: bytes
    name: str
    keys: api_keys.ApiKeys
    now_s: float


Endpoint = Callable[[Asked], Awaitable[Response]]


class Auth:
    """The role's state: what it knows of tenants, and its doors to keys and journals."""

    def __init__(self, now_s: Callable[[], float] = time.time) -> None:
        self.watch = Watch("auth", now_s)
        self.teller = Teller()
        self._now_s = now_s
        self._keys: api_keys.ApiKeys | None = None
        self._sign_roots: dict[int, bytes] = {}

    async def bind(self, binding: AuthBinding) -> None:
        """Work with these logins and roots from now on."""
        self._sign_roots = roots(binding.sign_roots)
        conninfo = store.conninfo(binding.store, binding.control_login, "logweir auth keys")
        before, self._keys = self._keys, api_keys.ApiKeys(conninfo)
        await self.teller.bind(self._keys, binding)
        await self.watch.bind(binding.store, binding.control_login)
        if before is not None:
            await before.close()

    async def answer(self, request: Request, name: str, endpoint: Endpoint) -> Response:
        """Answer one request of the endpoint `name`."""
        try:
            response = await endpoint(await self._asked(request))
        except errors.LogweirError as error:
            metrics.refused(error)
            if error.status >= errors.UnavailableError.status:
                logger.warning("request failed", extra={"endpoint": name, "why": str(error)})
            response = error_response(error)
        except ClientDisconnect:
            response = Response(status_code=GONE_STATUS)
        except Exception:
            logger.exception("request failed", extra={"endpoint": name})
            response = error_response(
                errors.UnavailableError("The request failed; the reason is in the role's log.")
            )
        metrics.AUTH_REQUESTS.labels(name, response.status_code).inc()
        response.headers.update(NO_STORE)
        return response

    async def _asked(self, request: Request) -> Asked:
        now_s = self._now_s()
        given = web.headers_of(request.scope["headers"])
        grant = access.administer(self.watch.directory, self._sign_roots, given, now_s)
        if self._keys is None:
            raise errors.UnavailableError("The role has no binding yet.")
        if request.url.query:
            raise errors.BadRequestError("There are no parameters here; they go into the body.")
        name = request.path_params.get("name", "")
        if name and not forms.is_name(name):
            raise api_keys.no_such_key(name)
        return Asked(grant, await _body(request), name, self._keys, now_s)

    # ---- endpoints -----------------------------------------------------------------------------

    async def create(self, asked: Asked) -> Response:
        """Answer `POST /api/v1/keys`: a new key, its text this once."""
        form = forms.decode(asked.body, forms.Create)
        scopes = forms.scopes_of(form)
        expires_at = forms.expiry(form.expires_at, asked.now_s)
        tenant = asked.grant.tenant.id
        pipeline = PipelineId(0)
        if form.pipeline is not None:
            pipeline = await asked.keys.pipeline_id(tenant, form.pipeline)
        wanted = api_keys.NewKey(form.name, pipeline, scopes, expires_at, asked.grant.key_id)
        return self._made(asked, await asked.keys.create(tenant, wanted), form.pipeline)

    async def roll(self, asked: Asked) -> Response:
        """Answer `POST /api/v1/keys/<name>/roll`: the next generation, its text this once."""
        form = forms.decode(asked.body or b"{}", forms.Roll)
        expires_at = form.expires_at
        if expires_at is not msgspec.UNSET:
            expires_at = forms.expiry(expires_at, asked.now_s)
        grant, overlap_s = asked.grant, form.overlap_seconds
        row = await asked.keys.roll(
            grant.tenant.id, asked.name, grant.key_id, overlap_s, expires_at
        )
        await self._tell()
        return self._made(asked, row)

    async def revoke(self, asked: Asked) -> Response:
        """Answer `DELETE /api/v1/keys/<name>`: every process refuses it within 5 seconds."""
        tenant = asked.grant.tenant.id
        await asked.keys.revoke(tenant, asked.name, asked.grant.key_id)
        logger.info("key revoked", extra={"tenant": tenant, "key": asked.name})
        if tenant in await self._tell():
            raise errors.UnavailableError(
                "The key is revoked, but ingest could not be told yet.",
                hint="It will be as soon as the journal answers; ask again to see whether it is.",
            )
        return Response(status_code=204)

    async def listing(self, asked: Asked) -> Response:
        """Answer `GET /api/v1/keys`: all keys that are remembered, without their texts."""
        rows = await asked.keys.api_keys_of(asked.grant.tenant.id)
        pipelines = _names(asked.grant)
        return _json({"keys": [forms.shown(one, pipelines, asked.now_s) for one in rows]})

    async def one(self, asked: Asked) -> Response:
        """Answer `GET /api/v1/keys/<name>`: the newest generation of a key."""
        rows = await asked.keys.api_keys_of(asked.grant.tenant.id)
        found = [one for one in rows if one.name == asked.name]
        if not found:
            raise api_keys.no_such_key(asked.name)
        return _json(forms.shown(found[0], _names(asked.grant), asked.now_s))

    def _made(self, asked: Asked, row: ApiKeyRow, pipeline: str | None = None) -> Response:
        pipelines = _names(asked.grant)
        if pipeline is not None:  # it may be newer than the last look at pipelines
            pipelines[row.pipeline] = pipeline
        version = keys.root_version(asked.grant.tenant.signed_since, row.revision)
        root = self._sign_roots.get(version)
        if root is None:  # the row and the binding are read at different times
            raise errors.UnavailableError("The key is made, and cannot be shown yet: roll it.")
        text = keys.text_of(row.key(), root)
        logger.info(
            "key made",
            extra={"tenant": row.tenant, "key": row.name, "generation": row.generation},
        )
        return _json(forms.made(row, pipelines, asked.now_s, text), 201)

    async def _tell(self) -> Collection[TenantId]:
        """Tell journals at once; return the tenants whose journals the teller must tell later."""
        try:
            return await self.teller.tell()
        except errors.LogweirError as error:
            logger.warning("revocations not told yet", extra={"why": str(error)})
            return self.watch.directory.tenants.keys()

    async def close(self) -> None:
        """Close all connections."""
        await self.teller.close()
        await self.watch.close()
        if self._keys is not None:
            await self._keys.close()


def _names(grant: access.Grant) -> dict[PipelineId, str]:
    return {key: one.name for key, one in grant.pipelines.items()}


def _json(value: object, status: int = 200) -> Response:
    return Response(_encode(value), status, media_type="application/json")


async def _body(request: Request) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(bounds.BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > forms.MAX_BODY_BYTES:
                    raise errors.TooLargeError(
                        f"The body has more than {forms.MAX_BODY_BYTES} bytes."
                    )
    except TimeoutError as cause:
        raise errors.TimeoutReachedError("The body did not arrive in time.") from cause
    return body


def make_app(auth: Auth) -> FastAPI:
    """Return the role's application."""
    app = new_app("Logweir auth", "Keys are at /api/v1/keys and /api/v1/keys/NAME.")

    @app.post("/api/v1/keys")
    async def _create(request: Request) -> Response:
        return await auth.answer(request, "create", auth.create)

    @app.get("/api/v1/keys")
    async def _list(request: Request) -> Response:
        return await auth.answer(request, "list", auth.listing)

    @app.get("/api/v1/keys/{name}")
    async def _get(request: Request) -> Response:
        return await auth.answer(request, "get", auth.one)

    @app.delete("/api/v1/keys/{name}")
    async def _revoke(request: Request) -> Response:
        return await auth.answer(request, "revoke", auth.revoke)

    @app.post("/api/v1/keys/{name}/roll")
    async def _roll(request: Request) -> Response:
        return await auth.answer(request, "roll", auth.roll)

    return app


async def work(binding: Path, running: life.Life, serve: web.Serve) -> None:
    """Be the role until `serve` returns: no request is left."""
    auth = Auth()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bindings.follow(binding, AuthBinding, auth.bind, running))
        tasks.create_task(auth.watch.follow(running))
        tasks.create_task(auth.teller.follow(running))
        await serve(make_app(auth))
    await auth.close()


async def run(settings: Settings, running: life.Life) -> None:
    """Serve in a process of its own until it is told to stop."""
    await web.serve_role(settings, running, work)


def main(settings: Settings) -> None:
    """Run the role in this process until SIGTERM."""
    logs.configure("auth", settings.log_format)
    life.run(lambda running: run(settings, running))
