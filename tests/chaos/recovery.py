"""How long after a fault all is well again: fresh records are acknowledged, then found stored.

    fault over -> a request of a prober, again until it is acknowledged -> its receipt: stored

Probers send only while some fault waits to be recovered from. Their records are numbered like all
others and judged with them. Faults overlap, so a time can have another fault in it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import httpx2
import msgspec
from chaos.faults import Done
from chaos.history import Answer
from chaos.producer import Producer, client_of
from chaos.standing import Up

EDGES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
POLL_S = 0.1
STORED_S = 5.0
"""How long a prober waits for one record, before it asks with another. A block of a collector that
never comes back is taken over after 90 s: all probers would wait for it, and measure nothing."""


class _State(msgspec.Struct):
    state: str = ""


class Recovery:
    """Follows faults.

    Args:
        up: the installation.
        probers: each has one request on its way at a time.
        give_up_s: what was not recovered from after so long counts as if it never were.
    """

    def __init__(self, up: Up, probers: Sequence[Producer], give_up_s: float) -> None:
        self._up, self._probers, self._give_up_s = up, probers, give_up_s
        self._waiting: list[Done] = []
        self._asked, self._stopping = asyncio.Event(), False

    def follow(self, one: Done) -> None:
        """Measure how long it takes from now on."""
        self._waiting.append(one)
        self._asked.set()

    def stop(self) -> None:
        """End as soon as no fault waits any more."""
        self._stopping = True
        self._asked.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for one in self._probers:
                tasks.create_task(self._probe(one))

    async def _probe(self, prober: Producer) -> None:
        async with client_of(prober.door) as client:
            while True:
                self._forget(time.time())
                if not self._waiting:
                    if self._stopping:
                        return
                    self._asked.clear()
                    await self._asked.wait()
                    continue
                answer = await prober.send(client, prober.maker.request())
                if answer is None or answer.status >= 300:
                    continue
                self._note("acked_s", answer.sent_s, answer.at_s)
                if await self._is_stored(answer):
                    self._note("stored_s", answer.sent_s, time.time())

    def _note(self, what: str, sent_s: float, at_s: float) -> None:
        """What was sent after a fault's end has shown that it is over."""
        for one in self._waiting:
            if one.end_s is not None and one.end_s <= sent_s and getattr(one, what) is None:
                setattr(one, what, at_s - one.end_s)

    def _forget(self, now_s: float) -> None:
        self._waiting = [
            one
            for one in self._waiting
            if one.stored_s is None and now_s - (one.end_s or now_s) < self._give_up_s
        ]

    async def _is_stored(self, answer: Answer) -> bool:
        url = f"{self._up.shown().url}/api/v1/receipts/{answer.receipt}"
        headers = {"Authorization": f"Bearer {self._up.place.query_key}"}
        deadline_s = time.monotonic() + STORED_S
        async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=3) as client:
            while time.monotonic() < deadline_s:
                try:
                    found = await client.get(url)
                    state = msgspec.json.decode(found.content, type=_State).state
                except (httpx2.TransportError, msgspec.MsgspecError):
                    state = ""
                if state not in ("", "buffered", "unknown"):
                    return True
                await asyncio.sleep(POLL_S)
        return False


def lost(done: Iterable[Done]) -> list[str]:
    """Name the faults that nothing has recovered from."""
    return [f"{one.kind} at {one.at_s:.2f}" for one in done if one.stored_s is None]


def table(done: Sequence[Done]) -> list[str]:
    """Faults by kind: how many, and how many of them needed how long until stored."""
    heads = [f"<{edge:g}" for edge in EDGES_S] + ["more"]
    lines = [
        "| fault | n | longest to an ack, s | longest to stored, s | " + " | ".join(heads) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(heads),
    ]
    kinds = sorted({one.kind for one in done})
    for kind in [*kinds, ""]:
        some = [one for one in done if kind in ("", one.kind)]
        acked = max((one.acked_s for one in some if one.acked_s is not None), default=0.0)
        stored = [one.stored_s for one in some if one.stored_s is not None]
        cells = histogram(stored)
        lines.append(
            f"| {kind or 'all'} | {len(some)} | {acked:.1f} | {max(stored, default=0.0):.1f} | "
            + " | ".join(str(cells[place] or "") for place in range(len(heads)))
            + " |"
        )
    return lines


def histogram(times_s: Iterable[float]) -> Counter[int]:
    """Count times by the place of their bucket."""
    return Counter(sum(time_s >= edge for edge in EDGES_S) for time_s in times_s)
