"""Slow clients cost the gateway a buffer each, and no role anything."""

from __future__ import annotations

import contextlib
import itertools
import socket
import statistics
import threading
import time
from collections.abc import Iterator

import pytest
from fronting import KEY, Echo, Front, fed_until_cut, running, serving_in_a_thread
from machine import family, until

SLOW_HEADS = 120
SLOW_BODIES = 120
SLOW_READERS = 12
MEASURED = 300
LONG_ANSWER_BYTES = 8 << 20

HEAD = b"GET /api/v1/query?x="
BODY = (
    f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 59000\r\n\r\n"
).encode()

USUAL = BODY.replace(b"59000", b"2\r\nConnection: close") + b"{}"


@pytest.fixture
def patient(make_gateway) -> Iterator[Front]:
    """A gateway of its own, with the times of every other."""
    ingest, query = Echo("ingest"), Echo("query")
    gateway = make_gateway(
        ingest=(ingest.address,), query=(query.address,), worker_connections=2048
    )
    with serving_in_a_thread(ingest, query), running(gateway) as nginx:
        yield Front(nginx, ingest, query)


def linked(front: Front, sent: bytes, receive_bytes: int | None = None) -> socket.socket:
    link = socket.socket()
    if receive_bytes is not None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    link.connect(("127.0.0.1", front.nginx.gateway.port))
    link.sendall(sent)
    return link


@contextlib.contextmanager
def dripping(links: list[socket.socket]) -> Iterator[list[int]]:
    """Send one byte after the other on all links, in turn; yields how many were sent."""
    count, is_over = [0], threading.Event()

    def drip() -> None:
        for link in itertools.cycle(links):
            if is_over.wait(0.002):
                return
            link.send(b"x")
            count[0] += 1

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield count
    finally:
        is_over.set()
        thread.join()


def memory_bytes(front: Front) -> int:
    assert front.nginx.process is not None
    return sum(one.memory_info().rss for one in family(front.nginx.process.pid))


def median_s(front: Front) -> float:
    """How long a usual request takes, on a connection of its own each."""
    found = []
    for _ in range(MEASURED):
        begun_s = time.perf_counter()
        answer = front.nginx.raw(USUAL)
        found.append(time.perf_counter() - begun_s)
        assert answer.startswith(b"HTTP/1.1 200 ")
    return statistics.median(found)


def test_hundreds_of_slow_clients_hold_up_nobody(patient):
    alone_s = median_s(patient)
    before_bytes = memory_bytes(patient)
    with contextlib.ExitStack() as stack:
        begun = [HEAD] * SLOW_HEADS + [BODY] * SLOW_BODIES
        links = [stack.enter_context(linked(patient, one)) for one in begun]
        for _ in range(SLOW_READERS):
            sent = f"GET /api/v1/query?bytes={LONG_ANSWER_BYTES} HTTP/1.1\r\nHost: x\r\n\r\n"
            stack.enter_context(linked(patient, sent.encode(), receive_bytes=4096))
        until(lambda: patient.query.answered == SLOW_READERS, wait_s=60)
        with dripping(links) as count:
            among_s = median_s(patient)
            until(lambda: count[0] > len(links))
        grown_bytes = memory_bytes(patient) - before_bytes

    assert among_s < 3 * alone_s
    assert len(patient.ingest.seen) == 2 * MEASURED  # and none of the slow ones
    assert grown_bytes < 96 * 1024 * (len(links) + SLOW_READERS)


def test_the_role_is_done_with_a_long_answer_that_nobody_reads(patient):
    sent = f"GET /api/v1/query?bytes={LONG_ANSWER_BYTES} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(linked(patient, sent, receive_bytes=4096))
        until(lambda: patient.query.answered == 4)


@pytest.fixture(scope="module")
def hasty(make_gateway) -> Iterator[Front]:
    """A gateway with times of one second."""
    role = Echo("any")
    gateway = make_gateway(
        ingest=(role.address,), query=(role.address,), header_timeout_s=1, body_timeout_s=1
    )
    with serving_in_a_thread(role), running(gateway) as nginx:
        yield Front(nginx, role, role)


def test_headers_that_come_byte_by_byte_have_so_much_time_in_total(hasty):
    """However small the gaps are; NGINX counts from the first byte."""
    begun_s = time.monotonic()
    with linked(hasty, HEAD) as link:
        assert fed_until_cut(link, b"x")

    assert 0.9 < time.monotonic() - begun_s < 8


def test_a_connection_that_says_nothing_is_closed(hasty):
    with linked(hasty, b"") as link:
        link.settimeout(8)
        assert link.recv(1) == b""


def test_a_sender_that_is_silent_within_a_body_is_cut(hasty):
    with linked(hasty, BODY + b"x") as link:
        link.settimeout(8)
        with contextlib.suppress(ConnectionResetError):
            assert link.recv(1) == b""

    assert hasty.ingest.seen == []
