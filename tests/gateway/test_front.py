"""Without NGINX a client gets the same answers: one corpus of requests, sent to both."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import websockets
from fronting import (
    KEY,
    SECURITY,
    Echo,
    check_error,
    fed_until_cut,
    parsed,
    read_all,
    running,
    serving_in_a_thread,
)
from websockets.sync.client import connect

from logweir.auth import app as auth_app
from logweir.core import keys
from logweir.core.binding import IngestBinding
from logweir.core.names import PipelineId, TenantId
from logweir.gateway import asgi, public
from logweir.gateway.public import PublicProtocol
from logweir.gateway.routes import HIDDEN
from logweir.ingest.app import Ingest
from logweir.query import app as query_app
from logweir.runtime import web

OF_NOTE = (
    *SECURITY,
    *("content-type", "content-length", "retry-after", "www-authenticate", "allow"),
    *("logweir-receipt", "location", "strict-transport-security", "x-other"),
)
TOLD = (
    *("host", "x-forwarded-for", "x-forwarded-proto", "forwarded", "x-real-ip", "x-api-key"),
    *("authorization", "idempotency-key", "x-scope-orgid", "x-request-id", "content-type"),
    *("x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix"),
)


class InProcess(Echo):
    """The front, served as an `up` without NGINX serves it, before the roles in this process."""

    def __init__(self, trusted: tuple[str, ...] = ()) -> None:
        super().__init__("front")
        self.protocol = PublicProtocol
        self.ingest, self.query, self.auth = Echo("ingest"), Echo("query"), Echo("auth")
        for one in (self.ingest, self.query, self.auth):
            one.socket.close()  # in this process nobody connects to them
        apps: dict[Any, web.Asgi] = {
            "ingest": self.ingest,
            "query": self.query,
            "auth": self.auth,
        }
        self.front = asgi.Front(apps, ("ingest", "query", "auth"), trusted)

    async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        await self.front(scope, receive, send)


@pytest.fixture(scope="module")
def served() -> Iterator[InProcess]:
    front = InProcess()
    with serving_in_a_thread(front):
        yield front


@pytest.fixture
def inside(served: InProcess) -> InProcess:
    for one in (served.ingest, served.query):
        one.seen.clear()
        one.checks.clear()
    return served


def raw(port: int, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
        link.sendall(sent)
        return read_all(link)


def request(
    line: str, *headers: str, body: bytes = b"", keyed: bool = True, host: str | None = "logs"
) -> bytes:
    """One request as bytes, on a connection of its own."""
    lines = [line if " HTTP/" in line else f"{line} HTTP/1.1"]
    lines += [f"Host: {host}"] if host is not None else []
    lines += [f"X-API-Key: {KEY}"] if keyed else []
    if body and not any(one.startswith("Transfer") for one in headers):
        lines.append(f"Content-Length: {len(body)}")
    text = "\r\n".join([*lines, *headers, "Connection: close", "", ""])
    return text.encode("latin-1") + body


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (*parts, b""))


def of_note(answer: bytes) -> tuple[int, dict[str, str | None], Any]:
    """What the two must have in common of an answer."""
    status, headers, body = parsed(answer)
    found = {name: headers.get(name) for name in OF_NOTE}
    assert headers["x-request-id"]
    if b'"role"' not in body:
        return status, found, body
    del found["content-length"]  # the role tells of headers that differ by their hop
    seen = json.loads(body)
    told = {name: seen["headers"].get(name) for name in TOLD}
    told["x-request-id"] = told["x-request-id"] == headers["x-request-id"]
    return status, found, seen | {"headers": told}


PATHS = [
    *("/", "/ingest", "/t/acme/web/ingest", "/t/acme/web/v1/logs", "/t", "/t/", "/tenants"),
    *("/ingest/", "//t/acme/web/ingest", "/%74/acme/web/ingest", "/t%2facme/web/ingest"),
    *("/api/v1/query?query=%7B%7D&x=%2e%2e", "/api/v1/labels/app%2Fname/values", "/api/v1/tail"),
    *("/t/../api/v1/query", "/t/..%2fapi/v1/query", "/t/%2e%2E/x", "/t/a/b/..", "/t/./a/b"),
    *("/../../etc/passwd", "/api/..%2ft/acme/web/ingest", "/api/v1/query?x=/../y"),
    *("/-/gateway", "/-/key", "/-/failed/503", "/api/v1/auth/login", "/api/v1/keys"),
    *HIDDEN,
    *("/metrics?x=1", "/%6detrics", "/t/acme/web/metrics", "/%c3%bc", "/%00", "/a%0ab"),
]

CORPUS = [
    *(pytest.param(request(f"GET {path}"), id=f"GET {path}") for path in PATHS),
    *(
        pytest.param(request(f"{method} /api/v1/rules", body=b"{}"), id=method)
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS")
    ),
    *(
        pytest.param(request(f"GET /api/v1/query?status={status}"), id=f"a role's {status}")
        for status in (200, 202, 400, 401, 403, 404, 413, 422, 429, 500, 503)
    ),
    *(
        pytest.param(request(f"GET /api/v1/query?status=429&header={one}"), id=f"a role's {one}")
        for one in (
            *("Retry-After:7", "WWW-Authenticate:Bearer", "Logweir-Receipt:0198.1", "X-Other:1"),
            *("Cache-Control:public", "X-Frame-Options:ALLOW", "Location:http://query/y"),
            "Strict-Transport-Security:max-age=0",
        )
    ),
    pytest.param(request("POST /ingest", body=b"{}"), id="a body"),
    pytest.param(request("POST /ingest", body=b"x" * 300_000), id="a large body"),
    pytest.param(
        request("POST /ingest", "Transfer-Encoding: chunked", body=chunked(b"abc", b"defg")),
        id="a chunked body",
    ),
    pytest.param(request("POST /ingest", "Content-Length: 9999999"), id="a body too large"),
    pytest.param(request("POST /api/v1/query", "Content-Length: 2000000"), id="of a query"),
    pytest.param(request("GET /ingest HTTP/1.0", host=None), id="HTTP/1.0"),
    pytest.param(request("GET /ingest", host=None), id="no host"),
    pytest.param(request("GET /ingest", "Host: other"), id="two hosts"),
    pytest.param(request("GET /api/v1/query", host="logs.example:8443"), id="a host with a port"),
    pytest.param(request("GET /api/v1/query", "X-Request-Id: 0198-abc"), id="an id"),
    pytest.param(request("GET /api/v1/query", 'X-Request-Id: a"b'), id="a bad id"),
    pytest.param(request("GET /api/v1/query", f"X-Request-Id: {KEY[:40]}"), id="a key for an id"),
    pytest.param(
        request(
            "GET /api/v1/query",
            *("X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https", "Forwarded: for=x"),
            *("X-Real-IP: 192.0.2.7", "X-Forwarded-Host: x", "X-Forwarded-Prefix: /x"),
        ),
        id="a claim to have forwarded",
    ),
    pytest.param(
        request("GET /api/v1/query", "Authorization: Bearer x", "X-Scope-OrgID: acme"), id="headers"
    ),
    pytest.param(request("TRACE /"), id="TRACE"),
    pytest.param(request("HEAD /metrics"), id="HEAD"),
    pytest.param(request("GET /" + "x" * 17_000), id="a URL of 17 kB"),
    pytest.param(request("GET /", "X-A: " + "x" * 17_000), id="a header of 17 kB"),
    pytest.param(request("GET /", *["X-A: " + "x" * 9000] * 9), id="headers of 80 kB"),
    pytest.param(b"nonsense\r\n\r\n", id="no HTTP"),
    pytest.param(request("POST /", "Content-Length: -1"), id="a negative length"),
    pytest.param(
        request("POST /ingest", "Content-Length: 2", "Transfer-Encoding: chunked"),
        id="two lengths of a body",
    ),
]


@pytest.mark.parametrize("sent", CORPUS)
def test_a_request_gets_the_answer_that_nginx_gives(front, inside, sent):
    by_nginx = of_note(raw(front.nginx.gateway.port, sent))
    without = of_note(raw(inside.port, sent))

    assert without == by_nginx


def test_a_chunked_body_over_the_bound_is_refused(inside):
    head = request("POST /api/v1/query", "Transfer-Encoding: chunked")
    answer = raw(inside.port, head + chunked(*[b"x" * 100_000] * 12))

    check_error(*parsed(answer), (413, "too_large"))
    assert inside.query.seen == []


def test_a_role_that_is_not_there_yet_is_unavailable():
    front = InProcess()
    front.front = asgi.Front({}, ("ingest", "query"))
    with serving_in_a_thread(front):
        answer = parsed(raw(front.port, request("GET /api/v1/query")))

    check_error(*answer, (503, "unavailable"))
    assert answer[1]["retry-after"] == "1"


@pytest.mark.parametrize("path", ["/api/v1/tail", "/api/v1/tail?refuse=1", "/api/v1/query", "/"])
def test_a_websocket_gets_what_nginx_gives(front, inside, path):
    found = [
        tailed(f"ws://127.0.0.1:{port}{path}") for port in (front.nginx.gateway.port, inside.port)
    ]

    assert found[1] == found[0]


def tailed(url: str) -> Any:
    """What a WebSocket echoes, or the status that its handshake gets."""
    try:
        with connect(url, additional_headers={"X-API-Key": "secret"}) as link:
            link.send("hello")
            return link.recv(timeout=10), link.response.headers["x-content-type-options"]
    except websockets.InvalidStatus as refused:
        return refused.response.status_code, refused.response.headers["x-content-type-options"]


TRUSTED = ("127.0.0.1", "10.0.0.0/8", "2001:db8::/32")


@pytest.mark.parametrize(
    ("told", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("203.0.113.9, 192.0.2.7", "192.0.2.7"),
        ("203.0.113.9, 192.0.2.7, 10.1.2.3", "192.0.2.7"),
        ("2001:db9::1, 2001:db8::5", "2001:db9::1"),
        ("10.0.0.1, 10.0.0.2", "10.0.0.1"),
        ("nonsense, 10.1.2.3", "10.1.2.3"),
        ("nonsense", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
def test_a_trusted_proxy_says_who_the_client_is(told, client):
    headers = [(b"x-forwarded-for", told.encode()), (b"x-forwarded-proto", b"https")]

    assert asgi.Client(TRUSTED).of("127.0.0.1", "http", headers) == (client, "https")
    assert asgi.Client(TRUSTED).of("::ffff:127.0.0.1", "http", headers) == (client, "https")
    assert asgi.Client(TRUSTED).of("192.0.2.1", "http", headers) == ("192.0.2.1", "http")
    assert asgi.Client(()).of("127.0.0.1", "http", headers) == ("127.0.0.1", "http")


def test_a_slow_head_is_cut_in_total(monkeypatch, inside):
    monkeypatch.setattr(public, "HEADER_TIMEOUT_S", 0.5)
    with socket.create_connection(("127.0.0.1", inside.port), timeout=10) as link:
        link.sendall(b"GET /")

        assert fed_until_cut(link, b"x")


def test_a_slow_body_is_cut_in_total(monkeypatch, inside):
    monkeypatch.setattr(public, "BODY_TIMEOUT_S", 0.5)
    with socket.create_connection(("127.0.0.1", inside.port), timeout=10) as link:
        link.sendall(request("POST /api/v1/query", "Content-Length: 100000"))

        assert fed_until_cut(link, b"x")


def test_a_connection_is_kept_for_further_requests_and_takes_several_at_once(inside):
    one = request("POST /ingest", body=b"{}").replace(b"Connection: close\r\n", b"")
    last = request("POST /ingest", body=b"{}")

    assert raw(inside.port, one * 3 + last).count(b"HTTP/1.1 200") == 4


class Real(Echo):
    """A role's own application, which has heard of nobody yet."""

    def __init__(self, name: str, app: web.Asgi) -> None:
        super().__init__(name)
        self.app = app

    async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def real_ports(make_gateway) -> Iterator[tuple[int, int]]:
    """The ports of NGINX and of the front, before the same applications."""
    ingest = Ingest()
    asyncio.run(ingest.bind(IngestBinding()))
    apps: dict[Any, web.Asgi] = {
        "ingest": ingest,
        "query": query_app.make_app(query_app.Query()),
        "auth": auth_app.make_app(auth_app.Auth()),
    }
    front = InProcess()
    front.front = asgi.Front(apps, tuple(apps))
    roles = {name: Real(name, app) for name, app in apps.items()}
    gateway = make_gateway(**{name: (one.address,) for name, one in roles.items()})
    with serving_in_a_thread(front, *roles.values()), running(gateway):
        yield gateway.port, front.port


