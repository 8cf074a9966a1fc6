"""Fixtures of the chart's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logweir.standalone import accounts, servers
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey


@pytest.fixture
def fresh_postgres(servers_folder: Path, tmp_path: Path) -> Iterator[Postgres]:
    """A PostgreSQL with nothing in it."""
    folder = servers_folder / f"fresh-{tmp_path.name}"
    folder.mkdir(mode=0o755)
    server = Postgres(folder / "data", servers.free_port(), "super", accounts.choose())
    server.start(folder / "log")
    yield server
    server.stop()


@pytest.fixture
def fresh_valkey(start_journal: Callable[..., Valkey]) -> Valkey:
    return start_journal()
