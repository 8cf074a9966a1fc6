"""What a supervisor can start: an embedded server, or a role of ours, forked from this process.

Roles are forked, so that all of them share the modules that the supervisor has imported. Their
listening sockets belong to the supervisor: a request that comes while a role is away waits for it.
"""

from __future__ import annotations

import abc
import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol

import msgspec

from logweir.backends import failpoint
from logweir.core import errors
from logweir.runtime.settings import Settings
from logweir.standalone import restarts, servers

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
"""Those that the supervisor takes; a forked child gives up its handlers."""


class Readiness(msgspec.Struct, frozen=True):
    """What /readyz answers."""

    ready: bool
    problems: dict[str, str] = {}


Needed = Literal["always", "once", "never"]
"""When a process must be ready so that a record can be sent and found."""


class Child(abc.ABC):
    """Something that runs as a process. `after` names those that must be ready before it begins."""

    may_start_slowly = False
    """Whether silence before it is ready is work, such as the recovery after a crash."""

    def __init__(self, name: str, after: Sequence[str] = (), needed: Needed = "always") -> None:
        self.name = name
        self.after = tuple(after)
        self.needed = needed

    @abc.abstractmethod
    def start(self, output: int) -> int:
        """Start it, its output going to a descriptor, and return the process's id.

        Raises:
            SetupError: it cannot be started.
            OSError: the system has no room for another process.
        """

    @abc.abstractmethod
    def ended(self) -> str | None:
        """Return in words how it ended; None while it runs."""

    @abc.abstractmethod
    def probe(self) -> str | None:
        """Return "" when it is ready, else why it is not; None when it gives no answer."""

    @abc.abstractmethod
    def signal(self, number: int | None = None) -> None:
        """Send a signal; without one, that which stops it in order."""

    def hurry(self, waited_s: float) -> None:  # noqa: B027 - most need none
        """Called now and then while it ends, with the seconds since it was told to."""

    @property
    def ops_url(self) -> str:
        """Where its /metrics are; empty when it has none."""
        return ""


class ServerChild(Child):
    """PostgreSQL, Valkey or NGINX."""

    may_start_slowly = True

    def __init__(self, name: str, server: servers.Server, after: Sequence[str] = ()) -> None:
        super().__init__(name, after)
        self.server = server
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, output: int) -> int:
        """Prepare the server's folder and start it."""
        self.server.prepare()
        self._process = servers.spawn(self.server.command(), output)
        return self._process.pid

    def ended(self) -> str | None:
        """Return how the server ended."""
        if self._process is None:
            return "not started"
        code = self._process.poll()
        if code is None:
            return None
        return restarts.how_it_ended(-code if code < 0 else code << 8)

    def probe(self) -> str | None:
        """Ask whether the server serves."""
        return "" if self.server.ready() else None

    def signal(self, number: int | None = None) -> None:
        """Send a signal to the server's leading process; SIGKILL to all that it has started.

        The workers of a killed NGINX would go on, and hold its port.
        """
        if self._process is None or self._process.poll() is not None:
            return
        if number == signal.SIGKILL:
            os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.send_signal(number or self.server.command().stop_signal)

    def hurry(self, waited_s: float) -> None:
        """Send the server's other signal when its time is over."""
        wanted = self.server.command().hurry
        if wanted is not None and waited_s >= wanted[0]:
            self.signal(wanted[1])


class RoleMain(Protocol):
    """A role's entry: runs until SIGTERM."""

    def __call__(self, settings: Settings) -> None:
        """Run the role."""


class RoleChild(Child):
    """A role, forked. `main` is looked up before the fork, so that its modules are shared."""

    def __init__(
        self,
        settings: Settings,
        main: Callable[[], RoleMain],
        sockets: Sequence[socket.socket],
        ops_port: int,
        after: Sequence[str] = (),
        needed: Needed = "always",
        name: str = "",
    ) -> None:
        super().__init__(name or settings.role, after, needed)
        self._settings = settings
        self._main = main
        self._sockets = tuple(sockets)
        self._ops_port = ops_port
        self._pid: int | None = None
        self._how = "not started"

    @property
    def ops_url(self) -> str:
        """Where /metrics, /livez and /readyz are."""
        return f"http://{servers.LOOPBACK}:{self._ops_port}"

    def start(self, output: int) -> int:
        """Fork, and run the role in the child."""
        main = self._main()
        parent = os.getpid()
        keep = {output, *(one.fileno() for one in self._sockets)}
        sys.stdout.flush()
        sys.stderr.flush()
        # Signals wait until the child has given up the supervisor's handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                _run(main, self._settings, output, keep, parent)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._pid = pid
        return pid

    def ended(self) -> str | None:
        """Return how the role ended."""
        if self._pid is None:
            return self._how
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self._pid, 0
        if pid == 0:
            return None
        self._pid, self._how = None, restarts.how_it_ended(status)
        return self._how

    def probe(self) -> str | None:
        """Ask /readyz."""
        request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = servers.talk(self._ops_port, request, enough=_is_whole)
        if not answer:
            return None
        try:
            found = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2], type=Readiness)
        except msgspec.MsgspecError:
            return None
        if found.ready:
            return ""
        return "; ".join(f"{part}: {problem}" for part, problem in found.problems.items())

    def signal(self, number: int | None = None) -> None:
        """Send a signal to the role."""
        if self._pid is not None and self.ended() is None:
            os.kill(self._pid, number or signal.SIGTERM)


def _is_whole(answer: bytes) -> bool:
    head, blank, body = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0].strip()
    return bool(blank) and length.isdigit() and len(body) >= int(length)


def _run(main: RoleMain, settings: Settings, output: int, keep: set[int], parent: int) -> None:
    """Become the role; never returns."""
    code = 1
    try:
        _become(settings.role, output, keep, parent)
        failpoint.arm_again()
        main(settings)
        code = 0
    except errors.LogweirError as error:
        sys.stderr.write(f"{error}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def die_with(parent: int, number: int) -> None:
    """Have this process sent a signal when its parent ends, however that ends (on Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def _become(name: str, output: int, keep: set[int], parent: int) -> None:
    """Take leave of the supervisor: its session, its signals, its files."""
    os.setsid()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    die_with(parent, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if _libc is not None:
        _libc.prctl(_PR_SET_NAME, f"lw-{name}".encode()[:15], 0, 0, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    last = 2
    for handle in sorted(keep - {output}):
        os.closerange(last + 1, handle)
        last = handle
    os.closerange(last + 1, 4096)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - a descriptor
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - a descriptor
    gc.freeze()
