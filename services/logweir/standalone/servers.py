"""What the embedded servers have in common: how one is started, watched for and ended.

    prepare() -> command() -> spawn() ... ready() ... a signal, or the end of this process

The supervisor of `up` takes these steps itself and keeps the process; tests use `start` and `stop`.
Everything is synchronous and without threads, so that the caller may fork. A server is the leader
of a session of its own, so Ctrl-C in a terminal reaches only the supervisor, and on Linux it gets
its stop signal when the supervisor dies, however that dies.

A server's working directory is its data folder. By that, servers that an earlier supervisor left
behind are known, and are ended before the folder is used again. Who prepares a server must hold
the lock of the data folder: whatever runs in it is taken for left behind.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import functools
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from logweir.core import errors
from logweir.standalone.accounts import Account

LOOPBACK = "127.0.0.1"

PROBE_WAIT_S = 1.0
"""How long a server may take to answer a readiness probe before it counts as not ready."""

ORPHAN_WAIT_S = 10.0
"""How long a server that was left behind may take to stop in order; then it is killed."""

IN_USE = "is in use by another program"

TAIL_BYTES = 2000
"""How much of a server's last words an error repeats."""

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.01
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Command(msgspec.Struct, frozen=True):
    """A process to start; `stop_signal` ends it in order. Without an account it runs as we do.

    `hurry` is another signal, and after how many seconds it is sent to what has not ended.
    """

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    account: Account | None = None
    stop_signal: int = signal.SIGTERM
    hurry: tuple[float, int] | None = None


class Server(abc.ABC):
    """One embedded server in a data folder of its own."""

    name: str
    """What people call it in messages."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def prepare(self) -> None:
        """Make the data folder right and end what an earlier start left in it; idempotent.

        Raises:
            SetupError: it cannot be made right, with the fix.
        """

    @abc.abstractmethod
    def command(self) -> Command:
        """Return the process to start; only after `prepare`."""

    @abc.abstractmethod
    def ready(self) -> bool:
        """Ask the server whether it serves; waits at most PROBE_WAIT_S, starts no process."""

    def start(self, log: Path, wait_s: float = 30.0) -> None:
        """Prepare, start and wait until ready; what the server says is appended to `log`.

        Raises:
            SetupError: it ended, or was not ready in time, with its last words.
        """
        self.prepare()
        with log.open("ab") as output:
            self.process = spawn(self.command(), output.fileno())
        if not _until(lambda: self._ended() or self.ready(), wait_s) or self._ended():
            self.stop(wait_s=0)
            raise errors.SetupError(
                f"{self.name} did not start.", hint=f"Its last words: {tail(log)}"
            )

    def stop(self, wait_s: float = 30.0) -> None:
        """Stop in order and wait; kill what has not ended after `wait_s`."""
        if self.process is None:
            return
        if wait_s > 0:
            command = self.command()
            self.process.send_signal(command.stop_signal)
            if command.hurry is not None and not self._ends_within(command.hurry[0]):
                self.process.send_signal(command.hurry[1])
            self._ends_within(wait_s)
        if self.process.poll() is None:
            # With its group: the workers of a killed NGINX would go on, and hold the port.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def _ends_within(self, wait_s: float) -> bool:
        return _until(self._ended, wait_s)

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None


def spawn(command: Command, output: int | None = None) -> subprocess.Popen[bytes]:
    """Start the process with both outputs going to the descriptor `output`; None keeps ours.

    Call it from a thread that lives as long as this process: the death signal is the thread's.

    Raises:
        SetupError: the program cannot be started as that user.
    """
    parent = os.getpid()

    def in_child() -> None:
        # Runs after the switch of user, which would clear the death signal again.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if _libc is not None:
            # Who would hurry it is gone then.
            last = command.hurry[1] if command.hurry else command.stop_signal
            _libc.prctl(_PR_SET_PDEATHSIG, last, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    account = command.account
    try:
        return subprocess.Popen(  # noqa: S603 - our own command lines
            command.argv,
            cwd=command.cwd,
            env=dict(command.env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=in_child,
            umask=0o077,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    except (OSError, subprocess.SubprocessError) as cause:
        who = f" as user {account.name!r}" if account else ""
        raise errors.SetupError(
            f"Cannot start {command.argv[0]}{who}: {cause}.",
            hint="Check that the program runs here, or start Logweir as a plain user.",
        ) from cause


def free_port() -> int:
    """Return a TCP port of the loopback address that nothing uses.

    It lies below the ports that the system gives to outgoing connections: a client that knocks at
    one of those while its server is away can be connected to itself, and then holds the port.
    """
    top = min(_first_ephemeral_port(), 32768)
    for port in random.sample(range(20_000, max(top, 22_000)), 200):
        if port_is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Say whether a server could listen on the port now."""
    return not port_problem(port, host)


