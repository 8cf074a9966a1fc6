"""How a server is started, watched for and ended, with small programs in its place."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from machine import NOBODY, is_running, root_only, until

from logweir.core import errors
from logweir.runtime import web
from logweir.runtime.settings import Listen
from logweir.standalone import servers, up

LOYAL = "#!/bin/sh\ntrap 'echo told >> told; exit 0' TERM\nwhile :; do sleep 0.01; done\n"
"""Stops in order when it is told to."""

STUBBORN = "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.01; done\n"
"""Has to be killed."""

PROGRAMS = frozenset({"lw-loyal", "lw-stubborn"})


def command(cwd: Path, *argv: str, **fields: object) -> servers.Command:
    env = {"PATH": os.defpath}
    return servers.Command(argv=argv, cwd=cwd, env=env, **fields)  # type: ignore[arg-type]


def said_by(place: Path, *argv: str, **fields: object) -> str:
    """Run a program to its end by `spawn`, and return its output."""
    path = place / "output"
    with path.open("wb") as output:
        process = servers.spawn(command(place, *argv, **fields), output.fileno())
        process.wait(10)
    return path.read_text()


class Small(servers.Server):
    """A server that is a line of shell; ready when it has made the file `ready`."""

    name = "Small"

    def __init__(self, folder: Path, script: str) -> None:
        super().__init__()
        self.folder = folder
        self.script = script

    def prepare(self) -> None:
        (self.folder / "ready").unlink(missing_ok=True)

    def command(self) -> servers.Command:
        return command(self.folder, "/bin/sh", "-c", self.script)

    def ready(self) -> bool:
        return (self.folder / "ready").exists()


@pytest.fixture
def begin(place: Path):
    """Starts a script below a name in a folder: `begin("lw-loyal", LOYAL, folder)`."""
    made: list[subprocess.Popen[bytes]] = []

    def start(name: str, text: str, folder: Path) -> subprocess.Popen[bytes]:
        program = place / name
        if not program.exists():
            program.write_text(text)
            program.chmod(0o755)
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen([program], cwd=folder)
        made.append(process)
        until(lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == name)
        trap = 1 << (signal.SIGTERM - 1)
        until(lambda: bool(_signals(process.pid) & trap))
        return process

    yield start
    for process in made:
        process.kill()
        process.wait()


def _signals(pid: int) -> int:
    """The signals that a process has taken care of, as a set of bits."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return int(fields["SigCgt"], 16) | int(fields["SigIgn"], 16)


