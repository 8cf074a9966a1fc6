"""What a collector makes of an entry, how long it holds it, and how much it takes at once."""

from __future__ import annotations

import time

import builders
import msgspec
import pytest
import world
from builders import encode, records, request
from hypothesis import given
from hypothesis import strategies as st

from logweir.backends.journal import Entry
from logweir.collector import buffer
from logweir.collector.buffer import FLUSH_BYTES, FLUSH_RECORDS, Buffer, deliver, next_count
from logweir.core import block, errors, settle
from logweir.core.names import PipelineId, TenantId

TENANT = TenantId("acme")
PIPELINE = PipelineId(7)
UUID = world.new_uuid()
GOOD = encode(TENANT, PIPELINE, [request(records(2))], uuid=UUID)


def entry(payload: bytes = GOOD, uuid: bytes = UUID, accepted: int = 2, number: int = 1) -> Entry:
    return Entry(f"{number}-0", uuid, accepted, frozenset(), payload)


def with_header(**fields: object) -> bytes:
    """A block with a right checksum whose header says something else."""
    found = block.header(GOOD)
    fields = {name: getattr(found, name) for name in found.__struct_fields__} | fields
    header = msgspec.msgpack.encode(list(fields.values()))
    old_length = int.from_bytes(GOOD[8:12], "little")
    rest = len(header).to_bytes(4, "little") + header + GOOD[12 + old_length :]
    return GOOD[:4] + builders.checksum(rest) + rest


# deliver


def test_a_good_block_is_delivered_with_its_records():
    found = deliver(entry(), TENANT, PIPELINE)

    assert found.problem == ""
    assert found.records is not None
    assert found.records.n == 2


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        pytest.param(entry(b"no block at all"), "undecodable", id="no block"),
        pytest.param(entry(b""), "undecodable", id="nothing"),
        pytest.param(entry(GOOD[:-1] + b"\0"), "undecodable", id="a flipped byte"),
        pytest.param(entry(GOOD[:-1]), "undecodable", id="cut short"),
        pytest.param(entry(with_header(lengths=())), "undecodable", id="no lengths"),
        pytest.param(entry(with_header(uuid=b"short")), "undecodable", id="a short id"),
        pytest.param(entry(with_header(tenant="other")), "foreign block", id="another tenant's"),
        pytest.param(entry(with_header(pipeline=8)), "foreign block", id="another pipeline's"),
        pytest.param(entry(accepted=3), "differ", id="another count than the entry's"),
        pytest.param(entry(uuid=world.new_uuid()), "differ", id="another id than the entry's"),
    ],
)
def test_a_damaged_block_is_delivered_whole_with_what_is_wrong(bad, problem):
    found = deliver(bad, TENANT, PIPELINE)

    assert problem in found.problem
    assert (found.payload, found.header, found.records) == (bad.payload, None, None)


def test_a_block_of_a_newer_version_is_not_judged():
    newer = GOOD[:3] + bytes([block.VERSION + 1]) + GOOD[4:]

    with pytest.raises(errors.UnknownVersionError):
        deliver(entry(newer), TENANT, PIPELINE)


@pytest.mark.parametrize("accepted", [-1, 1 << 40])
def test_a_count_that_the_ledger_cannot_hold_is_brought_into_its_range(accepted):
    found = deliver(entry(b"bad", accepted=accepted), TENANT, PIPELINE)

    assert 0 <= found.accepted < 1 << 31


def test_an_entry_without_an_id_has_one_that_stays_the_same():
    first = deliver(entry(b"bad", uuid=b""), TENANT, PIPELINE)
    again = deliver(entry(b"bad", uuid=b""), TENANT, PIPELINE)
    other = deliver(entry(b"bad", uuid=b"", number=2), TENANT, PIPELINE)

    assert len(first.uuid) == 16
    assert first.uuid == again.uuid != other.uuid


def test_a_foreign_name_cannot_bring_a_nul_into_the_reason():
    found = deliver(entry(with_header(tenant="a\0b")), TENANT, PIPELINE)

    assert "a\N{REPLACEMENT CHARACTER}b" in found.problem


@given(st.binary(max_size=300), st.integers(0, len(GOOD) - 1), st.binary(max_size=40))
def test_no_bytes_end_the_collector(payload, at, patch):
    damaged = GOOD[:at] + patch + GOOD[at + len(patch) :]

    for one in (payload, damaged, b"LWB\x01" + payload):
        try:
            found = deliver(entry(one), TENANT, PIPELINE)
        except errors.UnknownVersionError:
            continue
        assert found.header is None or found.problem == ""


# Buffer


def holding(count: int, *, linger_s: float = 5.0, **of: int) -> Buffer:
    """A buffer with so many entries of which each claims `of`, since second 100."""
    held = Buffer(linger_s)
    found = deliver(entry(), TENANT, PIPELINE)
    assert found.header is not None
    claims = msgspec.structs.replace(found.header.requests[0], **of)
    header = msgspec.structs.replace(found.header, requests=(claims,))
    for number in range(count):
        held.add(
            entry(number=number), msgspec.structs.replace(found, header=header), 100.0 + number
        )
    return held


def test_an_empty_buffer_waits_for_nothing():
    assert Buffer(5.0).wait_s(100.0) is None


