"""Idempotency keys: their forms, and whose they are."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logweir.core import bounds, errors, idempotency
from logweir.core.names import PipelineId, TenantId

ACME, OTHER = TenantId("acme"), TenantId("acme2")
ONE, TWO = PipelineId(1), PipelineId(2)
PRODUCER = "0190f3c2-7e4a-7b1c-9d2e-5f6a7b8c9d0e"
WORD = st.text([chr(code) for code in range(0x21, 0x7F)], min_size=1, max_size=20)


def test_no_key_is_no_identity():
    assert idempotency.identity(None, ACME, ONE) == idempotency.NONE
    assert idempotency.NONE.key == b""


@given(st.lists(WORD, min_size=1, max_size=4).map(" ".join))
def test_visible_ascii_is_a_key_that_is_the_same_each_time(text):
    found = idempotency.identity(text.encode(), ACME, ONE)

    assert len(found.key) == idempotency.KEY_BYTES
    assert found == idempotency.identity(text.encode(), ACME, ONE)


@given(WORD, WORD)
def test_different_keys_are_different_identities(one, other):
    found = [idempotency.identity(text.encode(), ACME, ONE).key for text in (one, other)]

    assert (found[0] == found[1]) == (one == other)


def test_the_same_key_is_another_one_in_another_pipeline_or_tenant():
    pipelines = [(ACME, ONE), (ACME, TWO), (OTHER, ONE), (TenantId("acme2"), TWO)]

    found = {idempotency.identity(b"key", *pipeline).key for pipeline in pipelines}

    assert len(found) == 4


def test_where_the_tenant_ends_the_pipeline_begins():
    one = idempotency.identity(b"key", TenantId("acme1"), PipelineId(2))
    other = idempotency.identity(b"key", TenantId("acme"), PipelineId(12))

    assert one.key != other.key


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b" ", id="a space"),
        pytest.param(b" key", id="a space before"),
        pytest.param(b"key ", id="a space behind"),
        pytest.param(b"two  spaces", id="two spaces"),
        pytest.param(b"tab\tkey", id="a tab"),
        pytest.param(b"key\n", id="a line break"),
        pytest.param(b"key\0", id="NUL"),
        pytest.param(b"\x7f", id="DEL"),
        pytest.param("kéy".encode(), id="UTF-8"),
        pytest.param(b"\xff", id="no UTF-8"),
        pytest.param(b"k" * (bounds.MAX_IDEMPOTENCY_KEY_BYTES + 1), id="a byte too long"),
        pytest.param(b"k k " * 100_000, id="far too long"),
    ],
)
def test_what_is_no_key_is_refused(header):
    with pytest.raises(errors.BadRequestError, match="visible ASCII"):
        idempotency.identity(header, ACME, ONE)


def test_the_longest_key_is_taken():
    assert idempotency.identity(b"k" * bounds.MAX_IDEMPOTENCY_KEY_BYTES, ACME, ONE).key


@given(st.binary(max_size=60))
def test_any_header_is_a_key_or_refused(header):
    try:
        found = idempotency.identity(header, ACME, ONE)
    except errors.BadRequestError:
        return

    assert len(found.key) in (0, 16)


# ---- producers -------------------------------------------------------------------------------


@given(st.integers(0, 10**18 - 1), st.integers(0, 10**18 - 1))
def test_a_producers_key_names_its_number(epoch, sequence):
    found = idempotency.identity(f"p1.{PRODUCER}.{epoch}.{sequence}".encode(), ACME, ONE)

    assert uuid.UUID(bytes=found.producer) == uuid.UUID(PRODUCER)
    assert (found.epoch, found.sequence) == (epoch, sequence)
    assert len(found.key) == 16


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"p2.{PRODUCER}.1.2", id="another form"),
        pytest.param(f"P1.{PRODUCER}.1.2", id="a capital"),
        pytest.param(f"p1.{PRODUCER.upper()}.1.2", id="a UUID in capitals"),
        pytest.param(f"p1.{PRODUCER.replace('-7b', '-4b')}.1.2", id="a UUID of version 4"),
        pytest.param(f"p1.{PRODUCER.replace('-9d', '-1d')}.1.2", id="a UUID of another variant"),
        pytest.param(f"p1.{PRODUCER}.1", id="no sequence"),
        pytest.param(f"p1.{PRODUCER}.1.2.3", id="a number too many"),
        pytest.param(f"p1.{PRODUCER}.01.2", id="a leading zero"),
        pytest.param(f"p1.{PRODUCER}.-1.2", id="a negative number"),
        pytest.param(f"p1.{PRODUCER}.1.{10**18}", id="a number of 19 digits"),
        pytest.param(f"xp1.{PRODUCER}.1.2", id="something before"),
        pytest.param(f"p1.{PRODUCER}.1.2 x", id="something behind"),
    ],
)
def test_what_looks_like_a_producers_key_is_a_free_one(text):
    found = idempotency.identity(text.encode(), ACME, ONE)

    assert (found.producer, found.epoch, found.sequence) == (b"", 0, 0)
    assert len(found.key) == 16


# ---- fingerprints ----------------------------------------------------------------------------


@given(st.binary(), st.binary())
def test_a_fingerprint_tells_bodies_apart_and_fits_63_bits(one, other):
    first, second = idempotency.fingerprint(one), idempotency.fingerprint(other)

    assert (first == second) == (one == other)
    assert 0 <= first < 2**63
