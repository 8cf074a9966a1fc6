"""Failpoints: off unless a test says so, refused in production, each named once."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import failing
import psutil
import pytest
from machine import until

from logweir.backends import failpoint
from logweir.core import errors

ROOT = Path(__file__).parents[2]
REACHED = re.compile(r'failpoint\.reach(?:_when_sent)?\(\s*"([^"]+)"')

REACH = """
import sys
from logweir.backends import failpoint
failpoint.arm(sys.argv[1])
print("armed", flush=True)
failpoint.reach("keeper.mid_merge")
print("went on", flush=True)
"""


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoint.arm("")


def process(spec: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", REACH, spec],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def logweir(spec: str, mode: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "logweir.cli", *arguments],
        env=failing.environment(spec, mode),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_each_point_is_in_the_code_once_and_in_the_documentation():
    packages = (ROOT / "services", ROOT / "operator")
    code = [path.read_text() for package in packages for path in package.rglob("*.py")]
    found = Counter(name for text in code for name in REACHED.findall(text))
    documented = (ROOT / "docs/failpoints.md").read_text()

    assert found == Counter(list(failpoint.POINTS))
    assert [name for name in failpoint.POINTS if f"`{name}`" not in documented] == []


def test_nothing_happens_while_nothing_is_armed():
    for name in failpoint.POINTS:
        failpoint.reach(name)


def test_only_the_armed_point_fails_with_its_own_error():
    failpoint.arm("collector.refusal:error:1")

    failpoint.reach("collector.before_commit", ValueError)
    with pytest.raises(ValueError, match=r"failpoint collector\.refusal"):
        failpoint.reach("collector.refusal", ValueError)


def test_the_error_of_a_point_is_a_lost_connection_unless_it_says_another():
    failpoint.arm("ingest.after_append:error:1")

    with pytest.raises(ConnectionError):
        failpoint.reach("ingest.after_append")


async def test_a_point_that_waits_for_others_fails_as_well():
    failpoint.arm("ingest.mid_group:error:1")

    await failpoint.reach_when_sent("ingest.before_append")
    with pytest.raises(ConnectionError):
        await failpoint.reach_when_sent("ingest.mid_group")


def test_a_probability_is_how_often_a_point_fails():
    failpoint.arm("ingest.after_append:error:0.3, keeper.mid_merge:error:0")
    failed = 0
    for _ in range(2000):
        failpoint.reach("keeper.mid_merge")
        try:
            failpoint.reach("ingest.after_append")
        except ConnectionError:
            failed += 1

    assert 450 < failed < 750  # seven standard deviations


def test_a_crash_kills_the_process_on_the_spot():
    with process("keeper.mid_merge:crash:1") as started:
        said = started.stdout.read()

    assert (started.returncode, said) == (-signal.SIGKILL, "armed\n")


def test_a_process_that_hangs_goes_on_when_it_is_told_to():
    with process("keeper.mid_merge:hang:1") as started:
        until(lambda: psutil.Process(started.pid).status() == psutil.STATUS_STOPPED)
        started.send_signal(signal.SIGCONT)
        said = started.stdout.read()

    assert (started.returncode, said) == (0, "armed\nwent on\n")


def test_a_file_is_read_again_after_a_fork_and_may_be_missing(tmp_path):
    file = tmp_path / "points"
    failpoint.arm(f"@{file}")
    failpoint.reach("keeper.mid_merge")

    file.write_text("keeper.mid_merge:error:1\n")
    failpoint.reach("keeper.mid_merge")
    failpoint.arm_again()

    with pytest.raises(ConnectionError):
        failpoint.reach("keeper.mid_merge")


@pytest.mark.parametrize(
    "spec",
    [
        *("keeper.mid_merge", "keeper.mid_merge:crash", "keeper.mid_merge:crash:", ":crash:1"),
        *("keeper.mid_merge:crash:2", "keeper.mid_merge:crash:-1", "keeper.mid_merge:crash:nan"),
        *("keeper.mid_merge:leave:1", "keeper.unknown:crash:1", "keeper.mid_merge:crash:1,,"),
    ],
)
def test_what_is_no_failpoint_is_refused_with_what_there_is(spec):
    with pytest.raises(errors.SetupError) as refused:
        failpoint.check(spec, "test")

    assert "keeper.between_pieces" in str(refused.value) or "crash, hang, error" in str(
        refused.value
    )


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(errors.SetupError, match="production, test"):
        failpoint.check("", "prod")


@pytest.mark.parametrize("mode", ["production", ""])
@pytest.mark.parametrize("command", [("up",), ("run", "keeper", "--binding", "none.json")])
def test_failpoints_are_refused_in_production_which_is_the_default(mode, command, tmp_path):
    more = ["--data", str(tmp_path)] if command == ("up",) else []
    ran = logweir("keeper.mid_merge:crash:1", mode, *command, *more)

    assert ran.returncode == 1
    assert ran.stderr.startswith("error: LOGWEIR_FAILPOINT is set")
    assert "LOGWEIR_MODE=test" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_command_line_names_the_points_that_there_are(tmp_path):
    ran = logweir("keeper.lunch:crash:1", "test", "up", "--data", str(tmp_path))

    assert ran.returncode == 1
    assert "There is no failpoint 'keeper.lunch'" in ran.stderr
    assert "keeper.mid_merge" in ran.stderr
