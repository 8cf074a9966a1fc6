"""Ids of blocks, requests and records: their parts, their order, their texts."""

from __future__ import annotations

import uuid

import pytest
from generated import INT64, UUID
from hypothesis import given
from hypothesis import strategies as st

from logweir.core import errors, ids, record

MILLISECONDS = st.integers(0, 2**42 - 1)
CHANCE = st.binary(min_size=10, max_size=10)
RECORD_ID = st.builds(
    record.RecordId,
    time_ns=st.integers(-(2**63) + 1, 2**63 - 1),
    block=st.integers(0, 2**64 - 1),
    index=st.integers(0, 2**32 - 1),
)


@given(MILLISECONDS, CHANCE)
def test_a_blocks_id_is_a_uuid_of_version_7(now_ms, chance):
    made = ids.uuid7(now_ms, chance)

    assert uuid.UUID(bytes=made).version == 7
    assert ids.time_ms(made) == now_ms


def test_a_blocks_id_keeps_all_chance_that_a_uuid_has_room_for():
    made = {ids.uuid7(0, (1 << bit).to_bytes(10, "big")) for bit in range(80)}

    assert len(made) == 74 + 1


@given(MILLISECONDS, CHANCE)
def test_a_short_form_holds_the_time_and_fits_64_bits(now_ms, chance):
    short = ids.short(ids.uuid7(now_ms, chance))

    assert ids.short_time_ms(short) == now_ms
    assert 0 <= short < 2**64


@given(MILLISECONDS, MILLISECONDS, CHANCE, CHANCE)
def test_short_forms_grow_with_time(first_ms, second_ms, one, other):
    first, second = ids.short(ids.uuid7(first_ms, one)), ids.short(ids.uuid7(second_ms, other))

    assert (first_ms < second_ms) <= (first < second)


@given(MILLISECONDS, CHANCE, st.integers(0, 999_999))
def test_a_receipt_that_is_written_is_read_again(now_ms, chance, index):
    receipt = ids.Receipt(ids.uuid7(now_ms, chance), index)

    assert ids.Receipt.parse(str(receipt)) == receipt


GOOD = "019b796d-d600-7001-8203-040506070809"


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD,
        f"{GOOD}.",
        f"{GOOD}.-1",
        f"{GOOD}.+1",
        f"{GOOD}.01",
        f"{GOOD}.1_0",
        f"{GOOD}. 1",
        f"{GOOD}.1\n",
        f"{GOOD}.1000000",
        f"{GOOD}.\N{ARABIC-INDIC DIGIT FIVE}",
        f"{{{GOOD}}}.1",
        f"urn:uuid:{GOOD}.1",
        f"{GOOD.replace('-', '')}.1",
        f"{GOOD.upper()}.1",
        f"{GOOD.replace('7001', '4001')}.1",
        f"{GOOD.replace('8203', '0203')}.1",
        "x" * 10_000,
    ],
)
def test_what_is_no_receipt_is_refused(text):
    with pytest.raises(errors.BadRequestError, match="not a receipt id") as caught:
        ids.Receipt.parse(text)

    assert len(caught.value.message) < 120


# ---- records ---------------------------------------------------------------------------------


@given(RECORD_ID)
def test_a_records_id_that_is_written_is_read_again(one):
    assert record.RecordId.parse(str(one)) == one


@given(st.text("0123456789abcdef-", max_size=45) | RECORD_ID.map(str))
def test_a_records_id_has_one_text(text):
    try:
        found = record.RecordId.parse(text)
    except errors.BadRequestError:
        return

    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1-2",
        "1-000000000000000a",
        "1-000000000000000a-",
        "1-000000000000000a-1-1",
        "1-a-1",
        "1-000000000000000A-1",
        "1-0x0000000000000a-1",
        "1-10000000000000000-1",
        "--1-000000000000000a-1",
        "-0-000000000000000a-1",
        "+1-000000000000000a-1",
        "01-000000000000000a-1",
        "1_0-000000000000000a-1",
        " 1-000000000000000a-1",
        "1-000000000000000a-1\n",
        f"{2**63}-000000000000000a-1",
        f"1-000000000000000a-{2**32}",
        "9" * 10_000,
    ],
)
def test_what_is_no_records_id_is_refused(text):
    with pytest.raises(errors.BadRequestError, match="not a record id") as caught:
        record.RecordId.parse(text)

    assert len(caught.value.message) < 120


@given(INT64, INT64, UUID, st.integers(0, 9), st.integers(0, 9))
def test_records_are_ordered_by_time_then_block_then_index(first_ns, second_ns, block, one, other):
    short = ids.short(block)

    assert (record.RecordId(first_ns, short, one) < record.RecordId(second_ns, short, other)) == (
        (first_ns, one) < (second_ns, other)
    )


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("info", "info"),
        ("INFO", "info"),
        (" Warning ", "warn"),
        ("ERR", "error"),
        ("critical", "fatal"),
        ("notice", "info"),
        ("silly", "trace"),
        ("dbg", "debug"),
        ("unknown", "unknown"),
        ("", "unknown"),
        ("loud", "unknown"),
        ("\N{LATIN SMALL LETTER DOTLESS I}nfo", "unknown"),
    ],
)
def test_levels_are_normalised(text, level):
    assert record.level(text) == level
    assert level in record.LEVELS


@given(st.text())
def test_any_text_has_a_level(text):
    assert record.level(text) in record.LEVELS


@given(st.dictionaries(st.text(), st.text()), st.randoms(use_true_random=False))
def test_equal_labels_are_equal_whatever_their_order(pairs, chance):
    shuffled = list(pairs.items())
    chance.shuffle(shuffled)

    assert record.labels(pairs) == record.labels(dict(shuffled))
    assert dict(record.labels(pairs)) == {name: value for name, value in pairs.items() if value}
