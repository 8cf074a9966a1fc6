"""What tests do with the machine: wait for processes, look at them, be a plain user on it."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from logweir.standalone import accounts

IS_ROOT = os.geteuid() == 0

_nobody = pwd.getpwnam("nobody")
NOBODY = accounts.Account("nobody", _nobody.pw_uid, _nobody.pw_gid)

root_only = pytest.mark.skipif(not IS_ROOT, reason="only root can hand processes to other users")


def until(true: Callable[[], bool], wait_s: float = 10.0) -> None:
    """Wait until something is true, or fail."""
    deadline_s = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < deadline_s, "it did not come true in time"
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    """Say whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_listening(port: int) -> bool:
    return any(
        one.laddr.port == port and one.status == psutil.CONN_LISTEN
        for one in psutil.net_connections("tcp4")
    )


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


def as_plain_user(code: str, *arguments: object, wait_s: float = 30.0) -> str:
    """Run Python code as a user without rights, and return what it prints.

    As root that is `nobody`, with an interpreter that it can enter; else it is us.
    """
    switch: dict[str, Any] = {}
    if IS_ROOT:
        switch = {"user": NOBODY.uid, "group": NOBODY.gid, "extra_groups": []}
    ran = subprocess.run(
        [_interpreter(), "-B", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=wait_s,
        cwd="/",
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(_packages())},
        **switch,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def give_to_plain_user(folder: Path) -> None:
    """Make the folder belong to the user of `as_plain_user`."""
    if IS_ROOT:
        os.chown(folder, NOBODY.uid, NOBODY.gid)


def _interpreter() -> str:
    """Return a Python of our version that a plain user can run."""
    version = f"python3.{sys.version_info.minor}"
    for program in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        folder = Path(program).resolve().parent
        if Path(program).exists() and not (IS_ROOT and accounts.blocked_at(folder, NOBODY)):
            return program
    pytest.skip(f"user nobody can run no {version} here: {sys.executable} is in a private folder")


def _packages() -> list[str]:
    root = str(Path(__file__).parents[1])
    return [one for one in sys.path if one.startswith(root) or "site-packages" in one]
