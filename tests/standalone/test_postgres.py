"""The embedded PostgreSQL: its first start, its data after a kill, and what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from machine import (
    as_plain_user,
    family,
    give_to_plain_user,
    is_running,
    root_only,
)

from logweir.core import errors
from logweir.standalone import accounts, binaries, postgres, servers
from logweir.standalone.binaries import Binaries
from logweir.standalone.postgres import Postgres

PASSWORD = 'it\'s a "secret" of ours \\ %41'  # what quoting could break


def make(folder: Path, program: Binaries | None = None, password: str = PASSWORD) -> Postgres:
    return Postgres(folder, servers.free_port(), password, accounts.choose(), program)


def start(server: Postgres, place: Path) -> int:
    """Start it, and return the process's id."""
    server.start(place / "log")
    assert server.process is not None
    return server.process.pid


def query(server: Postgres, text: str) -> list[tuple]:
    with psycopg.connect(server.url(), autocommit=True) as link:
        cursor = link.execute(text)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def server(place: Path) -> Iterator[Postgres]:
    """One in a folder of its own, not started."""
    made = make(place / "postgres")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def template(places: Path) -> Path:
    """A folder with a cluster that was stopped in order."""
    made = make(places / "template")
    made.start(places / "template.log")
    query(made, "create table kept (n int)")
    query(made, "insert into kept values (1)")
    made.stop()
    return places / "template"


@pytest.fixture(scope="module")
def running(template: Path, places: Path) -> Iterator[Postgres]:
    """One for all tests that only look at it."""
    shutil.copytree(template, places / "looked-at")
    made = make(places / "looked-at")
    made.start(places / "looked-at.log")
    yield made
    made.stop()


@pytest.fixture
def used(template: Path, place: Path) -> Iterator[Postgres]:
    """One that was used before: it has a table `kept` with a row."""
    shutil.copytree(template, place / "postgres")
    made = make(place / "postgres")
    yield made
    made.stop()


def system_postgres() -> Binaries | None:
    found = binaries._usable(binaries._system_postgres(), binaries.OLDEST_POSTGRES)
    return next(found, None)


def test_the_first_start_takes_seconds_and_takes_logins(server, place):
    started_s = time.monotonic()
    start(server, place)

    assert time.monotonic() - started_s < 5
    assert query(server, "select 1") == [(1,)]


def test_a_postgres_of_the_system_does_as_well(place):
    program = system_postgres()
    if program is None:
        pytest.skip("no PostgreSQL of the system of 15 or newer on this machine")
    server = make(place / "postgres", program)
    start(server, place)
    found = query(server, "select current_setting('server_version_num')::int / 10000")
    server.stop()

    assert found == [(program.version[0],)]


def test_a_plain_user_can_run_it(place):
    give_to_plain_user(place)
    code = """
import sys
from pathlib import Path
import psycopg
from logweir.standalone import accounts, servers
from logweir.standalone.postgres import Postgres
place = Path(sys.argv[1])
server = Postgres(place / "postgres", servers.free_port(), "secret", accounts.choose())
server.start(place / "log")
with psycopg.connect(server.url()) as link:
    print(link.execute("select 'it works'").fetchone()[0])
server.stop()
"""

    assert as_plain_user(code, place) == "it works\n"


def test_texts_sort_by_their_bytes_and_are_utf_8(running):
    found = query(
        running, "select string_agg(x, '' order by x) from unnest('{b,A,a,B,ü}'::text[]) x"
    )

    assert found == [("ABabü",)]
    assert query(running, "show server_encoding") == [("UTF8",)]


def test_it_is_ready_only_while_it_runs(used, place):
    before = used.ready()
    start(used, place)
    while_running = used.ready()
    used.stop()

    assert (before, while_running, used.ready()) == (False, True, False)


def test_a_port_of_something_else_is_not_taken_for_it(used):
    with socket.create_server(("127.0.0.1", used.port)) as listener:
        listener.settimeout(5)
        ready = used.ready()

    assert not ready


def test_another_postgres_on_its_port_is_not_taken_for_it(used, running, place):
    used.port = running.port

    with pytest.raises(errors.SetupError, match="PostgreSQL did not start") as told:
        start(used, place)
    assert "Address already in use" in told.value.hint


