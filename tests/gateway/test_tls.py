"""TLS to clients: what is spoken, what is not, and what a browser is told by it."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator

import certificates
import httpx2
import pytest
from fronting import KEY, Echo, Front, check_error, parsed, running, serving_in_a_thread
from websockets.sync.client import connect

from logweir.runtime.settings import Tls


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def module_front(make_gateway, tls) -> Iterator[Front]:
    ingest, query = Echo("ingest"), Echo("query")
    gateway = make_gateway(ingest=(ingest.address,), query=(query.address,), tls=tls)
    with serving_in_a_thread(ingest, query), running(gateway) as nginx:
        yield Front(nginx, ingest, query)


@pytest.fixture
def secure(module_front: Front) -> Front:
    module_front.forget()
    return module_front


@pytest.fixture
def secure_client(secure, tls) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=secure.url, verify=certificates.trusting(tls)) as found:
        yield found


def shaken(front: Front, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", front.nginx.gateway.port), timeout=10)
    return context.wrap_socket(plain, server_hostname=certificates.NAME)


def test_requests_travel_by_tls_and_the_role_is_told_so(secure, secure_client):
    found = secure_client.post("/ingest", content=b"{}", headers={"X-API-Key": KEY}).json()

    assert (found["role"], found["headers"]["x-forwarded-proto"]) == ("ingest", "https")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_of_today_is_spoken(secure, tls, version):
    with shaken(secure, certificates.trusting(tls, newest=version)) as link:
        spoken, cipher = link.version(), link.cipher()

    assert spoken == version.name.replace("_", ".")
    assert cipher is not None
    assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_older_tls_is_not_spoken(secure, version):
    ran = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{secure.nginx.gateway.port}"),
            *(version, "-cipher", "ALL:@SECLEVEL=0"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )

    assert "alert protocol version" in ran.stderr


def test_old_ciphers_of_tls_1_2_are_not_spoken(secure, tls):
    context = certificates.trusting(tls, newest=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE+AES:!AESGCM:AES128-SHA:AES256-SHA256")

    with pytest.raises(ssl.SSLError):
        shaken(secure, context)


def test_browsers_are_told_to_come_by_tls_only(secure_client, front, client):
    by_tls = [secure_client.get(path) for path in ("/api/v1/query", "/metrics", "/ingest")]

    assert [one.headers["strict-transport-security"] for one in by_tls] == ["max-age=31536000"] * 3
    assert "strict-transport-security" not in client.get("/api/v1/query").headers


def test_http_without_tls_is_told_so_and_reaches_no_role(secure):
    sent = f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n\r\n".encode()
    found = parsed(secure.nginx.raw(sent, until_closed=False))

    check_error(*found, (400, "bad_request"))
    assert b"TLS" in found[2]
    assert secure.seen == []


def test_a_websocket_travels_by_tls(secure, tls):
    url = secure.url.replace("https", "wss") + "/api/v1/tail"
    with connect(url, ssl=certificates.trusting(tls)) as link:
        link.send("over TLS")
        found = link.recv(timeout=10)

    assert found == "over TLS"


def test_http_2_is_offered(secure, tls):
    context = certificates.trusting(tls)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with shaken(secure, context) as link:
        assert link.selected_alpn_protocol() == "h2"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_body_without_a_length_by_http_2_is_read_when_the_key_is_known(secure, tls, method):
    ran = subprocess.run(
        [
            *("curl", "--silent", "--http2", "--cacert", tls.certificate, "-X", method),
            *("-H", f"X-API-Key: {KEY}", "-H", "Content-Length:", "-H", "Transfer-Encoding:"),
            *("--data-binary", "small", f"{secure.url}/ingest"),
        ],
        capture_output=True,
        check=True,
    )

    assert json.loads(ran.stdout)["body_bytes"] == 5
    assert len(secure.ingest.checks) == 1


def test_a_request_by_http_2_reaches_its_role(secure, tls):
    """By curl, where it is there: the gateway's paths, headers and bodies are those of HTTP/1."""
    ran = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--http2", "--cacert", tls.certificate),
            *("-H", f"X-API-Key: {KEY}", "--data-binary", "@-", f"{secure.url}/t/acme/web/ingest"),
            *("--write-out", "%{http_version} %{http_code}"),
        ],
        input=b"x" * 200_000,
        capture_output=True,
    )
    answer, _, told = ran.stdout.rpartition(b"}")
    seen = json.loads(answer + b"}")

    assert told == b"2 200"
    assert (seen["role"], seen["body_bytes"]) == ("ingest", 200_000)
    assert seen["headers"]["host"] == f"127.0.0.1:{secure.nginx.gateway.port}"
    assert len(secure.ingest.checks) == 1
