"""The ledgers' windows on a real store: 72 hours of keys, 90 days of producers, 1,024 ranges."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import draining
import pytest
from builders import delivered, encode, record, request
from keeping import keeper_store

from logweir.core import bounds, columns, segment, settle
from logweir.keeper import duties

PRODUCER = b"p" * 16
STEPS = 60
HOUR = timedelta(hours=1)


def block_of(tenant, texts: Sequence[str]) -> settle.Delivery:
    """A block of one request a text: `n<epoch>.<number>` of a producer, or a free key."""
    requests = []
    for text in texts:
        fields = {}
        if text.startswith("n"):
            epoch, number = map(int, text[1:].split("."))
            fields = {"producer": PRODUCER, "epoch": epoch, "sequence": number}
        requests.append(request([record(text)], key=text, fingerprint=1, **fields))
    return delivered(encode(tenant.id, tenant.pipeline, requests))


async def commit(tenant, door, of: Sequence[settle.Delivery]) -> None:
    now_ns = time.time_ns()
    await door.commit(
        tenant.pipeline,
        of,
        now_ns=now_ns,
        retention_days=30,
        oldest_pending_ms=now_ns // 1_000_000,
    )


def stored(tenant) -> Counter[str]:
    found = [segment.decode(one) for _, one in draining.segments(tenant)]
    return Counter(text.decode() for one in found for text in columns.split(one.message, one.n))


def pass_time(tenant, by: timedelta) -> None:
    """All that stands in the ledgers becomes older."""
    draining.rows(tenant, "update ledger set at = at - %s::interval", [by])
    draining.rows(tenant, "update producers set last_at = last_at - %s::interval", [by])
    draining.rows(
        tenant,
        "update usage set at = at - %s::interval, oldest_pending_at = oldest_pending_at - %s",
        [by, by],
    )


async def keep(tenant, door) -> None:
    """Prune as the keeper does."""
    now = datetime.now(UTC)
    cut = duties.cutoffs(await door.horizons(), [tenant.pipeline], now)
    for first in range(0, await door.ledger_pages() + 1, 1000):
        await door.prune_ledger(first, cut.by_pipeline, cut.others)
    await door.prune_producers(now - duties.PRODUCER_KEPT)


class Senders:
    """Texts that are sent, and sent again as long as they are promised to be known.

    Numbers that find no room in the ranges are known as long as keys.
    """

    def __init__(self, seed: int, *, has_room: bool) -> None:
        self.has_room = has_room
        self.numbers = [0, 0]
        self.chance = random.Random(seed)
        self.now = timedelta()
        self.sent: dict[str, timedelta] = {}

    def some(self) -> list[str]:
        return [self._one() for _ in range(self.chance.randint(1, 8))]

    def _one(self) -> str:
        chance = self.chance
        again = [one for one in self.sent if self._is_known(one)]
        if again and chance.random() < 0.4:
            found = chance.choice(again)
        elif chance.random() < 0.6:
            epoch = chance.randrange(2)
            self.numbers[epoch] += chance.choice([1, 1, 2])
            found = f"n{epoch}.{self.numbers[epoch]}"
        else:
            found = f"key {len(self.sent)}"
        self.sent.setdefault(found, self.now)
        return found

    def _is_known(self, text: str) -> bool:
        is_kept = self.has_room and text.startswith("n")
        return is_kept or self.now - self.sent[text] < timedelta(hours=71)


@pytest.mark.parametrize("most", [5, 1024])
@pytest.mark.parametrize("seed", range(2))
async def test_each_request_is_stored_once_within_its_window(tenant, seed, most, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_PRODUCER_RANGES", most)
    senders, chance = Senders(seed, has_room=most == 1024), random.Random(-seed)
    doors, keeper = (tenant.store(), tenant.store()), keeper_store(tenant)
    accepted = 0
    delivered_before: list[settle.Delivery] = []
    for _ in range(STEPS):
        fresh = [block_of(tenant, senders.some()) for _ in range(chance.randint(1, 3))]
        accepted += sum(one.accepted for one in fresh)
        old = chance.sample(delivered_before, min(len(delivered_before), chance.randrange(3)))
        await asyncio.gather(*(commit(tenant, door, [*fresh, *old]) for door in doors))
        delivered_before = [*delivered_before, *fresh][-10:]
        if chance.random() < 0.3:
            by = chance.choice([1, 30, 73, 24 * 20]) * HOUR
            senders.now += by
            if by > HOUR:
                delivered_before = []  # the journal is drained: none of them comes again
            pass_time(tenant, by)
            await keep(tenant, keeper)

    assert stored(tenant) == dict.fromkeys(senders.sent, 1)
    ranges = draining.rows(tenant, "select seen, has_overflow from producers order by epoch")
    assert all(len(seen) <= most for seen, _ in ranges)
    assert any(has_overflow for _, has_overflow in ranges) == (most == 5)
    counted = draining.usage(tenant)
    counted.pop("requests")
    assert sum(counted.values()) == accepted


async def test_numbers_beyond_all_ranges_are_known_all_the_same(tenant):
    door = tenant.store()
    odd = [f"n1.{2 * number}" for number in range(bounds.MAX_PRODUCER_RANGES + 60)]
    between = [f"n1.{2 * number + 1}" for number in range(bounds.MAX_PRODUCER_RANGES + 60)]
    await commit(tenant, door, [block_of(tenant, odd)])
    [(seen, has_overflow)] = draining.rows(tenant, "select seen, has_overflow from producers")
    assert (len(seen), has_overflow) == (bounds.MAX_PRODUCER_RANGES, True)

    await commit(tenant, door, [block_of(tenant, odd)])
    await commit(tenant, door, [block_of(tenant, between)])
    await commit(tenant, door, [block_of(tenant, [*between, *odd])])

    assert stored(tenant) == dict.fromkeys([*odd, *between], 1)
    [(seen,)] = draining.rows(tenant, "select seen from producers")
    assert len(seen) < 70


async def test_the_windows_end_when_they_are_promised_to(tenant):
    door, keeper = tenant.store(), keeper_store(tenant)
    of = block_of(tenant, ["key 1", "n1.1"])
    for days in (2.9, 2.9, 87.0, 91.0):
        await commit(tenant, door, [of])
        pass_time(tenant, timedelta(days=days))
        await commit(tenant, door, [block_of(tenant, ["a newer one"])])
        await keep(tenant, keeper)

    keys = draining.value(tenant, "select count(*) from ledger where kind = 'r'")
    producers = draining.value(tenant, "select count(*) from producers")
    assert (keys, producers) == (1, 0), "the newer one's alone"