def test_a_process_gets_the_environment_that_it_was_given_and_nothing_else(place, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("LD_PRELOAD", "")

    lines = said_by(place, "/usr/bin/env").splitlines()
    assert lines == [f"PATH={os.defpath}"]


def test_a_process_gets_no_descriptors_but_its_outputs(place):
    with (place / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        said = said_by(place, "/bin/sh", "-c", "for one in /proc/$$/fd/*; do readlink $one; done")

    assert str(place / "output") in said
    assert str(place / "secret") not in said


def test_a_process_reads_nothing_from_our_terminal(place):
    assert said_by(place, "/bin/sh", "-c", "readlink /proc/self/fd/0").strip() == "/dev/null"


def test_files_of_a_process_are_private(place):
    said_by(place, "/bin/sh", "-c", "echo > made")

    assert (place / "made").stat().st_mode & 0o777 == 0o600


def test_a_process_leads_a_session_of_its_own(place):
    process = servers.spawn(command(place, "/bin/sleep", "60"))
    session = os.getsid(process.pid)
    process.kill()
    process.wait()

    assert session == process.pid


def test_a_process_hears_the_signals_that_we_have_blocked(place):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        said = said_by(place, "/bin/grep", "SigBlk", "/proc/self/status")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert int(said.split()[1], 16) == 0


@root_only
def test_a_process_has_the_rights_of_its_user_and_no_others(place):
    place.chmod(0o777)
    said = said_by(place, "/bin/cat", "/proc/self/status", account=NOBODY)
    status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)

    assert status["Uid"].split() == [str(NOBODY.uid)] * 4
    assert status["Gid"].split() == [str(NOBODY.gid)] * 4
    assert status["Groups"].strip() == ""
    assert int(status["CapEff"], 16) == 0


def test_a_program_that_is_not_there_is_named(place):
    with pytest.raises(errors.SetupError, match="Cannot start /no/such/program") as told:
        servers.spawn(command(place, "/no/such/program"))

    assert told.value.hint


@root_only
def test_a_program_that_its_user_may_not_run_is_named_with_the_user(place):
    shutil.copy("/bin/true", place / "private")
    (place / "private").chmod(0o700)

    with pytest.raises(errors.SetupError, match=r"private as user 'nobody': .*Permission denied"):
        servers.spawn(command(place, str(place / "private"), account=NOBODY))


_SUPERVISOR = """
import os, signal, sys
from pathlib import Path
from logweir.standalone import servers
from logweir.standalone.accounts import Account
account = Account("nobody", int(sys.argv[2]), int(sys.argv[3])) if sys.argv[2] != "0" else None
child = servers.spawn(servers.Command(
    argv=("/bin/sleep", "60"), cwd=Path("/"), env={}, account=account, stop_signal=signal.SIGTERM,
))
print(child.pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize(
    "account",
    [
        pytest.param((0, 0), id="as the same user"),
        pytest.param((NOBODY.uid, NOBODY.gid), id="as another user", marks=root_only),
    ],
)
def test_a_process_ends_when_its_supervisor_is_killed(account):
    arguments = [sys.executable, "-c", _SUPERVISOR, "-", *map(str, account)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        child = int(supervisor.stdout.readline())
        before = is_running(child)
        supervisor.kill()

    assert before
    until(lambda: not is_running(child))


def test_a_started_server_is_ready_and_a_stopped_one_is_gone(place):
    server = Small(place, "trap 'echo bye > told; exit' TERM; echo > ready; sleep 60 & wait")
    server.start(place / "log")
    process = server.process
    ready = server.ready()
    server.stop()

    assert ready
    assert process is not None
    assert not is_running(process.pid)
    assert (place / "told").read_text() == "bye\n"


def test_what_a_server_says_is_appended_to_its_log(place):
    (place / "log").write_text("before\n")
    server = Small(place, "echo out; echo err >&2; echo > ready; exec sleep 60")
    server.start(place / "log")
    server.stop()

    assert (place / "log").read_text() == "before\nout\nerr\n"


def test_a_server_that_ends_at_once_fails_with_its_last_words(place):
    server = Small(place, "seq 100; echo 'the disk is full' >&2; exit 1")

    with pytest.raises(errors.SetupError, match="Small did not start") as told:
        server.start(place / "log")

    assert told.value.hint == "Its last words: 98 / 99 / 100 / the disk is full"
    assert server.process is None


def test_a_server_that_is_not_ready_in_time_is_killed(place):
    server = Small(place, "echo $$ > pid; echo loading; exec sleep 60")

    with pytest.raises(errors.SetupError, match="did not start") as told:
        server.start(place / "log", wait_s=0.3)

    assert "loading" in told.value.hint
    assert not is_running(int((place / "pid").read_text()))


def test_a_server_that_does_not_stop_is_killed_with_what_it_started(place):
    server = Small(place, "trap '' TERM; sleep 60 & echo $! > pid; echo > ready; sleep 60; wait")
    server.start(place / "log")
    server.stop(wait_s=0.1)

    until(lambda: not is_running(int((place / "pid").read_text())))


def test_stopping_what_does_not_run_does_nothing(place):
    server = Small(place, "echo > ready; exec sleep 60")
    server.stop()
    server.start(place / "log")
    server.stop()
    server.stop()

    assert server.process is None


def test_what_was_left_behind_in_a_folder_is_told_to_stop_in_order(place, begin):
    process = begin("lw-loyal", LOYAL, place / "data")
    servers.clear(place / "data", PROGRAMS, None, signal.SIGTERM)

    assert process.wait(5) == 0
    assert (place / "data" / "told").read_text() == "told\n"


def test_what_is_left_behind_below_a_folder_counts_too(place, begin):
    (place / "data").mkdir()
    process = begin("lw-loyal", LOYAL, place / "data" / "deep")
    servers.clear(place / "data", PROGRAMS, None, signal.SIGTERM)

    assert process.wait(5) == 0


def test_only_the_leader_is_told_when_there_is_one(place, begin):
    leader = begin("lw-loyal", LOYAL, place / "data")
    follower = begin("lw-stubborn", STUBBORN, place / "data")
    (place / "data" / "told").unlink(missing_ok=True)
    clearing = threading.Thread(
        target=servers.clear, args=[place / "data", PROGRAMS, leader.pid, signal.SIGTERM]
    )
    clearing.start()
    leader.wait(5)
    follower_ran_on = is_running(follower.pid)
    follower.kill()
    follower.wait()
    clearing.join()

    assert follower_ran_on
    assert (place / "data" / "told").exists()


def test_followers_of_a_leader_that_is_gone_are_killed_at_once(place, begin):
    follower = begin("lw-stubborn", STUBBORN, place / "data")
    started_s = time.monotonic()
    servers.clear(place / "data", PROGRAMS, 4_000_000, signal.SIGTERM)

    assert follower.wait(5) == -signal.SIGKILL
    assert time.monotonic() - started_s < servers.ORPHAN_WAIT_S / 2


def test_what_does_not_stop_in_time_is_killed(place, begin, monkeypatch):
    monkeypatch.setattr(servers, "ORPHAN_WAIT_S", 0.2)
    process = begin("lw-stubborn", STUBBORN, place / "data")
    servers.clear(place / "data", PROGRAMS, None, signal.SIGTERM)

    assert process.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize(
    "elsewhere",
    [
        pytest.param("data-2", id="in a folder whose name begins the same"),
        pytest.param(".", id="in the folder above"),
    ],
)
def test_what_works_elsewhere_is_left_alone(place, begin, elsewhere):
    (place / "data").mkdir()
    process = begin("lw-loyal", LOYAL, place / elsewhere)
    servers.clear(place / "data", PROGRAMS, None, signal.SIGTERM)

    assert is_running(process.pid)


def test_other_programs_in_the_folder_are_left_alone(place, begin):
    process = begin("lw-loyal", LOYAL, place / "data")
    servers.clear(place / "data", frozenset({"postgres"}), None, signal.SIGTERM)

    assert is_running(process.pid)


def test_a_folder_is_known_by_a_link_to_it_too(place, begin):
    process = begin("lw-loyal", LOYAL, place / "data")
    (place / "link").symlink_to(place / "data")

    assert servers.running_in(place / "link", PROGRAMS) == [process.pid]


def test_free_ports_lie_below_those_of_outgoing_connections():
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = [servers.free_port() for _ in range(50)]

    assert all(1024 < port < first_ephemeral for port in found)
    assert all(map(servers.port_is_free, found))


def test_a_port_whose_last_connection_is_not_over_yet_can_be_listened_on(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            served, _ = listener.accept()
            served.close()  # who ends first remembers the connection for a minute
            assert client.recv(1) == b""
    monkeypatch.setattr(servers, "free_port", lambda: port)

    with up._listening() as made:
        assert servers.port_is_free(port) is False
        assert made.getsockname()[1] == port


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_port_is_free_but_while_something_listens(host):
    with web.bind(Listen(host, 0)) as listener:
        port = listener.getsockname()[1]
        while_open = servers.port_is_free(port, host)

    assert not while_open
    assert servers.port_is_free(port, host)


def test_a_port_that_only_ipv4_uses_is_free_for_all_of_ipv6():
    with web.bind(Listen("0.0.0.0", 0)) as listener:
        assert servers.port_is_free(listener.getsockname()[1], "::")


def test_a_port_whose_last_connections_are_fading_is_free():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            link, _ = listener.accept()
            link.close()  # who closes first keeps the port in TIME_WAIT
            client.recv(1)

    assert any(
        one.laddr.port == port and one.status == psutil.CONN_TIME_WAIT
        for one in psutil.net_connections("tcp4")
    )
    assert servers.port_is_free(port)


@pytest.fixture
def answering():
    """Starts something that answers each connection with these pieces, then keeps it open."""
    listener = socket.create_server(("127.0.0.1", 0))
    links: list[socket.socket] = []

    def start(*pieces: bytes, hang_up: bool = False) -> int:
        def serve() -> None:
            link, _ = listener.accept()
            links.append(link)
            link.recv(1000)
            for piece in pieces:
                link.sendall(piece)
            if hang_up:
                link.close()

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append(thread)
        port: int = listener.getsockname()[1]
        return port

    threads: list[threading.Thread] = []
    yield start
    for thread in threads:
        thread.join(5)
    for link in links:
        link.close()
    listener.close()


def test_talking_collects_an_answer_that_comes_in_pieces(answering):
    port = answering(b"+O", b"K\r", b"\n")

    assert servers.talk(port, b"PING", lambda got: got.endswith(b"\n")) == b"+OK\r\n"


@pytest.mark.parametrize(
    ("pieces", "hang_up"),
    [
        pytest.param([], False, id="nothing is said"),
        pytest.param([b"+O"], False, id="the answer stops in the middle"),
        pytest.param([b"+O"], True, id="the connection ends in the middle"),
    ],
)
def test_an_answer_that_is_not_whole_in_time_is_none(answering, monkeypatch, pieces, hang_up):
    monkeypatch.setattr(servers, "PROBE_WAIT_S", 0.1)
    port = answering(*pieces, hang_up=hang_up)

    assert servers.talk(port, b"PING", lambda got: got.endswith(b"\n")) == b""


def test_nobody_answers_on_a_closed_port():
    assert servers.talk(servers.free_port(), b"PING", bool) == b""
