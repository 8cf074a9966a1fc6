"""Fixtures of the chart's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logweir.standalone import accounts, servers
from logweir.standalone.binaries import Binaries
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey

_NEW_RULES = 16
"""From this version on who makes a role is its admin, and no more a member of it by itself."""


@pytest.fixture
def fresh_postgres(servers_folder: Path, tmp_path: Path) -> Iterator[Postgres]:
    """A PostgreSQL with nothing in it."""
    yield from _started(servers_folder / f"fresh-{tmp_path.name}")


@pytest.fixture(params=["newest", "15"])
def each_postgres(
    servers_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Postgres]:
    """The same, also of the oldest version, whose rules of membership are others."""
    program = None
    if request.param == "15":
        programs = [one for one in _system() if one.version[0] < _NEW_RULES]
        if not programs:
            pytest.skip("no PostgreSQL 15 of the system on this machine")
        program = programs[0]
    yield from _started(servers_folder / f"each-{tmp_path.name}", program)


def _system() -> list[Binaries]:
    found = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return [Binaries(one, (int(one.parts[-3]),), one.parents[1], ()) for one in found]


def _started(folder: Path, program: Binaries | None = None) -> Iterator[Postgres]:
    folder.mkdir(mode=0o755)
    server = Postgres(folder / "data", servers.free_port(), "super", accounts.choose(), program)
    server.start(folder / "log")
    yield server
    server.stop()


@pytest.fixture
def fresh_valkey(start_journal: Callable[..., Valkey]) -> Valkey:
    return start_journal()
