"""Custom resources as they are stored, and as the model knows them. Pure.

API server, or control schema of `up` -> StoredObject -> Live
"""

from __future__ import annotations

from collections.abc import Iterable
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


def read(found: Iterable[StoredObject]) -> tuple[list[Live], dict[Key, str]]:
    """Return objects as the model knows them, and what is wrong with those that it does not."""
    live, wrong = [], {}
    for one in found:
        try:
            live.append(Live(one, resource_of(one)))
        except manifest.ManifestError as error:
            wrong[key_of(one)] = error.message
    return live, wrong


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
