"""The tail's seam: whatever happens between journal, store and channel, each record comes once.

A world of blocks that are appended, published, stored and acknowledged takes turns with a hub and
with tails that join at any time. The hub reads as hub.py and missed.py do: subscribe, renew the
lease, the journal, then the store. What decides is the product's own: `Line` and `Tail`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from logweir.core import access, block, errors, ids
from logweir.core.columns import Columns
from logweir.core.names import PipelineId, TenantId
from logweir.query import blocks, plan, seam, tail
from logweir.query.params import Window
from logweir.query.seam import Due, Line
from logweir.query.tail import Tail

PIPELINE = PipelineId(1)
LABELS = (("level", "info"), ("service", "s"))
BASE_MS = 1_767_268_800_000
RECORDS = 2

STEPS = [
    *["append"] * 4,
    *["hub"] * 10,
    *["store", "store", "ack", "ack", "attach", "attach", "history", "history"],
    *["hear", "renew", "lapse", "break", "lose"],
]


def records_of(number: int) -> Columns:
    """A block's records, as the query role sees them; their messages number them."""
    uuid = ids.uuid7(BASE_MS + number, bytes(10))
    times_ns = [(BASE_MS + number) * 1_000_000 + at for at in range(RECORDS)]
    part = block.part(
        times_ns, [0] * RECORDS, [LABELS], [f"{number}.{at}" for at in range(RECORDS)]
    )
    request = block.Request(RECORDS, 0, 10, 0)
    payload = block.encode(uuid, TenantId("acme"), PIPELINE, [(request, part)], {})
    return blocks.decode(payload, frozenset())


BLOCKS = [records_of(number) for number in range(60)]
PLAN = plan.plan(
    "{}",
    Window(0, 2 * BASE_MS * 1_000_000),
    {PIPELINE: access.Pipeline(PIPELINE, "default", 3650)},
    BASE_MS * 1_000_000,
)


class Published(msgspec.Struct, frozen=True):
    number: int
    block: int


class World:
    """A pipeline's journal, store and channel, and a hub that hears it."""

    def __init__(self) -> None:
        self.appended = 0
        self.journal: list[int] = []
        self.stored: list[int] = []
        self.channel: list[Published] = []
        self.is_subscribed = False
        self.has_lease = False
        self.line = Line(0.0)
        self.now_s = 0.0
        self.tails: list[Tail] = []
        self.reading: list[tuple[Tail, Iterator[None]]] = []
        self.attached_at: dict[int, int] = {}
        self._hub = self._run()
        self._is_heard = False

    # ---- the world -------------------------------------------------------------------------

    def append(self) -> None:
        if self.appended == len(BLOCKS):
            return
        self.journal.append(self.appended)
        self.appended += 1
        if self.is_subscribed and self.has_lease:
            self.channel.append(Published(self.appended, self.appended - 1))

    def store(self) -> None:
        """A collector commits the oldest block that is not stored; it is still in the journal."""
        fresh = [one for one in self.journal if one not in self.stored]
        self.stored += fresh[:1]

    def ack(self) -> None:
        done = [one for one in self.journal if one in self.stored]
        if done:
            self.journal.remove(done[0])

    def lapse(self) -> None:
        self.has_lease = False
        self.line.renewed_s = -1e9

    def break_(self) -> None:
        """The connection is lost, and what was under way on it."""
        self.is_subscribed = False
        self.channel = []

    def lose(self) -> None:
        """A message is lost and nobody is told."""
        self.channel = self.channel[1:]

    # ---- the hub ---------------------------------------------------------------------------

    def hub(self) -> None:
        next(self._hub)

    def renew(self) -> None:
        """A renewal; its promise is looked at when nothing more comes."""
        if self.is_subscribed and self._is_heard:
            self.has_lease = True
            self.line.renewed(Due(self.appended, self.now_ms(), self.now_s))

    def now_ms(self) -> int:
        return BASE_MS + self.appended

    def _run(self) -> Iterator[None]:
        while True:
            self._is_heard = False
            self.channel, self.is_subscribed = [], True
            yield
            yield from self._catch_up()
            while self.is_subscribed:
                if self.line.renewed_s < 0:
                    yield from self._catch_up()
                if self.channel:
                    yield from self._hear(self.channel.pop(0))
                elif not self.line.settle(self.now_s, is_idle=True):
                    break
                yield

    def hear(self) -> None:
        self.now_s += seam.LATE_S
        self.hub()

    def _hear(self, found: Published) -> Iterator[None]:
        if not self.line.is_next(found.number) and self.line.is_new(short(found.block)):
            yield from self._catch_up()
        self.line.hear(found.number)
        self._offer(found.block)

    def _offer(self, number: int) -> None:
        if not self.line.is_new(short(number)):
            return
        self.line.remember(short(number))
        for one in self.tails:
            rows = blocks.matching_rows(PLAN, PIPELINE, BLOCKS[number])
            one.offer(blocks.Rows(PIPELINE, BLOCKS[number], rows))

    def _catch_up(self) -> Iterator[None]:
        self._is_heard = False
        self.line.renewed_s, at_ms = self.now_s, self.now_ms()
        self.has_lease, number = True, self.appended
        is_first = self.line.heard_ms is None
        yield
        for one in self._missed():
            if one is None:
                yield
            elif is_first:
                self.line.remember(short(one))
            else:
                self._offer(one)
        self.line.caught_up(number, at_ms)
        self._is_heard = True

    def _missed(self) -> Iterator[int | None]:
        """What missed.py reads: rounds of the journal, then the store; stored blocks first."""
        newest = max(self.journal, default=-1)
        first, seen = 0, set[int]()
        while True:
            entries = [one for one in self.journal if first <= one <= newest][:2]
            yield from [None] * 3
            fresh = sorted(set(self.stored) - seen)
            seen |= set(fresh)
            yield from (one for one in fresh if self.line.is_new(short(one)))
            yield from entries
            if not entries:
                return
            first = entries[-1] + 1
            yield None

    # ---- tails -----------------------------------------------------------------------------

    def attach(self) -> None:
        if self._is_heard and len(self.tails) < 4:
            made = Tail(PLAN)
            self.attached_at[id(made)] = self.appended
            self.tails.append(made)
            self.reading.append((made, self._history(made)))

    def history(self) -> None:
        if self.reading:
            found, reading = self.reading[0]
            if next(reading, "end") == "end":
                self.reading.remove((found, reading))

    def _history(self, made: Tail) -> Iterator[None]:
        """The last lines: the journal, then the store, in one order."""
        entries = list(self.journal)
        yield
        both = sorted(set(entries) | set(self.stored))
        made.begin([record for one in both for record in whole(one)])

    def finish(self) -> None:
        """Let all come to its end."""
        while self.reading:
            self.history()
        for _ in range(3):
            for _ in range(400):
                self.hear()
            self.renew()
        for _ in range(400):
            self.hear()


