"""A producer: sends numbered requests to a pipeline, and again until they are acknowledged.

    Maker -> intent on file -> POST -> 503, 429, timeout, cut? the same again -> answer on file

Now and then it repeats what was acknowledged, uses a key for another body, or gives up at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import httpx2
import msgspec
from chaos.history import Answer, GaveUp, Log, Retry
from chaos.numbered import Maker, Prepared

PATIENCE_S = 60.0
"""How long a producer goes on with a request after it was told to stop."""

_BURST = 6


class Door(msgspec.Struct, frozen=True):
    """Where records go in, and the key for it."""

    url: str
    key: str


class _Rejected(msgspec.Struct):
    index: int


class _Body(msgspec.Struct):
    receipt: str = ""
    accepted: int = 0
    rejected: list[_Rejected] = []
    expired: list[int] = []
    repeated: bool = False


class Producer:
    """One producer with one connection.

    Args:
        maker: makes its requests.
        door: where they go.
        log: what it tries and is told.
        pause_s: the mean time between its requests.
        patience_s: how long it waits for an answer; one of these, by the maker's dice.
    """

    def __init__(
        self,
        maker: Maker,
        door: Door,
        log: Log,
        pause_s: float = 0.0,
        patience_s: Sequence[float] = (1.0, 8.0, 8.0, 8.0),
    ) -> None:
        self.maker, self.door = maker, door
        self._patience_s = patience_s
        self._log, self._pause_s = log, pause_s
        self._random = maker.random
        self._stopping = asyncio.Event()
        self._stopped_s = 0.0
        self._later: list[tuple[float, Prepared, bool]] = []

    def stop(self) -> None:
        """Make no new requests; those that are begun come to their end."""
        self._stopped_s = time.time()
        self._stopping.set()

    async def run(self) -> None:
        async with client_of(self.door) as client:
            while not self._stopping.is_set():
                burst = self._random.randint(1, _BURST)
                for _ in range(burst):
                    await self._one(client)
                await self._come_back(client, time.time())
                await self._pause(self._random.uniform(0.5, 1.5) * burst * self._pause_s)
            await self._come_back(client, float("inf"))

    async def send_many(self, count: int) -> None:
        """Send some requests, one after the other."""
        async with client_of(self.door) as client:
            for _ in range(count):
                await self.send(client, self.maker.request())

    async def _pause(self, wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), wait_s)

    async def _one(self, client: httpx2.AsyncClient) -> None:
        dice = self._random.random()
        if dice < 0.01:
            await self.send(client, self.maker.bad_request())
            return
        prepared = self.maker.request()
        if dice < 0.05:
            await self.send(client, prepared, give_up_s=self._random.uniform(0.001, 0.06))
            return
        answer = await self.send(client, prepared)
        if answer is None or answer.status >= 300 or not prepared.intent.key:
            return
        if dice < 0.18:
            is_other_body = dice >= 0.14
            is_now = self._random.random() < 0.4
            due_s = time.time() + (0.0 if is_now else self._random.uniform(0.5, 20))
            self._later.append((due_s, prepared, is_other_body))

    async def _come_back(self, client: httpx2.AsyncClient, until_s: float) -> None:
        """Use the keys of acknowledged requests again: for the same, or for another body."""
        due = [one for one in self._later if one[0] <= until_s]
        self._later = [one for one in self._later if one[0] > until_s]
        for _, prepared, is_other_body in due:
            if is_other_body:
                await self.send(client, self.maker.other_body(prepared))
            else:
                await self._until_answered(client, prepared)

    async def send(
        self, client: httpx2.AsyncClient, prepared: Prepared, give_up_s: float | None = None
    ) -> Answer | None:
        """Write the intent, then send; return the final answer, None when it was given up."""
        self._log.write(prepared.intent)
        if give_up_s is None:
            return await self._until_answered(client, prepared)
        answer = await self._attempt(client, prepared, give_up_s)
        if isinstance(answer, str):
            self._log.write(GaveUp(prepared.intent.request, time.time(), was_planned=True))
            return None
        return answer

    async def _until_answered(
        self, client: httpx2.AsyncClient, prepared: Prepared
    ) -> Answer | None:
        while True:
            timeout_s = self._random.choice(self._patience_s)
            answer = await self._attempt(client, prepared, timeout_s)
            if isinstance(answer, Answer):
                return answer
            now_s = time.time()
            self._log.write(Retry(prepared.intent.request, now_s, answer))
            if self._stopping.is_set() and now_s > self._stopped_s + PATIENCE_S:
                self._log.write(GaveUp(prepared.intent.request, now_s, was_planned=False))
                return None
            await asyncio.sleep(self._random.uniform(0.02, 0.4))

    async def _attempt(
        self, client: httpx2.AsyncClient, prepared: Prepared, timeout_s: float
    ) -> Answer | str:
        """Send once; return the final answer, on file already, or why there is none."""
        sent_s = time.time()
        try:
            async with asyncio.timeout(timeout_s):
                found = await client.post(
                    self.door.url,
                    content=prepared.body,
                    headers=prepared.headers,
                    timeout=None,
                )
        except (httpx2.TransportError, TimeoutError) as error:
            return type(error).__name__
        if found.status_code == 429 or found.status_code >= 500:
            patience = "" if "retry-after" in found.headers else " without Retry-After"
            return f"{found.status_code}{patience}"
        body = (
            _Body() if found.status_code >= 300 else msgspec.json.decode(found.content, type=_Body)
        )
        answer = Answer(
            request=prepared.intent.request,
            at_s=time.time(),
            sent_s=sent_s,
            status=found.status_code,
            receipt=body.receipt,
            repeated=body.repeated,
            accepted=body.accepted,
            rejected=[one.index for one in body.rejected],
            expired=body.expired,
        )
        self._log.write(answer)
        return answer


def client_of(door: Door) -> httpx2.AsyncClient:
    """Return a client that holds the door's key."""
    headers = {"Authorization": f"Bearer {door.key}"}
    return httpx2.AsyncClient(headers=headers, trust_env=False)


async def run_all(producers: Sequence[Producer], stop: asyncio.Event) -> None:
    """Run all until `stop` is set and each has come to the end of what it began."""
    async with asyncio.TaskGroup() as tasks:
        for one in producers:
            tasks.create_task(one.run())
        await stop.wait()
        for one in producers:
            one.stop()
