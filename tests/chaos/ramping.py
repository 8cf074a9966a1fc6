"""Senders that offer so many requests a second, whatever is answered, and do as they are told.

Plan (steps of an offered rate) -> a job each, due at its moment -> POST -> 2xx: done
                                                   429, 503: the same again after Retry-After
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from urllib.parse import urlsplit

import msgspec

GIVE_UP_S = 60.0
"""How long after the last step a request may still be refused."""

CONNECTIONS = 64

Make = Callable[[int], bytes]
"""The body of the request of a number."""


class Step(msgspec.Struct, frozen=True):
    """A part of a ramp: so many requests a second for so long."""

    per_s: float
    seconds: float


class Answer(msgspec.Struct, frozen=True):
    """One answer: when (from the beginning), its status, and what it says of coming back."""

    at_s: float
    status: int
    retry_after: str


class Result(msgspec.Struct, frozen=True):
    """All answers, and how often each request was acknowledged."""

    answers: list[Answer]
    acked: Counter[int]
    sent: int

    def accepted_per_s(self, begin_s: float, end_s: float) -> float:
        """Requests that were acknowledged in a time, a second of it.

        From the last one before it to the last one in it: what is let in by bursts is counted by
        whole bursts.
        """
        times_s = [one.at_s for one in self.answers if one.status == 200 and one.at_s < end_s]
        before = sum(1 for at_s in times_s if at_s < begin_s)
        first = max(before - 1, 0)
        count = len(times_s) - 1 - first
        return count / (times_s[-1] - times_s[first]) if count > 0 else 0.0

    def statuses(self) -> Counter[int]:
        return Counter(one.status for one in self.answers)


class _Wire:
    """A connection that sends one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def post(self, request: bytes) -> tuple[int, dict[str, str]]:
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): text for name, _, text in (one.partition(": ") for one in lines)}
        await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(first.split()[1]), headers

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


class Ramp:
    """Sends numbered requests to one pipeline."""

    def __init__(self, url: str, key: str, make: Make, seed: int) -> None:
        self._url, self._key, self._make = urlsplit(url), key, make
        self._random = random.Random(seed)
        self._idle: list[_Wire] = []
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._answers: list[Answer] = []
        self._acked: Counter[int] = Counter()
        self._begin_s = 0.0

    async def run(self, steps: Sequence[Step]) -> Result:
        """Offer all of it, and return when the last request was taken."""
        self._begin_s = time.monotonic()
        jobs = []
        due_s = 0.0
        for step in steps:
            for _ in range(round(step.per_s * step.seconds)):
                await asyncio.sleep(max(0.0, self._begin_s + due_s - time.monotonic()))
                jobs.append(asyncio.create_task(self._job(len(jobs))))
                due_s += 1 / step.per_s
        _, late = await asyncio.wait(jobs, timeout=GIVE_UP_S)
        for one in late:
            one.cancel()
        await asyncio.wait(jobs)
        for one in set(jobs) - late:
            one.result()
        for one in self._idle:
            await one.close()
        return Result(self._answers, self._acked, len(jobs))

    async def _job(self, number: int) -> None:
        request = self._request(number)
        while True:
            async with self._connection() as wire:
                status, headers = await wire.post(request)
            told = headers.get("retry-after", "")
            self._answers.append(Answer(time.monotonic() - self._begin_s, status, told))
            if status == 200:
                self._acked[number] += 1
            if status not in (429, 503):
                return
            await asyncio.sleep(float(told or 1) + self._random.random())

    def _request(self, number: int) -> bytes:
        body = self._make(number)
        head = (
            f"POST {self._url.path} HTTP/1.1\r\nHost: {self._url.netloc}\r\n"
            f"Authorization: Bearer {self._key}\r\nIdempotency-Key: ramp {number}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Wire]:
        async with self._free:
            wire = self._idle.pop() if self._idle else await self._open()
            yield wire
            self._idle.append(wire)

    async def _open(self) -> _Wire:
        assert self._url.hostname
        assert self._url.port
        return _Wire(*await asyncio.open_connection(self._url.hostname, self._url.port))
