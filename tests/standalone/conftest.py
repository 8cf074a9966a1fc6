"""A folder for each test that servers' users can enter."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

_numbers = itertools.count(1)


@pytest.fixture
def place(servers_folder: Path) -> Path:
    """An empty folder with nothing private on the way to it."""
    folder = servers_folder / f"place-{next(_numbers)}"
    folder.mkdir(mode=0o755)
    return folder
