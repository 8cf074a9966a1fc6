"""What `logweir doctor` looks at, and the fix that it names."""

from __future__ import annotations

import socket

import pytest

from logweir.standalone import doctor, servers
from logweir.standalone.folder import Folder


@pytest.fixture
def home(place) -> Folder:
    return Folder(place / "data")


def check(home: Folder, name: str, port: int | None = 0) -> doctor.Check:
    return next(one for one in doctor.checks(home, port) if one.name == name)


def test_a_machine_that_is_well_has_nothing_to_fix(home):
    found = doctor.checks(home, 0)

    assert [one for one in found if not one.is_well or one.fix] == []
    assert {"PostgreSQL", "Valkey", "NGINX", "disk", "clock", "port"} <= {o.name for o in found}
    assert not home.path.exists()


@pytest.mark.parametrize(
    ("constant", "value", "name", "fix"),
    [
        pytest.param("LEAST_DISK_BYTES", 1 << 60, "disk", "Free at least", id="a full disk"),
        pytest.param("LEAST_MEMORY_BYTES", 1 << 60, "memory", "1 GiB or more", id="no memory"),
        pytest.param("BUILT_AFTER_S", 1 << 60, "clock", "Set the clock", id="a wrong clock"),
        pytest.param("OLDEST_PYTHON", (4, 0), "Python", "Use Python", id="an old Python"),
    ],
)
def test_what_is_wrong_is_named_with_the_fix(home, monkeypatch, constant, value, name, fix):
    monkeypatch.setattr(doctor, constant, value)
    found = check(home, name)

    assert not found.is_well
    assert fix in found.fix


def test_a_port_of_another_program_is_named(home):
    with socket.socket() as other:
        other.bind((servers.LOOPBACK, 0))
        other.listen()
        port = other.getsockname()[1]
        found = check(home, "port", port)

    assert (found.is_well, found.found) == (False, f"{port} is in use by another program")


def test_the_port_of_the_running_up_is_all_right(home):
    home.take()
    found = check(home, "port")
    home.let_go()

    assert found.is_well
    assert "running 'logweir up'" in found.found


def test_data_is_known_by_its_version(home):
    data = home.path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n")

    assert check(home, "data").found.startswith(f"{home.path} holds data of PostgreSQL 9")
