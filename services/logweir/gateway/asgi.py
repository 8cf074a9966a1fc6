"""The gateway where there is no NGINX: one ASGI application before those of the roles.

    client -- Front --+-- the route's role, in this process

A client gets the same answers, by the same tables: routes, rules, failures. What only NGINX does:
it keeps slow clients away from the roles, and limits what one address or key takes up. So this is
for a small Logweir and clients that mean well.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Final

from logweir.gateway import failures, routes, rules
from logweir.gateway.routes import Role, Route
from logweir.runtime import web

logger = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(rules.REQUEST_ID.encode())
_DOT_SEGMENT: Final = re.compile(rules.DOT_SEGMENT.encode(), re.IGNORECASE)
_SECRET: Final = re.compile(rules.SECRET)
_PLAIN_PATH: Final = re.compile(rules.PLAIN_PATH)
_NEVER_ALLOWED: Final = frozenset({"TRACE", "CONNECT"})
_HOST_OF_NONE: Final = b"localhost"

_REPLACED: Final = frozenset(
    name.lower().encode()
    for name in (*(n for n, _ in rules.HEADERS), rules.TRANSPORT_SECURITY[0], "X-Request-Id")
)
_TOLD_ANEW: Final = frozenset(
    name.lower().encode()
    for name in (*rules.NOT_FORWARDED, "X-Forwarded-For", "X-Forwarded-Proto", "X-Request-Id")
)
_FIXED: Final = tuple((name.lower().encode(), text.encode()) for name, text in rules.HEADERS)
_TRANSPORT: Final = tuple(one.encode() for one in rules.TRANSPORT_SECURITY)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Pairs = list[tuple[bytes, bytes]]


class Client:
    """Tells who a request comes from, as NGINX does by set_real_ip_from and real_ip_recursive."""

    def __init__(self, trusted: Sequence[str]) -> None:
        self._trusted: list[_Network] = [ipaddress.ip_network(one) for one in trusted]

    def of(self, address: str, scheme: str, headers: _Pairs) -> tuple[str, str]:
        """Return the client's address and scheme: the other end's, or what a trusted proxy says."""
        found = _address(address)
        if found is None:
            return address, scheme
        if not self._is_trusted(found):
            return str(found), scheme
        hops = b",".join(text for name, text in headers if name == b"x-forwarded-for").split(b",")
        for hop in reversed(hops):
            before = _address(hop.strip().decode("latin-1"))
            if before is None:
                break
            found = before
            if not self._is_trusted(found):
                break
        told = [text for name, text in headers if name == b"x-forwarded-proto"]
        if told in ([b"http"], [b"https"]):
            scheme = told[0].decode()
        return str(found), scheme

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def _address(text: str) -> _Address | None:
    """Return an address; one of IPv4 that came in by a socket of IPv6 is what it is."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


