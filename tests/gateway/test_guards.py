"""What one client cannot do to all others: fill disks without a key, take every place, guess on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fronting import KEY, Echo, Front, check_error, parsed, running, serving_in_a_thread
from hypothesis import given
from hypothesis import strategies as st
from machine import family, until
from websockets.sync.client import connect

from logweir.core import keys
from logweir.core.binding import IngestBinding
from logweir.core.names import PipelineId, TenantId
from logweir.gateway import rules
from logweir.gateway.guards import Limits
from logweir.gateway.routes import BODY_BYTES, ROUTES
from logweir.ingest.app import Ingest
from logweir.runtime import web

LARGE = 100_000
FORGED = keys.encode(keys.ApiKey(TenantId("acme"), 1, PipelineId(1), 1, 0, 1), b"x" * 32)
BASIC = base64.b64encode(f"me:{KEY}".encode()).decode()


# ---- keys -----------------------------------------------------------------------------------

GOOD = [
    pytest.param({"X-API-Key": KEY}, id="a header of its own"),
    pytest.param({"Authorization": f"Bearer {KEY}"}, id="a bearer token"),
    pytest.param({"Authorization": f"bEARER   {KEY}"}, id="a bearer token, oddly written"),
    pytest.param({"Authorization": f"Basic {BASIC}"}, id="a Basic password"),
    pytest.param({"X-API-Key": KEY[:9]}, id="a part of a key"),
    pytest.param({"Authorization": "Basic bWU6bHdpXw=="}, id="hardly a key in a password"),
    pytest.param({"X-API-Key": "", "Authorization": f"Bearer {KEY}"}, id="beside an empty header"),
]
BAD = [
    pytest.param({}, id="none"),
    pytest.param({"Authorization": "Bearer secret"}, id="no key of ours"),
    pytest.param({"Authorization": KEY}, id="no scheme"),
    pytest.param({"Authorization": f"Digest {KEY}"}, id="another scheme"),
    pytest.param({"Authorization": "Basic dTpw"}, id="a short password"),
    pytest.param({"X-API-Key": KEY.upper()}, id="in capitals"),
    pytest.param({"X-API-Key": "x", "Authorization": f"Bearer {KEY}"}, id="behind another"),
]


@pytest.mark.parametrize("headers", GOOD)
def test_what_could_be_a_key_reaches_ingest(front, headers):
    found = httpx2.post(front.url + "/t/acme/web/ingest", content=b"{}", headers=headers)

    assert found.json()["role"] == "ingest"


@pytest.mark.parametrize("headers", BAD)
def test_what_can_be_no_key_does_not(front, headers):
    found = httpx2.post(front.url + "/t/acme/web/ingest", content=b"{}", headers=headers)

    check_error(found.status_code, found.headers, found.content, (401, "unauthorized"))
    assert front.seen == []


TEXTS = st.binary(min_size=3, max_size=16).map(lambda raw: base64.b16encode(raw).decode().lower())


@given(
    tenant=TEXTS,
    numbers=st.tuples(*[st.integers(0, 2**16 - 1)] * 4),
    scopes=st.integers(1, 7),
    form=st.sampled_from(["{}", " {}\t", "Bearer {}", "bearer  {} ", "Basic"]),
    user=st.text(max_size=20),
    cut=st.integers(0, 80),
)
def test_no_text_that_a_role_would_look_at_is_refused(tenant, numbers, scopes, form, user, cut):
    revision, key_id, pipeline, expires = numbers
    key = keys.ApiKey(TenantId(tenant), key_id, PipelineId(pipeline), scopes, expires, revision)
    whole = keys.encode(key, b"k" * 32)
    text = whole[: max(4, len(whole) - cut)]
    sent = form.format(text)
    if form == "Basic":
        sent = "Basic " + base64.b64encode(f"{user.replace(':', '')}:{text}".encode()).decode()
    is_own = "asic" not in form and "earer" not in form
    patterns = (rules.KEY_IN_HEADER,) if is_own else (rules.KEY_IN_BEARER, rules.KEY_IN_BASIC)
    authorization, own = ("", sent) if is_own else (sent, "")

    assert keys.from_headers(authorization.encode(), own.encode()) == text
    assert keys.is_like_a_key(text)
    assert any(re.search(one, sent) for one in patterns)


@pytest.fixture
def real_ingest(make_gateway) -> Iterator[Front]:
    """A gateway before the role itself, which serves nobody yet."""

    class Role(Echo):
        async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
            await app(scope, receive, send)

    app = Ingest()
    asyncio.run(app.bind(IngestBinding()))
    role = Role("ingest")
    gateway = make_gateway(ingest=(role.address,), query=(role.address,))
    with serving_in_a_thread(role), running(gateway) as nginx:
        yield Front(nginx, role, role)


@pytest.mark.parametrize("path", ["/ingest", "/t/acme/web/ingest", "/t/x", "/t/a/b/v1/logs"])
@pytest.mark.parametrize("size", [2, LARGE])
def test_the_gateways_401_is_the_roles_own_byte_for_byte(real_ingest, path, size):
    def ask(headers: dict[str, str]) -> tuple[int, list[tuple[str, str]], bytes]:
        answer = httpx2.post(real_ingest.url + path, content=b"x" * size, headers=headers)
        own = ("x-request-id", "date")
        pairs = [(name, text) for name, text in answer.headers.items() if name not in own]
        return answer.status_code, sorted(pairs), answer.content

    of_gateway, of_role = ask({}), ask({"X-API-Key": FORGED})
    direct = httpx2.post(f"http://{real_ingest.ingest.address}{path}")

    assert of_gateway == of_role
    assert of_gateway[0] == 401
    assert of_gateway[2] == direct.content


# ---- bodies ---------------------------------------------------------------------------------


def spooled_bytes(front: Front) -> int:
    """How much of bodies is in files, which have no name any more."""
    assert front.nginx.process is not None
    found = 0
    for process in family(front.nginx.process.pid):
        for handle in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if "/client_body/" in str(handle.readlink()):
                    found += handle.stat().st_size
    return found


def head(size: int | None, headers: dict[str, str], path: str) -> bytes:
    length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{lines}{length}\r\n\r\n".encode()


KEYED = {"X-API-Key": KEY}


def begun(
    front: Front,
    size: int | None,
    sent: int,
    headers: dict[str, str] = KEYED,
    path: str = "/ingest",
) -> socket.socket:
    """Send a part of a body, which is all that comes."""
    link = socket.create_connection(("127.0.0.1", front.nginx.gateway.port), timeout=10)
    part = b"x" * sent
    chunk = part if size is not None else b"%x\r\n%s\r\n" % (sent, part)
    link.sendall(head(size, headers, path) + chunk)
    return link


def test_a_large_body_with_a_key_is_in_a_file(front):
    """So that the next two tests see one where there is one."""
    with begun(front, 8 << 20, 1 << 20):
        until(lambda: spooled_bytes(front) > 500_000)


@pytest.mark.parametrize("size", [LARGE, 8 << 20, None])
def test_a_large_body_is_not_read_before_the_key_is_known(front, size):
    front.ingest.check_status = 401
    with begun(front, size, 50_000) as link:
        found = parsed(link.recv(65536))

    check_error(*found, (401, "unauthorized"))
    assert front.seen == []
    assert spooled_bytes(front) == 0


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_the_largest_body_without_a_key_is_never_in_a_file(front, route, is_chunked):
    """While a role that has the whole of it is silent, a file would still be there."""
    size = BODY_BYTES[route.role]
    with (
        contextlib.ExitStack() as stack,
        begun(front, None if is_chunked else size, size, {}, route.path + "?held=1") as link,
    ):
        stack.callback(front.query.release.set)
        stack.callback(front.auth.release.set)
        if is_chunked:
            link.sendall(b"0\r\n\r\n")
        if route.role == "ingest":
            check_error(*parsed(link.recv(65536)), (401, "unauthorized"))
        else:
            until(lambda: front.seen)

        assert spooled_bytes(front) == 0


def test_the_key_is_asked_for_with_the_requests_own_address_and_headers(front, client):
    client.post("/t/acme/web/ingest?x=1", content=b"x" * LARGE)

    (check,) = front.ingest.checks
    assert check["x-api-key"] == KEY
    assert check["x-forwarded-for"] == "127.0.0.1"
    assert "content-length" not in check
    assert [one["body_bytes"] for one in front.ingest.seen] == [LARGE]


def test_a_request_without_a_body_costs_no_second_request(front, client):
    client.get("/t/acme/web/ingest")
    client.delete("/ingest")

    assert front.ingest.checks == []
    assert len(front.ingest.seen) == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_chunked_body_is_one_that_may_become_large(front, client, method):
    client.request(method, "/ingest", content=iter([b"x"]))

    assert len(front.ingest.checks) == 1


def test_a_small_body_costs_no_second_request(front, client):
    client.post("/ingest", content=b"x" * 59_999)

    assert front.ingest.checks == []
    assert len(front.ingest.seen) == 1


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 415, 429])
def test_what_else_the_role_says_to_the_check_is_said_to_the_request(front, client, status):
    front.ingest.check_status = status
    found = client.post("/ingest", content=b"x" * LARGE)

    assert found.status_code == 200


def test_a_role_that_is_away_gets_no_large_body_into_a_file(front, client):
    front.ingest.check_status = 503
    found = client.post("/ingest", content=b"x" * LARGE)

    check_error(found.status_code, found.headers, found.content, (503, "unavailable"))
    assert front.seen == []


# ---- limits ---------------------------------------------------------------------------------


@pytest.fixture
def limited(make_gateway):
    """Makes a gateway with limits: `with limited(in_flight=2) as front`."""

    @contextlib.contextmanager
    def make(trusted: tuple[str, ...] = (), **limits: int) -> Iterator[Front]:
        roles = {name: Echo(name) for name in ("ingest", "query", "auth")}
        gateway = make_gateway(
            **{name: (one.address,) for name, one in roles.items()},
            limits=Limits(**limits),
            trusted_proxies=trusted,
        )
        with serving_in_a_thread(*roles.values()), running(gateway) as nginx:
            yield Front(nginx, roles["ingest"], roles["query"])

    return make


def check_over(answer: httpx2.Response) -> None:
    check_error(answer.status_code, answer.headers, answer.content, (429, "over_limit"))
    assert answer.headers["retry-after"] == "1"


def basic(key: str, user: str = "me") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}


FORMS = [
    pytest.param(lambda key: {"X-API-Key": key}, id="a header of its own"),
    pytest.param(lambda key: {"Authorization": f"Bearer {key}"}, id="a bearer token"),
    pytest.param(basic, id="a Basic password"),
]


@pytest.mark.parametrize("keyed", FORMS)
def test_a_key_has_so_many_large_bodies_at_a_time_and_no_other_key_is_hindered(limited, keyed):
    """Wherever they come from: here each time from another address."""
    other = FORGED.replace("a", "b")
    with (
        limited(large_bodies=2, trusted=("127.0.0.1",)) as front,
        contextlib.ExitStack() as stack,
    ):
        for address in ("192.0.2.1", "192.0.2.2"):
            headers = keyed(FORGED) | {"X-Forwarded-For": address}
            stack.enter_context(begun(front, LARGE, 70_000, headers))
        until_checked(front, 2)

        check_over(post(front, LARGE, keyed(FORGED)))
        assert post(front, 1000, keyed(FORGED)).status_code == 200
        assert post(front, LARGE, keyed(other)).status_code == 200


def test_a_key_in_basic_has_three_times_as_many_at_most_whatever_users_it_is_sent_with(limited):
    with limited(large_bodies=1) as front, contextlib.ExitStack() as stack:
        for user in ("", "a", "ab"):
            stack.enter_context(begun(front, LARGE, 70_000, basic(FORGED, user)))
        until_checked(front, 3)

        for user in ("abc", "b", "somebody"):
            check_over(post(front, LARGE, basic(FORGED, user)))


def post(front: Front, size: int, headers: dict[str, str]) -> httpx2.Response:
    return httpx2.post(front.url + "/ingest", content=b"x" * size, headers=headers)


def until_checked(front: Front, count: int) -> None:
    until(lambda: len(front.ingest.checks) >= count)


def test_an_address_has_so_many_requests_at_a_time(limited):
    with limited(in_flight=2) as front, contextlib.ExitStack() as stack:
        open_requests = [
            threading.Thread(target=httpx2.get, args=[front.url + "/api/v1/query?lines=1"])
            for _ in range(2)
        ]
        for one in open_requests:
            one.start()
            stack.callback(one.join)
        stack.callback(front.query.release.set)
        until(lambda: len(front.query.seen) == 2)

        check_over(httpx2.get(front.url + "/api/v1/query"))
        check_over(httpx2.post(front.url + "/ingest", headers={"X-API-Key": KEY}))


@pytest.mark.parametrize("keyed", FORMS)
def test_a_key_has_so_many_answers_of_query_at_a_time_and_nothing_else_is_hindered(limited, keyed):
    other, url = FORGED.replace("a", "b"), "/api/v1/query"
    with limited(answers=2) as front, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(begun(front, 0, 0, keyed(FORGED), url + "?lines=1"))
        until(lambda: len(front.query.seen) == 2)

        check_over(httpx2.get(front.url + url, headers=keyed(FORGED)))
        assert httpx2.get(front.url + url, headers=keyed(other)).status_code == 200
        assert httpx2.get(front.url + url).status_code == 200
        assert post(front, 1000, keyed(FORGED)).status_code == 200
        with connect(
            front.url.replace("http", "ws") + "/api/v1/tail", additional_headers=keyed(FORGED)
        ) as tail:
            tail.send("still")
            assert tail.recv(timeout=10) == "still"
        front.query.release.set()


def test_passwords_are_taken_slowly_and_all_else_goes_on(limited):
    with limited(passwords_per_s=1) as front, httpx2.Client(base_url=front.url) as client:
        logins = [client.post("/api/v1/auth/login", json={}).status_code for _ in range(8)]
        last = client.post("/api/v1/auth/login", json={})
        others = [client.get(one).status_code for one in ("/api/v1/query", "/api/v1/keys")]

    assert logins[:5] == [200] * 5
    assert logins[-1] == 429
    check_over(last)
    assert others == [200, 200]


def test_a_flood_of_queries_of_one_address_is_cut(limited):
    with limited(requests_per_s=1) as front, httpx2.Client(base_url=front.url) as client:
        found = [client.get("/api/v1/query").status_code for _ in range(8)]
        sent = [
            client.post("/ingest", content=b"{}", headers={"X-API-Key": KEY}).status_code
            for _ in range(20)
        ]

    assert found[:3] == [200] * 3
    assert found[-1] == 429
    assert sent == [200] * 20


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        pytest.param("192.0.2.1", "192.0.2.2", False, id="two addresses"),
        pytest.param("2001:db8::1", "2001:db8::2", True, id="two addresses of one IPv6 network"),
        pytest.param("2001:db8::1", "2001:db8:0:1::1", False, id="two networks of IPv6"),
    ],
)
def test_addresses_that_one_client_has_are_limited_together(limited, one, other, is_same):
    with (
        limited(passwords_per_s=1, trusted=("127.0.0.1",)) as front,
        httpx2.Client(base_url=front.url) as client,
    ):
        for _ in range(8):
            client.post("/api/v1/auth/login", headers={"X-Forwarded-For": one})
        found = client.post("/api/v1/auth/login", headers={"X-Forwarded-For": other})

    assert found.status_code == (429 if is_same else 200)


def test_the_limits_are_beyond_what_a_fleet_behind_one_address_does(limited):
    """Many requests on kept connections: none of them is refused by default."""

    def send() -> None:
        with httpx2.Client(base_url=front.url, headers={"X-API-Key": KEY}) as client:
            statuses.extend(client.post("/ingest", content=b"{}").status_code for _ in range(100))

    statuses: list[int] = []
    threads = [threading.Thread(target=send) for _ in range(16)]
    with limited() as front:
        for one in threads:
            one.start()
        for one in threads:
            one.join()

    assert statuses == [200] * 1600