def port_problem(port: int, host: str = LOOPBACK) -> str:
    """Return why a server could not listen on the port now; empty when it could."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            return "may be taken by root only"
        except OSError:
            return IN_USE
    return ""


def await_port(port: int, host: str = LOOPBACK, wait_s: float = 1.0) -> None:
    """Wait until the port is free; for a moment it may outlive the process that had it."""
    _until(lambda: port_is_free(port, host), wait_s)


def clear(folder: Path, programs: frozenset[str], leader: int | None, stop_signal: int) -> None:
    """End what still runs in `folder`: `leader` in order, the rest with it or by force.

    Args:
        folder: a data folder whose lock the caller holds.
        programs: names of the processes that may be ended.
        leader: the process that ends the others; None when any of them may be told.
        stop_signal: what makes it stop in order.

    Raises:
        SetupError: something of it does not end.
    """
    found = running_in(folder, programs)
    if not found:
        return
    told = [pid for pid in found if leader is None or pid == leader]
    _signal(told, stop_signal)
    if told and _until(lambda: not running_in(folder, programs), ORPHAN_WAIT_S):
        return
    _signal(running_in(folder, programs), signal.SIGKILL)
    if not _until(lambda: not running_in(folder, programs), ORPHAN_WAIT_S):
        left = ", ".join(map(str, running_in(folder, programs)))
        raise errors.SetupError(
            f"Processes of an earlier start still use {folder}: {left}.",
            hint="They could not be ended; wait for their disk, or restart the machine.",
        )


def running_in(folder: Path, programs: frozenset[str]) -> list[int]:
    """Return the processes of these names that work in the folder or below it; none of ours.

    Elsewhere than on Linux a process is known by the folder in its command line.
    """
    place = str(folder.resolve())
    if Path("/proc/self/cwd").exists():
        return [
            pid
            for pid in (int(one.name) for one in Path("/proc").iterdir() if one.name.isdecimal())
            if pid != os.getpid() and _works_in(pid, place, programs)
        ]
    return _listed_with(place, programs)


def tail(log: Path) -> str:
    """Return the last lines of a log, for an error message."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return " / ".join(lines[-4:])


def talk(
    port: int,
    sent: bytes,
    enough: Callable[[bytes], bool],
    host: str = LOOPBACK,
    *,
    with_tls: bool = False,
) -> bytes:
    """Send bytes to the port and return the answer, or b"" when there is none in time.

    With TLS any certificate will do: nothing that is secret is sent, or believed of the answer.
    """
    answer = b""
    deadline_s = time.monotonic() + PROBE_WAIT_S
    try:
        with contextlib.ExitStack() as stack:
            plain = socket.create_connection((host, port), timeout=PROBE_WAIT_S)
            link = stack.enter_context(_anybodys_tls().wrap_socket(plain) if with_tls else plain)
            link.sendall(sent)
            while not enough(answer):
                link.settimeout(max(deadline_s - time.monotonic(), 0.001))
                got = link.recv(4096)
                if not got:
                    return b""
                answer += got
    except OSError:
        return b""
    return answer


@functools.cache
def _anybodys_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _works_in(pid: int, place: str, programs: frozenset[str]) -> bool:
    try:
        if Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() not in programs:
            return False
        where = str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return False
    return where == place or where.startswith(place + "/")


def _listed_with(place: str, programs: frozenset[str]) -> list[int]:
    listed = subprocess.run(
        ["/bin/ps", "-axo", "pid=,stat=,command="],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
    ).stdout
    rows = (line.split(None, 2) for line in listed.splitlines())
    return [
        int(row[0])
        for row in rows
        if len(row) == 3
        and not row[1].startswith("Z")
        and place in row[2]
        and Path(row[2].split()[0].rstrip(":")).name in programs
    ]


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _until(true: Callable[[], bool], wait_s: float) -> bool:
    deadline_s = time.monotonic() + wait_s
    while not true():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _first_ephemeral_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32768
