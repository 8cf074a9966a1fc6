"""Without NGINX, too: a body that grows over the bound gets 413, whatever its role makes of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import httpx2
import msgspec
import pytest
from isolation import surface
from serving import until

from logweir.auth import app as auth
from logweir.backends import provision
from logweir.core import keys
from logweir.gateway import asgi
from logweir.gateway.routes import BODY_BYTES
from logweir.ingest import app as ingest
from logweir.query import app as query
from logweir.runtime import watch, web
from logweir.runtime.life import Life

ROLES = {
    "ingest": (ingest.work, "/ingest", keys.SCOPE_INGEST),
    "query": (query.work, "/api/v1/query", keys.SCOPE_QUERY),
    "auth": (auth.work, "/api/v1/keys", keys.SCOPE_ADMIN),
}


@pytest.mark.parametrize("application", surface.APPLICATIONS, ids=lambda one: one.name)
async def test_a_body_that_grows_too_large_gets_413_and_no_role_complains(
    application, tenant, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(watch, "POLL_S", 0.05)
    work, path, scope = ROLES[application.name]
    pipeline = [tenant.pipeline] if application.name == "ingest" else []
    headers = {
        "x-api-key": await tenant.api_key(scope, *pipeline),
        "content-type": "application/json",
    }
    await provision.bootstrap_auth_user(tenant.redis, tenant.roots)
    binding = tmp_path / "binding.json"
    binding.write_bytes(msgspec.json.encode(application.binding(tenant)))
    life, answers = Life(), []

    async def growing() -> AsyncIterator[bytes]:
        yield b"["
        yield b" " * BODY_BYTES[application.name]

    async def serve(app: web.Asgi) -> None:
        """In place of a server: a client of the front, which hands on piece by piece."""
        front = httpx2.ASGITransport(asgi.Front({application.name: app}, (application.name,)))
        async with httpx2.AsyncClient(
            transport=front, base_url="http://logs", headers=headers
        ) as client:

            async def is_known() -> bool:
                return (await client.post(path)).status_code not in (401, 503)

            await until(is_known)
            caplog.clear()
            answers.append(await client.post(path, content=growing()))
        life.stopping.set()

    await work(binding, life, serve)

    (answer,) = answers
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []
