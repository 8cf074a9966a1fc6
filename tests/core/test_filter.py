"""The segment filter's law: it never hides a record; and its use: it hides most other segments."""

from __future__ import annotations

import json
import random
import uuid

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logweir.core import columns, filter  # noqa: A004

RUN = st.text("0123456789abcdefXYZ.-", max_size=40) | st.text("0123456789abcdef", min_size=60)
SEPARATOR = st.text(" =/:_,\"'\n(ä世🪵\\\t", min_size=1, max_size=2)
MESSAGE = st.lists(
    RUN | SEPARATOR | st.sampled_from(["-----", "....", "7", "-.-.1"]), max_size=8
).map("".join)
HEX_ID = st.text("0123456789abcdef", min_size=1, max_size=64)


def build(messages=(), *, trace=(), span=(), attributes=()) -> bytes:
    return filter.build(
        message=columns.join([one.encode() for one in messages]),
        trace=columns.join([one.encode() for one in trace]),
        span=columns.join([one.encode() for one in span]),
        attributes=columns.join(list(attributes)),
    )


def may_have(data: bytes, keys: list[int]) -> bool:
    return all(filter.has(data, key) for key in keys)


# ---- the law: messages -----------------------------------------------------------------------


@settings(max_examples=150)
@given(st.lists(MESSAGE, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_no_part_of_a_message_is_hidden(messages, chance):
    data = build(messages)

    for _ in range(20):
        message = chance.choice(messages)
        start = chance.randint(0, len(message))
        literal = message[start : chance.randint(start, len(message))]
        assert may_have(data, filter.literal_keys(literal.encode())), literal


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("id=3f2a7c1e-9b4d-4e8f-a6c5-0d1e2f3a4b5c done", id="a uuid"),
        pytest.param("t " + "0123456789abcdef" * 4 + " t", id="64 hex digits"),
        pytest.param("." * 6 + "abc-1-" + "-" * 34 + "x", id="a ruler within a run"),
        pytest.param("-" * 33 + "7", id="a ruler before a digit"),
        pytest.param("7" + "-" * 33, id="a ruler behind a digit"),
        pytest.param("abcdefgh1 abcdefg1", id="a digit at the edge of what counts"),
        pytest.param("a1" * 15 + "b " + "a1" * 16, id="31 and 32 bytes"),
        pytest.param("a123. a123.. 12345- 1234-", id="trailing dots and dashes"),
        pytest.param("zähler-4711größe77777é12345", id="letters that are not ASCII"),
        pytest.param("v1.2.3-rc.4+build.55 10.0.0.255:8080", id="versions and addresses"),
        pytest.param(
            "k 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a0860303ae22b998861b v",
            id="a long run without a period",
        ),
        pytest.param("x" * 40 + "1" + "y" * 40 + " " + "z" * 50, id="long runs with few digits"),
    ],
)
def test_no_part_of_a_hard_message_is_hidden(message):
    data = build(["before 1234567", message, "after 7654321"])

    for start in range(len(message)):
        for end in range(start + 1, len(message) + 1):
            literal = message[start:end].encode()
            assert may_have(data, filter.literal_keys(literal)), literal


def lines(chance: random.Random, count: int) -> list[str]:
    """Lines as services write them, with ids, addresses and times of their own."""
    return [
        chance.choice(
            [
                f"request_id={chance.randbytes(16).hex()} took {chance.random() * 100:.3f}ms",
                f"order {uuid.UUID(bytes=chance.randbytes(16), version=4)} shipped to zone-7.",
                f"10.{chance.randrange(256)}.3.7 GET /api/v1/items/{chance.randrange(10**7)}?q=ü",
                f"user u-{chance.randrange(10**9)} has ..{chance.randrange(10**6)}.. points --- ok",
                f"at com.shop.Cart$1.run(Cart.java:{chance.randrange(500)})\n\tmore 12 frames",
            ]
        )
        for _ in range(count)
    ]


def test_no_part_of_many_lines_is_hidden():
    chance = random.Random(6)
    messages = lines(chance, 2000)
    data = build(messages)

    for _ in range(6000):
        message = chance.choice(messages)
        start = chance.randrange(len(message))
        literal = message[start : chance.randint(start, len(message))]
        assert may_have(data, filter.literal_keys(literal.encode())), literal