@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_wrong_password_is_refused(running, password):
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(
            host="127.0.0.1",
            port=running.port,
            user="postgres",
            password=password,
            dbname="postgres",
        )


def test_it_listens_on_the_loopback_address_alone(running):
    leader = psutil.Process(running.process.pid)
    found = [one for one in leader.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    sockets = leader.net_connections("unix")

    assert [(one.laddr.ip, one.laddr.port) for one in found] == [("127.0.0.1", running.port)]
    assert not [one for one in sockets if "PGSQL" in str(one.laddr)]


def test_the_password_is_in_no_command_line_and_no_file(running):
    arguments = [" ".join(one.cmdline()) for one in family(running.process.pid)]
    files = [one for one in running.folder.rglob("*") if one.is_file()]

    assert not [one for one in arguments if "secret" in one]
    assert not [one for one in files if PASSWORD.encode() in one.read_bytes()]


@root_only
def test_root_hands_it_to_a_user_without_rights(running):
    account = accounts.choose()
    assert account is not None

    for one in family(running.process.pid):
        assert set(one.uids()) == {account.uid}
        assert set(one.gids()) == {account.gid}
    assert all(one.stat().st_uid == account.uid for one in running.data.iterdir())


def test_its_files_are_private(server):
    before = os.umask(0)
    server.prepare()
    os.umask(before)

    files = [server.folder, *server.folder.rglob("*")]
    assert not [one for one in files if one.stat().st_mode & 0o077]


def test_what_was_committed_is_there_after_a_kill(used, place):
    pid = start(used, place)
    query(used, "insert into kept values (2)")
    processes = family(pid)
    os.kill(pid, signal.SIGKILL)
    again = make(used.folder)
    start(again, place)
    found = query(again, "select n from kept order by n")
    again.stop()

    assert found == [(1,), (2,)]
    assert not [one for one in processes if is_running(one.pid)]


def test_a_server_that_is_still_running_is_ended_in_order_first(used, place):
    pid = start(used, place)
    with psycopg.connect(used.url()) as link:
        link.execute("insert into kept values (3)")  # not committed
        again = make(used.folder)
        start(again, place)
        found = query(again, "select n from kept")
        again.stop()
        link.close()

    assert found == [(1,)]
    assert not is_running(pid)
    assert "not properly shut down" not in (place / "log").read_text()


def test_stopping_does_not_wait_for_idle_clients_and_leaves_no_process(used, place):
    processes = family(start(used, place))
    with psycopg.connect(used.url()) as link:
        link.execute("select 1")
        processes += psutil.Process(processes[0].pid).children()
        started_s = time.monotonic()
        used.stop()
        link.close()

    assert time.monotonic() - started_s < 3
    assert not [one for one in processes if is_running(one.pid)]


def test_a_pid_file_that_names_a_stranger_does_not_keep_it_from_starting(used, place):
    stranger = psutil.Process()
    fake = f"{stranger.pid}\n{used.data}\n1700000000\n{used.port}\n\n127.0.0.1\n\nready\n"
    (used.data / "postmaster.pid").write_text(fake)
    start(used, place)

    assert query(used, "select n from kept") == [(1,)]
    assert stranger.is_running()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("no number\n", id="without a number"),
        pytest.param("4000000\n", id="with the number of no process"),
    ],
)
def test_a_pid_file_that_names_nobody_does_not_keep_it_from_starting(used, place, text):
    (used.data / "postmaster.pid").write_text(text)
    start(used, place)

    assert query(used, "select n from kept") == [(1,)]


def test_a_half_made_cluster_is_made_again(server, place):
    (place / "postgres" / "data.new").mkdir(parents=True)
    (place / "postgres" / "data.new" / "PG_VERSION").write_text("18\n")
    start(server, place)

    assert query(server, "select 1") == [(1,)]
    assert not (server.folder / "data.new").exists()


