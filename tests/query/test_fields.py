"""Attribute paths of a sample, against a plain count."""

from __future__ import annotations

import json
from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from logweir.query import fields

NAMES = st.sampled_from(["a", "b", "ü", "with space"])
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from([0.5, 1e9]), st.text(max_size=3)
)
VALUES = st.recursive(
    LEAVES | st.lists(LEAVES, max_size=2),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=8)
TYPES = {
    bool: "boolean",
    type(None): "null",
    str: "string",
    int: "number",
    float: "number",
    list: "array",
    dict: "object",
}


def paths_of(value, path=()):
    if isinstance(value, dict) and (value or not path):
        for name, inner in value.items():
            yield from paths_of(inner, (*path, name))
    else:
        yield ".".join(path), value


@given(OBJECTS)
def test_fields_equal_a_plain_count(objects):
    leaves = [pair for one in objects for pair in paths_of(one)]

    found = fields.fields(json.dumps(one).encode() for one in objects)

    assert {one.path: one.count for one in found} == Counter(path for path, _ in leaves)
    for one in found:
        own = [value for path, value in leaves if path == one.path]
        assert one.types == sorted({TYPES[type(value)] for value in own})
        texts = Counter(v if isinstance(v, str) else msgspec.json.encode(v).decode() for v in own)
        assert one.distinct == len(texts)
        assert {value.value: value.count for value in one.values} == texts


def test_the_commonest_values_come_first_and_long_ones_are_cut():
    of = [b'{"a": "x"}', b'{"a": "y"}', b'{"a": "y"}', b'{"a": "%s"}' % (b"z" * 300)]

    [found] = fields.fields(of)

    assert [(one.value[:2], one.count) for one in found.values] == [("y", 2), ("x", 1), ("zz", 1)]
    assert len(found.values[2].value) == fields.MAX_VALUE_CHARS


def test_no_more_paths_are_counted_than_a_person_could_look_through(monkeypatch):
    monkeypatch.setattr(fields, "MAX_PATHS", 2)

    found = fields.fields([b'{"a": 1, "b": 2, "c": 3}', b'{"c": 1, "a": 1}'])

    assert [(one.path, one.count) for one in found] == [("a", 2), ("b", 1)]


def test_deep_objects_are_values():
    [found] = fields.fields([b'{"a":' * 30 + b"1" + b"}" * 30])

    assert found.path.count(".") < 30
    assert found.types == ["object"]


def test_records_without_attributes_have_no_fields():
    assert fields.fields([b"", b"{}"]) == []
