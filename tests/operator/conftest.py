"""Fixtures of the operator's tests on a real API server: databases of their own, a place a test."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

import pytest
import world
from operating import Place, operating

from logweir.backends import provision
from logweir.standalone import accounts, servers
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey

if TYPE_CHECKING:
    from controlplane.plane import Plane


@pytest.fixture(scope="session")
def databases(roots: provision.Roots) -> Iterator[tuple[Postgres, Valkey]]:
    """Servers for operators alone: a pass looks at all tenants there are."""
    with _databases(roots) as started:
        yield started


@contextlib.contextmanager
def _databases(roots: provision.Roots) -> Iterator[tuple[Postgres, Valkey]]:
    folder = Path(tempfile.mkdtemp(prefix="logweir-operator-"))
    folder.chmod(0o755)
    postgres = Postgres(folder / "postgres", servers.free_port(), "super", accounts.choose())
    postgres.start(folder / "postgres.log")
    valkey = Valkey(folder / "valkey", servers.free_port(), "operator", accounts.choose())
    valkey.start(folder / "valkey.log")
    provision.bootstrap_store(postgres.url(), roots)
    provision.upgrade_control(world.operator_conninfo(postgres, roots))
    yield postgres, valkey
    valkey.stop()
    postgres.stop()
    rmtree(folder)


@pytest.fixture
async def operated(
    tmp_path: Path,
    cluster: Plane,
    databases: tuple[Postgres, Valkey],
    roots: provision.Roots,
) -> AsyncIterator[Place]:
    """A namespace for an operator, which the test starts."""
    namespace = cluster.make_namespace()
    async with operating(tmp_path, cluster, namespace, *databases, roots) as place:
        yield place


@pytest.fixture
async def operated_alone(
    tmp_path: Path, cluster: Plane, roots: provision.Roots
) -> AsyncIterator[Place]:
    """As `operated`, with servers of its own: for what changes them for everybody."""
    namespace = cluster.make_namespace()
    with _databases(roots) as started:
        async with operating(tmp_path, cluster, namespace, *started, roots) as place:
            yield place


@pytest.fixture
async def operated_bare(
    tmp_path: Path,
    plane: Plane,
    namespace: str,
    databases: tuple[Postgres, Valkey],
    roots: provision.Roots,
) -> AsyncIterator[Place]:
    """As `operated`, on an API server alone: no controller makes pods, or collects garbage."""
    async with operating(tmp_path, plane, namespace, *databases, roots) as place:
        yield place