# ---- the law: attributes and ids -------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUE = (
    MESSAGE | TEXT | st.sampled_from(["C:\\logs\\run-20260101", "line\nbar-12345", "a/b/c-77777"])
)


def plain(value: object) -> bytes:
    return msgspec.json.encode(value)


def escaped(value: object) -> bytes:
    """JSON of only ASCII, with slashes escaped as some senders do."""
    return json.dumps(value).replace("/", "\\/").encode()


def in_hex(value: object) -> bytes:
    """JSON with every letter and digit of its texts as an escape."""
    if isinstance(value, dict):
        return b"{%b}" % b",".join(in_hex(k) + b":" + in_hex(v) for k, v in value.items())
    if isinstance(value, list):
        return b"[%b]" % b",".join(map(in_hex, value))
    units = str(value).encode("utf-16-be")
    codes = [units[at : at + 2].hex() for at in range(0, len(units), 2)]
    return b'"%b"' % "".join(f"\\u{code}" for code in codes).encode()


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.sampled_from([plain, escaped, in_hex]), VALUE, VALUE), min_size=1, max_size=4
    )
)
@example([(plain, "\nfoo12345", "x")])
@example([(plain, '"foo12345"', "x")])
@example([(in_hex, "foo12345", "bar54321")])
def test_no_value_of_an_attribute_is_hidden(records):
    attributes = [
        write({"a": first, "deep": {"list": ["1", second]}}) for write, first, second in records
    ]
    data = build(attributes=[b"", *attributes])

    for _, first, second in records:
        assert may_have(data, filter.value_keys(first.encode())), first
        assert may_have(data, filter.value_keys(second.encode())), second


@given(st.integers(), st.integers(), VALUE)
def test_no_number_of_an_attribute_is_hidden(first, second, text):
    data = build(attributes=[plain({"n": first, "list": [second, text]})])

    assert may_have(data, filter.value_keys(str(first).encode()))
    assert may_have(data, filter.value_keys(str(second).encode()))


def test_a_name_of_an_attribute_is_not_hidden():
    data = build(attributes=[b'{"\\u0073ku-77120934":1}'])

    assert may_have(data, filter.value_keys(b"sku-77120934"))


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param(b'{"a":"\\', id="cut within an escape"),
        pytest.param(b'{"a":"\\ud800"}', id="half a surrogate pair"),
        pytest.param(b"[" * 5000 + b'"\\n"', id="very deep"),
    ],
)
def test_attributes_that_are_no_json_do_not_stop_the_filter(attributes):
    data = build(["id-12345 "], attributes=[attributes, b'{"b":"\\nvalue-777"}'])

    assert may_have(data, filter.value_keys(b"value-777"))
    assert may_have(data, filter.value_keys(b"id-12345"))


@given(st.lists(HEX_ID | st.just(""), min_size=1), st.lists(HEX_ID | st.just(""), min_size=1))
def test_no_trace_or_span_is_hidden(traces, spans):
    data = build(trace=traces, span=spans)

    assert all(filter.has(data, filter.id_key(one.encode())) for one in traces + spans if one)


# ---- its use ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_8000() -> bytes:
    """The filter of a segment of usual size."""
    chance = random.Random(1)
    return build(lines(chance, 8000), trace=[chance.randbytes(16).hex() for _ in range(8000)])


@pytest.mark.parametrize(
    "literal",
    [
        pytest.param(lambda chance: chance.randbytes(16).hex(), id="a bare request id"),
        pytest.param(lambda chance: f"request_id={chance.randbytes(16).hex()}", id="a named one"),
        pytest.param(lambda chance: str(uuid.UUID(bytes=chance.randbytes(16))), id="a uuid"),
        pytest.param(lambda chance: f" u-{chance.randrange(10**10, 10**11)} ", id="a user"),
    ],
)
def test_few_segments_are_opened_for_an_id_that_they_do_not_hold(of_8000, literal):
    chance = random.Random(2)
    literals = [literal(chance).encode() for _ in range(4000)]

    opened = sum(may_have(of_8000, filter.literal_keys(one)) for one in literals)

    assert opened < 0.03 * len(literals)


def test_few_segments_are_opened_for_a_trace_that_they_do_not_hold(of_8000):
    chance = random.Random(3)

    opened = sum(
        filter.has(of_8000, filter.id_key(chance.randbytes(16).hex().encode())) for _ in range(4000)
    )

    assert opened < 0.03 * 4000


def test_a_trace_id_is_not_taken_for_a_word_of_a_message():
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"

    assert filter.id_key(trace.encode()) not in filter.literal_keys(f" {trace} ".encode())


@pytest.mark.parametrize(
    ("literal", "keys"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(b"connection refused", 0, id="plain words"),
        pytest.param(b"id-12345", 0, id="a token that may go on at both ends"),
        pytest.param(b" id-12345", 0, id="a token that may go on at its end"),
        pytest.param(b"id-12345 ", 0, id="a token that may begin earlier"),
        pytest.param(b" id-12345 ", 1, id="a whole token"),
        pytest.param(b" id-12345. ", 1, id="a whole token before a full stop"),
        pytest.param(b" a123 ", 0, id="too short a token"),
        pytest.param(b" a12-. ", 0, id="too short without its end"),
        pytest.param(b" abcdefgh1 ", 0, id="a digit too late"),
        pytest.param(b" abcdefg1 ", 1, id="a digit just in time"),
        pytest.param(b" " + b"1" * 31 + b" ", 1, id="the longest token"),
        pytest.param(b" " + b"1" * 32 + b" ", 1, id="the shortest run of windows"),
        pytest.param(b"1" * 32, 1, id="such a run at the edges"),
        pytest.param(b"1" * 31, 0, id="half an id"),
        pytest.param(b"a" * 64, 0, id="a long run without a digit"),
        pytest.param(b" id-12345 id-12345 ", 1, id="the same token twice"),
        pytest.param("\N{SNOWMAN}id-12345\N{SNOWMAN}".encode(), 1, id="a token between signs"),
    ],
)
def test_a_literal_has_keys_only_for_what_it_is_sure_of(literal, keys):
    assert len(filter.literal_keys(literal)) == keys


@pytest.mark.parametrize("value", [b"id-12345", b"id-12345.", b"C:\\id-12345"])
def test_the_edges_of_a_value_are_edges_of_its_tokens(value):
    assert filter.value_keys(value) == filter.value_keys(b"id-12345")
    assert len(filter.value_keys(value)) == 1


# ---- the filter's bytes ----------------------------------------------------------------------


def test_one_block_of_a_filter_answers_for_the_whole(of_8000):
    chance = random.Random(4)
    keys = [chance.getrandbits(64) for _ in range(2000)]

    by_block = []
    for key in keys:
        offset = filter.block_offset(key, len(of_8000))
        assert offset % filter.BLOCK_BYTES == 0
        assert offset + filter.BLOCK_BYTES <= len(of_8000)
        by_block.append(filter.block_has(of_8000[offset : offset + filter.BLOCK_BYTES], key))

    assert by_block == [filter.has(of_8000, key) for key in keys]
    assert not all(by_block)


def test_a_filter_of_nothing_is_one_block_that_has_nothing():
    data = build(["no token in here"])

    assert data == bytes(filter.BLOCK_BYTES)
    assert not filter.has(data, 12345)


@pytest.mark.parametrize("data", [b"", b"\0" * 31])
def test_a_filter_that_is_no_filter_hides_nothing(data):
    assert filter.has(data, 12345)


def test_a_filter_grows_by_ten_bits_a_key():
    data = build([" ".join(f"job-{number}" for number in range(10_000, 12_560))])

    assert len(data) * 8 == 2560 * 10


@pytest.mark.timeout(20)
def test_a_ruler_of_a_mebibyte_takes_no_time():
    messages = [f"user u-{number} ---- ok." for number in range(2000)]

    data = build([*messages, "id-12345" + "-" * (1 << 20)])

    assert may_have(data, filter.literal_keys(b" u-1999 "))
    assert may_have(data, filter.value_keys(b"id-12345"))


def test_windows_are_the_same_in_portions_and_at_once(monkeypatch):
    chance = random.Random(5)
    messages = [chance.randbytes(chance.randrange(90)).hex() for _ in range(200)]
    at_once = build(messages)

    monkeypatch.setattr(filter, "_PORTION_BYTES", 100)

    assert build(messages) == at_once
