"""The supervisor keeps processes running: in order, again after their end, until it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from machine import is_running

from logweir.core import errors
from logweir.standalone import restarts, supervisor
from logweir.standalone.children import Child
from logweir.standalone.supervisor import Status, Supervisor

SLEEP = "import time; time.sleep(60)"


class Script(Child):
    """A process that runs a line of Python; `answer` says how it answers probes."""

    def __init__(self, name="one", code=SLEEP, answer=lambda: "", after=(), needed="always"):
        super().__init__(name, after, needed)
        self.code, self.answer = code, answer
        self.process: subprocess.Popen | None = None
        self.begun = 0
        self.stop_signal = signal.SIGTERM

    def start(self, output):
        self.begun += 1
        self.begun_s = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", self.code], stdout=output, stderr=output
        )
        return self.process.pid

    def ended(self):
        code = self.process.poll() if self.process else 0
        return None if code is None else restarts.how_it_ended(-code if code < 0 else code << 8)

    def probe(self):
        return self.answer()

    def signal(self, number=None):
        self.process.send_signal(number or self.stop_signal)


class Refused(Script):
    """A child that cannot be started, from its second start on."""

    def start(self, output):
        if self.begun:
            raise errors.SetupError("The port is taken.")
        return super().start(output)


class Run:
    """A supervisor of these children, turned by the test."""

    def __init__(self, folder, *children, **options):
        self.said: list[str] = []
        self.children = {one.name: one for one in children}
        (folder / "logs").mkdir()
        self.status = folder / "status.json"
        self.supervisor = Supervisor(
            children, folder / "logs", self.status, "http://up", self.said.append, **options
        )
        self._signals = self.supervisor.signals()
        self.wakeup = self._signals.__enter__()

    def until(self, true: Callable[[], bool], wait_s: float = 20.0) -> None:
        deadline_s = time.monotonic() + wait_s
        while not true():
            assert time.monotonic() < deadline_s, self.shown()
            self.supervisor.turn(self.wakeup)

    def until_ready(self) -> None:
        self.until(lambda: self.supervisor.is_ready)

    def shown(self) -> dict[str, supervisor.ProcessStatus]:
        found = msgspec.json.decode(self.status.read_bytes(), type=Status)
        return {one.name: one for one in found.processes}

    def log(self, name: str = "one") -> str:
        return self.supervisor.log(name).read_text()

    def close(self) -> None:
        self.supervisor.stop(self.wakeup)
        self._signals.__exit__(None, None, None)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Iterator[Callable[..., Run]]:
    monkeypatch.setattr(supervisor, "LONGEST_TURN_S", 0.05)
    monkeypatch.setattr(supervisor, "READY_PROBE_S", 0.05)
    made: list[Run] = []

    def make(*children: Child, **options: object) -> Run:
        made.append(Run(tmp_path, *children, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_what_a_child_needs_is_ready_before_it_begins(run):
    answers = iter(["loading", "loading", ""])
    first = Script("first", answer=lambda: next(answers, ""))
    second = Script("second", after=("first",))
    up = run(first, second)
    up.until(lambda: first.begun == 1)

    begun_early = second.begun
    up.until_ready()
    assert (begun_early, second.begun) == (0, 1)


def test_all_is_ready_when_each_child_says_so(run):
    answers = iter(["not yet", ""])
    up = run(Script("one"), Script("two", answer=lambda: next(answers, "")))
    up.until(lambda: up.supervisor.process("one").state == "ready")

    early = up.supervisor.is_ready
    up.until_ready()
    assert not early
    assert {one.state for one in up.shown().values()} == {"ready"}


def test_a_child_that_is_not_needed_may_follow(run):
    up = run(Script("one"), Script("keeper", answer=lambda: "busy", needed="never"))

    up.until_ready()


def test_a_child_that_is_needed_once_may_go_away_later(run):
    answer = ["making resources"]
    up = run(Script("one"), Script("operator", answer=lambda: answer[0], needed="once"))
    up.until(lambda: up.supervisor.process("one").state == "ready")
    before = up.supervisor.is_ready
    answer[0] = ""
    up.until_ready()
    answer[0] = "the store is away"
    up.until(lambda: up.supervisor.process("operator").state == "unready")

    assert (before, up.supervisor.is_ready) == (False, True)


def test_a_killed_child_is_back_at_once_and_says_what_happened(run):
    child = Script()
    up = run(child)
    up.until_ready()
    os.kill(child.process.pid, signal.SIGKILL)
    up.until(lambda: child.begun == 2)
    up.until_ready()

    found = up.shown()["one"]
    assert (found.pid, found.restarts, found.why) == (child.process.pid, 1, "killed by SIGKILL")
    assert up.said == ["one killed by SIGKILL; it starts again now", "one is back"]
    assert "--- killed by SIGKILL\n" in up.log()


def test_its_end_is_noticed_at_once_not_at_the_next_look(run, monkeypatch):
    child = Script()
    up = run(child)
    up.until_ready()
    monkeypatch.setattr(supervisor, "LONGEST_TURN_S", 1.5)
    monkeypatch.setattr(supervisor, "READY_PROBE_S", 1.5)
    killed_s = time.monotonic() + 0.2
    timer = threading.Timer(0.2, child.process.kill)
    timer.start()
    up.until(lambda: child.begun == 2)
    timer.join()

    assert child.begun_s - killed_s < 0.8


def test_a_child_that_ends_again_and_again_waits_longer_each_time(run):
    child = Script(code="raise SystemExit(3)", answer=lambda: None)
    up = run(child)
    begun_s = time.monotonic()
    up.until(lambda: child.begun == 4)

    assert time.monotonic() - begun_s > restarts.delay_s(2) + restarts.delay_s(3)
    assert up.said[2].endswith("it starts again in 0.5 s")


def test_a_child_that_does_not_come_up_says_its_last_words(run):
    child = Script(code="raise SystemExit('the port is taken')", answer=lambda: None)
    up = run(child)
    up.until(lambda: child.begun == 2)

    assert up.shown()["one"].why == "ended with exit code 1: the port is taken"


def test_a_child_that_cannot_be_started_at_all_is_an_error(run):
    child = Refused()
    child.begun = 1
    up = run(child)

    with pytest.raises(errors.SetupError, match="The port is taken"):
        up.supervisor.turn(up.wakeup)


def test_a_child_that_cannot_be_started_again_is_tried_again(run):
    child = Refused()
    up = run(child)
    up.until_ready()
    child.process.kill()
    up.until(lambda: up.supervisor.process("one").failures == 3)

    assert up.shown()["one"].why == "cannot be started: The port is taken."


def test_a_child_that_hangs_does_not_keep_others_from_their_restart(run):
    hanging = [Script(f"slow-{n}", answer=lambda: time.sleep(0.4)) for n in range(5)]
    child = Script("one")
    up = run(child, *hanging)
    up.until(lambda: up.supervisor.process("one").state == "ready")
    child.process.kill()
    child.process.wait()
    ended_s = time.monotonic()
    up.until(lambda: child.begun == 2)

    assert time.monotonic() - ended_s < 1.0  # all five of them take two seconds


def test_a_child_that_hangs_is_killed_and_started_again(run, monkeypatch):
    monkeypatch.setattr(restarts, "HANGING_S", 0.5)
    answers = iter([""])
    child = Script(answer=lambda: next(answers, None))
    up = run(child)
    up.until_ready()
    up.until(lambda: child.begun == 2)

    assert up.shown()["one"].why == "gave no answer for a minute and was killed by SIGKILL"


def test_a_server_that_recovers_for_long_is_left_alone(run, monkeypatch):
    monkeypatch.setattr(restarts, "HANGING_S", 0.05)
    child = Script(answer=lambda: None)
    child.may_start_slowly = True
    up = run(child)
    up.until(lambda: child.begun == 1)
    for _ in range(10):
        up.supervisor.turn(up.wakeup)

    assert child.begun == 1


def test_what_a_child_writes_is_in_its_log(run):
    child = Script(code=f"print('hello', flush=True); {SLEEP}")
    up = run(child)
    up.until(lambda: "hello\n" in up.log())


def test_a_child_that_writes_a_lot_is_never_stopped_by_its_log(run):
    child = Script(code=f"print('x' * 3_000_000); print('end', flush=True); {SLEEP}")
    up = run(child)
    up.until(lambda: up.log().endswith("end\n"))


def test_children_end_in_the_opposite_order_of_their_begin(run):
    names = ["first", "second", "third"]
    children = [Script(name) for name in names]
    ended: list[str] = []
    for child in children:
        child.signal = lambda number=None, child=child: (
            ended.append(child.name),
            Script.signal(child, number),
        )
    up = run(*children)
    up.until_ready()
    up.supervisor.stop(up.wakeup)

    assert ended == ["third", "second", "first"]
    assert {one.state for one in up.shown().values()} == {"stopped"}
    up.supervisor.stop = lambda wakeup: None


def test_a_child_that_does_not_end_is_killed(run, monkeypatch):
    monkeypatch.setattr(supervisor, "STOP_WAIT_S", 0.2)
    stubborn = (
        f"import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); {SLEEP}"
    )
    child = Script(code=stubborn)
    up = run(child)
    up.until(lambda: "deaf" in up.log())
    pid = child.process.pid
    up.close()

    assert not is_running(pid)
    up.close = lambda: None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_the_wish_to_stop(run, number):
    up = run(Script())
    up.until_ready()
    os.kill(os.getpid(), number)
    up.supervisor.turn(up.wakeup)

    assert up.supervisor.is_stopping
    assert not msgspec.json.decode(up.status.read_bytes(), type=Status).ready


def test_a_second_signal_kills_what_does_not_end(run):
    stubborn = (
        f"import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); {SLEEP}"
    )
    child = Script(code=stubborn)
    up = run(child)
    up.until(lambda: "deaf" in up.log())
    pid = child.process.pid
    timers = [threading.Timer(s, os.kill, (os.getpid(), signal.SIGINT)) for s in (0.0, 0.3)]
    for timer in timers:
        timer.start()
    begun_s = time.monotonic()
    up.until(lambda: up.supervisor.is_stopping)
    up.close()

    assert not is_running(pid)
    assert time.monotonic() - begun_s < 10.0
    up.close = lambda: None
    for timer in timers:
        timer.join()


def test_a_disk_without_room_for_the_status_stops_nothing(run):
    child = Script()
    up = run(child)
    up.status.with_name(f"status.json.{os.getpid()}.new").mkdir()  # nothing can be written there
    up.until_ready()

    assert not up.status.exists()
    assert is_running(child.process.pid)


def test_the_status_is_written_only_when_something_changed(run):
    up = run(Script())
    up.until_ready()
    before = up.status.stat().st_mtime_ns
    for _ in range(3):
        up.supervisor.turn(up.wakeup)

    assert up.status.stat().st_mtime_ns == before


def test_an_idle_supervisor_sleeps(run, monkeypatch):
    monkeypatch.setattr(supervisor, "LONGEST_TURN_S", 0.5)
    monkeypatch.setattr(supervisor, "READY_PROBE_S", 2.0)
    up = run(*(Script(f"child-{n}") for n in range(4)))
    up.until_ready()
    begun_s, turns = time.monotonic(), 0
    while time.monotonic() - begun_s < 1.0:
        up.supervisor.turn(up.wakeup)
        turns += 1

    assert turns < 20


# ---- children that run only when they are wanted -------------------------------------------------


def wanted(run, other: Script) -> Run:
    """A supervisor that runs `one`, and `other` when it is wanted."""
    return run(Script("one"), other, idle=["other"])


def test_an_idle_child_is_started_when_it_is_wanted(run):
    other = Script("other")
    up = wanted(run, other)
    up.until_ready()
    before = (other.begun, set(up.shown()))

    up.supervisor.want("other", is_wanted=True)
    up.until(lambda: up.supervisor.process("other").state == "ready")

    assert before == (0, {"one"})
    assert set(up.shown()) == {"one", "other"}


def test_a_child_that_is_wanted_no_more_ends_in_order_and_stays_away(run):
    slowly = (
        "import signal, time\n"
        "def end(*_): print('drained', flush=True); raise SystemExit\n"
        "signal.signal(signal.SIGTERM, end); print('runs', flush=True); time.sleep(60)"
    )
    other = Script("other", slowly)
    up = wanted(run, other)
    up.supervisor.want("other", is_wanted=True)
    up.until(lambda: "runs" in up.log("other"))

    up.supervisor.want("other", is_wanted=False)
    up.supervisor.want("other", is_wanted=False)
    up.until(lambda: up.supervisor.process("other").pid is None)
    up.until(lambda: "other" not in up.shown())
    for _ in range(5):
        up.supervisor.turn(up.wakeup)

    assert other.begun == 1
    assert "drained" in up.log("other")
    assert "exit code 0" in up.log("other")
    assert up.supervisor.is_ready


def test_a_child_that_is_wanted_again_while_it_ends_starts_again(run):
    other = Script("other")
    up = wanted(run, other)
    up.supervisor.want("other", is_wanted=True)
    up.until(lambda: up.supervisor.process("other").state == "ready")

    up.supervisor.want("other", is_wanted=False)
    assert up.supervisor.process("other").state == "stopping"
    up.supervisor.want("other", is_wanted=True)
    up.until(lambda: other.begun == 2)
    up.until(lambda: up.supervisor.process("other").state == "ready")

    assert up.shown()["other"].restarts == 0


def test_a_child_that_is_wanted_no_more_and_does_not_end_is_killed(run, monkeypatch):
    monkeypatch.setattr(supervisor, "STOP_WAIT_S", 0.2)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('runs', flush=True); time.sleep(60)"
    )
    up = wanted(run, Script("other", deaf))
    up.supervisor.want("other", is_wanted=True)
    up.until(lambda: "runs" in up.log("other"))

    up.supervisor.want("other", is_wanted=False)
    up.until(lambda: up.supervisor.process("other").pid is None)

    assert "killed by SIGKILL" in up.log("other")


def test_a_child_that_is_away_is_not_started_again_when_it_is_wanted_no_more(run):
    other = Script("other", "raise SystemExit(3)")
    up = wanted(run, other)
    up.supervisor.want("other", is_wanted=True)
    up.until(lambda: up.supervisor.process("other").state == "backing off")
    begun = other.begun

    up.supervisor.want("other", is_wanted=False)
    for _ in range(20):
        up.supervisor.turn(up.wakeup)

    assert other.begun == begun


def test_an_idle_child_that_dies_is_started_again_while_it_is_wanted(run):
    other = Script("other")
    up = wanted(run, other)
    up.supervisor.want("other", is_wanted=True)
    up.until(lambda: up.supervisor.process("other").state == "ready")

    other.process.kill()
    up.until(lambda: other.begun == 2)

    assert up.shown()["other"].restarts == 1
