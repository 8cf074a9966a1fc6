"""What a role sees of a request that came through the gateway."""

from __future__ import annotations

import hashlib
import json
import re
import socket

import httpx2
import psutil
import pytest
import websockets
from fronting import KEY
from websockets.sync.client import connect

from logweir.core import bounds


def answered(raw: bytes) -> dict:
    return json.loads(raw.partition(b"\r\n\r\n")[2])


def test_a_body_sent_byte_by_byte_reaches_the_role_as_one_request(front, client):
    body = b'{"message":"slow"}'
    head = (
        f"POST /ingest HTTP/1.1\r\nHost: logs\r\nX-API-Key: {KEY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", front.nginx.gateway.port), timeout=10) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(head.encode())
        for byte in body[:-1]:
            link.sendall(bytes([byte]))
            client.get("/api/v1/query")  # a whole round trip for the gateway meanwhile
        early = list(front.ingest.seen)
        link.sendall(body[-1:])
        link.recv(65536)

    assert early == []
    assert [one["body_sha"] for one in front.ingest.seen] == [hashlib.sha256(body).hexdigest()]


def test_a_chunked_body_reaches_the_role_with_its_length(front, client):
    client.post("/t/acme/web/ingest", content=iter([b"abc", b"defg"]))

    (seen,) = front.ingest.seen
    assert seen["headers"]["content-length"] == "7"
    assert "transfer-encoding" not in seen["headers"]


def test_a_body_larger_than_memory_buffers_arrives_byte_for_byte(front, client):
    body = bytes(range(256)) * (5 << 12)
    client.post("/ingest", content=body)

    (seen,) = front.ingest.seen
    assert (seen["body_bytes"], seen["body_sha"]) == (len(body), hashlib.sha256(body).hexdigest())


def test_a_body_just_over_the_bound_reaches_the_role_which_can_say_more(front, client):
    client.post("/ingest", content=bytes(bounds.MAX_BODY_BYTES + 1))

    assert [one["body_bytes"] for one in front.ingest.seen] == [bounds.MAX_BODY_BYTES + 1]


def test_a_sender_that_asks_whether_to_continue_is_told_so(front):
    head = (
        f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n"
        "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", front.nginx.gateway.port), timeout=10) as link:
        link.sendall(head)
        told = link.recv(65536)
        link.sendall(b"{}")
        answer = link.recv(65536)

    assert told.startswith(b"HTTP/1.1 100 ")
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_methods_are_passed_on(front, client, method):
    client.request(method, "/api/v1/rules")

    assert [one["method"] for one in front.query.seen] == [method]


def test_parameters_are_passed_on_as_written(front, client):
    client.get("/api/v1/query?query=%7Bservice%3D%22a%2Fb%22%7D&x=%2e%2e")

    assert front.query.seen[0]["query"] == "query=%7Bservice%3D%22a%2Fb%22%7D&x=%2e%2e"


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "idempotency-key", "x-scope-orgid"])
def test_headers_of_the_api_are_passed_on(front, client, name):
    client.get("/api/v1/query", headers={name: "Some Value"})

    assert front.query.seen[0]["headers"][name] == "Some Value"


