"""The gateway's log: one JSON object a request, and no secret in any of them."""

from __future__ import annotations

import base64
import json

import httpx2
import pytest
from fronting import running

KEY = "lwi_aeaqcaibaeaqcaibaeaqcaibaeaqcaibmfrw2zi"
BASIC = base64.b64encode(f"user:{KEY}".encode()).decode()


def barrier(front) -> bytes:
    """Return the log as it is after everything sent until now."""
    answer = httpx2.get(front.url + "/api/v1/query")
    front.nginx.lines(answer.headers["x-request-id"])
    return front.nginx.log.read_bytes()


def test_a_request_is_one_line_that_tells_who_asked_what_and_how_it_went(front, client):
    answer = client.post("/t/acme/web/ingest?status=429", content=b"x" * 1000)
    (line,) = front.nginx.lines(answer.headers["x-request-id"])

    assert line["status"] == 429
    assert (line["method"], line["path"]) == ("POST", "/t/acme/web/ingest")
    assert (line["role"], line["remote"], line["upstream"]) == (
        "gateway",
        "127.0.0.1",
        front.ingest.address,
    )
    assert line["request_bytes"] > 1000
    assert line["answer_bytes"] > len(answer.content)
    assert 0 <= line["seconds"] < 10
    assert 0 <= float(line["upstream_seconds"]) < 10
    assert line["timestamp"].endswith("+00:00")


def test_the_line_names_the_address_that_was_asked_not_the_error_page(front, client):
    answer = client.get("/metrics?x=1")
    (line,) = front.nginx.lines(answer.headers["x-request-id"])

    assert (line["path"], line["status"], line["upstream"]) == ("/metrics", 404, "")


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        pytest.param("/ingest", {"Authorization": f"Bearer {KEY}"}, id="a bearer token"),
        pytest.param("/ingest", {"Authorization": f"Basic {BASIC}"}, id="a Basic password"),
        pytest.param("/ingest", {"X-API-Key": KEY}, id="a header of its own"),
        pytest.param("/ingest", {"X-Request-Id": KEY}, id="the wrong header"),
        pytest.param("/ingest", {"Cookie": f"key={KEY}"}, id="a cookie"),
        pytest.param("/ingest", {"Referer": f"http://x/?key={KEY}"}, id="the page before"),
        pytest.param("/ingest", {"User-Agent": KEY}, id="the client's name"),
        pytest.param("/ingest", {"Host": KEY}, id="the host"),
        pytest.param(f"/api/v1/tail?ticket={KEY}", {}, id="a parameter"),
        pytest.param(f"/metrics?key={KEY}", {}, id="a parameter of no page"),
        pytest.param(f"/t/../x?key={KEY}", {}, id="a parameter of a refused path"),
        pytest.param(f"/ingest%3Fkey={KEY}", {}, id="an encoded question mark"),
        pytest.param(f"/t/acme/{KEY}/ingest", {}, id="the path"),
        pytest.param(f"/x#{KEY}", {}, id="a fragment"),
        pytest.param("/" + "x" * 17_000 + f"?key={KEY}", {}, id="a URL that is too long"),
        pytest.param("/ingest", {"X-Api-Key": KEY, "X-A": "x" * 17_000}, id="too large headers"),
        pytest.param("/ingest", {"Transfer-Encoding": KEY}, id="a malformed request"),
    ],
)
def test_a_key_is_never_logged(front, path, headers):
    lines = [f"POST {path} HTTP/1.1", *(f"{n}: {text}" for n, text in headers.items())]
    host = [] if "Host" in headers else ["Host: x"]
    sent = "\r\n".join([*lines, *host, "Content-Length: 0", "Connection: close", "", ""])
    front.nginx.raw(sent.encode(), until_closed=False)
    log = barrier(front)

    assert KEY.encode() not in log
    assert BASIC.encode() not in log


def test_a_key_is_not_logged_when_the_role_is_away(make_gateway):
    away = ("127.0.0.1:1",)
    with running(make_gateway(ingest=away, query=away)) as nginx:
        answer = httpx2.get(f"{nginx.url}/api/v1/tail?ticket={KEY}", headers={"X-Api-Key": KEY})
        nginx.lines(answer.headers["x-request-id"])
        log = nginx.log.read_bytes()

    assert KEY.encode() not in log
    assert b"lwi_" not in log


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b'GET /"\\\x7f\xff\xc3( HTTP/1.1\r\nHost: x\r\n\r\n', id="bytes in the path"),
        pytest.param(b'GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: "}\xff\r\n\r\n', id="in an id"),
        pytest.param(b"\xff\xfe\x00{}\r\n\r\n", id="no HTTP at all"),
        pytest.param(b'"GET" / HTTP/1.1\r\nHost: x\r\n\r\n', id="a quoted method"),
        pytest.param(b"GET /\r\n", id="HTTP 0.9"),
    ],
)
def test_every_line_is_json_whatever_was_sent(front, sent):
    front.nginx.raw(sent, until_closed=False)
    lines = [json.loads(line.decode("ascii")) for line in barrier(front).splitlines()]

    assert all(isinstance(line["status"], int) for line in lines)


def test_the_probe_of_the_gateway_leaves_no_line(front, client):
    probe = client.get("/-/gateway")

    assert probe.status_code == 204
    assert probe.headers["x-request-id"].encode() not in barrier(front)


def test_a_long_path_is_cut(front, client):
    answer = client.get("/" + "a" * 2000)
    (line,) = front.nginx.lines(answer.headers["x-request-id"])

    assert line["path"] == "/" + "a" * 299