def test_an_initdb_that_fails_is_one_sentence_with_its_last_words(place):
    program = place / "bin" / "postgres"
    program.parent.mkdir()
    program.touch()
    program.with_name("initdb").write_text("#!/bin/sh\necho 'No space left'\nexit 1\n")
    program.with_name("initdb").chmod(0o755)
    broken = make(place / "postgres", Binaries(program, (18, 6), program.parent, ()))

    with pytest.raises(errors.SetupError, match=r"initdb could not make .*No space left") as told:
        broken.prepare()

    assert "--data" in told.value.hint
    assert not (place / "postgres" / "data").exists()
    assert not (place / "postgres" / "password").exists()


def test_a_failed_initdb_does_not_spoil_the_next_start(server, place):
    (place / "postgres").mkdir()
    (place / "postgres" / "initdb.log").write_text("of an earlier try")
    (place / "postgres" / "password").write_text("of an earlier try")
    start(server, place)

    assert query(server, "select 1") == [(1,)]


def test_data_of_another_version_is_refused_with_the_way_to_move_it(used):
    (used.data / "PG_VERSION").write_text("14\n")

    with pytest.raises(errors.SetupError, match="holds data of PostgreSQL 14, but this is") as told:
        used.prepare()

    assert "pg_dumpall" in told.value.hint
    assert str(used.data) in told.value.hint


def test_durability_cannot_be_turned_off(used, place):
    (used.data / "local.conf").write_text(
        "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n"
    )
    start(used, place)
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        query(used, f"alter system set {name} = off")
    used.stop()
    start(used, place)

    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        assert query(used, f"show {name}") == [("on",)]
    assert query(used, "show data_checksums") == [("on",)]


def test_settings_of_ones_own_are_taken(used, place):
    (used.data / "local.conf").write_text("work_mem = '9MB'\n")
    start(used, place)

    assert query(used, "show work_mem") == [("9MB",)]


def test_a_changed_port_is_taken_at_the_next_start(used, place):
    start(used, place)
    used.stop()
    used.port = servers.free_port()
    start(used, place)

    assert query(used, "show port") == [(str(used.port),)]


def test_a_port_in_use_is_told_in_its_last_words(used, place):
    with (
        socket.create_server(("127.0.0.1", used.port)),
        pytest.raises(errors.SetupError, match="PostgreSQL did not start") as told,
    ):
        start(used, place)

    assert "Address already in use" in told.value.hint
    assert used.process is None


def test_a_folder_that_cannot_be_written_is_one_sentence_with_the_fix(place):
    code = """
import sys
from pathlib import Path
from logweir.core import errors
from logweir.standalone.postgres import Postgres
try:
    Postgres(Path(sys.argv[1]) / "postgres", 1, "secret").prepare()
except errors.SetupError as error:
    print(error)
"""
    place.chmod(0o555)
    said = as_plain_user(code, place)
    place.chmod(0o755)

    assert f"Cannot prepare the folder {place / 'postgres'}: Permission denied." in said
    assert "--data DIR" in said


def test_a_folder_behind_a_wall_is_one_sentence_with_the_fix(place):
    (place / "home").mkdir(mode=0o700)
    server = Postgres(place / "home" / "postgres", 1, "secret", accounts.Account("one", 1, 1))

    with pytest.raises(errors.SetupError, match=f"user 'one', who cannot enter {place / 'home'}"):
        server.prepare()

    assert not (place / "home" / "postgres").exists()


def test_nothing_is_started_before_it_is_prepared(server):
    with pytest.raises(errors.SetupError, match="before it is prepared"):
        server.command()


@pytest.mark.parametrize(
    ("user", "password", "database"),
    [
        pytest.param("w_a", "p@ss:/?#[]", "logweir", id="signs of URLs"),
        pytest.param("ü ser", "%41", "da ta", id="spaces and percent signs"),
    ],
)
def test_a_url_can_hold_any_login(user, password, database):
    server = Postgres(Path("/x"), 5432, "super")
    found = psycopg.conninfo.conninfo_to_dict(server.url(user, password, database))

    assert found == {
        "user": user,
        "password": password,
        "host": "127.0.0.1",
        "port": "5432",
        "dbname": database,
    }


@pytest.mark.parametrize(("version", "has"), [((15, 4), False), ((17, 1), False), ((18, 0), True)])
def test_settings_of_newer_versions_are_left_to_them(version, has):
    assert ("io_workers" in postgres.configuration(5432, version)) == has
