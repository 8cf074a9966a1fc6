"""Decoding the native form: bad records are named, good ones kept exactly, by both paths alike."""

from __future__ import annotations

import json
from array import array
from datetime import UTC, datetime, timedelta

import pytest
import world
from builders import record, records
from hypothesis import event, example, given
from hypothesis import strategies as st

from logweir.core import block, bounds, columns, errors, ids, moments
from logweir.core.names import PipelineId, TenantId
from logweir.core.record import FLAG_FUTURE, FLAG_SANITISED
from logweir.ingest import native, pieces

NOW_NS = 1_769_860_800_123_456_789
RULES = native.Rules(arrival_ns=NOW_NS, retention_days=30)
MARK = "\N{REPLACEMENT CHARACTER}"


def decoded(body, rules=RULES):
    if isinstance(body, list | dict):
        body = json.dumps(body)
    return native.decode(body if isinstance(body, bytes) else body.encode(), rules)


def lines(*pieces: str | bytes | dict) -> bytes:
    """A body of one piece a line."""
    texts = [json.dumps(one) if isinstance(one, dict) else one for one in pieces]
    return b"\n".join(one if isinstance(one, bytes) else one.encode() for one in texts)


def rows(found: native.Decoded) -> list[tuple]:
    """What a decoded request holds, record by record."""
    part = found.part
    texts = {name: columns.split(getattr(part, name), part.n) for name in columns.TEXTS}
    return [
        (
            time_ns,
            part.label_sets[label_set],
            message.decode(),
            trace.decode(),
            span.decode(),
            *rest,
        )
        for (time_ns, label_set, message, trace, span, *rest) in zip(
            array("q", part.times),
            array("I", part.label_set),
            *(texts[name] for name in ("message", "trace", "span", "attributes")),
            part.flags or bytes(part.n),
            texts["extra"],
            strict=True,
        )
    ]


def template(**fields) -> str:
    """A good record's JSON with a piece of raw text in place of a field's value."""
    ((name, raw),) = fields.items()
    return json.dumps(record() | {name: "HERE"}).replace('"HERE"', raw)


GOOD = record("good")
DEEP = '{"a":' * 30 + "{}" + "}" * 30
TOO_DEEP = '{"a":' * 31 + "{}" + "}" * 31

BAD = [
    pytest.param("{", "truncated", id="JSON that ends early"),
    pytest.param("nothing", "malformed", id="no JSON"),
    pytest.param("[1]", "Expected `object`", id="an array on a line"),
    pytest.param("7", "Expected `object`", id="a number"),
    pytest.param('{"level": "info", "service": "shop"}', "`message`", id="no message"),
    pytest.param('{"message": "m", "service": "shop"}', "`level`", id="no level"),
    pytest.param('{"message": "m", "level": "info"}', "`service`", id="no service"),
    pytest.param(template(service='""'), "service: it is empty", id="an empty service"),
    pytest.param(template(message="1"), "`message`", id="a message that is no text"),
    pytest.param(template(message="null"), "`message`", id="a message that is null"),
    pytest.param(template(severity='"x"'), "unknown field `severity`", id="an unknown field"),
    pytest.param(template(metadata="[1]"), "metadata: it is no", id="metadata that is an array"),
    pytest.param(template(metadata='"a"'), "metadata: it is no", id="metadata that is a text"),
    pytest.param(template(metadata='{"a": NaN}'), "malformed", id="NaN"),
    pytest.param(template(metadata='{"a": -Infinity}'), "malformed", id="Infinity"),
    pytest.param(template(metadata='{"a": 01}'), "malformed", id="a number that is none"),
    pytest.param(template(metadata=TOO_DEEP), "nested deeper than 32", id="one level too deep"),
    pytest.param(template(metadata="[" * 99 + "]" * 99), "metadata", id="arrays 99 deep"),
    pytest.param(
        template(metadata='{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
        "nested deeper",
        id="arrays 100,000 deep",
    ),
    pytest.param(
        template(metadata=json.dumps(dict.fromkeys(map(str, range(513)), 1))),
        "metadata: 513 keys",
        id="too many attributes",
    ),
    pytest.param(template(message=json.dumps("x" * (10 << 20))), "bytes, a record", id="10 MB"),
    pytest.param(template(timestamp='"yesterday"'), "neither RFC 3339", id="a timestamp in words"),
    pytest.param(template(timestamp='"2026-02-30T00:00:00Z"'), "no date", id="30 February"),
    pytest.param(template(timestamp='"0001-01-01T00:00:00Z"'), "64 bits", id="the year 1"),
    pytest.param(template(timestamp="9223372036854775808"), "64 bits", id="a time over 64 bits"),
    pytest.param(template(timestamp="9" * 5000), "out of range", id="a time of 5000 digits"),
    pytest.param(template(timestamp="1.5"), "`timestamp`", id="a time with a fraction"),
    pytest.param(template(timestamp="true"), "`timestamp`", id="a time that is true"),
    pytest.param(template(trace_id='"xyz"'), "trace_id: 'xyz'", id="a trace id that is no hex"),
    pytest.param(template(span_id=f'"{"a" * 65}"'), "span_id", id="a span id too long"),
    pytest.param(template(labels='{"a": 1}'), "`labels", id="a label that is no text"),
    pytest.param(template(labels='{"service": "x"}'), "reserved", id="a reserved label"),
    pytest.param(template(labels='{"level": "x"}'), "reserved", id="the label level"),
    pytest.param(template(labels='{"pipeline": "x"}'), "reserved", id="the label pipeline"),
    pytest.param(template(labels='{"1a": "x"}'), "no label name", id="a label's name with a digit"),
    pytest.param(template(labels='{"a b": "x"}'), "no label name", id="a label's name with blank"),
    pytest.param(
        template(labels=json.dumps({"a" * 65: "x"})), "no label name", id="a label's name too long"
    ),
    pytest.param(
        template(labels=json.dumps({"a": "ü" * 129})), "a: 258 bytes", id="a label too long"
    ),
    pytest.param(template(host=json.dumps("h" * 257)), "host: 257", id="a host too long"),
    pytest.param(
        template(labels=json.dumps({f"l{n}": "x" for n in range(31)})),
        "labels: 33",
        id="too many labels",
    ),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_bad_line_is_named_and_its_neighbours_are_kept(bad, reason):
    found = decoded(lines(GOOD, bad, GOOD))

    assert [one.index for one in found.rejected] == [1]
    assert reason in found.rejected[0].reason
    assert rows(found) == rows(decoded([GOOD, GOOD]))


@pytest.mark.parametrize(
    ("bad", "reason"), [one for one in BAD if not {"{", "nothing"} & set(one.values)]
)
def test_a_bad_record_in_an_array_is_named_when_the_array_can_be_walked(bad, reason):
    good = json.dumps(GOOD)
    body = f"[{good}, {bad}, {good}]"
    if reason in ("malformed", "nested deeper"):
        with pytest.raises(errors.BadRequestError, match="array"):
            decoded(body)
        return

    found = decoded(body)

    assert [one.index for one in found.rejected] == [1]
    assert reason in found.rejected[0].reason
    assert rows(found) == rows(decoded([GOOD, GOOD]))


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(template(metadata=DEEP), id="the deepest"),
        pytest.param(
            template(metadata=json.dumps(dict.fromkeys(map(str, range(512)), 1))),
            id="the most attributes",
        ),
        pytest.param(template(metadata='{"a": "}}{{[[", "b": "\\\\\\"[{"}'), id="brackets in text"),
        pytest.param(template(metadata='{"a": 1e999, "b": ' + "9" * 400 + "}"), id="huge numbers"),
        pytest.param(template(metadata='{"a": 1, "a": 2}'), id="a key twice"),
        pytest.param(template(metadata="null"), id="no metadata"),
        pytest.param(template(labels=json.dumps({"a": "ü" * 128})), id="the longest label"),
        pytest.param(
            template(labels=json.dumps({f"l{n}": "x" for n in range(30)})), id="the most labels"
        ),
        pytest.param(template(labels=json.dumps({"a" * 64: ""})), id="an empty label"),
        pytest.param(template(timestamp="null"), id="no timestamp"),
        pytest.param(template(trace_id='""'), id="an empty trace id"),
        pytest.param(template(message='""'), id="an empty message"),
    ],
)
def test_what_is_at_a_bound_is_kept_among_good_and_bad_neighbours(raw):
    alone = decoded(raw)
    among = decoded(lines(raw, "bad", raw))

    assert alone.rejected == []
    assert rows(among) == rows(alone) * 2
    metadata = raw.partition('"metadata": ')[2][:-1]
    assert rows(alone)[0][5].decode() == ("" if metadata == "null" else metadata)