class Front:
    """The ASGI application.

    Args:
        apps: of the roles; one that is not in it yet is not ready yet.
        roles: those that there will be.
        trusted: networks of proxies that say who the client is.
    """

    def __init__(
        self, apps: Mapping[Role, web.Asgi], roles: Sequence[Role], trusted: Sequence[str] = ()
    ) -> None:
        self._apps = apps
        self._routes = routes.served(roles)
        self._client = Client(trusted)

    async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        """Answer one request, or carry one WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            return
        exchange = _Exchange(scope, receive, send, self._client)
        route = routes.find(self._routes, scope["path"])
        if scope["type"] == "websocket" and not (route is not None and route.is_stream):
            exchange.become_plain()
        try:
            await self._answer(exchange, route)
            if exchange.is_too_large:
                await exchange.fail(failures.TOO_LARGE)
        finally:
            exchange.log()

    async def _answer(self, exchange: _Exchange, route: Route | None) -> None:
        path = exchange.scope["path"]
        refused = exchange.refused()
        if not refused and path == routes.PROBE:
            exchange.is_logged = False
            await web.answer_empty(exchange.send, 204)
        elif refused or route is None or path in routes.HIDDEN or path.startswith(routes.OWN):
            await exchange.fail(refused or failures.NOT_FOUND)
        elif (app := self._apps.get(route.role)) is None:
            await exchange.fail(failures.AWAY)
        else:
            exchange.bound_bytes = routes.BODY_BYTES[route.role]
            exchange.is_too_large = exchange.length > exchange.bound_bytes
            if not exchange.is_too_large:
                await _ask(app, exchange)


async def _ask(app: web.Asgi, exchange: _Exchange) -> None:
    try:
        await app(exchange.scope, exchange.receive, exchange.send)
    except Exception:
        if not exchange.is_too_large:  # else it complains that its sender is gone
            raise


class _Exchange:
    """One request and its answer, on their way through the gateway."""

    def __init__(
        self, scope: web.Scope, receive: web.Receive, send: web.Send, client: Client
    ) -> None:
        self.is_logged = True
        self.bound_bytes = 0
        self.is_too_large = False
        """More of the body comes than the role takes."""

        self._receive = receive
        self._send = send
        self._begun_s = time.monotonic()
        self._status = 0
        self._came_bytes = self._sent_bytes = 0
        self._prefix = ""
        self._raw_path: bytes = scope["raw_path"]
        given: _Pairs = list(scope["headers"])
        self.hosts = [text for name, text in given if name == b"host"]
        self.length = _length(given)
        asked = [text for name, text in given if name == b"x-request-id"]
        is_kept = len(asked) == 1 and _REQUEST_ID.search(asked[0])
        self.request_id = asked[0] if is_kept else secrets.token_hex(16).encode()
        other_end = scope["client"][0] if scope.get("client") else ""
        secure = scope["scheme"] in ("https", "wss")
        self.address, self.scheme = client.of(other_end, "https" if secure else "http", given)
        headers = [
            *(pair for pair in given if pair[0] not in _TOLD_ANEW),
            (b"x-request-id", self.request_id),
            (b"x-forwarded-for", self.address.encode()),
            (b"x-forwarded-proto", self.scheme.encode()),
        ]
        if not self.hosts:
            headers.append((b"host", _HOST_OF_NONE))
        self.scope: web.Scope = {**scope, "headers": headers}

    def refused(self) -> int:
        """Return the status for what no role is asked; 0 when one is."""
        method = self.scope.get("method", "GET")
        without_host = not self.hosts and self.scope["http_version"] == "1.1"
        if _DOT_SEGMENT.search(self._raw_path) or without_host or len(self.hosts) > 1:
            return failures.MALFORMED
        if b"\0" in self.scope["path"].encode():
            return failures.MALFORMED
        return failures.NOT_ALLOWED if method in _NEVER_ALLOWED else 0

    def become_plain(self) -> None:
        """Take a WebSocket's handshake for a GET: there is none to be had at its address."""
        upgrade = (b"connection", b"upgrade")
        headers = [pair for pair in self.scope["headers"] if pair[0] not in upgrade]
        plain = {"type": "http", "method": "GET", "scheme": self.scheme, "headers": headers}
        self.scope = {**self.scope, **plain}
        self._prefix = "websocket."

    async def receive(self) -> web.Message:
        """Hand a message on to the role; once the body is over the bound its sender is gone."""
        if self.is_too_large:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if self._prefix:
            if message["type"] == "websocket.connect":
                return {"type": "http.request", "body": b"", "more_body": False}
            return {"type": "http.disconnect"}
        self._came_bytes += len(message.get("body", b""))
        self.is_too_large = self._came_bytes > self.bound_bytes
        return {"type": "http.disconnect"} if self.is_too_large else message

    async def send(self, message: web.Message) -> None:
        """Hand a role's message on to the client, unless the body was over the bound meanwhile."""
        if not self.is_too_large:
            await self._tell(message)

    async def _tell(self, message: web.Message) -> None:
        """Send a message to the client, with the gateway's headers."""
        kind = message["type"]
        if kind.endswith("http.response.start") or kind == "websocket.accept":
            kept = [one for one in message.get("headers", ()) if one[0].lower() not in _REPLACED]
            more = [*_FIXED, (b"x-request-id", self.request_id)]
            if self.scheme == "https":
                more.append((_TRANSPORT[0].lower(), _TRANSPORT[1]))
            message = {**message, "headers": [*kept, *more]}
            self._status = message.get("status", 101)
        self._sent_bytes += len(message.get("body", b""))
        if self._prefix:
            message = {**message, "type": self._prefix + kind}
        await self._send(message)

    async def fail(self, status: int) -> None:
        """Answer in place of a role, unless one has begun to."""
        if self._status:
            raise ConnectionResetError
        prefix = "websocket." if self.scope["type"] == "websocket" else ""

        async def send(message: web.Message) -> None:
            await self._tell({**message, "type": prefix + message["type"]})

        await web.answer_error(send, failures.failure(status).error)

    def log(self) -> None:
        """Write what NGINX would: no header and no parameter."""
        if not self.is_logged:
            return
        path = self._raw_path.decode("latin-1")
        plain = _PLAIN_PATH.match(path)
        logger.info(
            "request",
            extra={
                "request_id": self.request_id.decode(),
                "remote": self.address,
                "method": self.scope.get("method", "GET"),
                "path": "(holds a key)" if _SECRET.search(path) else plain[0] if plain else "",
                "status": self._status,
                "request_bytes": self._came_bytes,
                "answer_bytes": self._sent_bytes,
                "seconds": round(time.monotonic() - self._begun_s, 3),
            },
        )


def _length(headers: _Pairs) -> int:
    given = [text for name, text in headers if name == b"content-length"]
    return int(given[0]) if given and given[0].isdigit() else 0
