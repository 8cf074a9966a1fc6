"""What becomes of delivered blocks, as laws over any order and repetition of deliveries."""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec
import pytest
from generated import Row, to_columns, to_rows
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logweir.core import block, bounds, ids, moments, settle
from logweir.core.names import PipelineId, TenantId

NOW_NS = 1_767_268_800_000_000_000
FRESH_NS = NOW_NS
STALE_NS = NOW_NS - 31 * moments.NS_PER_DAY
LABELS = (("level", "info"), ("service", "shop"))


class Sent(msgspec.Struct, frozen=True):
    """One request of a test: its key (a letter), or number of a producer; its body (a letter)."""

    key: str = ""
    number: int | None = None
    body: str = "a"
    fresh: int = 1
    stale: int = 0
    expired: int = 0

    @property
    def name(self) -> object:
        """What makes it the same as another; None: nothing does."""
        return self.key or self.number

    @property
    def accepted(self) -> int:
        return self.fresh + self.stale + self.expired


SENT = st.builds(
    Sent,
    key=st.sampled_from(["", "k", "l"]),
    body=st.sampled_from("ab"),
    fresh=st.integers(0, 2),
    stale=st.integers(0, 2),
    expired=st.integers(0, 2),
) | st.builds(Sent, number=st.integers(0, 2), body=st.sampled_from("ab"), fresh=st.integers(0, 2))
BLOCKS = st.lists(st.lists(SENT, max_size=3), min_size=1, max_size=4)


def key_bytes(text: str) -> bytes:
    return text.encode().ljust(16, b"\0")


def request(of: Sent) -> block.Request:
    is_numbered = of.number is not None
    return block.Request(
        records=of.fresh + of.stale,
        expired=of.expired,
        size_bytes=100 * of.accepted,
        fingerprint=ord(of.body),
        key=key_bytes(f"n{of.number}") if is_numbered else key_bytes(of.key) if of.key else b"",
        producer=bytes(16) if is_numbered else b"",
        epoch=1 if is_numbered else 0,
        sequence=of.number or 0,
    )


def deliver(number: int, sent: list[Sent]) -> settle.Delivery:
    """The block of so many a number, as it is delivered; its messages name their request."""
    parts = []
    for at, one in enumerate(sent):
        times = [FRESH_NS] * one.fresh + [STALE_NS] * one.stale
        messages = [f"{number}.{at}.{record}" for record in range(len(times))]
        parts.append(block.part(times, [0] * len(times), [LABELS], messages))
    uuid = ids.uuid7(number, bytes(10))
    payload = block.encode(
        uuid,
        TenantId("acme"),
        PipelineId(1),
        [(request(one), part) for one, part in zip(sent, parts, strict=True)],
        {},
    )
    header, records = block.decode(payload)
    return settle.Delivery(f"{number}-0", uuid, header.accepted, payload, header, records)


def settled(deliveries, known: settle.Known = settle.Known()) -> list[settle.BlockResult]:
    return settle.settle(deliveries, known, now_ns=NOW_NS, retention_days=30)


class Ledger:
    """What the store's tables do, in a few lines: they remember keys, numbers and blocks."""

    def __init__(self) -> None:
        self._keys: dict[bytes, settle.KeyedRequest] = {}
        self._numbers: set[settle.Number] = set()
        self._blocks: set[bytes] = set()

    def commit(self, deliveries: list[settle.Delivery]) -> list[settle.BlockResult]:
        """Settle and store a batch; return the results of blocks that were not stored before."""
        wanted = settle.keyed_requests(deliveries)
        numbers = settle.numbers(deliveries)
        known = settle.Known(
            {one.key: self._keys[one.key] for one in wanted if one.key in self._keys},
            frozenset(self._numbers.intersection(numbers)),
        )
        self._keys = {one.key: one for one in wanted} | self._keys
        self._numbers.update(numbers)
        fresh = {}
        for result in settled(deliveries, known):
            if result.delivery.uuid not in self._blocks:
                fresh.setdefault(result.delivery.uuid, result)
        self._blocks.update(fresh)
        return list(fresh.values())


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[Sent]], list[list[int]]]:
    """Blocks, and the batches in which they are delivered: in any order, any number of times, but
    each at least once."""
    blocks = draw(BLOCKS)
    numbers = st.integers(0, len(blocks) - 1)
    batches = draw(st.lists(st.lists(numbers, min_size=1, max_size=4), max_size=4))
    return blocks, [*batches, draw(st.permutations(range(len(blocks))))]


def run(history) -> list[settle.BlockResult]:
    blocks, batches = history
    deliveries = [deliver(number, sent) for number, sent in enumerate(blocks)]
    ledger = Ledger()
    return [
        result
        for batch in batches
        for result in ledger.commit([deliveries[number] for number in batch])
    ]


def sent_of(history, results) -> list[tuple[Sent, settle.Outcome]]:
    """Each request of the results, in the order in which they were settled, with its outcome."""
    blocks, _ = history
    return [
        (sent, outcome)
        for result in results
        for sent, outcome in zip(
            blocks[ids.time_ms(result.delivery.uuid)], result.outcomes, strict=True
        )
    ]


