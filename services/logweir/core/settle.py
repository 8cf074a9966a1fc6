"""What becomes of delivered blocks: which requests are new, which records are stored. Pure.

    Delivery... + what the ledger knows -> settle() -> Settled (outcomes, records, quarantine)

The ledger is asked in the transaction that stores the records, so its answer is the truth. The
same block can be delivered again, and the same request can stand in two blocks; each is stored
once. Numbers of producers are remembered as ranges (`spend`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from logweir.core import block, bounds, columns, moments
from logweir.core.columns import Columns


class Delivery(msgspec.Struct, frozen=True, eq=False):
    """One entry of the stream. `problem` says why it cannot be stored: a block that cannot be read
    has no `header` either, of one that the store refuses `records` alone are missing.

    `accepted` counts the records that the block accounts for, `uuid` is the block's (16 bytes),
    `repeats` are indexes of requests that the journal knew when it took the block.
    """

    entry_id: str
    uuid: bytes
    accepted: int
    payload: bytes
    header: block.Header | None = None
    records: Columns | None = None
    problem: str = ""
    repeats: frozenset[int] = frozenset()


class KeyedRequest(msgspec.Struct, frozen=True):
    """A request with a free-form key, as the ledger stores it."""

    key: bytes
    block: bytes
    index: int
    fingerprint: int


class Number(msgspec.Struct, frozen=True, order=True):
    """A producer's number: 16 bytes of UUID, epoch, sequence."""

    producer: bytes
    epoch: int
    sequence: int


class Known(msgspec.Struct, frozen=True):
    """What the ledgers say: rows that stood there before, by key; numbers seen before."""

    earlier: Mapping[bytes, KeyedRequest] = {}
    seen: frozenset[Number] = frozenset()


class Outcome(msgspec.Struct, frozen=True):
    """Records of one request by what became of them; their sum is what was accepted."""

    stored: int = 0
    quarantined: int = 0
    expired: int = 0
    repeated: int = 0


class Quarantined(msgspec.Struct, frozen=True):
    """Something that cannot be stored as records, kept for people to look at."""

    block: bytes
    request_index: int
    reason: str
    payload: bytes


class BlockResult(msgspec.Struct, frozen=True, eq=False):
    """What one delivery comes to. `records` are those to store, of `raw_bytes` decoded bytes."""

    delivery: Delivery
    outcomes: tuple[Outcome, ...]
    records: Columns
    raw_bytes: int
    quarantine: tuple[Quarantined, ...] = ()


def keyed_requests(deliveries: Sequence[Delivery]) -> list[KeyedRequest]:
    """Return the first use of each free-form key, sorted by key (so that two writers never lock
    each other in a circle)."""
    first: dict[bytes, KeyedRequest] = {}
    for delivery in deliveries:
        for index, request in enumerate(delivery.header.requests if delivery.header else ()):
            if request.key and not request.producer and request.key not in first:
                first[request.key] = KeyedRequest(
                    request.key, delivery.uuid, index, request.fingerprint
                )
    return [first[key] for key in sorted(first)]


def numbers(deliveries: Sequence[Delivery]) -> list[Number]:
    """Return the producers' numbers of these blocks, sorted, each once."""
    found = {
        Number(request.producer, request.epoch, request.sequence)
        for delivery in deliveries
        for request in (delivery.header.requests if delivery.header else ())
        if request.producer
    }
    return sorted(found)


def overflow_key(producer: bytes, epoch: int, sequence: int) -> bytes:
    """Return the ledger key of a number that found no room in its producer's ranges."""
    what = b"p1\0%b\0%d\0%d" % (producer, epoch, sequence)
    return hashlib.blake2b(what, digest_size=16).digest()


class Spent(msgspec.Struct, frozen=True):
    """What numbers do to one producer's ranges: the new ranges, what was seen, what overflows.

    `overflow` are numbers that found no room in the ranges; the ledger's rows must hold them. From
    then on the ledger is asked for every number that is not seen: ranges that have room again
    know nothing of those that had none.
    """

    ranges: tuple[tuple[int, int], ...]
    seen: frozenset[int]
    overflow: frozenset[int]


def spend(ranges: Sequence[tuple[int, int]], wanted: Sequence[int]) -> Spent:
    """Add numbers to sorted, disjoint, half-open ranges, never to more than the bound of them."""
    current = list(ranges)
    seen, overflow = set(), set()
    for number in sorted(set(wanted)):
        place = _place(current, number)
        if place < len(current) and current[place][0] <= number:
            seen.add(number)
        elif not _grow(current, place, number):
            overflow.add(number)
    return Spent(tuple(current), frozenset(seen), frozenset(overflow))


def _place(ranges: Sequence[tuple[int, int]], number: int) -> int:
    """The first range that ends after the number."""
    low, high = 0, len(ranges)
    while low < high:
        middle = (low + high) // 2
        if ranges[middle][1] <= number:
            low = middle + 1
        else:
            high = middle
    return low


