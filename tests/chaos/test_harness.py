"""The parts of the chaos run that could hide a miss: its schedule, links, clocks, sums, bounds."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from chaos import accounting, faults, growth, moves, recovery, shims
from chaos.accounting import ACCEPTED, COMMITTED, Metrics
from chaos.checker import Outcome
from chaos.faults import Done
from chaos.growth import Sample
from chaos.proxy import Proxy

from logweir.standalone import servers

# ---- the schedule ------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_faults():
    found = [faults.schedule(random.Random(seed), moves.MOVES) for seed in (1, 1, 2)]

    assert found[0] == found[1]
    assert found[0] != found[2]
    assert sorted(found[0]) == sorted(found[2])


def test_a_schedule_has_each_move_as_often_as_it_says():
    found = faults.schedule(random.Random(3), moves.MOVES)

    assert {name: found.count(name) for name in set(found)} == {
        name: move.count for name, move in moves.MOVES.items()
    }


def test_moves_name_what_they_need_by_names_that_exist():
    known = faults.EVERYTHING | {"twin", "clocks"}

    assert all(move.needs <= known for move in moves.MOVES.values())


# ---- links -------------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that says back what it hears; yields its port."""
    with socket.create_server((servers.LOOPBACK, 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=_say_back, args=(one,), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _say_back(one: socket.socket) -> None:
    with one:
        try:
            while data := one.recv(4096):
                one.sendall(data)
        except OSError:
            pass


@pytest.fixture
def proxy(echo: int, tmp_path: Path) -> Iterator[Proxy]:
    ports = tmp_path / "ports.json"
    ports.write_bytes(msgspec.json.encode({"gateway": echo, "valkey": echo, "postgres": echo}))
    found = Proxy(ports, {}, tmp_path / "proxy.log")
    yield found
    found.stop()
    assert (tmp_path / "proxy.log").read_text() == ""


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection((servers.LOOPBACK, proxy.listen["ingest-valkey"])) as found:
        found.settimeout(5)
        found.sendall(b"hello")
        assert found.recv(100) == b"hello"
        yield found


def hears_nothing(client: socket.socket) -> bool:
    client.settimeout(0.3)
    try:
        client.recv(100)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)
    return False


@pytest.mark.parametrize("word", ["silent", "mute"])
def test_a_link_that_says_nothing_delivers_later_what_it_held(proxy, client, word):
    proxy.tell("ingest-valkey", word)
    time.sleep(0.1)  # the word is on its way in a pipe, the bytes in a socket
    client.sendall(b"anybody?")
    nothing = hears_nothing(client)
    proxy.tell("ingest-valkey", "flow")

    assert nothing
    assert client.recv(100) == b"anybody?"


def test_a_link_that_is_cut_forgets_what_it_held_and_resets(proxy, client):
    proxy.tell("ingest-valkey", "silent")
    time.sleep(0.1)
    client.sendall(b"anybody?")
    assert hears_nothing(client)
    proxy.tell("ingest-valkey", "cut")

    with pytest.raises(ConnectionResetError):
        client.recv(100)


def test_a_new_connection_flows_after_a_cut_and_other_links_never_stop(proxy, client):
    proxy.tell("ingest-valkey", "silent")
    for link, words in (("collector-valkey", ()), ("ingest-valkey", ("cut", "flow"))):
        for word in words:
            proxy.tell("ingest-valkey", word)
        with socket.create_connection((servers.LOOPBACK, proxy.listen[link]), 5) as other:
            other.sendall(b"hello")
            assert other.recv(100) == b"hello"


# ---- clocks and disks --------------------------------------------------------------------------

needs_shims = pytest.mark.skipif(not shims.can_be_built(), reason="no gcc, or no Linux")

_PROGRAM = """
import os, sys, time
sys.stdin.readline()
begin = time.monotonic()
with open(sys.argv[1], "w") as file:
    os.fsync(file)
print(time.time(), time.monotonic() - begin)
"""


@pytest.fixture
def built() -> Iterator[shims.Shims]:
    with tempfile.TemporaryDirectory() as folder:
        yield shims.Shims(Path(folder))


def measured(built: shims.Shims, name: str, tmp_path: Path) -> tuple[float, float]:
    """How far a process's clock is ahead, and how long its fsync took."""
    env = {**os.environ, **built.environment(), "CHAOS_SLOT": str(shims.SLOTS.index(name))}
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path / "file")],
        env=env,
        input="\n",
        capture_output=True,
        text=True,
        check=True,
    )
    now_s, took_s = map(float, ran.stdout.split())
    return now_s - time.time(), took_s