def test_a_record_of_the_largest_size_is_kept_and_one_more_byte_is_not():
    empty = len(json.dumps(record("")))
    fits = json.dumps(record("x" * (bounds.MAX_RECORD_BYTES - empty)))
    over = json.dumps(record("x" * (bounds.MAX_RECORD_BYTES - empty + 1)))

    assert len(fits) == bounds.MAX_RECORD_BYTES
    for body in (lines(fits, over, fits), f"[{fits},{over},{fits}]"):
        assert [one.index for one in decoded(body).rejected] == [1]


@pytest.mark.parametrize("is_array", [False, True], ids=["lines", "array"])
def test_the_size_of_a_record_is_that_of_its_text_whatever_it_means(is_array):
    escaped = template(message='"' + "\\u0041" * 200_000 + '"')
    body = f"[{escaped}]" if is_array else escaped

    found = decoded(body)

    assert found.rejected[0].reason.startswith(f"{len(escaped)} bytes")


def test_a_pretty_object_of_many_short_lines_has_the_bound_of_one_record():
    body = json.dumps(record(metadata={"list": list(range(200_000))}), indent=1)

    assert "bytes, a record may have" in decoded(body).rejected[0].reason


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(b'"a\0b"', f"a{MARK}b", id="a raw NUL"),
        pytest.param(b'"a\\u0000b"', f"a{MARK}b", id="an escaped NUL"),
        pytest.param(b'"\\u0000\\u0000"', MARK * 2, id="two escaped NULs"),
        pytest.param(b'"\\\\\\u0000"', f"\\{MARK}", id="an escaped NUL after a backslash"),
        pytest.param(b'"a\xffb"', f"a{MARK}b", id="a byte that is no UTF-8"),
        pytest.param(b'"\xed\xa0\x80"', MARK * 3, id="a surrogate's bytes"),
        pytest.param(b'"\xf0\x9f\x98"', MARK, id="a character cut off"),
        pytest.param(b'"a\\ud800b"', f"a{MARK}b", id="a lone high surrogate"),
        pytest.param(b'"a\\uDC00"', f"a{MARK}", id="a lone low surrogate"),
        pytest.param(b'"\\ud83d\\ud83d\\ude00"', f"{MARK}😀", id="a lone one before a pair"),
        pytest.param(b'"\\ude00\\ud83d"', MARK * 2, id="a pair the wrong way round"),
        pytest.param(b'"\\ud83d\\u0000"', MARK * 2, id="a surrogate before NUL"),
    ],
)
@pytest.mark.parametrize("form", ["lines", "array", "a pretty object", "attributes"])
def test_what_utf8_forbids_is_replaced_and_flagged_in_that_record_alone(raw, message, form):
    bad = json.dumps(record("HERE")).encode().replace(b'"HERE"', raw)
    if form == "attributes":
        bad = json.dumps(record(metadata={"k": "HERE"})).encode().replace(b'"HERE"', raw)
    good = json.dumps(GOOD).encode()
    if form == "array":
        found = decoded(b"[" + good + b"," + bad + b"]")
    elif form == "a pretty object":
        found = decoded(b"\n ".join((good, bad.replace(b", ", b",\n"))))
    else:
        found = decoded(lines(good, bad))

    first, second = rows(found)
    assert first == rows(decoded([GOOD]))[0]
    assert second[6] == FLAG_SANITISED
    text = json.loads(second[5])["k"] if form == "attributes" else second[2]
    assert text == message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param('"\\\\u0000"', "\\u0000", id="a backslash and u0000"),
        pytest.param('"\\\\ud800"', "\\ud800", id="a backslash and ud800"),
        pytest.param('"\\ud83d\\ude00"', "😀", id="a pair of surrogates"),
        pytest.param(f'"{MARK}"', MARK, id="a replacement that the sender sent"),
        pytest.param('"\\ufffd"', MARK, id="a replacement as an escape"),
        pytest.param('"\\u0001\\u001f"', "\x01\x1f", id="other control characters"),
    ],
)
@pytest.mark.parametrize("neighbour", ["good", "bad"])
def test_what_utf8_permits_is_kept_and_not_flagged(raw, message, neighbour):
    found = decoded(lines(template(message=raw), "{}" if neighbour == "bad" else GOOD))

    assert rows(found)[0][2] == message
    assert rows(found)[0][6] == 0


