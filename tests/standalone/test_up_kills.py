"""Whatever process of `logweir up` is killed, it is back soon, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from machine import is_running
from upping import Up, upping

BACK_S = 10.0
BUSY = 2.0
"""Other work of the machine may make it so much slower."""

LEADERS = ["postgres", "valkey", "operator", "ingest", "collector", "query", "gateway", "keeper"]


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with upping() as made:
        made.start()
        made.until(lambda: made.process_of("keeper")["state"] == "ready")
        yield made


def back(up: Up, name: str, killed: int) -> float:
    """Wait until another process of this name is ready; return the seconds."""
    begun_s = time.monotonic()

    def is_back() -> bool:
        found = up.process_of(name)
        return found["state"] == "ready" and found["pid"] not in (None, killed)

    up.until(is_back, BACK_S * BUSY)
    return time.monotonic() - begun_s


@pytest.mark.parametrize("name", LEADERS)
def test_a_killed_process_is_back_and_what_was_acknowledged_is_found(up, name):
    before = up.process_of(name)
    assert up.post(f"before {name}").status_code == 200
    os.kill(before["pid"], signal.SIGKILL)
    back_s = back(up, name, before["pid"])
    print(f"{name} is back after {back_s:.1f} s")

    after = up.process_of(name)
    assert (after["restarts"], after["why"]) == (before["restarts"] + 1, "killed by SIGKILL")
    assert f"- {name} killed by SIGKILL; it starts again now\n- {name} is back\n" in up.said()
    assert up.until_found(f'{{}} |= "before {name}"') == [f"before {name}"]
    up.until(lambda: up.shown()["ready"])


@pytest.mark.parametrize("name", ["operator", "ingest", "collector", "query", "keeper"])
def test_a_role_keeps_none_of_the_supervisors_files(up, name):
    role = psutil.Process(up.process_of(name)["pid"])
    own = {path for path in (one.path for one in role.open_files()) if str(up.data) in path}
    listening = [one for one in role.net_connections("tcp") if one.status == psutil.CONN_LISTEN]

    assert own == set()
    assert len(listening) == (2 if name in ("ingest", "query") else 1)


def test_a_killed_worker_of_the_gateway_is_back(up):
    [worker, *_] = psutil.Process(up.process_of("gateway")["pid"]).children()
    worker.kill()
    worker.wait(5)

    up.until(lambda: len(psutil.Process(up.process_of("gateway")["pid"]).children()) == 2)
    assert up.post("after the worker").status_code == 200


def test_a_killed_backend_of_postgres_costs_nothing(up):
    leader = psutil.Process(up.process_of("postgres")["pid"])
    assert up.post("before the backend").status_code == 200
    backend = next(one for one in leader.children() if "logweir_operator" in one.cmdline()[0])
    backend.kill()

    up.until(lambda: up.shown()["ready"])
    assert up.until_found('{} |= "before the backend"') == ["before the backend"]
    assert leader.is_running()


def test_a_process_that_is_killed_again_and_again_is_back_all_the_same(up):
    keeper = up.process_of("keeper")
    for _ in range(3):
        before = up.process_of("keeper")["pid"]
        os.kill(before, signal.SIGKILL)
        back(up, "keeper", before)

    assert up.process_of("keeper")["restarts"] == keeper["restarts"] + 3
    assert "it starts again in 0." in up.said()


def test_send_goes_on_while_ingest_is_killed(up):
    lines = "".join(f"resent {number}\n" for number in range(20_000))
    sending = subprocess.Popen(
        up.command("send"), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    victim = up.process_of("ingest")["pid"]
    timer = threading.Timer(0.4, os.kill, (victim, signal.SIGKILL))
    timer.start()
    said = sending.communicate(lines, timeout=60)[1]
    timer.join()
    back(up, "ingest", victim)

    assert sending.returncode == 0, said
    assert "sent 20000 records" in said
    found = up.until(lambda: _count(up, "resent") == 20_000)
    assert found


def _count(up: Up, word: str) -> int:
    """How many records hold a word, each counted once."""
    printed = up.ok("query", f'{{}} |= "{word}"', "-o", "raw", "-n", 30_000).splitlines()
    assert len(printed) == len(set(printed))
    return len(printed)


def test_a_tail_survives_the_kill_of_its_server_without_a_gap_or_a_repeat(up):
    tailing = up.popen("tail", '{} |= "seam"', "-o", "raw")
    sent = [f"seam {number}" for number in range(120)]
    shown: list[str] = []
    reading = threading.Thread(target=lambda: shown.extend(map(str.strip, tailing.stdout)))
    reading.start()
    url, key = up.shown()["ingest_url"], up.shown()["ingest_key"]
    for number, message in enumerate(sent):
        if number == 1:
            up.until(lambda: shown)  # the tail has begun
        assert up.post(message, url=url, key=key).status_code == 200
        if number == 40:
            victim = up.process_of("query")["pid"]
            os.kill(victim, signal.SIGKILL)
    up.until(lambda: len(shown) >= len(sent))
    os.kill(tailing.pid, signal.SIGINT)
    reading.join(10)
    tailing.wait(10)
    said = tailing.stderr.read()
    tailing.stdout.close()
    tailing.stderr.close()

    assert sorted(shown, key=sent.index) == sent
    assert "connection lost" in said


def test_down_stops_the_one_in_the_foreground_too(up):
    family = up.family()
    said = up.run("down").stderr

    assert said == "Stopped.\n"
    assert up.foreground.wait(10) == 0
    assert not any(is_running(one.pid) for one in family)
