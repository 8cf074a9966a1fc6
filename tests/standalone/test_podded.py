"""The servers as the one process of a pod."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import psycopg
import pytest
import redis

from logweir.core import errors
from logweir.standalone import accounts, podded, servers
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey


@pytest.fixture
def place(servers_folder: Path, tmp_path: Path) -> Path:
    """A folder that the servers' user can enter."""
    folder = servers_folder / f"pod-{tmp_path.name}"
    folder.mkdir(mode=0o755)
    return folder


def until_answered(look: Callable[[], httpx.Response]) -> httpx.Response:
    deadline_s = time.monotonic() + 30
    while True:
        try:
            return look()
        except httpx.TransportError:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


def test_postgres_asks_for_a_password_wherever_one_comes_from(place):
    server = Postgres(
        place / "postgres", servers.free_port(), "super", accounts.choose(), host=podded.EVERYWHERE
    )
    server.start(place / "log")
    try:
        with psycopg.connect(server.url()) as connection:
            addresses = connection.execute("show listen_addresses").fetchone()
            rules = connection.execute(
                "select type, database, user_name, address, auth_method from pg_hba_file_rules"
            ).fetchall()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url(password="wrong"))
    finally:
        server.stop()

    assert addresses == ("0.0.0.0",)
    assert rules == [("host", ["all"], ["all"], "all", "scram-sha-256")]


def test_valkey_listens_everywhere_and_takes_no_more_than_it_may(place):
    server = Valkey(
        place / "valkey",
        servers.free_port(),
        "super",
        accounts.choose(),
        max_memory_bytes=50_000_000,
        host=podded.EVERYWHERE,
    )
    server.start(place / "log")
    try:
        with redis.Redis.from_url(server.url(), decode_responses=True) as client:
            found = client.config_get("maxmemory", "bind")
    finally:
        server.stop()

    assert found == {"maxmemory": "50000000", "bind": "0.0.0.0"}


def test_the_gateway_takes_the_place_of_the_command_and_serves_roles_that_are_elsewhere(place):
    port, nobody = servers.free_port(), servers.free_port()
    words = (
        "gateway",
        f"--query=127.0.0.1:{nobody}",
        f"--auth=localhost:{nobody}",
        f"--listen=127.0.0.1:{port}",
        f"--folder={place}/gateway",
        "--trusted-proxy=10.0.0.0/8",
    )
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-c", "from logweir.cli import main; main()", *words]
    )
    try:
        probe = until_answered(lambda: httpx.get(f"{url}/-/gateway"))
        answers = [httpx.get(url + path).status_code for path in ("/api/v1/query", "/api/v1/keys")]
        name = Path(f"/proc/{process.pid}/comm").read_text().strip()
    finally:
        process.terminate()
        process.wait(20)

    assert probe.status_code == 204
    assert answers == [503, 503]
    assert name == "nginx"


def test_a_missing_password_is_said(place):
    with pytest.raises(errors.SetupError, match="password: No such file"):
        podded.password_of(place)
