"""What the operator knows of the API server's objects."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from logweir_operator.cache import Cache

PIPELINE = ("LogPipeline", "team", "web")


def pipeline(version: int = 1, uid: str = "p1", name: str = "web", **meta: Any) -> dict[str, Any]:
    stamp = {"creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": str(version)}
    return {"metadata": {"namespace": "team", "name": name, "uid": uid} | stamp | meta, "spec": {}}


def service(version: int = 1, uid: str = "s1", owner: str = "p1", **meta: Any) -> dict[str, Any]:
    reference = {"kind": "LogPipeline", "name": "web", "uid": owner, "controller": True}
    return {
        "metadata": {
            "namespace": "team",
            "name": "web-ingest",
            "uid": uid,
            "resourceVersion": str(version),
            "ownerReferences": [reference] if owner else [],
            "managedFields": [{"manager": "kubectl"}],
            **meta,
        }
    }


def everywhere(_: str) -> bool:
    return True


def test_an_older_version_never_replaces_a_newer_one():
    known = Cache()
    known.put_resource("LogPipeline", pipeline(7))
    known.put_resource("LogPipeline", pipeline(5))
    assert known.resources[PIPELINE].version == 7
    known.put_child("Service", service(9))
    known.put_child("Service", service(3))
    assert [one.version for one in known.children_of(PIPELINE)] == [9]


def test_another_object_of_the_name_replaces_an_older_one_alone():
    known = Cache()
    known.put_resource("LogPipeline", pipeline(7))
    known.put_resource("LogPipeline", pipeline(9, uid="p2"))
    known.put_resource("LogPipeline", pipeline(8, uid="p1"))  # said late
    assert known.resources[PIPELINE].uid == "p2"
    assert known.drop_resource("LogPipeline", pipeline(10, uid="p1")) is None
    assert known.drop_resource("LogPipeline", pipeline(10, uid="p2")) == PIPELINE


def test_a_child_whose_reference_was_taken_is_found_by_its_label():
    known = Cache()
    labels = {"logweir.dev/pipeline": "web", "logweir.dev/tenant": "acme"}
    known.put_child("Service", service(owner="", labels=labels))
    [found] = known.children_of(PIPELINE)
    assert (found.owner, found.owner_uid) == (PIPELINE, "")


def test_what_nobody_reads_is_not_kept():
    known = Cache()
    known.put_child("Service", service())
    [found] = known.children_of(PIPELINE)
    assert "managedFields" not in found.document()["metadata"]


def test_a_listing_drops_what_is_gone_but_not_what_came_after_it():
    known = Cache()
    known.put_child("Service", service(4))
    known.put_child("Service", service(12, uid="s2", name="late"))
    gone = known.replace_children("Service", [], 10, everywhere)
    assert [one.uid for one in gone] == ["s1"]
    assert [one.uid for one in known.children_of(PIPELINE)] == ["s2"]
    known.put_resource("LogPipeline", pipeline(3))
    assert known.replace_resources("LogPipeline", [], 10, lambda one: one != "team") == []
    assert known.replace_resources("LogPipeline", [], 10, everywhere) == [PIPELINE]


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["s1", "s2"]), st.booleans())))
def test_children_and_their_owners_always_agree(steps: list[tuple[int, str, bool]]):
    known = Cache()
    for version, uid, is_there in steps:
        body = service(version, uid)
        if is_there:
            known.put_child("Service", body)
        else:
            known.drop_child("Service", body)
        found = known.child(("Service", "team", "web-ingest"))
        assert known.children_of(PIPELINE) == ([found] if found else [])
