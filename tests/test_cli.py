"""The command line itself: quick to start, and clear about wrong use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from logweir.core import keys
from logweir.core.names import PipelineId, TenantId

HEAVY = ("numpy", "fastapi", "psycopg", "redis", "uvicorn", "rich", "sqlalchemy", "alembic", "yaml")
START_S = 0.15
"""On a machine that does nothing else; a busy one is measured by its best of many."""


def logweir(
    *arguments: str, given: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("LOGWEIR_")}
    return subprocess.run(
        [sys.executable, "-m", "logweir.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        input=given,
        env=own | environment,
    )


COMMANDS = [
    *("up", "status", "down", "logs", "doctor"),
    *("apply", "get", "delete", "rotate", "release", "send", "query", "tail", "usage", "keys"),
    "run",
]


def test_help_lists_every_command():
    said = logweir("--help").stdout

    assert [one for one in COMMANDS if f"  {one} " not in said] == []


@pytest.mark.parametrize("command", ["up", "send", "query", "apply", "run"])
def test_each_command_explains_its_options(command):
    ran = logweir(command, "--help")

    assert ran.returncode == 0
    assert "--help" in ran.stdout


def test_without_a_command_the_help_is_shown():
    ran = logweir()

    assert "Usage" in ran.stdout + ran.stderr
    assert ran.returncode == 2


def test_help_needs_none_of_the_large_packages():
    code = (
        "import sys; sys.argv = ['logweir', '--help']\n"
        "from logweir.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print([one for one in {HEAVY!r} if one in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stderr.strip() == "[]"


def test_help_is_there_in_the_blink_of_an_eye():
    walls, cpus = [], []
    for _ in range(10):
        before = os.times()
        begun_s = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "logweir.cli", "--help"], stdout=subprocess.DEVNULL, check=True
        )
        walls.append(time.monotonic() - begun_s)
        after = os.times()
        used = (after.children_user, after.children_system)
        cpus.append(sum(used) - before.children_user - before.children_system)
    print(f"--help: best of 10 {min(walls) * 1000:.0f} ms, CPU {min(cpus) * 1000:.0f} ms")

    assert min(cpus) < START_S


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["frobnicate"], "No such command 'frobnicate'", id="an unknown command"),
        pytest.param(
            ["up", "--port", "70000"], "less than or equal to 65535", id="a port that is none"
        ),
        pytest.param(["query", "-o", "xml"], "--output is one of default, json", id="a form"),
        pytest.param(["tail", "--color", "blue"], "--color is one of", id="a colour"),
        pytest.param(["query", "-n", "0"], "greater than or equal to 1", id="no records"),
        pytest.param(["delete", "lt"], "Give a type and a name, or -f FILE", id="half a name"),
        pytest.param(["send", "--url", "http://x"], "--url and --key go together", id="no key"),
        pytest.param(["run", "cook", "--binding", "x"], "ROLE is one of", id="no such role"),
    ],
)
def test_wrong_use_is_said_with_exit_code_two(arguments, words):
    ran = logweir(*arguments)

    assert ran.returncode == 2
    assert words in " ".join(ran.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["send"], id="send"),
        pytest.param(["query"], id="query"),
        pytest.param(["tail"], id="tail"),
        pytest.param(["get", "all"], id="get"),
        pytest.param(["delete", "lt", "demo"], id="delete"),
        pytest.param(["release", "acme"], id="release"),
    ],
)
def test_where_nothing_runs_the_fix_is_said(tmp_path, arguments):
    ran = logweir(*arguments, "--data", str(tmp_path / "none"))

    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: Nothing runs in {tmp_path}/none")
    assert "logweir up" in ran.stderr
    assert not (tmp_path / "none").exists()


def test_the_status_of_nothing_is_nothing_and_exit_code_one(tmp_path):
    ran = logweir("status", "--data", str(tmp_path))

    assert ran.returncode == 1
    assert ran.stdout.startswith(f"Nothing runs in {tmp_path}. Start it with: ")


def test_to_stop_nothing_is_no_error(tmp_path):
    ran = logweir("down", "--data", str(tmp_path))

    assert (ran.returncode, ran.stderr) == (0, f"Nothing runs in {tmp_path}.\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("a: b: c", "not YAML", id="no YAML"),
        pytest.param("", "there is no resource in it", id="nothing"),
        pytest.param(None, "No such file or directory", id="no file"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "f.yaml"
    if content is not None:
        path.write_text(content)
    ran = logweir("apply", "-f", str(path))

    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ")
    assert words in ran.stderr


def test_url_and_key_come_from_the_environment():
    ran = logweir("query", LOGWEIR_URL="http://127.0.0.1:9", LOGWEIR_KEY="k")

    assert ran.returncode == 1
    assert "No answer from http://127.0.0.1:9" in ran.stderr


def test_a_reader_who_has_seen_enough_is_no_error():
    ran = subprocess.run(
        f"{sys.executable} -m logweir.cli run --help | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ran.stderr == ""


# Of a key that no server has signed.
INGEST_KEY = keys.text_of(
    keys.ApiKey(TenantId("acme"), 7, PipelineId(0), keys.SCOPE_INGEST, 0, 1), bytes(32)
)


def test_a_key_is_checked_from_standard_input_without_a_server():
    said = [logweir("keys", "check", *words, given=f"{INGEST_KEY}\n") for words in ((), ("-",))]
    scripts = json.loads(logweir("keys", "check", "--json", given=INGEST_KEY).stdout)

    assert {one.returncode for one in said} == {0}
    assert all("tenant     acme" in one.stdout for one in said)
    assert (scripts["class"], scripts["tenant"]) == ("ingest", "acme")


def test_a_mistyped_key_and_what_is_no_key_are_told_apart():
    typo = logweir("keys", "check", given=INGEST_KEY[:-1])
    other = logweir("keys", "check", "hunter2")

    assert (typo.returncode, other.returncode) == (1, 1)
    assert "mistyped or cut" in typo.stderr
    assert "no key of Logweir" in other.stderr