def short(number: int) -> int:
    return int(BLOCKS[number].block[0])


def whole(number: int) -> list:
    rows = blocks.matching_rows(PLAN, PIPELINE, BLOCKS[number])
    return blocks.Rows(PIPELINE, BLOCKS[number], rows).records(PLAN)


async def shown(of: Tail) -> tuple[list[str], list[str], int]:
    """The messages of the history, the live ones, and how many were declared missed."""
    of.fail(errors.UnavailableError("the end"))
    parts: list[list[str]] = [[], []]
    missed = is_live = 0
    with contextlib.suppress(errors.UnavailableError):
        async for frame in of.frames():
            found = msgspec.json.decode(frame)
            is_live |= frame == tail.LIVE_FRAME
            missed += found.get("gap", {}).get("records", 0)
            parts[is_live] += [one["message"] for one in found.get("records", [])]
    return parts[0], parts[1], missed


def run(steps: list[str]) -> World:
    world = World()
    for step in steps:
        getattr(world, "break_" if step == "break" else step)()
    world.finish()
    return world


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(st.lists(st.sampled_from(STEPS), min_size=60, max_size=140), st.sampled_from([10_000, 3]))
@example(["hub"] * 6 + ["append", "attach", "append", "store", "history", "ack", "history"], 10_000)
@example(
    ["hub"] * 6 + ["attach", "append", "break", "append", "hub", "store", "ack", "hub"], 10_000
)
async def test_each_record_is_shown_once_and_in_order_or_declared_missed(steps, room):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail, "QUEUE_RECORDS", room)
        world = run(steps)
    everything = [f"{number}.{at}" for number in range(world.appended) for at in range(RECORDS)]
    for one in world.tails:
        history, live, missed = await shown(one)

        both = history + live
        assert len(set(both)) == len(both), "twice"
        assert len(both) + missed == len(everything), "in silence"
        assert room == 3 or both == everything, "in order"
        assert live == sorted(live, key=everything.index)


def test_more_blocks_than_are_remembered_forget_the_oldest(monkeypatch):
    monkeypatch.setattr(seam, "RECENT_BLOCKS", 3)
    line = Line(0.0)
    for number in range(5):
        line.remember(number)

    assert [line.is_new(number) for number in range(5)] == [True, True, False, False, False]


def test_what_was_counted_and_does_not_come_in_time_is_noticed():
    line = Line(0.0)
    line.caught_up(3, 100)
    line.renewed(Due(4, 200, 1.0))

    assert line.settle(5.9, is_idle=True)
    assert line.settle(6.0, is_idle=False), "while others come, it may"
    assert not line.settle(6.0, is_idle=True)


def test_a_line_is_heard_as_far_as_its_last_kept_promise():
    line = Line(0.0)
    line.renewed(Due(2, 200, 1.0))
    line.hear(1)
    assert line.settle(2.0, is_idle=True)
    assert line.heard_ms is None

    line.hear(2)

    assert line.settle(2.0, is_idle=True)
    assert line.heard_ms == 200
