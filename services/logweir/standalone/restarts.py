"""What a supervisor knows of one process, and when it starts it again. Pure; clocks are handed in.

    waiting -> starting -> ready <-> unready
       ^                     |
       +-- backing off <-----+  (ended, or without an answer for long)

The first restart is at once, the next ones wait longer, up to 8 s: a process that was killed is
back within 10 s however often. One that has been ready for a while counts as mended.
"""

from __future__ import annotations

import signal
from typing import Final, Literal

import msgspec

State = Literal["waiting", "starting", "ready", "unready", "backing off", "stopping", "stopped"]

FIRST_DELAY_S: Final = 0.25
LONGEST_DELAY_S: Final = 8.0
STABLE_S: Final = 20.0
"""Ready for so long, a process has no failures any more."""

SILENT_S: Final = 5.0
"""A process that gives no answer for so long is not called ready any more."""

HANGING_S: Final = 60.0
"""A process that gives no answer for so long hangs, and is killed."""

NO_ANSWER: Final = "gives no answer"
HANGS: Final = "gave no answer for a minute"


class Process(msgspec.Struct, frozen=True):
    """One process. Times are in the caller's monotonic clock, `failures` counts those in a row.

    `waits_for` says why it is not ready, `ended` how it last ended.
    """

    state: State = "waiting"
    pid: int | None = None
    since_s: float = 0.0
    answered_s: float = 0.0
    retry_at_s: float = 0.0
    failures: int = 0
    restarts: int = 0
    waits_for: str = ""
    ended: str = ""

    @property
    def why(self) -> str:
        """What a person should know of it; empty when all is well."""
        return self.waits_for or self.ended


def delay_s(failures: int) -> float:
    """Return how long the restart after so many failures in a row waits."""
    if failures <= 1:
        return 0.0
    return float(min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(failures - 2, 10)))


def started(process: Process, pid: int, now_s: float) -> Process:
    """Return the process just after its start."""
    return msgspec.structs.replace(
        process,
        state="starting",
        pid=pid,
        since_s=now_s,
        answered_s=now_s,
        restarts=process.restarts + (process.failures > 0),
    )


def probed(process: Process, answer: str | None, now_s: float) -> Process:
    """Return the process after a probe: "" is ready, a text says why not, None is no answer."""
    if answer is None:
        return _silent(process, now_s)
    if answer == "":
        state: State = "ready"
        since_s = process.since_s if process.state == "ready" else now_s
    else:
        state = "starting" if process.state == "starting" else "unready"
        since_s = process.since_s if process.state == state else now_s
    is_mended = state == "ready" and now_s - since_s >= STABLE_S
    return msgspec.structs.replace(
        process,
        state=state,
        since_s=since_s,
        answered_s=now_s,
        waits_for=answer,
        failures=0 if is_mended else process.failures,
        ended=process.ended,
    )


def _silent(process: Process, now_s: float) -> Process:
    """One answer may be late; a process that is silent for longer is not ready."""
    if process.state != "ready" or now_s - process.answered_s < SILENT_S:
        return process
    return msgspec.structs.replace(process, state="unready", since_s=now_s, waits_for=NO_ANSWER)


def ended(process: Process, how: str, now_s: float) -> Process:
    """Return the process after its end, which nobody wanted."""
    if process.waits_for == HANGS:
        how = f"{HANGS} and was {how}"
    failures = process.failures + 1
    return msgspec.structs.replace(
        process,
        state="backing off",
        pid=None,
        since_s=now_s,
        failures=failures,
        retry_at_s=now_s + delay_s(failures),
        waits_for="",
        ended=how,
    )


def stopping(process: Process, now_s: float) -> Process:
    """Return the process when it is told to end."""
    return msgspec.structs.replace(process, state="stopping", since_s=now_s, waits_for="")


def is_due(process: Process, now_s: float) -> bool:
    """Whether it should be started now."""
    return process.state == "waiting" or (
        process.state == "backing off" and now_s >= process.retry_at_s
    )


def is_hanging(process: Process, now_s: float, *, may_start_slowly: bool = False) -> bool:
    """Whether it runs and has given no answer for too long.

    Args:
        process: as it is.
        now_s: the time.
        may_start_slowly: until it was ready once, silence is work: a server that reads its log
            after a crash would begin anew for ever if it were killed.
    """
    if process.pid is None or (may_start_slowly and process.state == "starting"):
        return False
    return now_s - process.answered_s >= HANGING_S


def killed(process: Process, now_s: float) -> Process:
    """Return the process after it was killed because it hangs; it may take its time to end."""
    return msgspec.structs.replace(process, answered_s=now_s, waits_for=HANGS)


def how_it_ended(wait_status: int) -> str:
    """Return the end of a process in words, from the status that `waitpid` gave.

    >>> how_it_ended(9)
    'killed by SIGKILL'
    """
    if wait_status & 0x7F:
        number = wait_status & 0x7F
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    return f"ended with exit code {wait_status >> 8}"
