"""Every address that the roles answer, out of their own route tables: none can be forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import world
from fastapi.routing import APIRoute, APIWebSocketRoute
from serving import Run

from logweir.auth import app as auth
from logweir.backends import provision
from logweir.core.binding import AuthBinding, IngestBinding, Login, QueryBinding
from logweir.gateway.routes import HIDDEN
from logweir.ingest import app as ingest
from logweir.query import app as query

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND")
SOCKET: Final = "WebSocket"

PREFIX: Final = "/t/{tenant}/{pipeline}"


class Route(msgspec.Struct, frozen=True):
    """One address of an application, with what stands in braces still open."""

    application: str
    path: str


class Application(msgspec.Struct, frozen=True):
    """A role's HTTP: what runs it, what it is bound to, and its route table."""

    name: str
    run: Run
    binding: Callable[[world.Tenant, world.Tenant], msgspec.Struct]
    paths: Callable[[], Iterator[str]]

    def routes(self) -> list[Route]:
        """What the table says, and what must not be there."""
        found = [*self.paths(), "/nothing", *HIDDEN]
        return [Route(self.name, path) for path in dict.fromkeys(found)]


def _ingest_binding(*tenants: world.Tenant) -> IngestBinding:
    return IngestBinding(tuple(one.ingest_binding() for one in tenants))


def _query_binding(tenant: world.Tenant, *_: world.Tenant) -> QueryBinding:
    return QueryBinding(
        store=tenant.store_server,
        journal=tenant.journal_server,
        control_login=_login(tenant, provision.QUERY),
        read_roots={"1": tenant.roots.read.hex()},
        sign_roots={"1": tenant.roots.sign.hex()},
    )


def _auth_binding(tenant: world.Tenant, *_: world.Tenant) -> AuthBinding:
    return AuthBinding(
        store=tenant.store_server,
        journal=tenant.journal_server,
        control_login=_login(tenant, provision.AUTH),
        journal_login=_login(tenant, provision.JOURNAL_AUTH),
        sign_roots={"1": tenant.roots.sign.hex()},
    )


def _login(tenant: world.Tenant, name: str) -> Login:
    return Login(name, provision.platform_password(tenant.roots, name))


def _ingest_paths() -> Iterator[str]:
    for path in ("/nothing", *ingest.ROUTES):
        yield path
        yield PREFIX + path
    yield "/t/{tenant}/{pipeline}"
    yield "/t/{tenant}"


def _paths(app: Any) -> Iterator[str]:
    """The paths of a FastAPI application; a route of a kind that is not known here fails."""
    for route in app.routes:
        assert isinstance(route, APIRoute | APIWebSocketRoute), f"a new kind of route: {route!r}"
        yield route.path


APPLICATIONS: Final = (
    Application("ingest", ingest.run, _ingest_binding, _ingest_paths),
    Application("query", query.run, _query_binding, lambda: _paths(query.make_app(query.Query()))),
    Application("auth", auth.run, _auth_binding, lambda: _paths(auth.make_app(auth.Auth()))),
)