@settings(max_examples=150)
@given(histories())
def test_outcomes_sum_to_what_was_accepted(history):
    results = run(history)

    assert sorted(result.delivery.uuid for result in results) == sorted(
        deliver(number, sent).uuid for number, sent in enumerate(history[0])
    )
    for sent, outcome in sent_of(history, results):
        assert sum(msgspec.structs.astuple(outcome)) == sent.accepted


@settings(max_examples=150)
@given(histories())
def test_of_every_key_one_request_is_stored_and_no_other(history):
    results = run(history)

    stored: dict[object, list[str]] = {}
    for result in results:
        sent = history[0][ids.time_ms(result.delivery.uuid)]
        for row in to_rows(result.records):
            number, at, _ = row.message.split(".")
            stored.setdefault(sent[int(at)].name or (number, at), []).append(row.message)
    by_name: dict[object, set[str]] = {
        name: {message.rpartition(".")[0] for message in messages}
        for name, messages in stored.items()
    }
    assert all(len(requests) == 1 for requests in by_name.values())
    assert all(len(messages) == len(set(messages)) for messages in stored.values())


@settings(max_examples=150)
@given(histories())
def test_the_first_of_a_key_is_new_and_later_ones_are_repeats_or_conflicts(history):
    results = run(history)

    first: dict[object, Sent] = {}
    for sent, outcome in sent_of(history, results):
        before = (
            first.setdefault(sent.name, sent) if sent.name is not None and sent.name != "" else sent
        )
        if before is sent:
            assert outcome == settle.Outcome(stored=sent.fresh, expired=sent.stale + sent.expired)
        elif before.body == sent.body:
            assert outcome == settle.Outcome(repeated=sent.accepted)
        else:
            # Of a producer's number the body is known only within a batch.
            assert outcome.stored == outcome.expired == 0
            assert sent.number is not None or outcome.quarantined == sent.accepted


@settings(max_examples=150)
@given(histories())
def test_what_is_stored_is_what_the_outcomes_say(history):
    for result in run(history):
        stored = sum(outcome.stored for outcome in result.outcomes)

        assert result.records.n == stored
        assert all(row.time_ns == FRESH_NS for row in to_rows(result.records))


@settings(max_examples=150)
@given(histories())
def test_every_conflict_is_kept_for_people(history):
    for result in run(history):
        conflicts = [at for at, outcome in enumerate(result.outcomes) if outcome.quarantined]
        kept = {row.request_index: row for row in result.quarantine}

        assert set(conflicts) <= set(kept)
        for at in conflicts:
            sent = history[0][ids.time_ms(result.delivery.uuid)][at]
            lines = kept[at].payload.splitlines()
            assert (kept[at].reason, len(lines)) == ("key_conflict", sent.fresh + sent.stale)


@given(BLOCKS)
def test_a_batch_that_was_not_committed_is_settled_as_if_it_had_never_been(blocks):
    deliveries = [deliver(number, sent) for number, sent in enumerate(blocks)]

    first, second = settled(deliveries), settled(deliveries)

    assert [result.outcomes for result in first] == [result.outcomes for result in second]


def test_a_block_that_is_delivered_twice_is_all_repeats_where_it_has_keys():
    delivery = deliver(1, [Sent(key="k"), Sent(number=1)])

    first, second = settled([delivery, delivery])

    assert first.outcomes == (settle.Outcome(stored=1), settle.Outcome(stored=1))
    assert second.outcomes == (settle.Outcome(repeated=1), settle.Outcome(repeated=1))


def test_a_number_counts_also_without_a_key():
    delivery = deliver(1, [Sent(number=1)])
    bare = msgspec.structs.replace(delivery.header.requests[0], key=b"")
    delivery = msgspec.structs.replace(
        delivery, header=msgspec.structs.replace(delivery.header, requests=(bare,))
    )
    known = settle.Known(seen=frozenset(settle.numbers([delivery])))

    (result,) = settled([delivery], known)

    assert result.outcomes == (settle.Outcome(repeated=1),)


def test_bytes_are_counted_for_the_records_that_are_stored():
    (result,) = settled([deliver(1, [Sent(fresh=1, stale=2, expired=1), Sent(fresh=2)])])

    assert result.raw_bytes == 100 + 200


def test_what_cannot_be_read_is_quarantined_whole():
    delivery = settle.Delivery("1-0", bytes(16), 12, b"payload", problem="undecodable: x")

    (result,) = settled([delivery])

    assert result.outcomes == (settle.Outcome(quarantined=12),)
    assert result.quarantine == (settle.Quarantined(bytes(16), -1, "undecodable: x", b"payload"),)
    assert result.records.n == 0


