"""Keeps the processes of one `logweir up` running: starts, watches, restarts and stops them.

    children (in order) -> start when due -> probe -> status.json
                              ^-- ended? back off (restarts.py) --+

One thread, no event loop, so that roles may be forked at any time. What to do next is decided in
`restarts.py`; this file does it. Children stop in the opposite order of their start.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from logweir.core import errors
from logweir.standalone import restarts
from logweir.standalone.children import Child
from logweir.standalone.folder import write_json
from logweir.standalone.logfiles import LogFile
from logweir.standalone.restarts import Process

STARTING_PROBE_S: Final = 0.03
UNREADY_PROBE_S: Final = 0.25
READY_PROBE_S: Final = 2.0
STARTING_S: Final = 10.0
"""For so long after its start a process is asked often whether it is ready."""

LONGEST_TURN_S: Final = 0.5
PROBES_S: Final = 0.2
"""When probes have taken so long, the others wait for the next turn: logs and ends come first."""

STOP_WAIT_S: Final = 15.0
"""How long a process may take to end in order; then it is killed."""


class ProcessStatus(msgspec.Struct, frozen=True):
    """One process in `logweir status`. `why` says why it is not ready, or why it restarted."""

    name: str
    pid: int | None
    state: str
    restarts: int
    why: str
    ops_url: str = ""


class Status(msgspec.Struct, frozen=True):
    """What the supervisor says of itself in status.json."""

    pid: int
    ready: bool
    url: str
    processes: list[ProcessStatus]


class Supervisor:
    """Runs children until it is told to stop; `tell` gets a line for a person at each change."""

    def __init__(
        self,
        children: Sequence[Child],
        logs: Path,
        status: Path,
        url: str,
        tell: Callable[[str], None],
        idle: Collection[str] = (),
    ) -> None:
        """Name the children; `idle` are those that run only when they are wanted (`want`)."""
        self._children = {one.name: one for one in children}
        self._processes = {
            one.name: Process(state="stopped" if one.name in idle else "waiting")
            for one in children
        }
        self._idle = set(idle)
        self._probe_at_s = dict.fromkeys(self._children, 0.0)
        self._begun: set[str] = set()
        self._were_ready: set[str] = set()
        self._logs = {name: LogFile(logs / f"{name}.log") for name in self._children}
        self._status = status
        self._url = url
        self._tell = tell
        self._stopping = 0
        self._said: bytes = b""

    @property
    def is_stopping(self) -> bool:
        """Whether somebody wants it to end."""
        return self._stopping > 0

    @property
    def is_ready(self) -> bool:
        """Whether a record can be sent and found; some children may follow."""
        return all(
            self._processes[name].state == "ready"
            or child.needed == "never"
            or name in self._idle
            or (child.needed == "once" and name in self._were_ready)
            for name, child in self._children.items()
        )

    def want(self, name: str, is_wanted: bool) -> None:
        """Have a child run from now on, or end in order, when it does not already."""
        process = self._processes[name]
        if is_wanted:
            self._idle.discard(name)
            if process.state == "stopped":
                self._processes[name] = Process()
        elif name not in self._idle:
            self._idle.add(name)
            if process.pid is None:
                self._set_state(name, "stopped")
            else:
                self._processes[name] = restarts.stopping(process, time.monotonic())
                self._children[name].signal()

    def process(self, name: str) -> Process:
        """Return what is known of a child's process."""
        return self._processes[name]

    def log(self, name: str) -> Path:
        """Return where a child's output is."""
        return self._logs[name].path

    @contextlib.contextmanager
    def signals(self) -> Iterator[int]:
        """Take SIGTERM and SIGINT as the wish to stop; yields what becomes readable by them."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        reader.setblocking(False)
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        old_handle = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield reader.fileno()
        finally:
            signal.set_wakeup_fd(old_handle)
            for number, handler in before.items():
                signal.signal(number, handler)
            reader.close()
            writer.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping += 1

    def turn(self, wakeup: int) -> None:
        """Do what is due, then wait until something happens or is due."""
        now_s = time.monotonic()
        for name, child in self._children.items():
            self._look(name, child, now_s)
        self._probe_some(now_s)
        self.write_status()
        self._wait(wakeup, self._idle_s(time.monotonic()))

    def _idle_s(self, now_s: float) -> float:
        """How long nothing is due."""
        due_s = now_s + LONGEST_TURN_S
        for name, process in self._processes.items():
            if process.state in ("stopped", "stopping"):
                continue
            if process.pid is not None:
                due_s = min(due_s, self._probe_at_s[name])
            elif process.state == "backing off":
                due_s = min(due_s, process.retry_at_s)
            elif self._may_begin(self._children[name]):
                return 0.0
        return max(0.0, due_s - now_s)

    def _look(self, name: str, child: Child, now_s: float) -> None:
        process = self._processes[name]
        if process.pid is not None:
            how = child.ended()
            if process.state == "stopping":
                self._see_off(name, child, how, now_s)
            elif how is not None:
                self._end(name, how, now_s)
            elif restarts.is_hanging(process, now_s, may_start_slowly=child.may_start_slowly):
                child.signal(signal.SIGKILL)
                self._processes[name] = restarts.killed(process, now_s)
        process = self._processes[name]
        if restarts.is_due(process, now_s) and self._may_begin(child):
            self.start(name)

    def _see_off(self, name: str, child: Child, how: str | None, now_s: float) -> None:
        """A child that is not wanted any more ends; it may be wanted again meanwhile."""
        process = self._processes[name]
        if how is not None:
            self._processes[name] = Process(state="stopped" if name in self._idle else "waiting")
            self._logs[name].note(how)
        elif now_s - process.since_s >= STOP_WAIT_S:
            child.signal(signal.SIGKILL)

    def _may_begin(self, child: Child) -> bool:
        """At the first start others must be ready before; a restart waits for nobody."""
        return child.name in self._begun or all(
            self._processes[one].state == "ready" for one in child.after
        )

    def start(self, name: str) -> None:
        """Start a child now.

        Raises:
            SetupError: it cannot be started, and never was before.
        """
        child = self._children[name]
        self._logs[name].begin()
        try:
            pid = child.start(self._logs[name].writer)
        except (errors.SetupError, OSError) as error:
            if name not in self._begun:
                raise
            self._end(name, f"cannot be started: {error}", time.monotonic())
            return
        self._begun.add(name)
        self._probe_at_s[name] = 0.0
        self._processes[name] = restarts.started(self._processes[name], pid, time.monotonic())

    def _probe_some(self, now_s: float) -> None:
        """Ask those whose time has come, the longest due first; one that hangs costs a second."""
        running = [
            name
            for name, one in self._processes.items()
            if one.pid is not None and one.state != "stopping"
        ]
        for name in sorted(running, key=self._probe_at_s.__getitem__):
            if self._probe_at_s[name] > now_s or time.monotonic() - now_s > PROBES_S:
                break
            self._probe(name)

    def _probe(self, name: str) -> None:
        before = self._processes[name]
        answer = self._children[name].probe()
        now_s = time.monotonic()
        after = restarts.probed(before, answer, now_s)
        self._processes[name] = after
        wait_s = READY_PROBE_S if after.state == "ready" or answer is None else UNREADY_PROBE_S
        if after.state == "starting" and now_s - after.since_s < STARTING_S:
            wait_s = STARTING_PROBE_S
        self._probe_at_s[name] = now_s + wait_s
        if after.state == "ready" and before.state != "ready":
            self._were_ready.add(name)
            if after.restarts:
                self._tell(f"{name} is back")

    def _end(self, name: str, how: str, now_s: float) -> None:
        if self._processes[name].state == "starting":
            words = self._logs[name].last_words()
            how = f"{how}: {words}" if words else how
        after = restarts.ended(self._processes[name], how, now_s)
        self._processes[name] = after
        self._logs[name].note(how)
        wait_s = after.retry_at_s - now_s
        when = f"in {wait_s:.1f} s" if wait_s else "now"
        self._tell(f"{name} {how}; it starts again {when}")

    def _wait(self, wakeup: int, wait_s: float) -> None:
        readers = {log.reader: log for log in self._logs.values()}
        found, _, _ = select.select([wakeup, *readers], [], [], wait_s)
        for handle in found:
            if handle == wakeup:
                with contextlib.suppress(BlockingIOError):
                    os.read(wakeup, 4096)
            else:
                readers[handle].drain()

    def write_status(self) -> None:
        """Write status.json when anything in it has changed; later, when the disk is full now."""
        found = Status(
            pid=os.getpid(),
            ready=self.is_ready and not self.is_stopping,
            url=self._url,
            processes=[
                ProcessStatus(
                    name, one.pid, one.state, one.restarts, one.why, self._children[name].ops_url
                )
                for name, one in self._processes.items()
                if one.pid is not None or name not in self._idle
            ],
        )
        text = msgspec.json.encode(found)
        if text != self._said:
            with contextlib.suppress(errors.SetupError):
                write_json(self._status, found)
                self._said = text

    def stop(self, wakeup: int) -> None:
        """End all children, the last started first; a further signal kills them at once."""
        asked = self._stopping
        for name, child in reversed(list(self._children.items())):
            if self._processes[name].pid is None:
                continue
            self._set_state(name, "stopping")
            self.write_status()
            child.signal()
            told_s = time.monotonic()
            while child.ended() is None:
                waited_s = time.monotonic() - told_s
                child.hurry(waited_s)
                if waited_s >= STOP_WAIT_S or self._stopping > max(1, asked):
                    child.signal(signal.SIGKILL)
                self._wait(wakeup, 0.02)
            self._processes[name] = msgspec.structs.replace(
                self._processes[name], state="stopped", pid=None
            )
        self.write_status()
        for log in self._logs.values():
            log.close()

    def _set_state(self, name: str, state: restarts.State) -> None:
        self._processes[name] = msgspec.structs.replace(self._processes[name], state=state)
