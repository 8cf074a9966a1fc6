"""The embedded journal server: an honest journal, its users, its data after a kill."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from machine import as_plain_user, family, give_to_plain_user, is_running, root_only

from logweir.core import errors
from logweir.standalone import accounts, binaries, servers, valkey
from logweir.standalone.binaries import Binaries
from logweir.standalone.valkey import Valkey

PASSWORD = 'it\'s a "secret" #1 ü\\'
OFF = "user default off sanitize-payload resetchannels -@all"
TENANT = "user t_acme_in on sanitize-payload #" + "a" * 64 + " ~{s00}:* resetchannels -@all +xadd"


def operator(password: str = PASSWORD, rights: str = "~* &* +@all") -> str:
    digest = hashlib.sha256(password.encode()).hexdigest()
    return f"user lw_operator on sanitize-payload #{digest} {rights}"


@pytest.fixture(params=["Valkey", "Redis"])
def program(request: pytest.FixtureRequest) -> Binaries:
    """Each server that is taken."""
    if request.param == "Valkey":
        return binaries.valkey()
    found = binaries.redis()
    if found is None:
        pytest.skip("no redis-server of 7.0 or newer on this machine")
    return found


def make(
    folder: Path,
    program: Binaries | None = None,
    password: str = PASSWORD,
    max_memory_bytes: int | None = None,
) -> Valkey:
    port = servers.free_port()
    return Valkey(folder, port, password, accounts.choose(), program, max_memory_bytes)


@pytest.fixture
def server(place: Path) -> Iterator[Valkey]:
    """One in a folder of its own, not started."""
    made = make(place / "valkey")
    yield made
    made.stop()


def start(server: Valkey, place: Path) -> int:
    """Start it, and return the process's id."""
    server.start(place / "log")
    assert server.process is not None
    return server.process.pid


def operator_of(server: Valkey) -> redis.Redis:
    return redis.Redis.from_url(server.url(), decode_responses=True)


def setting(client: redis.Redis, name: str) -> str:
    return client.config_get(name)[name]


def fill(client: redis.Redis) -> None:
    for _ in range(100):
        client.xadd("stream", {"text": "x" * 100_000})


def knock(server: Valkey, password: str = "") -> bytes:
    """Return what PING is answered to, after AUTH when there is a password."""
    login = f"AUTH lw_operator {password}\r\n" if password else ""
    lines = 2 if password else 1
    return servers.talk(
        server.port, f"{login}PING\r\n".encode(), lambda got: got.count(b"\r\n") >= lines
    )