def forged(scopes: int) -> str:
    return keys.encode(keys.ApiKey(TenantId("acme"), 1, PipelineId(1), scopes, 0, 1), b"x" * 32)


CREDENTIALS = {
    "none": [],
    "no key": ["Authorization: Bearer secret"],
    "a typo": [f"X-API-Key: {forged(keys.SCOPE_INGEST)[:-1]}"],
    "a forged ingest key": [f"Authorization: Bearer {forged(keys.SCOPE_INGEST)}"],
    "a forged access key": [f"X-API-Key: {forged(keys.SCOPE_QUERY)}"],
}
REAL_PATHS = [
    *("/ingest", "/t/acme/web/ingest", "/t/acme", "/t/acme/web/v1/logs", "/t/acme/web/_bulk"),
    *("/api/v1/query", "/api/v1/labels/a%2Fb/values", "/api/v1/receipts/x", "/api/v1/nothing"),
    *("/api/v1/keys", "/api/v1/keys/one/roll", "/loki/api/v1/labels", "/", "/api/v1/tail"),
]


@pytest.mark.parametrize("credential", CREDENTIALS)
@pytest.mark.parametrize("path", REAL_PATHS)
def test_the_roles_own_refusals_are_the_same_without_nginx(real_ports, path, credential):
    for method, body in (("GET", b""), ("POST", b"{}"), ("DELETE", b"")):
        headers = CREDENTIALS[credential]
        sent = request(f"{method} {path}", *headers, body=body, keyed=False)
        by_nginx, without = (of_note(raw(port, sent)) for port in real_ports)

        assert without == by_nginx
