"""The CRDs on a real API server: each bound, rule and default, and what kubectl makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from controlplane.api import until

from logweir_operator import crdgen, model

if TYPE_CHECKING:
    from controlplane.plane import Plane

SCHEMAS = {
    one.kind: crdgen.definition(one)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for one in crdgen.RESOURCES
}


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each field of a schema by its path; `[]` is an element of a list, `*` a value of a map."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from walk(inner, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}.*")


def published(plane: Plane) -> dict[str, Any]:
    """The schemas by kind that the API server tells kubectl, a moment after it has the CRDs."""
    path = f"apis/{model.API_VERSION}"

    def look() -> dict[str, Any]:
        if path not in plane.api.request("GET", "/openapi/v3")["paths"]:
            return {}
        found = plane.api.request("GET", f"/openapi/v3/{path}")["components"]["schemas"]
        kinds = {kind: found.get(f"dev.logweir.{model.VERSION}.{kind}") for kind in SCHEMAS}
        return kinds if all(kinds.values()) else {}

    return until(look)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_each_field_is_described_by_sentences(kind):
    for path, schema in walk(SCHEMAS[kind]):
        if path == "metadata" or path.endswith(("[]", ".*")):
            continue  # the API server's, or described by the list or map that they are of
        assert schema.get("description", "").endswith("."), path


@pytest.mark.parametrize("kind", SCHEMAS)
def test_kubectl_explains_each_field(plane: Plane, kind):
    for path, inner in walk(published(plane)[kind]):  # what kubectl explain reads
        assert inner.get("description") or path.endswith(("[]", ".*")), path


def test_kubectl_explain_says_what_a_field_does_and_its_values(plane: Plane):
    published(plane)
    said = " ".join(plane.kubectl("explain", "lt.spec.deletionPolicy").split())

    assert "FIELD: deletionPolicy <string>" in said
    assert "ENUM: Delete Retain" in said
    assert "What becomes of the logs when the LogTenant is deleted." in said
    assert "<no description>" not in plane.kubectl("explain", "lp.spec.collector.autoscaling")
