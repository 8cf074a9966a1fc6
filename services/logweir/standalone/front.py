"""The role `front` of an `up` without NGINX: the gateway and the roles behind it, in one process.

gateway.asgi.Front on the one port --+-- ingest's application
                                     +-- query's application
                                     +-- auth's application
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import ssl
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from logweir.core import errors
from logweir.gateway.asgi import Front
from logweir.gateway.public import PublicProtocol
from logweir.gateway.routes import Role
from logweir.runtime import life, logs, web
from logweir.runtime.settings import Settings, Tls
from logweir.standalone import entrance

logger = logging.getLogger(__name__)

ROLES: Final[tuple[Role, ...]] = ("ingest", "query", "auth")
RENEWAL_POLL_S: Final = 1.0

Work = Callable[[Path, life.Life, web.Serve], Coroutine[Any, Any, None]]


class _Whole(life.Life):
    """The process's life: ready when each of the roles in it is."""

    def __init__(self, running: life.Life, roles: Mapping[Role, life.Life]) -> None:
        super().__init__()
        self.stopping = running.stopping
        self._roles = roles

    def problems(self) -> dict[str, str]:
        """Return what does not work, by role and part."""
        return {
            f"{role}: {part}": problem
            for role, one in self._roles.items()
            for part, problem in one.problems().items()
        }


async def run(settings: Settings, running: life.Life) -> None:
    """Serve until the process is told to stop."""
    if settings.http is None:
        raise errors.SetupError("The front needs an address.")
    lives = {role: life.Life() for role in ROLES}
    apps: dict[Role, web.Asgi] = {}
    is_over = asyncio.Event()

    def mounted(role: Role) -> web.Serve:
        async def serve(app: web.Asgi) -> None:
            apps[role] = app
            await is_over.wait()

        return serve

    async with asyncio.TaskGroup() as tasks:
        for role, one in lives.items():
            one.stopping = running.stopping
            work: Work = importlib.import_module(f"logweir.{role}.app").work
            tasks.create_task(work(settings.binding / f"{role}.json", one, mounted(role)))
        tasks.create_task(web.serve_ops(settings.ops, _Whole(running, lives)))
        tls = None if settings.tls is None else _context(settings.tls)
        if settings.tls is not None and tls is not None:
            tasks.create_task(_renew(settings.tls, tls, running))
        front = Front(apps, ROLES, settings.trusted_proxies)
        await web.serve(front, settings.http, running, tls=tls, protocol=PublicProtocol)
        is_over.set()


def _context(tls: Tls) -> ssl.SSLContext:
    entrance.check(tls)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.load_cert_chain(tls.certificate, tls.key)
    return context


async def _renew(tls: Tls, context: ssl.SSLContext, running: life.Life) -> None:
    """Show a new certificate to connections that come after it is there."""

    def use() -> None:
        entrance.check(tls)
        context.load_cert_chain(tls.certificate, tls.key)

    watch = entrance.Watch(tls, use, lambda text: logger.warning("%s", text))
    while not await running.pause(RENEWAL_POLL_S):
        watch.look()


def main(settings: Settings) -> None:
    """Run the front in this process until SIGTERM."""
    logs.configure("front", settings.log_format)
    life.keep_freed_memory()
    life.run(lambda running: run(settings, running))
