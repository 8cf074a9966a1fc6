"""When a process is started again, when it counts as ready, and when it hangs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from logweir.standalone import restarts
from logweir.standalone.restarts import Process

BEGUN = restarts.started(Process(), 42, 100.0)
READY = restarts.probed(BEGUN, "", 101.0)

seconds = st.floats(0, 1e6)


def killed(process: Process, now_s: float, times: int = 1) -> Process:
    """A process that ends so often, each time just after it was started again."""
    for _ in range(times):
        process = restarts.ended(restarts.started(process, 43, now_s), "killed by SIGKILL", now_s)
    return process


def test_a_new_process_is_due_at_once():
    assert restarts.is_due(Process(), 0.0)


def test_a_process_that_runs_is_not_due():
    assert not restarts.is_due(READY, 1e9)


def test_the_first_restart_is_at_once():
    ended = restarts.ended(READY, "killed by SIGKILL", 200.0)

    assert restarts.is_due(ended, 200.0)
    assert (ended.state, ended.pid, ended.why) == ("backing off", None, "killed by SIGKILL")


@given(times=st.integers(1, 500), now_s=seconds)
def test_however_often_it_ends_it_is_started_again_within_eight_seconds(times, now_s):
    ended = killed(READY, now_s, times)

    assert restarts.is_due(ended, now_s + 8.0)


@given(failures=st.integers(0, 400))
def test_the_longer_a_process_fails_the_longer_it_waits(failures):
    assert restarts.delay_s(failures) <= restarts.delay_s(failures + 1)


def test_a_process_that_ends_again_and_again_waits():
    ended = killed(READY, 200.0, times=4)

    assert not restarts.is_due(ended, 200.9)
    assert restarts.is_due(ended, 201.0)


def test_each_start_after_the_first_counts_as_a_restart():
    again = restarts.started(restarts.ended(READY, "killed", 200.0), 44, 200.0)

    assert (READY.restarts, again.restarts) == (0, 1)


def test_it_still_says_how_it_ended_when_it_is_back():
    again = restarts.started(restarts.ended(READY, "killed by SIGSEGV", 200.0), 44, 200.0)

    assert restarts.probed(again, "", 201.0).why == "killed by SIGSEGV"


def test_a_process_that_was_ready_for_a_while_is_mended():
    again = restarts.probed(restarts.started(killed(READY, 200.0, 6), 44, 210.0), "", 211.0)
    mended = restarts.probed(again, "", 211.0 + restarts.STABLE_S)

    assert (again.failures, mended.failures, mended.why) == (6, 0, "killed by SIGKILL")
    assert restarts.is_due(restarts.ended(mended, "killed", 300.0), 300.0)


def test_a_process_that_is_ready_now_and_then_is_not_mended():
    process = restarts.started(killed(READY, 200.0, 6), 44, 210.0)
    for at_s in range(211, 300):
        process = restarts.probed(process, "" if at_s % 10 else "journal: away", float(at_s))

    assert process.failures == 6


def test_what_it_waits_for_is_why_it_is_not_ready():
    unready = restarts.probed(READY, "journal: it does not answer", 102.0)

    assert (unready.state, unready.why) == ("unready", "journal: it does not answer")


def test_a_process_that_was_never_ready_is_starting_whatever_it_says():
    assert restarts.probed(BEGUN, "binding: not there", 102.0).state == "starting"


def test_one_late_answer_changes_nothing():
    assert restarts.probed(READY, None, 102.0) == READY


def test_a_process_that_gives_no_answer_is_not_ready():
    silent = restarts.probed(READY, None, 101.0 + restarts.SILENT_S)

    assert (silent.state, silent.why) == ("unready", "gives no answer")


def test_a_process_that_answers_again_is_ready_again():
    silent = restarts.probed(READY, None, 110.0)

    assert restarts.probed(silent, "", 111.0).state == "ready"
    assert restarts.probed(silent, "", 111.0).why == ""


@pytest.mark.parametrize("process", [BEGUN, READY], ids=["never ready", "once ready"])
def test_a_process_without_an_answer_for_a_minute_hangs(process):
    silent = restarts.probed(process, None, 159.0)

    assert not restarts.is_hanging(silent, 159.9)
    assert restarts.is_hanging(silent, 161.0)


def test_a_server_may_be_silent_until_it_is_ready_for_the_first_time():
    assert not restarts.is_hanging(BEGUN, 1e9, may_start_slowly=True)
    assert restarts.is_hanging(READY, 1e9, may_start_slowly=True)


def test_a_process_that_ended_does_not_hang():
    assert not restarts.is_hanging(restarts.ended(READY, "killed", 101.0), 1e9)


def test_a_process_that_was_killed_because_it_hangs_says_so():
    ended = restarts.ended(restarts.killed(READY, 200.0), "killed by SIGKILL", 200.1)

    assert ended.why == "gave no answer for a minute and was killed by SIGKILL"


def test_a_hanging_process_is_killed_once_a_minute_not_all_the_time():
    assert not restarts.is_hanging(restarts.killed(READY, 200.0), 201.0)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        pytest.param(0, "ended with exit code 0", id="in order"),
        pytest.param(1 << 8, "ended with exit code 1", id="with a code"),
        pytest.param(9, "killed by SIGKILL", id="killed"),
        pytest.param(11 | 0x80, "killed by SIGSEGV", id="with a core"),
        pytest.param(63, "killed by signal 63", id="by a signal without a name"),
    ],
)
def test_the_end_of_a_process_in_words(status, words):
    assert restarts.how_it_ended(status) == words


class Life(RuleBasedStateMachine):
    """Any life of a process: what a person reads of it never contradicts itself."""

    @initialize()
    def _begin(self) -> None:
        self.now_s = 1000.0
        self.process = Process()

    @rule(wait_s=st.floats(0, 30))
    def wait(self, wait_s):
        self.now_s += wait_s

    @rule()
    def start(self):
        if restarts.is_due(self.process, self.now_s):
            self.process = restarts.started(self.process, 7, self.now_s)

    @rule(answer=st.sampled_from(["", "journal: away", None]))
    def probe(self, answer):
        if self.process.pid is not None:
            self.process = restarts.probed(self.process, answer, self.now_s)

    @rule()
    def end(self):
        if self.process.pid is not None:
            self.process = restarts.ended(self.process, "killed by SIGKILL", self.now_s)

    @rule()
    def kill_when_it_hangs(self):
        if restarts.is_hanging(self.process, self.now_s):
            self.process = restarts.killed(self.process, self.now_s)

    @invariant()
    def a_process_that_does_not_run_is_due_soon(self):
        if hasattr(self, "process") and self.process.pid is None:
            assert restarts.is_due(self.process, self.now_s + restarts.LONGEST_DELAY_S)

    @invariant()
    def what_is_not_ready_says_why_once_it_was_asked(self):
        if hasattr(self, "process") and self.process.state in ("unready", "backing off"):
            assert self.process.why

    @invariant()
    def only_what_runs_has_an_id(self):
        if hasattr(self, "process"):
            runs = self.process.state in ("starting", "ready", "unready")
            assert runs == (self.process.pid is not None)


TestLife = Life.TestCase
