"""An `up` for other machines: by TLS, with NGINX and without, and nothing is dropped on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certificates
import httpx2
import pytest
from reconciling import pipeline, tenant, text
from upping import Up, upping
from websockets.sync.client import connect

from logweir.runtime.settings import Tls

SENDERS = 4
KINDS = ["--nginx", "--no-nginx"]


@pytest.fixture(scope="module", params=KINDS)
def secure_up(request: pytest.FixtureRequest) -> Iterator[tuple[Up, Tls]]:
    """An `up` with TLS on all addresses of this machine."""
    with upping() as up:
        tls = certificates.make(up.home)
        up.detach(
            *("--port", 0, "--listen", "0.0.0.0", request.param),
            *("--tls-cert", tls.certificate, "--tls-key", tls.key),
        )
        yield up, tls


def anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Traffic:
    """Senders and one tail, busy until the end; `problems` is what went wrong."""

    def __init__(self, shown: dict[str, Any]) -> None:
        self.shown = shown
        self.is_over = threading.Event()
        self.problems: list[str] = []
        self.sent = 0
        self.seen = 0

    def send(self, name: int) -> None:
        headers = {"authorization": f"Bearer {self.shown['ingest_key']}"}
        with httpx2.Client(verify=anybody(), headers=headers, timeout=30) as client:
            number = 0
            while not self.is_over.wait(0.01):
                record = {"message": f"{name}-{number}", "service": "load", "level": "info"}
                try:
                    answer = client.post(self.shown["ingest_url"], json=record)
                    if answer.status_code != 200:
                        self.problems.append(answer.text)
                except httpx2.HTTPError as error:
                    self.problems.append(repr(error))
                number += 1
                self.sent += 1

    def tail(self) -> None:
        url = self.shown["url"].replace("https", "wss") + "/api/v1/tail"
        key = {"authorization": f"Bearer {self.shown['query_key']}"}
        try:
            with connect(url, ssl=anybody(), additional_headers=key, max_size=None) as link:
                while not self.is_over.is_set():
                    with contextlib.suppress(TimeoutError):
                        self.seen += link.recv(0.2).count('"id"')
        except Exception as error:
            self.problems.append(repr(error))


@contextlib.contextmanager
def traffic(shown: dict[str, Any]) -> Iterator[Traffic]:
    found = Traffic(shown)
    threads = [threading.Thread(target=found.send, args=[one]) for one in range(SENDERS)]
    threads.append(threading.Thread(target=found.tail))
    for one in threads:
        one.start()
    try:
        yield found
    finally:
        found.is_over.set()
        for one in threads:
            one.join()


def shown_certificate(up: Up) -> bytes:
    port = int(up.shown()["url"].rpartition(":")[2])
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))


@pytest.mark.timeout(300)
def test_new_tenants_and_certificates_drop_nothing_under_load(secure_up):
    up, tls = secure_up
    with traffic(up.shown()) as load:
        up.until(lambda: load.seen > 0 and load.sent > 0)
        for name in ("one", "two"):
            up.ok("apply", "-f", "-", given=text(tenant(name), pipeline(name, of=name)))
            up.until(lambda name=name: is_served(up, name))
        certificates.make(Path(tls.certificate).parent)
        new = certificates.der(tls)
        up.until(lambda: shown_certificate(up) == new)
        seen = load.seen
        up.until(lambda: load.problems or load.seen > seen)

    assert load.problems == []
    assert load.sent > SENDERS


def is_served(up: Up, name: str) -> bool:
    """Whether a record goes into the tenant."""
    sent = '{"message":"first","service":"s","level":"info"}'
    return up.run("send", "--tenant", name, given=sent).returncode == 0


def test_commands_and_other_addresses_reach_it_by_tls(secure_up):
    up, _ = secure_up
    sent = up.run("send", given='{"message":"by tls","service":"shop","level":"info"}')
    many = up.run("send", given="".join(f"line {n} {'x' * 100}\n" for n in range(2000)))
    shown = up.shown()
    port = shown["url"].rpartition(":")[2]
    up.until(lambda: "by tls" in up.messages('{service="shop"}'))
    elsewhere = httpx2.get(f"https://127.0.0.2:{port}/metrics", verify=anybody())

    assert sent.returncode == 0, sent.stderr
    assert "sent 2000 records" in many.stderr  # in bodies so large that their key is checked first
    assert shown["url"].startswith("https://127.0.0.1:")
    assert elsewhere.status_code == 404
    assert elsewhere.headers["strict-transport-security"]


def test_what_it_was_told_is_kept_over_a_restart(secure_up):
    up, tls = secure_up
    names = {one["name"] for one in up.shown()["processes"]}
    url = up.shown()["url"]
    up.ok("down")
    up.detach("--port", int(url.rpartition(":")[2]))

    assert up.shown()["url"] == url
    assert {one["name"] for one in up.shown()["processes"]} == names
    assert shown_certificate(up) == certificates.der(tls)


@pytest.fixture(scope="module")
def plain_up() -> Iterator[Up]:
    with upping() as up:
        up.detach("--port", 0, "--no-nginx")
        yield up


def test_without_nginx_one_process_stands_for_the_gateway_and_what_is_behind_it(plain_up):
    names = [one["name"] for one in plain_up.shown()["processes"]]

    assert names == ["postgres", "valkey", "operator", "collector", "front", "keeper"]


def test_without_nginx_a_record_is_sent_and_found(plain_up):
    answer = plain_up.post("without")

    assert answer.json()["accepted"] == 1
    assert answer.headers["x-frame-options"] == "DENY"
    assert "without" in plain_up.until_found('{service="shop"}')


def test_without_nginx_metrics_are_on_the_roles_own_port_alone(plain_up):
    front = plain_up.process_of("front")
    own = httpx2.get(front["ops_url"] + "/metrics")
    public = httpx2.get(plain_up.shown()["url"] + "/metrics")

    assert own.status_code == 200
    assert "logweir_ingest_requests" in own.text
    assert public.status_code == 404


def test_without_nginx_a_killed_front_comes_back_and_senders_wait_or_are_told_to(plain_up):
    os.kill(plain_up.process_of("front")["pid"], signal.SIGKILL)
    statuses = []

    def is_taken() -> bool:
        statuses.append(plain_up.post("after the kill").status_code)
        return statuses[-1] == 200

    plain_up.until(is_taken)
    assert set(statuses) <= {200, 503}
    plain_up.until(lambda: plain_up.process_of("front")["restarts"] == 1)