def _grow(ranges: list[tuple[int, int]], place: int, number: int) -> bool:
    """Put a new number in, joined to its neighbours; false when there is no room."""
    joins_left = place > 0 and ranges[place - 1][1] == number
    joins_right = place < len(ranges) and ranges[place][0] == number + 1
    if joins_left and joins_right:
        ranges[place - 1 : place + 1] = [(ranges[place - 1][0], ranges[place][1])]
    elif joins_left:
        ranges[place - 1] = (ranges[place - 1][0], number + 1)
    elif joins_right:
        ranges[place] = (number, ranges[place][1])
    elif len(ranges) < bounds.MAX_PRODUCER_RANGES:
        ranges.insert(place, (number, number + 1))
    else:
        return False
    return True


def settle(
    deliveries: Sequence[Delivery], known: Known, *, now_ns: int, retention_days: int
) -> list[BlockResult]:
    """Return what each delivery comes to, in their order.

    A request is repeated when the ledger knew its key or number before, or an earlier request of
    these deliveries has it. The same key with another fingerprint is a conflict: quarantined.
    """
    oldest_ns = now_ns - retention_days * moments.NS_PER_DAY
    used: dict[object, KeyedRequest] = {}
    results = []
    for delivery in deliveries:
        if delivery.header is None:
            outcomes = (Outcome(quarantined=delivery.accepted),)
            results.append(_quarantined(delivery, outcomes))
        elif delivery.records is None:
            results.append(_refused(delivery, delivery.header, known, used))
        else:
            results.append(
                _settle(delivery, delivery.header, delivery.records, known, used, oldest_ns)
            )
    return results


def _quarantined(delivery: Delivery, outcomes: tuple[Outcome, ...]) -> BlockResult:
    """The whole block into quarantine."""
    return BlockResult(
        delivery=delivery,
        outcomes=outcomes,
        records=columns.empty(),
        raw_bytes=0,
        quarantine=(Quarantined(delivery.uuid, -1, delivery.problem, delivery.payload),),
    )


def _refused(
    delivery: Delivery, header: block.Header, known: Known, used: dict[object, KeyedRequest]
) -> BlockResult:
    """A block whose values the store does not take. Its keys are used all the same: what comes
    with one of them again is a repeat of what is in quarantine."""
    outcomes = tuple(
        Outcome(repeated=request.accepted)
        if _state(delivery.uuid, index, request, known, used) == "repeated"
        else Outcome(quarantined=request.accepted)
        for index, request in enumerate(header.requests)
    )
    return _quarantined(delivery, outcomes)


def _settle(
    delivery: Delivery,
    header: block.Header,
    records: Columns,
    known: Known,
    used: dict[object, KeyedRequest],
    oldest_ns: int,
) -> BlockResult:
    keep = np.ones(records.n, np.bool_)
    fresh = records.time_ns >= oldest_ns
    outcomes: list[Outcome] = []
    quarantine: list[Quarantined] = []
    raw_bytes = 0
    for index, (request, where) in enumerate(
        zip(header.requests, block.request_slices(header), strict=True)
    ):
        state = _state(delivery.uuid, index, request, known, used)
        if state == "conflict" and index in delivery.repeats:
            state = "repeated"  # of a conflict before: that one is in quarantine
        if state == "new":
            stored = int(np.count_nonzero(fresh[where]))
            outcomes.append(Outcome(stored=stored, expired=request.accepted - stored))
            raw_bytes += request.size_bytes * stored // max(1, request.accepted)
            continue
        keep[where] = False
        if state == "repeated":
            outcomes.append(Outcome(repeated=request.accepted))
            continue
        outcomes.append(Outcome(quarantined=request.accepted))
        only = np.zeros(records.n, np.bool_)
        only[where] = True
        quarantine.append(
            Quarantined(delivery.uuid, index, "key_conflict", ndjson(columns.select(records, only)))
        )
    return BlockResult(
        delivery=delivery,
        outcomes=tuple(outcomes),
        records=columns.select(records, keep & fresh),
        raw_bytes=raw_bytes,
        quarantine=tuple(quarantine),
    )


def _state(
    uuid: bytes,
    index: int,
    request: block.Request,
    known: Known,
    used: dict[object, KeyedRequest],
) -> str:
    if not request.key and not request.producer:
        return "new"
    mine = KeyedRequest(request.key, uuid, index, request.fingerprint)
    if request.producer:
        number = Number(request.producer, request.epoch, request.sequence)
        if number in known.seen:
            return "repeated"
        before = used.setdefault(number, mine)
    else:
        before = known.earlier.get(request.key) or used.setdefault(request.key, mine)
    if before is mine:
        return "new"
    return "repeated" if before.fingerprint == request.fingerprint else "conflict"


def ndjson(records: Columns) -> bytes:
    """Return records as one JSON object a line, for people and for storing them again."""
    texts = {name: columns.split(getattr(records, name), records.n) for name in columns.TEXTS}
    lines = []
    for row in range(records.n):
        fields: dict[str, object] = {
            "timestamp": str(int(records.time_ns[row])),
            "labels": dict(records.label_sets[int(records.label_set[row])]),
            "message": texts["message"][row].decode(),
            "trace_id": texts["trace"][row].decode(),
            "span_id": texts["span"][row].decode(),
            "attributes": msgspec.Raw(texts["attributes"][row] or b"{}"),
        }
        lines.append(msgspec.json.encode(fields) + b"\n")
    return b"".join(lines)