def test_it_is_an_honest_journal(place, program):
    server = make(place / "valkey", program, max_memory_bytes=300 << 20)
    start(server, place)
    with operator_of(server) as client:
        found = {
            name: setting(client, name)
            for name in (
                *("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "save"),
                *("maxmemory", "maxmemory-policy", "bind", "protected-mode"),
            )
        }
    server.stop()

    assert found == {
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "save": "",
        "maxmemory": str(300 << 20),
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1",
        "protected-mode": "yes",
    }


def test_what_was_answered_is_there_after_a_kill(place, program):
    first = make(place / "valkey", program)
    pid = start(first, place)
    with operator_of(first) as client:
        wanted = [client.xadd("stream", {"n": n}) for n in range(100)]
    os.kill(pid, signal.SIGKILL)
    first.stop()
    second = make(place / "valkey", program)
    start(second, place)
    with operator_of(second) as client:
        found = [entry for entry, _ in client.xrange("stream")]
    second.stop()

    assert found == wanted


def test_an_entry_that_was_cut_off_does_not_keep_it_from_starting(server, place):
    start(server, place)
    with operator_of(server) as client:
        client.xadd("stream", {"text": "whole"})
        client.xadd("stream", {"text": "cut" * 100})
    server.stop()
    (journal,) = (place / "valkey" / "appendonlydir").glob("*.incr.aof")
    os.truncate(journal, journal.stat().st_size - 20)
    start(server, place)
    with operator_of(server) as client:
        found = [fields["text"] for _, fields in client.xrange("stream")]

    assert found == ["whole"]


def test_a_full_journal_refuses_and_keeps_what_it_has(place):
    server = make(place / "valkey", max_memory_bytes=4 << 20)
    start(server, place)
    with operator_of(server) as client:
        client.set("kept", "x" * 1000)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill(client)
        found = client.strlen("kept")
    server.stop()

    assert found == 1000


def test_a_server_that_was_left_behind_is_ended_in_order_first(server, place):
    pid = start(server, place)
    with operator_of(server) as client:
        client.set("kept", "1")
    again = make(place / "valkey")
    start(again, place)
    with operator_of(again) as client:
        found = client.get("kept")
    again.stop()

    assert found == "1"
    assert not is_running(pid)
    assert "User requested shutdown" in (place / "log").read_text()


def test_it_is_ready_only_while_it_runs(server, place):
    before = server.ready()
    start(server, place)
    while_running = server.ready()
    server.stop()

    assert (before, while_running, server.ready()) == (False, True, False)


def test_it_is_not_ready_for_who_has_another_password(server, place):
    start(server, place)
    other = Valkey(server.folder, server.port, "another")

    assert not other.ready()


def test_nobody_is_served_without_a_login(server, place):
    start(server, place)

    assert knock(server).startswith(b"-NOAUTH ")


def test_a_changed_password_is_taken_at_the_next_start_and_others_stay(place):
    server = make(place / "valkey", password="old")
    start(server, place)
    with operator_of(server) as client:
        client.acl_setuser("tenant", enabled=True, passwords=["+own"], commands=["+ping"])
        client.acl_save()
    server.stop()
    changed = make(server.folder, password="new")
    start(changed, place)
    with redis.Redis.from_url(changed.url("tenant", "own")) as client:
        tenant = client.ping()
    answers = [knock(changed, "old"), knock(changed, "new")]
    changed.stop()

    assert tenant
    assert answers[0].startswith(b"-WRONGPASS ")
    assert answers[1] == b"+OK\r\n+PONG\r\n"


def test_a_default_user_that_was_turned_on_is_off_again_at_the_next_start(server, place):
    start(server, place)
    with operator_of(server) as client:
        client.acl_setuser("default", enabled=True, nopass=True, keys=["*"], commands=["+@all"])
        client.acl_save()
    server.stop()
    start(server, place)

    assert knock(server).startswith(b"-NOAUTH ")


def test_a_user_file_that_the_server_saved_is_left_as_it_is(server, place):
    start(server, place)
    with operator_of(server) as client:
        client.acl_save()
    server.stop()
    path = server.folder / "users.acl"
    before = (path.read_text(), path.stat().st_ino)
    server.prepare()

    assert (path.read_text(), path.stat().st_ino) == before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("", [valkey.DEFAULT_LINE, None], id="the first start"),
        pytest.param(f"{OFF}\n", [OFF, None], id="no operator"),
        pytest.param(f"{operator()}\n", [operator(), valkey.DEFAULT_LINE], id="no default user"),
        pytest.param(
            f"user default on nopass ~* &* +@all\n{operator()}\n",
            [valkey.DEFAULT_LINE, operator()],
            id="the default user is on",
        ),
        pytest.param(
            f"user default off nopass ~* +@all\n{operator()}\n",
            [valkey.DEFAULT_LINE, operator()],
            id="the default user is off but needs no password",
        ),
        pytest.param(f"{OFF}\n{operator('old')}\n", [OFF, None], id="another password"),
        pytest.param(
            f"{OFF}\n{operator()} #{'b' * 64}\n", [OFF, None], id="a second password beside ours"
        ),
        pytest.param(
            f"{OFF}\n{operator(rights='~* &* -@all +ping')}\n", [OFF, None], id="lost rights"
        ),
        pytest.param(f"{OFF}\n{operator()} off\n", [OFF, None], id="the operator is off"),
        pytest.param(
            f"{OFF}\n{TENANT}\n{operator()}\n", [OFF, TENANT, operator()], id="a tenant's user"
        ),
        pytest.param(f"user\n\n# a note\n{OFF}\n", [OFF, None], id="lines of no user"),
    ],
)
def test_the_user_file_is_mended_where_it_must_be(before, after):
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    ours = f"user lw_operator on #{digest} ~* &* +@all"

    assert valkey.users(before, PASSWORD).splitlines() == [line or ours for line in after]


