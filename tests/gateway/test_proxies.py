"""Whom the gateway takes for the client when a proxy stands before it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fronting import KEY, Echo, Front, Rendered, running, serving_in_a_thread
from websockets.sync.client import connect

from logweir.gateway import config


@pytest.fixture(scope="module")
def module_proxied(make_gateway) -> Iterator[Front]:
    role = Echo("query")
    gateway = make_gateway(
        ingest=(role.address,),
        query=(role.address,),
        trusted_proxies=("127.0.0.1", "10.0.0.0/8", "2001:db8::/32"),
    )
    with serving_in_a_thread(role), running(gateway) as nginx:
        yield Front(nginx, role, role)


@pytest.fixture
def proxied(module_proxied: Front) -> Front:
    module_proxied.forget()
    return module_proxied


@pytest.mark.parametrize(
    ("told", "client"),
    [
        pytest.param("192.0.2.7", "192.0.2.7", id="the proxy's own word"),
        pytest.param("203.0.113.9, 192.0.2.7", "192.0.2.7", id="not the client's own word"),
        pytest.param("192.0.2.7, 10.1.2.3", "192.0.2.7", id="through two proxies"),
        pytest.param("203.0.113.9, 192.0.2.7, 10.1.2.3", "192.0.2.7", id="a lie before two"),
        pytest.param("2001:db9::1", "2001:db9::1", id="an IPv6 client"),
        pytest.param("2001:db9::1, 2001:db8::5", "2001:db9::1", id="an IPv6 proxy"),
        pytest.param("nonsense", "127.0.0.1", id="no address"),
        pytest.param(None, "127.0.0.1", id="nothing"),
    ],
)
def test_a_trusted_proxy_says_who_the_client_is(proxied, told, client):
    headers = {} if told is None else {"X-Forwarded-For": told}
    answer = httpx2.get(proxied.url + "/api/v1/query", headers=headers)
    (line,) = proxied.nginx.lines(answer.headers["x-request-id"])

    assert proxied.query.seen[0]["headers"]["x-forwarded-for"] == client
    assert line["remote"] == client


@pytest.mark.parametrize(("told", "scheme"), [("https", "https"), ("http", "http"), ("x", "http")])
def test_a_trusted_proxy_says_how_the_client_came(proxied, told, scheme):
    answer = httpx2.get(proxied.url + "/api/v1/query", headers={"X-Forwarded-Proto": told})

    assert proxied.query.seen[0]["headers"]["x-forwarded-proto"] == scheme
    assert ("strict-transport-security" in answer.headers) == (scheme == "https")


def test_anybody_else_is_who_connects(front):
    headers = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
    answer = httpx2.get(front.url + "/api/v1/query", headers=headers)
    (line,) = front.nginx.lines(answer.headers["x-request-id"])
    told = front.query.seen[0]["headers"]

    assert (told["x-forwarded-for"], told["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert line["remote"] == "127.0.0.1"
    assert "strict-transport-security" not in answer.headers


def test_a_proxy_of_another_network_is_not_believed(make_gateway):
    role = Echo("query")
    gateway = make_gateway(query=(role.address,), trusted_proxies=("10.0.0.0/8",))
    with serving_in_a_thread(role), running(gateway) as nginx:
        httpx2.get(
            nginx.url + "/x", headers={"X-Forwarded-For": "10.1.1.1", "X-Forwarded-Proto": "https"}
        )

    told = role.seen[0]["headers"]
    assert (told["x-forwarded-for"], told["x-forwarded-proto"]) == ("127.0.0.1", "http")


HOW_TO = Path(__file__).parent.parent.parent / "docs" / "howto" / "serve.md"


TEMP_FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Documented(Rendered):
    """A proxy before the gateway, as the how-to has it."""

    def __init__(self, gateway: config.Gateway, behind: Front) -> None:
        super().__init__(gateway)
        self.behind = behind

    def prepare(self) -> None:
        text = HOW_TO.read_text()
        block = re.search(r"```nginx\n(.*?)```", text, re.DOTALL)
        needed = re.search(r"`(map \$http_upgrade .*?)`", text)
        assert block is not None
        assert needed is not None
        inner = block[1].replace("127.0.0.1:7080", f"127.0.0.1:{self.behind.nginx.gateway.port}")
        folder = self.gateway.folder
        places = "".join(f"{one}_temp_path {folder}/{one};" for one in TEMP_FOLDERS)
        (folder / "nginx.conf").write_text(
            f"pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {places}"
            f" {needed[1]} server {{ listen 127.0.0.1:{self.gateway.port}; {inner} }} }}"
        )


def test_the_proxy_of_the_how_to_passes_all_on_and_says_who_the_client_is(proxied, make_gateway):
    proxy = Documented(make_gateway(), proxied)
    proxy.start(proxy.log)
    try:
        liar = {"X-Forwarded-For": "203.0.113.9", "X-API-Key": KEY}
        sent = httpx2.post(proxy.url + "/t/a/b/ingest", content=b"x" * 8_000_000, headers=liar)
        with connect(proxy.url.replace("http", "ws") + "/api/v1/tail") as link:
            link.send("through two")
            echoed = link.recv(timeout=10)
    finally:
        proxy.stop()

    told = sent.json()["headers"]
    assert sent.json()["body_bytes"] == 8_000_000
    assert told["x-forwarded-for"] == "203.0.113.9"  # this machine is itself a trusted proxy here
    assert told["host"] == f"127.0.0.1:{proxy.gateway.port}"
    assert echoed == "through two"