def test_of_a_block_that_the_store_refuses_each_request_has_its_outcome_and_its_key():
    whole = deliver(1, [Sent(key="k"), Sent(number=1), Sent(key="l")])
    refused = msgspec.structs.replace(whole, records=None, problem="refused by the store: x")
    again = deliver(2, [Sent(key="k"), Sent(number=1), Sent(key="m")])
    known = settle.Known(earlier={one.key: one for one in settle.keyed_requests([whole])[1:]})

    first, second = settled([refused, again], known)

    new, old = settle.Outcome(quarantined=1), settle.Outcome(repeated=1)
    assert sorted(map(str, first.outcomes)) == sorted(map(str, (new, new, old)))
    assert second.outcomes[1:] == (old, settle.Outcome(stored=1))
    assert [one.request_index for one in first.quarantine] == [-1]


def test_a_record_exactly_as_old_as_the_retention_is_stored():
    oldest_ns = NOW_NS - 30 * moments.NS_PER_DAY
    delivery = deliver(1, [Sent(fresh=2)])
    rows = [
        Row(time_ns, 1, at, LABELS, "m") for at, time_ns in enumerate([oldest_ns, oldest_ns - 1])
    ]

    (result,) = settled([msgspec.structs.replace(delivery, records=to_columns(rows))])

    assert result.outcomes == (settle.Outcome(stored=1, expired=1),)


def test_keys_are_asked_for_in_one_order_by_all():
    deliveries = [deliver(1, [Sent(key="l"), Sent(key="k"), Sent(key="l")])]

    asked = settle.keyed_requests(deliveries)

    assert [one.key for one in asked] == [key_bytes("k"), key_bytes("l")]
    assert [one.index for one in asked] == [1, 0]


def test_a_conflict_can_be_read_and_sent_again():
    row = Row(
        -5, 1, 0, LABELS, "first\nsecond ä", "ab", "cd", attributes=b'{"a":1}', extra=b"{}", flags=1
    )

    payload = settle.ndjson(to_columns([row, Row(1, 1, 1, (), "")]))

    assert [msgspec.json.decode(line) for line in payload.splitlines()] == [
        {
            "timestamp": "-5",
            "labels": {"level": "info", "service": "shop"},
            "message": "first\nsecond ä",
            "trace_id": "ab",
            "span_id": "cd",
            "attributes": {"a": 1},
        },
        {
            "timestamp": "1",
            "labels": {},
            "message": "",
            "trace_id": "",
            "span_id": "",
            "attributes": {},
        },
    ]


# ---- a producer's numbers --------------------------------------------------------------------


def numbers_in(ranges) -> set[int]:
    return {number for low, high in ranges for number in range(low, high)}


@settings(max_examples=300)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=8), st.sampled_from([1, 3, 1024])
)
@example([[0, 2, 4, 6, 9], [1, 3, 5], [9]], 4)
@example([[0, 2, 4, 6, 9], [8], [7, 9]], 5)
def test_no_number_is_ever_taken_for_new_twice(batches, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "MAX_PRODUCER_RANGES", most)
        ranges: tuple[tuple[int, int], ...] = ()
        ledger: set[int] = set()
        ever: set[int] = set()
        for wanted in batches:
            spent = settle.spend(ranges, wanted)
            # Once there was an overflow, the ledger is asked for all that ranges do not know.
            asked = set(wanted) - spent.seen if ledger or spent.overflow else set()
            seen = spent.seen | (asked & ledger)

            assert seen == ever & set(wanted)
            ranges = spent.ranges
            ledger |= asked
            ever |= set(wanted)


@settings(max_examples=300)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=8), st.sampled_from([1, 3, 1024])
)
def test_ranges_hold_what_they_held_and_what_found_room(batches, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "MAX_PRODUCER_RANGES", most)
        ranges: tuple[tuple[int, int], ...] = ()
        for wanted in batches:
            before = numbers_in(ranges)

            spent = settle.spend(ranges, wanted)
            ranges = spent.ranges

            assert spent.seen == before & set(wanted)
            assert numbers_in(ranges) == (before | set(wanted)) - spent.overflow
            assert all(low < high for low, high in ranges)
            assert all(a[1] < b[0] for a, b in itertools.pairwise(ranges))
            assert len(ranges) <= most


def test_numbers_without_room_are_reported():
    full = tuple((2 * at, 2 * at + 1) for at in range(bounds.MAX_PRODUCER_RANGES))

    spent = settle.spend(full, [0, 1, 5001, 9000])

    assert (spent.seen, spent.overflow) == ({0}, {9000})
    assert numbers_in(spent.ranges) == numbers_in(full) | {1, 5001}


def test_numbers_in_a_row_are_one_range():
    assert settle.spend([(0, 5), (6, 9)], [5, 9, 3]) == settle.Spent(
        ((0, 10),), frozenset({3}), frozenset()
    )


def test_a_number_without_room_has_a_key_of_its_own():
    keys = Counter(
        settle.overflow_key(producer, epoch, sequence)
        for producer in (bytes(16), b"\1" * 16)
        for epoch in (1, 11)
        for sequence in (1, 11)
    )

    assert len(keys) == 8
    assert {len(key) for key in keys} == {16}
