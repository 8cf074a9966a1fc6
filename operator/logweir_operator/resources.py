"""Custom resources as they are stored, and as the model knows them. Pure.

API server, or control schema of `up` -> StoredObject -> Live
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from logweir.backends.control import StoredObject
from logweir_operator import manifest, model
from logweir_operator.model import Resource

Key = tuple[str, str, str]
"""Kind, namespace, name."""


class Live(msgspec.Struct, frozen=True):
    """An object as it is stored, and as the model knows it."""

    stored: StoredObject
    resource: Resource

    @property
    def key(self) -> Key:
        """What names it."""
        return key_of(self.stored)


def key_of(found: StoredObject) -> Key:
    """Return what names an object."""
    return (found.kind, found.namespace, found.name)


def resource_of(found: StoredObject) -> Resource:
    """Return an object as the model knows it.

    Raises:
        ManifestError: a newer or older program stored what this one does not take.
    """
    return manifest.resource(document_of(found, with_status=False))


class Reader:
    """Reads objects as the model knows them, each once for as long as its spec is the same one:
    most of a pass over a thousand pipelines would be this."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[Mapping[str, Any], Resource | str]] = {}

    def read(self, found: Iterable[StoredObject]) -> tuple[list[Live], dict[Key, str]]:
        """Return objects as the model knows them, and what is wrong with those that it does not."""
        live: list[Live] = []
        wrong: dict[Key, str] = {}
        known: dict[Key, tuple[Mapping[str, Any], Resource | str]] = {}
        for one in found:
            key = key_of(one)
            spec, read = self._known.get(key, (None, ""))
            if spec is not one.spec:
                read = _resource_or_problem(one)
            known[key] = (one.spec, read)
            if isinstance(read, str):
                wrong[key] = read
            else:
                live.append(Live(one, read))
        self._known = known
        return live, wrong


def _resource_or_problem(found: StoredObject) -> Resource | str:
    try:
        return resource_of(found)
    except manifest.ManifestError as error:
        return error.message


def tenant_name(found: StoredObject) -> str:
    """Return the name of the LogTenant that a LogPipeline refers to."""
    return str((found.spec.get("tenantRef") or {}).get("name"))


def document_of(found: StoredObject, *, with_status: bool = True) -> dict[str, Any]:
    """Return an object as kubectl would print it."""
    metadata: dict[str, Any] = {"name": found.name, "namespace": found.namespace}
    document = {
        "apiVersion": model.API_VERSION,
        "kind": found.kind,
        "metadata": metadata,
        "spec": found.spec,
    }
    if with_status:
        metadata["generation"] = found.generation
        metadata["creationTimestamp"] = found.created_at.isoformat()
        if found.deleted_at is not None:
            metadata["deletionTimestamp"] = found.deleted_at.isoformat()
        document["status"] = found.status
    return document
