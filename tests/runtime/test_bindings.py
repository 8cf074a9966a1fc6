"""Binding files are read, and read again when they change."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from serving import until

from logweir.core import errors
from logweir.core.binding import CollectorBinding, JournalServer, KeeperBinding
from logweir.runtime import bindings
from logweir.runtime.life import Life


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "collector.json"


def test_a_missing_file_is_named(path):
    with pytest.raises(errors.SetupError, match=r"Cannot read the binding collector\.json"):
        bindings.read(path, CollectorBinding)


def test_a_file_of_another_kind_is_named(path):
    path.write_text('{"tenants": 3}')

    with pytest.raises(errors.SetupError, match=r"collector\.json is no CollectorBinding"):
        bindings.read(path, CollectorBinding)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b'{"tenants": [{"tenant": "\xff"}]}', id="no UTF-8"),
        pytest.param(b'{"newer": %b}' % (b"[" * 100_000 + b"]" * 100_000), id="too deep"),
        pytest.param(b'{"tenants": [', id="cut"),
    ],
)
def test_a_file_that_is_damaged_is_named(path, text):
    path.write_bytes(text)

    with pytest.raises(errors.SetupError, match=r"collector\.json is no CollectorBinding"):
        bindings.read(path, CollectorBinding)


def test_a_field_of_a_newer_operator_is_read_over():
    text = b'{"host": "h", "port": 1, "something_new": true}'

    assert msgspec.json.decode(text, type=JournalServer) == JournalServer("h", 1)


async def test_a_changed_file_is_used_and_a_damaged_one_leaves_the_last_good(path, monkeypatch):
    monkeypatch.setattr(bindings, "POLL_S", 0.01)
    life, used = Life(), []

    async def use(binding: KeeperBinding) -> None:
        used.append(binding)

    async def is_bound(count: int) -> bool:
        return len(used) == count

    def write(text: bytes) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_bytes(text)
        fresh.replace(path)

    write(b'{"tenants": []}')
    task = asyncio.create_task(bindings.follow(path, CollectorBinding, use, life))
    await until(lambda: is_bound(1))
    write(b"{")
    await until(lambda: _has_problem(life))
    write(b'{"tenants": [ ]}')
    await until(lambda: is_bound(2))
    ready = life.problems()
    life.stopping.set()
    await task

    assert ready == {}
    assert used == [CollectorBinding(), CollectorBinding()]


async def _has_problem(life: Life) -> bool:
    return bool(life.problems())


async def test_a_mounted_secret_that_kubelet_swaps_is_used_even_when_its_files_are_older(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(bindings, "POLL_S", 0.01)
    life, used = Life(), []

    async def use(binding: CollectorBinding) -> None:
        used.append(binding)

    async def is_bound(count: int) -> bool:
        return len(used) == count

    def swap(folder: str, text: bytes, at_s: int) -> None:
        """As kubelet does: a new folder, and `..data` points to it from one moment to the next."""
        file = tmp_path / folder / "binding.json"
        file.parent.mkdir()
        file.write_bytes(text)
        os.utime(file, (at_s, at_s))
        fresh = tmp_path / "..data_tmp"
        fresh.symlink_to(folder)
        fresh.replace(tmp_path / "..data")

    swap("..1", b'{"tenants": []}', 2_000_000)
    path = tmp_path / "binding.json"
    path.symlink_to("..data/binding.json")
    task = asyncio.create_task(bindings.follow(path, CollectorBinding, use, life))
    await until(lambda: is_bound(1))
    swap("..2", b'{"tenants": [ ]}', 1_000_000)
    await until(lambda: is_bound(2))
    life.stopping.set()
    await task

    assert life.problems() == {"process": "stopping"}