@given(
    before=st.lists(
        st.sampled_from(
            [OFF, TENANT, operator(), operator("old"), "user default on nopass +@all", "user", ""]
        )
    ).map("\n".join)
)
def test_a_mended_user_file_needs_no_mending(before):
    mended = valkey.users(before, PASSWORD)

    assert valkey.users(mended, PASSWORD) == mended
    assert (TENANT in mended) == (TENANT in before)
    assert "user default on" not in mended


@given(machine_bytes=st.integers(0, 1 << 50))
def test_the_journal_takes_a_quarter_of_the_machine_within_bounds(machine_bytes):
    found = valkey.journal_memory_bytes(machine_bytes)

    assert valkey.SMALLEST_MEMORY_BYTES <= found <= valkey.LARGEST_MEMORY_BYTES
    if valkey.SMALLEST_MEMORY_BYTES < found < valkey.LARGEST_MEMORY_BYTES:
        assert found == machine_bytes // 4


def test_a_folder_may_have_any_name(place, program):
    server = make(place / 'it\'s "a" földer\\ #1 \t{x} ', program)
    start(server, place)
    with operator_of(server) as client:
        found = setting(client, "dir")
    server.stop()

    assert found == str(server.folder)
    assert (server.folder / "appendonlydir").is_dir()


def test_a_plain_user_can_run_it(place):
    give_to_plain_user(place)
    code = """
import sys
from pathlib import Path
from logweir.standalone import accounts, servers
from logweir.standalone.valkey import Valkey
place = Path(sys.argv[1])
server = Valkey(place / "valkey", servers.free_port(), "secret", accounts.choose())
server.start(place / "log")
print(server.ready())
server.stop()
"""

    assert as_plain_user(code, place) == "True\n"


@root_only
def test_root_hands_it_to_a_user_without_rights(server, place):
    pid = start(server, place)
    account = accounts.choose()
    assert account is not None

    assert set(psutil.Process(pid).uids()) == {account.uid}
    assert all(one.stat().st_uid == account.uid for one in server.folder.rglob("*"))


def test_its_files_are_private_and_hold_no_password(server, place):
    before = os.umask(0)
    pid = start(server, place)
    os.umask(before)
    files = [one for one in server.folder.rglob("*") if one.is_file()]

    assert not [one for one in [server.folder, *files] if one.stat().st_mode & 0o077]
    assert not [one for one in files if b"secret" in one.read_bytes()]
    assert not [one for one in family(pid) if "secret" in " ".join(one.cmdline())]


def test_a_port_in_use_is_told_in_its_last_words(server, place):
    with (
        socket.create_server(("127.0.0.1", server.port)),
        pytest.raises(errors.SetupError, match="Valkey did not start") as told,
    ):
        start(server, place)

    assert "Address already in use" in told.value.hint


def test_nothing_is_started_before_it_is_prepared(server):
    with pytest.raises(errors.SetupError, match="before it is prepared"):
        server.command()


def test_stopping_leaves_no_process(server, place):
    processes = family(start(server, place))
    with operator_of(server) as client:
        client.ping()
        server.stop()

    assert not [one for one in processes if is_running(one.pid)]


def test_a_journal_of_another_server_is_left_alone_with_one_sentence(place):
    folder = place / "valkey"
    first = make(folder)
    start(first, place)
    first.stop()
    written = (folder / "written-by").read_text()
    (folder / "written-by").write_text("valkey-server 99.1.0\n")
    with pytest.raises(errors.SetupError) as newer:
        make(folder).prepare()
    (folder / "written-by").write_text("redis-server 7.0.15\n")
    with pytest.raises(errors.SetupError) as other:
        make(folder).prepare()

    assert written.startswith("valkey-server 9.")
    assert "holds the journal of valkey-server 99.1.0, but this is valkey-server 9." in str(
        newer.value
    )
    assert "holds the journal of redis-server 7.0.15, but this is valkey-server" in str(other.value)
    assert "Install redis-server 7.0.15 or newer" in other.value.hint
