"""What a client gets: the role's answer as it is, or the gateway's own in our one shape."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket

import httpx2
import pytest
from fronting import (
    KEY,
    SECURITY,
    Dropping,
    Echo,
    check_error,
    parsed,
    running,
    serving_in_a_thread,
)

from logweir.core import bounds
from logweir.gateway.failures import FAILURES


def closed_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize("status", [200, 202, 400, 401, 404, 413, 422, 429, 500, 503])
def test_a_roles_answer_is_passed_on_whatever_its_status(front, client, status):
    found = client.post(f"/ingest?status={status}", content=b"{}")

    assert found.status_code == status
    assert found.json()["role"] == "ingest"


@pytest.mark.parametrize(
    ("name", "text"),
    [("Retry-After", "7"), ("WWW-Authenticate", "Bearer"), ("Logweir-Receipt", "0198.1")],
)
def test_a_roles_headers_are_passed_on(front, client, name, text):
    found = client.get(f"/api/v1/query?status=429&header={name}:{text}")

    assert found.headers.get_list(name) == [text]


@pytest.mark.parametrize("name", [*SECURITY, "x-request-id", "server"])
def test_a_header_that_the_gateway_sets_is_there_once(front, client, name):
    found = client.get(f"/api/v1/query?header={name}:of-the-role")

    assert len(found.headers.get_list(name)) == 1
    assert found.headers[name] != "of-the-role"


@pytest.mark.parametrize("path", ["/api/v1/query", "/ingest?status=401", "/metrics", "/-/gateway"])
def test_every_answer_has_the_security_headers(front, client, path):
    found = client.get(path)

    assert {name: found.headers.get(name) for name in SECURITY} == SECURITY
    assert found.headers["server"] == "nginx"


def test_a_body_over_the_limit_is_refused_by_its_length_alone(front):
    length = bounds.MAX_BODY_BYTES + (1 << 20)
    head = (
        f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {length}\r\n\r\n"
    )

    check_error(*parsed(front.nginx.raw(head.encode(), until_closed=False)), (413, "too_large"))
    assert front.seen == []


def test_a_chunked_body_over_the_limit_is_refused(front):
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    head = (
        f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    answer = b""
    with socket.create_connection(("127.0.0.1", front.nginx.gateway.port), timeout=10) as link:
        link.sendall(head)
        with contextlib.suppress(ConnectionError):  # it need not wait for all of it
            link.sendall(chunk * 9 + b"0\r\n\r\n")
        answer = link.recv(65536)

    check_error(*parsed(answer), (413, "too_large"))
    assert front.seen == []


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(
            b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 17_000),
            (414, "bad_request"),
            id="a URL of 17 kB",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: x\r\nX-A: %s\r\n\r\n" % (b"x" * 17_000),
            (431, "bad_request"),
            id="a header of 17 kB",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: x\r\n%s\r\n" % (b"X-A: %s\r\n" % (b"x" * 9000) * 9),
            (431, "bad_request"),
            id="headers of 80 kB together",
        ),
        pytest.param(b"nonsense\r\n\r\n", (400, "bad_request"), id="no HTTP"),
        pytest.param(
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            (400, "bad_request"),
            id="a TLS handshake",
        ),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", (400, "bad_request"), id="HTTP/1.1 without a host"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", (400, "bad_request"), id="two hosts"
        ),
        pytest.param(
            b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", (400, "bad_request"), id="HTTP of another version"
        ),
        pytest.param(
            b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", (400, "bad_request"), id="NUL in a path"
        ),
        pytest.param(b"GET  HTTP/1.1\r\nHost: x\r\n\r\n", (400, "bad_request"), id="no path"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            (400, "bad_request"),
            id="a negative length",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: br\r\n\r\n",
            (400, "bad_request"),
            id="an unknown transfer encoding",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Length: 2\r\n\r\n0\r\n\r\n",
            (400, "bad_request"),
            id="two lengths of a body",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            (400, "bad_request"),
            id="a chunk without a length",
        ),
        pytest.param(
            b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", (405, "method_not_allowed"), id="TRACE"
        ),
        pytest.param(
            b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", (405, "method_not_allowed"), id="CONNECT"
        ),
        pytest.param(
            b"GET /-/failed/503 HTTP/1.1\r\nHost: x\r\n\r\n",
            (404, "not_found"),
            id="the gateway's own error pages",
        ),
    ],
)
def test_what_no_role_can_answer_gets_an_error_in_our_shape(front, sent, expected):
    check_error(*parsed(front.nginx.raw(sent, until_closed=False)), expected)
    assert front.seen == []


def test_a_role_that_is_away_is_unavailable_and_the_client_told_when_to_come_back(make_gateway):
    with running(make_gateway(ingest=(closed_port(),), query=(closed_port(),))) as nginx:
        keyed = {"X-API-Key": KEY}
        found = [
            httpx2.post(nginx.url + "/ingest", headers=keyed),
            httpx2.get(nginx.url + "/api/v1/query"),
        ]

    for one in found:
        check_error(one.status_code, one.headers, one.content, (503, "unavailable"))
        assert one.headers["retry-after"] == "1"


def test_a_role_that_comes_back_is_used_again(make_gateway):
    late = Echo("query")
    late.socket.close()
    with running(make_gateway(ingest=(late.address,), query=(late.address,))) as nginx:
        before = httpx2.get(nginx.url + "/api/v1/query").status_code
        late.socket = socket.create_server(("127.0.0.1", late.port))
        with serving_in_a_thread(late):
            after = httpx2.get(nginx.url + "/api/v1/query").status_code

    assert (before, after) == (503, 200)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/ingest"), ("PUT", "/t/acme/web/_bulk"), ("POST", "/api/v1/query")],
)
def test_what_a_role_may_have_taken_is_not_sent_a_second_time(make_gateway, method, path):
    with Dropping() as one, Dropping() as two:
        addresses = (one.address, two.address)
        with running(make_gateway(ingest=addresses, query=addresses)) as nginx:
            keyed = {"X-API-Key": KEY}
            found = httpx2.request(method, nginx.url + path, content=b"{}", headers=keyed)

    assert found.status_code == 503
    assert len(one.requests) + len(two.requests) == 1


def test_a_query_goes_to_another_process_when_one_is_away(make_gateway):
    role = Echo("query")
    addresses = (closed_port(), role.address)
    with (
        serving_in_a_thread(role),
        running(make_gateway(ingest=addresses, query=addresses)) as nginx,
    ):
        found = [httpx2.get(f"{nginx.url}/api/v1/query").status_code for _ in range(4)]

    assert found == [200] * 4


def test_no_status_of_nginx_is_left_without_our_answer():
    named = [status for failure in FAILURES for status in failure.found]

    assert len(named) == len(set(named))
    assert {400, 404, 405, 413, 414, 494, 500, 501, 502, 503, 504, 505, 507} <= set(named)


def test_head_gets_the_headers_alone(front):
    raw = front.nginx.raw(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    status, headers, body = parsed(raw)

    assert (status, body) == (404, b"")
    assert int(headers["content-length"]) > 0


def test_a_long_json_answer_is_compressed_for_who_asks(front, client):
    found = client.get("/api/v1/query?bytes=5000", headers={"Accept-Encoding": "gzip"})
    with client.stream(
        "GET", "/api/v1/query?bytes=5000", headers={"Accept-Encoding": "gzip"}
    ) as stream:
        raw = b"".join(stream.iter_raw())

    assert found.headers["content-encoding"] == "gzip"
    assert found.headers["vary"] == "Accept-Encoding"
    assert len(raw) < 1500
    assert json.loads(gzip.decompress(raw))["filling"] == "x" * 5000


@pytest.mark.parametrize(
    ("size", "accepted"),
    [
        pytest.param(10, "gzip", id="a short answer"),
        pytest.param(5000, "identity", id="a client that does not ask"),
    ],
)
def test_an_answer_is_not_compressed_without_a_reason(front, client, size, accepted):
    found = client.get(f"/api/v1/query?bytes={size}", headers={"Accept-Encoding": accepted})

    assert "content-encoding" not in found.headers


def test_lines_of_a_stream_arrive_one_by_one(front, client):
    with client.stream("GET", "/api/v1/query?lines=1") as stream:
        lines = stream.iter_lines()
        first = next(lines)
        front.query.release.set()
        second = next(lines)

    assert (first, second) == ('{"line":1}', '{"line":2}')


def test_a_redirect_of_a_role_is_passed_on_as_it_is(front, client):
    found = client.get("/x?status=307&header=Location:http://query/y")

    assert found.headers["location"] == "http://query/y"
