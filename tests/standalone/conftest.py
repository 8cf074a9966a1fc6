"""A folder for each test that servers' users can enter, and a reconciler of `up` in one."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import world
from reconciling import Place, reconciling
from upping import Up, upping

from logweir.backends import provision
from logweir.standalone import accounts, servers
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 1 << 30

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def places() -> Iterator[Path]:
    """Where the folders are: in memory where there is room, as clusters are large."""
    folder = Path(tempfile.mkdtemp(prefix="logweir-test-", dir=_MEMORY if _has_room() else None))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres(places: Path, roots: provision.Roots) -> Iterator[Postgres]:
    """A server for this folder: a reconciler looks at all tenants, and others make thousands."""
    server = Postgres(places / "postgres", servers.free_port(), "super", accounts.choose())
    server.start(places / "postgres.log")
    provision.bootstrap_store(server.url(), roots)
    provision.upgrade_control(world.operator_conninfo(server, roots))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey(places: Path) -> Iterator[Valkey]:
    """The same for journals."""
    server = Valkey(places / "valkey", servers.free_port(), "operator", accounts.choose())
    server.start(places / "valkey.log")
    yield server
    server.stop()


@pytest.fixture
def place(places: Path) -> Iterator[Path]:
    """An empty folder with nothing private on the way to it."""
    folder = places / f"place-{next(_numbers)}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def _has_room() -> bool:
    if not _MEMORY.is_dir() or os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC:
        return False
    return os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES


@pytest.fixture
async def up_place(
    place: Path, postgres: Postgres, valkey: Valkey, roots: provision.Roots
) -> AsyncIterator[Place]:
    """A reconciler of `up` in this loop; `up_place.passes()` is one pass of it."""
    async with reconciling(place / "data", postgres, valkey, roots) as found:
        yield found


@pytest.fixture(scope="session")
def shared_up() -> Iterator[Up]:
    """A running `logweir up` that tests share; they leave it as they found it."""
    with upping() as up:
        up.detach()
        yield up
