"""What a collector decides, over any history: each request is stored once, and each is accounted.

A machine appends blocks whose requests senders repeat, hands entries out in any order and again,
stores batches whose answers may be lost, dies, and prunes the ledger while time passes. Buffer,
breaker, `settle` and the ledger's cutoffs are the product's; the tables are a few dictionaries.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from logweir.backends.journal import Entry
from logweir.backends.keeper_store import Horizon
from logweir.collector import breaker, buffer
from logweir.core import block, bounds, columns, ids, moments, settle
from logweir.core.names import PipelineId, TenantId
from logweir.keeper import duties

TENANT = TenantId("acme")
PIPELINE = PipelineId(1)
LABELS = (("level", "info"), ("service", "shop"))
START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
RETRY_WITHIN = timedelta(hours=72)
NUMBERS = 12


class Sent(msgspec.Struct, frozen=True):
    """A request as its sender knows it: a free key, or a producer's epoch and number, or none."""

    key: int = 0
    epoch: int = 0
    number: int = -1
    body: int = 0

    @property
    def identity(self) -> str:
        return f"k{self.key}" if self.key else f"n{self.epoch}.{self.number}"


class Tables:
    """Ledger and producers, as the store keeps them. Rows know when they were written."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, datetime] = {}
        self.requests: dict[bytes, tuple[settle.KeyedRequest, datetime]] = {}
        self.ranges: dict[int, tuple[tuple[int, int], ...]] = {}
        self.overflowed: set[int] = set()
        self.stored: Counter[str] = Counter()
        self.outcomes = settle.Outcome()
        self.horizon: datetime | None = None

    def commit(self, deliveries: list[settle.Delivery], now: datetime) -> None:
        known = self._ask(deliveries, now)
        fresh = {}
        for result in settle.settle(
            deliveries, known, now_ns=int(now.timestamp()) * 10**9, retention_days=3650
        ):
            if result.delivery.uuid not in self.blocks:
                fresh.setdefault(result.delivery.uuid, result)
        for uuid, result in fresh.items():
            self.blocks[uuid] = now
            for text in columns.split(result.records.message, result.records.n):
                self.stored[text.decode()] += result.records.n > 0
            for one in result.outcomes:
                self.outcomes = settle.Outcome(
                    *(
                        a + b
                        for a, b in zip(
                            msgspec.structs.astuple(self.outcomes),
                            msgspec.structs.astuple(one),
                            strict=True,
                        )
                    )
                )

    def _ask(self, deliveries: list[settle.Delivery], now: datetime) -> settle.Known:
        wanted = settle.keyed_requests(deliveries)
        earlier = self._add(wanted, now)
        seen = set()
        for epoch in {one.epoch for one in settle.numbers(deliveries)}:
            numbers = [one for one in settle.numbers(deliveries) if one.epoch == epoch]
            spent = settle.spend(self.ranges.get(epoch, ()), [one.sequence for one in numbers])
            self.ranges[epoch] = spent.ranges
            old = set(spent.seen)
            if spent.overflow or epoch in self.overflowed:
                self.overflowed.add(epoch)
                rest = {one.sequence for one in numbers} - old
                rows = {settle.overflow_key(b"p", epoch, one): one for one in sorted(rest)}
                found = self._add([settle.KeyedRequest(key, b"", 0, 0) for key in rows], now)
                old |= {rows[key] for key in found}
            seen |= {one for one in numbers if one.sequence in old}
        return settle.Known(earlier, frozenset(seen))

    def _add(
        self, wanted: list[settle.KeyedRequest], now: datetime
    ) -> dict[bytes, settle.KeyedRequest]:
        found = {one.key: self.requests[one.key][0] for one in wanted if one.key in self.requests}
        for one in wanted:
            self.requests.setdefault(one.key, (one, now))
        return found

    def prune(self, now: datetime) -> None:
        if self.horizon is None:
            return
        horizon = Horizon(pipeline=PIPELINE, at=self.horizon)
        cutoff = duties.cutoffs([horizon], [PIPELINE], now).by_pipeline[PIPELINE]
        assert cutoff is not None
        assert cutoff <= now - timedelta(hours=72)
        self.blocks = {key: at for key, at in self.blocks.items() if at >= cutoff}
        self.requests = {key: row for key, row in self.requests.items() if row[1] >= cutoff}


class Collecting(RuleBasedStateMachine):
    """One pipeline, its journal, and a collector that may die at any moment.

    Numbers that find no room in `most_ranges` stand in the ledger, and are known as long as keys.
    """

    most_ranges = 3

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(bounds, "MAX_PRODUCER_RANGES", self.most_ranges)
        self.now = START
        self.tables = Tables()
        self.journal: dict[str, Entry] = {}
        self.arrived: dict[str, datetime] = {}
        self.buffer = buffer.Buffer(linger_s=1.0)
        self.breaker = breaker.Breaker()
        self.first_sent: dict[str, datetime] = {}
        self.sent: list[Sent] = []
        self.accepted = 0
        self.unkeyed = 0
        self.keys = 0
        self.appended = 0

    # ---- senders -----------------------------------------------------------------------------

    @rule(
        fresh=st.lists(
            st.builds(Sent, key=st.just(1))
            | st.builds(Sent, epoch=st.integers(1, 2), number=st.integers(0, NUMBERS))
            | st.just(Sent()),
            max_size=3,
        ),
        again=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 9)), max_size=3),
    )
    def append(self, fresh: list[Sent], again: list[tuple[int, int]]) -> None:
        """A block of new requests and of repeated ones, some of them with another body."""
        known = [one for one in self.sent if self._is_known(one)]
        of = [self._new(one) for one in fresh if one.key or self._is_known(one)]
        for number, dice in again if known else ():
            one = known[number % len(known)]
            of.append(msgspec.structs.replace(one, body=int(dice == 0)) if one.key else one)
        if not of:
            return
        parts = [block.part([self._now_ns()], [0], [LABELS], [self._text(one)]) for one in of]
        self.appended += 1
        uuid = ids.uuid7(self.appended, bytes(10))
        requests = [self._request(one) for one in of]
        payload = block.encode(uuid, TENANT, PIPELINE, list(zip(requests, parts, strict=True)), {})
        entry = Entry(f"{self.appended}-0", uuid, len(of), frozenset(), payload)
        self.journal[entry.id] = entry
        self.arrived[entry.id] = self.now
        self.accepted += len(of)

    def _is_known(self, one: Sent) -> bool:
        """Whether a retry is promised to be known as one, and what is new to be new."""
        age = self.now - self.first_sent.get(one.identity, self.now)
        has_room = one.number >= 0 and self.most_ranges > NUMBERS
        return has_room or age < RETRY_WITHIN

    def _new(self, one: Sent) -> Sent:
        if one.key:
            self.keys += 1
            one = Sent(key=self.keys)
        if one.key or one.number >= 0:
            self.first_sent.setdefault(one.identity, self.now)
            if one not in self.sent:
                self.sent.append(one)
        else:
            self.unkeyed += 1
        return one

    def _text(self, one: Sent) -> str:
        return one.identity if one.key or one.number >= 0 else "no key"

    def _now_ns(self) -> int:
        return int(self.now.timestamp()) * moments.NS_PER_S

    def _request(self, one: Sent) -> block.Request:
        is_numbered = one.number >= 0
        return block.Request(
            records=1,
            expired=0,
            size_bytes=10,
            fingerprint=one.body,
            key=one.identity.encode().ljust(16) if one.key or is_numbered else b"",
            producer=b"p" * 16 if is_numbered else b"",
            epoch=one.epoch,
            sequence=max(one.number, 0),
        )

    # ---- the collector -----------------------------------------------------------------------

    @rule(picked=st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
    def hand_out(self, picked: list[int]) -> None:
        """Entries come, in any order, also again: what is held already is left out."""
        for number in picked if self.journal else ():
            entry = list(self.journal.values())[number % len(self.journal)]
            if self.buffer.holds(entry.id):
                continue
            delivery = buffer.deliver(entry, TENANT, PIPELINE)
            assert not delivery.problem
            assert self.buffer.has_room(delivery)
            self.buffer.add(entry, delivery, 0.0)

    @rule(how=st.sampled_from(["stored", "stored", "failed", "answer lost", "died after"]))
    def flush(self, how: str) -> None:
        held = list(self.buffer.entries)
        if not held:
            return
        self.breaker, count = breaker.judge(self.breaker, [False] * len(held), 0.0)
        assert count == len(held), "good blocks alone never stop a pipeline"
        if how == "failed":
            return
        oldest = min(self.arrived[one] for one in self.journal)
        self.tables.commit(self.buffer.deliveries, self.now)
        self.tables.horizon = oldest
        if how == "answer lost":
            return
        self.buffer.clear()
        if how == "stored":
            for entry in held:
                self.journal.pop(entry.id, None)

    @rule()
    def die(self) -> None:
        self.buffer = buffer.Buffer(linger_s=1.0)

    # ---- time --------------------------------------------------------------------------------

    @rule(hours=st.sampled_from([0.01, 1, 24, 71, 72, 200]))
    def pass_time(self, hours: float) -> None:
        self.now += hours * HOUR
        self.tables.prune(self.now)

    @invariant()
    def nothing_is_stored_twice(self) -> None:
        keyed = {text: count for text, count in self.tables.stored.items() if text != "no key"}
        assert not [text for text, count in keyed.items() if count > 1]
        assert self.tables.stored["no key"] <= self.unkeyed

    @invariant()
    def ranges_are_bounded(self) -> None:
        assert all(len(one) <= self.most_ranges for one in self.tables.ranges.values())

    def teardown(self) -> None:
        """Everything is drained in the end: stored once, and accounted for."""
        while self.journal:
            self.hand_out(list(range(len(self.journal))))
            self.flush("stored")
        expected = dict.fromkeys({one.identity for one in self.sent}, 1)
        keyed = {text: n for text, n in self.tables.stored.items() if text != "no key" and n}
        self.patch.undo()
        assert keyed == expected
        assert self.tables.stored["no key"] == self.unkeyed
        assert sum(msgspec.structs.astuple(self.tables.outcomes)) == self.accepted


class CollectingForEver(Collecting):
    """As long as there is room for them, numbers are known without a window."""

    most_ranges = 1024


LONG = settings(max_examples=150, stateful_step_count=40, deadline=None)
Collecting.TestCase.settings = LONG
CollectingForEver.TestCase.settings = LONG
test_whatever_happens_each_request_is_stored_once = Collecting.TestCase
test_numbers_that_have_room_are_known_for_ever = CollectingForEver.TestCase
