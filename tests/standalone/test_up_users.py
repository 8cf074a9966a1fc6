"""Who `logweir up` runs as: servers never as root, and all of it as a plain user."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
import pytest
from machine import IS_ROOT, NOBODY, _interpreter, _packages, give_to_plain_user, root_only
from upping import Up, upping


@pytest.fixture(scope="module")
def plain_up() -> Iterator[Up]:
    """A folder of a plain user, whose commands run as that user."""
    environment = {"PATH": os.defpath}
    switch = {"user": NOBODY.uid, "group": NOBODY.gid, "extra_groups": []} if IS_ROOT else {}
    with upping(env=environment, cwd="/", **switch) as up:
        up.python = _interpreter()
        give_to_plain_user(up.home)
        environment["HOME"] = str(up.home)
        environment["PYTHONPATH"] = os.pathsep.join([*_packages(), str(up.home)])
        # Pythons before 3.11.3 need a package that is not installed for newer ones.
        (up.home / "async_timeout.py").write_text("from asyncio import timeout\n")
        yield up


def users(up: Up) -> dict[str, set[int]]:
    """User ids of the processes of each name."""
    found: dict[str, set[int]] = {}
    for one in up.family():
        found.setdefault(one.name(), set()).add(one.uids().effective)
    return found


@root_only
def test_roots_servers_run_as_a_user_without_rights(shared_up: Up):
    found = users(shared_up)

    assert found["postgres"] == found["valkey-server"] == {NOBODY.uid}
    workers = psutil.Process(shared_up.process_of("gateway")["pid"]).children()
    assert {one.uids().effective for one in workers} == {NOBODY.uid}


@root_only
def test_roots_secrets_are_roots_alone(shared_up: Up):
    for name in ("secrets.json", "access.json", "keys", "bindings"):
        found = (shared_up.data / name).stat()

        assert (found.st_uid, found.st_mode & 0o077) == (0, 0)


def test_a_plain_user_runs_all_of_it(plain_up: Up):
    plain_up.detach()
    plain_up.post("by a plain user")
    found = plain_up.until_found("{}")
    ids = {uid for found_ids in users(plain_up).values() for uid in found_ids}
    plain_up.ok("down")

    assert found == ["by a plain user"]
    assert 0 not in ids
    assert len(ids) == 1
    assert plain_up.left() == []


@root_only
def test_a_folder_of_somebody_else_is_refused_with_the_fix(plain_up: Up):
    theirs = plain_up.home / "theirs"
    theirs.mkdir(mode=0o755)
    mine, plain_up.data = plain_up.data, theirs
    ran = plain_up.run("up", "--port", 0)
    doctor = plain_up.run("doctor", "--port", 0)
    plain_up.data = mine

    assert ran.returncode == 1
    assert f"error: Cannot write to the data folder {theirs}: Permission denied." in ran.stderr
    assert "'--data DIR'" in ran.stderr
    assert f"{theirs} cannot be written" in doctor.stdout