@needs_shims
def test_a_clock_steps_for_its_process_and_for_no_other(built, tmp_path):
    built.step("ingest", -3600)

    assert measured(built, "ingest", tmp_path)[0] == pytest.approx(-3600, abs=5)
    assert measured(built, "valkey", tmp_path)[0] == pytest.approx(0, abs=5)


@needs_shims
def test_a_slow_disk_is_slow_until_it_is_mended(built, tmp_path):
    built.slow("valkey", 400)
    slow_s = measured(built, "valkey", tmp_path)[1]
    built.slow("valkey", 0)

    assert slow_s >= 0.4
    assert measured(built, "valkey", tmp_path)[1] < 0.4


@needs_shims
def test_a_forked_role_has_the_clock_of_the_name_it_gave_itself(built, tmp_path):
    program = (
        "import ctypes, os, time\n"
        "pid = os.fork()\n"
        "if pid: os.waitpid(pid, 0)\n"
        "else: ctypes.CDLL(None).prctl(15, b'lw-query', 0, 0, 0)\n"
        "print(time.time(), flush=True)\n"
    )
    built.step("query", 500)
    env = {**os.environ, **built.environment()}
    ran = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True)
    child_s, parent_s = map(float, ran.stdout.split())

    assert child_s - parent_s == pytest.approx(500, abs=5)


# ---- accounts by metrics -----------------------------------------------------------------------


class _Nothing:
    """Stands for an `up` that is not asked anything."""


def test_counters_add_up_over_the_lives_of_a_process():
    metrics = Metrics(_Nothing())  # type: ignore[arg-type]
    key = (ACCEPTED, "accepted")
    for pid, count in ((1, 5), (1, 9), (2, 1), (2, 4), (3, 0)):
        metrics._take("ingest", pid, {key: count})

    assert metrics._sum() == {key: 13}


def test_a_counter_that_fell_is_of_a_new_process_whatever_its_number():
    metrics = Metrics(_Nothing())  # type: ignore[arg-type]
    key = (COMMITTED, "stored")
    for count in (9, 2):
        metrics._take("collector", 1, {key: count})

    assert metrics._sum() == {key: 11}


def test_metrics_may_count_less_than_the_books_under_kills_and_never_more():
    books = accounting.Sums(10, Outcome(stored=10))

    assert accounting.over(accounting.Sums(8, Outcome(stored=7)), books) == []
    assert len(accounting.over(accounting.Sums(11, Outcome(stored=10, repeated=1)), books)) == 2


def test_a_calm_stretch_comes_out_to_the_record():
    sums = accounting.Sums(10, Outcome(stored=9, expired=1))

    assert accounting.unequal(sums, sums) == []
    assert accounting.unequal(sums, accounting.Sums(10, Outcome(stored=10))) != []
    assert accounting.unequal(*[accounting.Sums(11, Outcome(stored=10))] * 2) != []


# ---- growth and recovery -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "is_grown"),
    [
        ([Sample(100 << 20, 20)] * 60, False),
        ([Sample((100 + n) << 20, 20) for n in range(60)], False),
        ([Sample((100 + 6 * n) << 20, 20) for n in range(60)], True),
        ([Sample(100 << 20, 20 + 2 * n) for n in range(60)], True),
        ([Sample((1 + 99 * (n > 5)) << 20, 20) for n in range(60)], False),
    ],
    ids=["flat", "a little", "memory", "files", "warming up"],
)
def test_growth_is_what_goes_on(samples, is_grown):
    assert bool(growth.grown({"ingest": samples})) is is_grown


def test_a_fault_that_nothing_recovers_from_is_named():
    found = [Done("a", 1.0, 2.0, 0.1, 0.7), Done("b", 3.0, 4.0, 0.1)]

    assert recovery.lost(found) == ["b at 3.00"]


def test_times_to_recover_fall_into_their_buckets():
    assert recovery.histogram([0.1, 0.5, 0.9, 70.0]) == {0: 1, 1: 2, 8: 1}


async def test_a_record_counts_for_the_faults_that_were_over_when_it_was_sent():
    followed = recovery.Recovery(_Nothing(), [], 60)  # type: ignore[arg-type]
    early, late = Done("a", 1.0, 2.0), Done("b", 1.0, 9.0)
    for one in (early, late):
        followed.follow(one)
    followed._note("stored_s", sent_s=5.0, at_s=7.0)
    await asyncio.sleep(0)

    assert (early.stored_s, late.stored_s) == (5.0, None)