@pytest.mark.parametrize(
    "name",
    ["Forwarded", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Real-IP"],
)
def test_what_a_client_claims_to_have_forwarded_is_not_passed_on(front, client, name):
    client.get("/api/v1/query", headers={name: "203.0.113.7"})

    assert "203.0.113.7" not in str(front.seen)


def test_the_role_learns_the_address_and_scheme_that_the_gateway_saw(front, client):
    spoofed = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    client.get("/api/v1/query", headers=spoofed)

    (seen,) = front.query.seen
    assert seen["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert (seen["headers"]["x-forwarded-proto"], seen["scheme"]) == ("http", "http")


def test_the_role_learns_the_host_that_the_client_named(front, client):
    client.get("/api/v1/query", headers={"host": "logs.example:8443"})

    assert front.query.seen[0]["headers"]["host"] == "logs.example:8443"


def test_a_client_of_http_1_0_gets_a_whole_answer_and_the_role_a_host(front):
    raw = front.nginx.raw(b"GET /api/v1/query?bytes=5000 HTTP/1.0\r\n\r\n")

    assert b"transfer-encoding" not in raw.lower()
    assert answered(raw)["headers"]["host"] == "localhost"


def test_a_client_without_a_request_id_gets_one_and_the_role_the_same(front, client):
    given = client.get("/api/v1/query").headers.get_list("x-request-id")

    assert given == [front.query.seen[0]["headers"]["x-request-id"]]
    assert re.fullmatch("[0-9a-f]{32}", given[0])


@pytest.mark.parametrize("sent", ["0198-abc", "a" * 64, "01ARZ3NDEKTSV4RRFFQ69G5FAV", "a.b:c_d"])
def test_a_plain_request_id_of_a_client_is_kept(front, client, sent):
    given = client.get("/api/v1/query", headers={"X-Request-Id": sent}).headers["x-request-id"]

    assert given == front.query.seen[0]["headers"]["x-request-id"] == sent


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([("X-Request-Id", "a" * 65)], id="too long"),
        pytest.param([("X-Request-Id", 'a"b')], id="a quote"),
        pytest.param([("X-Request-Id", "a b")], id="a space"),
        pytest.param([("X-Request-Id", "\xe4")], id="not ASCII"),
        pytest.param([("X-Request-Id", "")], id="empty"),
        pytest.param([("X-Request-Id", "lwi_abcdef")], id="a key"),
        pytest.param([("X-Request-Id", "one"), ("X-Request-Id", "two")], id="two of them"),
    ],
)
def test_any_other_request_id_is_replaced(front, client, sent):
    headers = [(name, text.encode("latin-1")) for name, text in sent]
    given = client.get("/api/v1/query", headers=headers).headers["x-request-id"]

    assert given == front.query.seen[0]["headers"]["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", given)


def test_requests_share_connections_to_a_role(front):
    for _ in range(10):
        httpx2.post(front.url + "/ingest", content=b"{}", headers={"X-API-Key": KEY})

    to_role = [
        one
        for one in psutil.net_connections("tcp4")
        if one.raddr and one.raddr.port == front.ingest.port and one.status == "ESTABLISHED"
    ]
    assert len(front.ingest.seen) == 10
    assert 1 <= len(to_role) < 5


def test_a_websocket_of_the_tail_carries_frames_both_ways(front):
    url = front.url.replace("http", "ws") + "/api/v1/tail?bytes=100000"
    with connect(url, additional_headers={"X-Api-Key": "secret"}) as link:
        link.send("first")
        first = link.recv(timeout=10)
        link.send("second")
        second = link.recv(timeout=10)

    assert [first, second] == [one + "x" * 100_000 for one in ("first", "second")]
    assert front.query.seen[0]["headers"]["x-api-key"] == "secret"
    assert front.query.seen[0]["headers"]["x-request-id"]


def test_a_refused_websocket_gets_the_roles_own_answer(front):
    with pytest.raises(websockets.InvalidStatus) as refused:
        connect(front.url.replace("http", "ws") + "/api/v1/tail?refuse=1")

    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body) == {"refused": True}


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        pytest.param("/ingest", "websocket", id="a WebSocket to ingest"),
        pytest.param("/api/v1/query", "websocket", id="a WebSocket to a query"),
        pytest.param("/api/v1/tail", "h2c", id="HTTP/2 to the tail"),
    ],
)
def test_a_connection_is_upgraded_nowhere_else(front, client, path, wanted):
    upgrade = {"Upgrade": wanted, "Connection": "upgrade", "Sec-WebSocket-Version": "13"}
    status = client.get(path, headers=upgrade | {"Sec-WebSocket-Key": "x" * 22 + "=="}).status_code

    assert status == 200
    assert "upgrade" not in front.seen[0]["headers"]