def at(when_ns: int, **fields) -> dict:
    return record(timestamp=when_ns, **fields)


def test_a_timestamp_of_the_future_becomes_the_arrival_flagged_with_the_original():
    late = moments.to_text(NOW_NS + bounds.MAX_FUTURE_NS + 1)

    found = decoded([record(timestamp=late), at(NOW_NS + bounds.MAX_FUTURE_NS), record()])

    first, edge, _ = rows(found)
    assert (first[0], first[6], json.loads(first[7])) == (NOW_NS, FLAG_FUTURE, {"timestamp": late})
    assert (edge[0], edge[6], edge[7]) == (NOW_NS + bounds.MAX_FUTURE_NS, 0, b"")


def test_a_future_integer_is_kept_as_the_integer_that_was_sent():
    found = decoded([at(NOW_NS // 10**9 + 86_400)])

    assert json.loads(rows(found)[0][7]) == {"timestamp": NOW_NS // 10**9 + 86_400}


def test_records_before_the_retention_are_expired_by_index():
    edge_ns = NOW_NS - 30 * moments.NS_PER_DAY

    found = decoded([at(edge_ns), at(edge_ns - 1), at(0), {"bad": 1}, at(-5)])

    assert found.expired == [1, 2, 4]
    assert [one.index for one in found.rejected] == [3]
    assert [row[0] for row in rows(found)] == [edge_ns]


def test_expired_records_do_not_count_as_old_days():
    old = [at(NOW_NS - day * moments.NS_PER_DAY) for day in range(31, 60)]

    assert len(decoded(old).expired) == len(old)


def test_old_days_are_counted_in_utc_and_only_beyond_two_days():
    midnight_ns = NOW_NS // moments.NS_PER_DAY * moments.NS_PER_DAY
    times_ns = [midnight_ns - day * moments.NS_PER_DAY - 1 for day in range(12)]

    assert len(rows(decoded([at(one) for one in times_ns[:10]]))) == 10
    with pytest.raises(errors.BadRequestError, match="9 different days"):
        decoded([at(one) for one in times_ns[:11]])


def test_several_objects_on_a_line_are_several_records_also_beside_a_bad_one():
    good = json.dumps(GOOD)

    assert len(rows(decoded(good + good + "\n" + good))) == 3
    found = decoded(good + "{}" + good)
    assert ([one.index for one in found.rejected], len(rows(found))) == ([1], 2)


def test_blank_lines_are_no_records_and_count_in_no_index():
    found = decoded(lines(GOOD, "", "  ", "{}", "", GOOD, ""))

    assert [one.index for one in found.rejected] == [1]
    assert len(rows(found)) == 2


def test_too_many_label_sets_are_refused_record_by_record():
    found = decoded([record(host=f"h{n}") for n in range(bounds.MAX_LABEL_SETS + 2)] + [GOOD])

    assert [one.index for one in found.rejected] == [4096, 4097, 4098]
    assert "different sets" in found.rejected[0].reason


def test_promoted_attributes_are_labels_and_the_records_own_labels_win():
    rules = native.Rules(NOW_NS, 30, ("a.b", "n", "f", "t", "gone", "long", "o"))
    metadata = {"a": {"b": "x"}, "n": 7, "t": True, "long": "x" * 257, "o": {"p": 1}}
    raw = json.dumps(record(metadata=metadata, labels={"n": "own"}))

    found = decoded(raw.replace('"n": 7', '"n": 7, "f": 1.50'), rules)

    labels = dict(rows(found)[0][1])
    assert labels == {
        "b": "x",
        "f": "1.50",
        "level": "info",
        "n": "own",
        "service": "shop",
        "t": "true",
    }


def test_a_key_with_dots_is_found_before_the_path():
    rules = native.Rules(NOW_NS, 30, ("a.b",))

    found = decoded([record(metadata={"a.b": "flat", "a": {"b": "nested"}})], rules)

    assert dict(rows(found)[0][1])["b"] == "flat"


@pytest.mark.parametrize("count", [bounds.MAX_RECORDS, bounds.MAX_RECORDS + 1])
@pytest.mark.parametrize("bad", [b"", b"{}\n"], ids=["all good", "one bad"])
def test_the_count_of_records_has_its_bound_in_both_paths(count, bad):
    line = json.dumps(record("m")).encode() + b"\n"
    body = line * (count - (1 if bad else 0)) + bad

    if count > bounds.MAX_RECORDS:
        with pytest.raises(errors.TooLargeError):
            decoded(body)
    else:
        found = decoded(body)

        assert len(rows(found)) + len(found.rejected) == count


# --- laws ----------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_.\-/]{0,8}", fullmatch=True).filter(
    lambda name: name not in ("service", "level", "pipeline")
)
recent_ns = st.integers(NOW_NS - 20 * moments.NS_PER_DAY, NOW_NS + bounds.MAX_FUTURE_NS)


def rfc3339(when_ns: int, places: int, offset_minutes: int) -> str:
    shift = timedelta(minutes=offset_minutes)
    local = datetime.fromtimestamp(when_ns // 10**9, UTC) + shift
    digits = f"{when_ns % 10**9:09d}"[:places]
    sign, minutes = "-" if offset_minutes < 0 else "+", abs(offset_minutes)
    zone = f"{sign}{minutes // 60:02d}:{minutes % 60:02d}" if offset_minutes else "Z"
    return f"{local:%Y-%m-%dT%H:%M:%S}{'.' if digits else ''}{digits}{zone}"


timestamps = st.one_of(
    st.none(),
    recent_ns,
    recent_ns.map(lambda ns: ns // 1000),
    recent_ns.map(lambda ns: ns // 10**6),
    recent_ns.map(lambda ns: ns // 10**9),
    st.builds(rfc3339, recent_ns, st.integers(0, 9), st.sampled_from([0, 0, 90, -60])),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
good_records = st.fixed_dictionaries(
    {
        "message": texts,
        "level": st.sampled_from(["info", "WARNING", " err ", "what", ""]),
        "service": st.sampled_from(["shop", "cart", "ü"]),
    },
    optional={
        "timestamp": timestamps,
        "host": st.none() | st.sampled_from(["", "web-1", "web-2"]),
        "trace_id": st.none() | st.binary(max_size=16).map(bytes.hex),
        "span_id": st.none() | st.sampled_from(["", "00F067AA0BA902B7", "a-b-c"]),
        "metadata": st.none() | st.dictionaries(texts, json_values, max_size=3),
        "labels": st.none() | st.dictionaries(names, texts, max_size=3),
    },
)


@st.composite
def bodies(draw) -> tuple[bytes, list[dict]]:
    """A body of good records in any form that JSON has, and the records."""
    chosen = draw(st.lists(good_records, min_size=1, max_size=6))
    options = {"ensure_ascii": draw(st.booleans()), "indent": draw(st.sampled_from([None, 1]))}
    if draw(st.booleans()):
        return json.dumps(chosen, **options).encode(), chosen
    between = draw(st.sampled_from(["\n", "\r\n", "\n\n", " "]))
    return between.join(json.dumps(one, **options) for one in chosen).encode(), chosen


@given(bodies())
def test_both_paths_give_the_same_for_good_records(case):
    body, chosen = case
    is_array = body.startswith(b"[")

    each = native._decode_each(*pieces.find(body, is_array), RULES)
    fast = native._decode_fast(body, is_array, RULES)

    event("fast" if fast else "not fast")
    assert each.rejected == []
    assert [row[2] for row in rows(each)] == [one["message"] for one in chosen]
    if fast is not None:
        assert rows(fast) == rows(each)
        assert (fast.rejected, fast.expired) == ([], [])


plain = good_records.map(
    lambda one: {name: value for name, value in one.items() if name not in ("span_id", "labels")}
)


@given(st.lists(plain, min_size=1, max_size=6), st.booleans())
def test_plain_good_records_take_the_fast_path(chosen, is_array):
    body = json.dumps(chosen) if is_array else "\n".join(map(json.dumps, chosen))
    if native.fields.has_bad_escape(body.encode()):
        return  # pairs of surrogates are looked at one by one

    nested = sum(json.dumps(one.get("metadata")).count("{") for one in chosen) > 30
    nulls = any("metadata" in one and one["metadata"] is None for one in chosen)
    assert nested or nulls or native._decode_fast(body.encode(), is_array, RULES) is not None


@given(bodies(), st.data())
def test_a_bad_neighbour_changes_nothing_of_a_good_record(case, data):
    _, chosen = case
    where = data.draw(st.integers(0, len(chosen)))
    texts_ = list(map(json.dumps, chosen))

    alone = decoded("\n".join(texts_))
    among = decoded("\n".join([*texts_[:where], "{}", *texts_[where:]]))

    assert rows(among) == rows(alone)
    assert [one.index for one in among.rejected] == [where]


broken = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda some: b"[" + some),
    bodies().flatmap(
        lambda case: st.builds(
            lambda at, some: case[0][:at] + some + case[0][at + len(some) :],
            st.integers(0, len(case[0])),
            st.sampled_from([b"", b"\0", b"\xff", b"\\ud800", b'"', b"{", b"\n", b"]", b"\\u0000"])
            | st.binary(min_size=1, max_size=3),
        )
    ),
)


def decoded_or_refused(body: bytes) -> native.Decoded | errors.LogweirError:
    try:
        return decoded(body)
    except errors.LogweirError as refusal:
        return refusal


@given(broken)
@example(b'{"message":"\\ud800","level":"","service":"a"}')
def test_whatever_comes_is_refused_in_words_or_makes_a_block_that_can_be_read(body):
    found = decoded_or_refused(body)

    if isinstance(found, errors.LogweirError):
        assert found.status in (400, 413)
        return
    part = found.part
    request = block.Request(part.n, len(found.expired), len(body), 0)
    payload = block.encode(world.new_uuid(), TenantId("t"), PipelineId(1), [(request, part)], {})
    header, stored = block.decode(payload)
    assert header.records == stored.n == part.n
    assert ids.time_ms(header.uuid) > 0


def test_a_batch_of_a_thousand_records_is_decoded_alike_by_both_paths():
    start = moments.to_text(NOW_NS)[:19]
    body = json.dumps(
        [one | {"timestamp": f"{start}.{n:03d}Z"} for n, one in enumerate(records(1000))]
    ).encode()

    each = native._decode_each(*pieces.find(body, True), RULES)

    fast = native._decode_fast(body, True, RULES)
    assert fast is not None
    assert rows(fast) == rows(each)
    assert rows(fast)[999][0] == NOW_NS // 10**9 * 10**9 + 999_000_000


def test_levels_of_any_length_leave_nothing_behind():
    native._sources.clear()
    body = lines(*(record("m", level="x" * 10_000 + str(n)) for n in range(40)))

    assert {row[1] for row in rows(decoded(body))} == {rows(decoded(GOOD | {"level": "?"}))[0][1]}

    assert all(len(level) < 1000 for _, level, *_ in native._sources)


def test_sources_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr("logweir.ingest.sources.MAX_SOURCES", 10)
    for start in range(0, 60, 20):
        found = rows(decoded([record("m", service=f"s{start + n}") for n in range(20)]))
        assert [dict(row[1])["service"] for row in found] == [f"s{start + n}" for n in range(20)]

    assert len(native._sources) <= 20


@pytest.mark.parametrize("count", [3, 30])
def test_labels_of_some_records_are_their_own(count):
    body = [record("m", labels={"zone": str(n % 3)} if n % 2 else None) for n in range(count)]

    found = rows(decoded(body))

    assert [dict(row[1]).get("zone") for row in found] == [
        str(n % 3) if n % 2 else None for n in range(count)
    ]
