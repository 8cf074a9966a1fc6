"""A real `logweir up` by its command line, in a folder of its own, and what its user can ask."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import psutil

from logweir.standalone.folder import Folder
from logweir.standalone.status import show

READY_S = 60.0


class Up:
    """One folder, and the commands that work on it."""

    def __init__(self, **process: Any) -> None:
        # The servers of a root's `up` run as another user, who must be able to enter.
        self.home = Path(tempfile.mkdtemp(prefix="logweir-up-"))
        self.home.chmod(0o755)
        self.data = self.home / "data"
        self.python = sys.executable
        self.process = process
        """More options of `subprocess`, such as the user."""

        self.foreground: subprocess.Popen[str] | None = None

    # ---- commands ----------------------------------------------------------------------------

    def command(self, *arguments: object) -> list[str]:
        words = [str(one) for one in arguments]
        named = 2 if words[0] == "keys" else 1
        return [
            *(self.python, "-B", "-m", "logweir.cli", *words[:named]),
            *("--data", str(self.data), *words[named:]),
        ]

    def run(
        self, *arguments: object, given: str | None = None, wait_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL} if given is None else {"input": given}
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=wait_s,
            **how,
            **self.process,
        )

    def ok(self, *arguments: object, given: str | None = None) -> str:
        """Run a command that must succeed; return what it printed."""
        ran = self.run(*arguments, given=given)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def popen(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **self.process,
        )

    # ---- life --------------------------------------------------------------------------------

    def detach(self, *options: object) -> float:
        """Start it; return the seconds until it was ready."""
        begun_s = time.monotonic()
        self.ok("up", "--detach", *(options or ("--port", 0)))
        return time.monotonic() - begun_s

    def begin(self) -> subprocess.Popen[str]:
        """Start it in the foreground of a terminal that nobody watches."""
        with (self.home / "said").open("ab") as said:
            self.foreground = subprocess.Popen(
                self.command("up", "--port", 0),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                text=True,
                start_new_session=True,
                **self.process,
            )
        return self.foreground

    def start(self) -> subprocess.Popen[str]:
        """The same; return when it is ready."""
        self.begin()

        def is_ready() -> bool:
            assert self.foreground is not None
            assert self.foreground.poll() is None, self.said()
            return bool(self.shown()["ready"])

        self.until(is_ready, READY_S)
        return self.foreground

    def said(self) -> str:
        """What the one in the foreground said."""
        return (self.home / "said").read_text()

    def shown(self) -> dict[str, Any]:
        """What `status --json` prints, without the time that a command takes."""
        found: dict[str, Any] = msgspec.to_builtins(show(Folder(self.data)))
        return found

    def process_of(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(o for o in self.shown()["processes"] if o["name"] == name)
        return found

    def until(self, true: Callable[[], Any], wait_s: float = 20.0) -> Any:
        """Wait until something is true, and return it."""
        deadline_s = time.monotonic() + wait_s
        while not (found := true()):
            assert time.monotonic() < deadline_s, f"it did not come true: {self.shown()}"
            time.sleep(0.05)
        return found

    def family(self) -> list[psutil.Process]:
        """The supervisor and all that it has started."""
        leader = psutil.Process(self.shown()["pid"])
        return [leader, *leader.children(recursive=True)]

    def left(self) -> list[psutil.Process]:
        """Processes of this folder: named by their command, or standing in it."""
        return [one for one in psutil.process_iter() if self._is_own(one)]

    def _is_own(self, process: psutil.Process) -> bool:
        try:
            words = [*process.cmdline(), process.cwd()]
            is_ended = process.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
        return any(str(self.data) in word for word in words) and not is_ended

    def close(self) -> None:
        """Stop all and remove the folder; nothing may be left that `down` did not stop."""
        for one in self.left():
            with contextlib.suppress(psutil.Error):
                one.send_signal(signal.SIGCONT)
        self.run("down", wait_s=150)
        if self.foreground is not None:
            self.foreground.wait(30)
        left = self.left()
        for one in left:
            one.kill()
        shutil.rmtree(self.home, ignore_errors=True)
        assert left == []

    # ---- records -----------------------------------------------------------------------------

    def post(self, *messages: str, url: str = "", key: str = "") -> httpx2.Response:
        """Send records over HTTP, as any client does."""
        shown = {} if url else self.shown()
        records = [{"message": one, "service": "shop", "level": "info"} for one in messages]
        return httpx2.post(
            url or shown["ingest_url"],
            json=records,
            headers={"authorization": f"Bearer {key or shown['ingest_key']}"},
            timeout=10,
        )

    def messages(self, query: str = "{}", *options: object) -> list[str]:
        """Messages that `logweir query` prints."""
        return self.ok("query", query, "-o", "raw", "-n", 5000, *options).splitlines()

    def until_found(self, query: str, count: int = 1, *options: object) -> list[str]:
        """Wait until a query finds so many records, and return what the command prints then."""
        shown = self.shown()

        def is_there() -> bool:
            answer = httpx2.get(
                f"{shown['url']}/api/v1/query",
                params={"query": query, "limit": count, "start": "-3h"},
                headers={"authorization": f"Bearer {shown['query_key']}"},
            )
            return answer.is_success and len(answer.json()["records"]) >= count

        self.until(is_there)
        return self.messages(query, *options)


@contextlib.contextmanager
def upping(**process: Any) -> Iterator[Up]:
    """Yield a folder in which nothing runs yet; what runs there in the end is stopped."""
    up = Up(**process)
    try:
        yield up
    finally:
        up.close()


def pss_bytes(process: psutil.Process) -> int:
    """Memory of a process, shared parts by their share."""
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return 1024 * sum(int(one.split()[1]) for one in text.splitlines() if one.startswith("Pss:"))


def cpu_s(processes: list[psutil.Process]) -> float:
    """CPU time of processes, and of those that they waited for."""
    return sum(sum(one.cpu_times()[:4]) for one in processes)
