"""Whether a live object is as it is wanted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logweir_operator import drift

WANTED: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"name": "web", "labels": {"a": "b"}},
    "spec": {
        "template": {
            "spec": {
                "containers": [
                    {"name": "ingest", "args": ["run", "ingest"], "env": [], "resources": {}}
                ],
                "tolerations": [{"operator": "Exists"}],
            }
        }
    },
}


def live() -> dict[str, Any]:
    found = copy.deepcopy(WANTED)
    container = found["spec"]["template"]["spec"]["containers"][0]
    del container["env"]  # as the server does with what is empty
    container["imagePullPolicy"] = "IfNotPresent"
    found["spec"]["template"]["spec"]["containers"].insert(0, {"name": "injected"})
    found["spec"]["replicas"] = 3
    found["status"] = {"readyReplicas": 3}
    return found


def test_what_the_server_and_others_add_is_no_difference():
    assert drift.difference(live(), WANTED) == ""


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda o: o["metadata"]["labels"].pop("a"), ".metadata.labels.a"),
        (
            lambda o: o["spec"]["template"]["spec"]["containers"][1]["args"].append("--x"),
            ".spec.template.spec.containers[name=ingest].args",
        ),
        (
            lambda o: o["spec"]["template"]["spec"]["containers"].pop(1),
            ".spec.template.spec.containers[name=ingest]",
        ),
        (
            lambda o: o["spec"]["template"]["spec"]["tolerations"].append({"key": "x"}),
            ".spec.template.spec.tolerations",
        ),
        (lambda o: o.update(kind="Secret"), ".kind"),
        (lambda o: o["spec"].update(template="text"), ".spec.template"),
    ],
)
def test_what_somebody_has_changed_is_named(change: Any, path: str):
    found = live()
    change(found)
    assert drift.difference(found, WANTED) == path


def test_an_intent_that_wants_a_field_no_more_has_another_hash():
    less = copy.deepcopy(WANTED)
    del less["metadata"]["labels"]
    signed = drift.signed(WANTED)
    assert drift.difference(signed, drift.signed(less)) == f".metadata.annotations.{drift.INTENT}"
    assert drift.signed(WANTED) == signed


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_json)
def test_an_object_is_as_it_is_itself(document: Any):
    assert drift.difference(document, document) == ""
    assert drift.difference({"a": document, "more": 1}, {"a": document}) == ""