def test_the_first_block_sets_the_time_that_a_batch_waits_for_company():
    held = holding(3)

    assert held.wait_s(103.0) == 2.0
    assert held.wait_s(105.0) == 0.0


def test_a_batch_worth_a_segment_waits_a_part_of_the_linger_once_its_stream_is_quiet():
    half = buffer.WORTH_RECORDS // 2

    assert holding(1, records=half).wait_s(101.0) == 4.0
    assert holding(2, records=half).wait_s(101.5) == 0.5
    assert holding(2, records=half).wait_s(102.0) == 0.0


def test_a_stream_that_goes_on_is_stored_within_the_linger_all_the_same():
    held = holding(6, records=buffer.WORTH_RECORDS // 4)

    assert held.wait_s(104.5) == 0.5


@pytest.mark.parametrize(
    ("held", "is_due"),
    [
        pytest.param(holding(2, records=FLUSH_RECORDS // 2), True, id="records for a segment"),
        pytest.param(holding(2, records=FLUSH_RECORDS // 2 - 1), False, id="fewer records"),
        pytest.param(holding(2, size_bytes=FLUSH_BYTES // 2), True, id="bytes for a batch"),
        pytest.param(holding(2, size_bytes=FLUSH_BYTES // 2 - 1), False, id="fewer bytes"),
    ],
)
def test_a_full_batch_does_not_wait(held, is_due):
    assert (held.wait_s(101.0) == 0.0) is is_due


def test_a_block_that_would_make_a_segment_too_large_for_a_merge_waits_for_the_next_batch():
    held = Buffer(10.0)
    block_of_9000 = deliver(large(9000), TENANT, PIPELINE)
    is_first_taken = held.has_room(block_of_9000)
    held.add(large(9000), block_of_9000, now_s=0.0)

    assert is_first_taken
    assert not held.has_room(block_of_9000)
    assert held.has_room(deliver(large(7384), TENANT, PIPELINE))


def test_all_buffers_of_a_process_count_what_they_hold_together():
    held = buffer.Held()
    first, second = Buffer(5.0, held), Buffer(5.0, held)
    first.add(entry(), deliver(entry(), TENANT, PIPELINE), now_s=0.0)
    second.add(entry(), deliver(entry(), TENANT, PIPELINE), now_s=0.0)
    both_bytes = held.size_bytes
    first.clear()

    assert both_bytes == 2 * second.size_bytes > 0
    assert held.size_bytes == second.size_bytes


def large(count: int) -> Entry:
    payload = encode(TENANT, PIPELINE, [request(records(count))], uuid=UUID)
    return entry(payload, accepted=count)


def test_a_conflict_that_the_journal_knew_already_is_quarantined_once():
    def sent(count: int, repeats: frozenset[int] = frozenset()) -> settle.Delivery:
        uuid = world.new_uuid()
        payload = encode(TENANT, PIPELINE, [request(records(count), key="k")], uuid=uuid)
        return deliver(Entry("1-0", uuid, count, repeats, payload), TENANT, PIPELINE)

    results = settle.settle(
        [sent(2), sent(3), sent(3, frozenset({0}))],
        settle.Known(),
        now_ns=time.time_ns(),
        retention_days=30,
    )

    assert [one.outcomes[0] for one in results] == [
        settle.Outcome(stored=2),
        settle.Outcome(quarantined=3),
        settle.Outcome(repeated=3),
    ]


def test_blocks_without_records_fill_a_buffer_too(monkeypatch):
    monkeypatch.setattr(buffer, "FLUSH_RECORDS", 3)

    assert holding(3, records=0, expired=1).wait_s(103.0) == 0.0


def test_a_damaged_block_counts_with_the_bytes_that_it_has(monkeypatch):
    monkeypatch.setattr(buffer, "FLUSH_BYTES", 8)
    held = Buffer(5.0)
    held.add(entry(b"8 bytes."), deliver(entry(b"8 bytes."), TENANT, PIPELINE), 100.0)

    assert held.wait_s(100.0) == 0.0


def test_a_buffer_knows_what_it_holds_until_it_is_cleared():
    held = holding(2)
    before = held.holds("0-0"), held.holds("1-0"), held.holds("2-0")
    held.clear()

    assert before == (True, True, False)
    assert not held.holds("0-0")
    assert (held.records, held.size_bytes, held.wait_s(0.0)) == (0, 0, None)


# How many to read


def test_small_reads_grow_to_the_most():
    count = 1
    for _ in range(10):
        count = next_count(count, 1000)

    assert count == buffer.READ_ENTRIES


@given(st.integers(1, buffer.READ_ENTRIES), st.integers(0, 1 << 30))
def test_a_read_asks_for_at_least_one_and_never_for_more_than_the_most(count, size_bytes):
    assert 1 <= next_count(count, size_bytes) <= buffer.READ_ENTRIES


@given(st.integers(1, buffer.READ_ENTRIES), st.integers(1, 1 << 26))
def test_after_a_large_read_as_many_entries_of_that_size_fit_the_bound(count, entry_bytes):
    size_bytes = count * entry_bytes
    then = next_count(count, size_bytes)

    assert size_bytes <= buffer.READ_BYTES or then == 1 or then * entry_bytes <= buffer.READ_BYTES
