"""Custom resources of `up`: applied, listed and deleted in the control schema, by kubectl's words.

A manifest that is wrong changes nothing: all of a file is checked before any of it is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from logweir.backends.control import Control, StoredObject
from logweir.core import errors
from logweir_operator import manifest, model
from logweir_operator.model import LogPipeline, LogTenant, Resource

PLURALS: Final[Mapping[str, str]] = {
    "logtenant": "LogTenant",
    "logtenants": "LogTenant",
    "lt": "LogTenant",
    "logpipeline": "LogPipeline",
    "logpipelines": "LogPipeline",
    "lp": "LogPipeline",
}

Key = tuple[str, str, str]
"""Kind, namespace, name."""


class Applied(msgspec.Struct, frozen=True):
    """What became of one resource: created, configured or unchanged."""

    kind: str
    name: str
    verb: str

    def __str__(self) -> str:
        return f"{self.kind.lower()}.{model.GROUP}/{self.name} {self.verb}"


def kind_of(text: str) -> str:
    """Return the kind that a word of the command line names.

    Raises:
        BadRequestError: there is no such kind.
    """
    found = PLURALS.get(text.lower())
    if found is None:
        raise errors.BadRequestError(
            f"There is no resource type {text!r}.",
            hint="Known: logtenants (lt), logpipelines (lp).",
        )
    return found


def key_of(found: StoredObject) -> Key:
    """Return what names an object."""
    return (found.kind, found.namespace, found.name)


def resource_of(found: StoredObject) -> Resource:
    """Return an object as the model knows it.

    Raises:
        ManifestError: a newer or older program stored what this one does not take.
    """
    return manifest.resource(document_of(found, with_status=False))


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


async def apply(
    control: Control, resources: Sequence[Resource], *, source: str = "", source_hash: str = ""
) -> list[Applied]:
    """Write resources into the control schema, all of them or none.

    Raises:
        ManifestError: one changes what is immutable, or is being deleted.
        UnavailableError: the control schema does not answer.
    """
    before = {key_of(one): one for one in await control.objects()}
    wrong = [
        f"{one.kind} {one.metadata.name!r}: {problem}"
        for one in resources
        for problem in _problems(before.get((one.kind, *_place(one))), one)
    ]
    if wrong:
        raise manifest.ManifestError("\n".join(wrong))
    applied = []
    for one in resources:
        namespace, name = _place(one)
        old = before.get((one.kind, namespace, name))
        spec = msgspec.to_builtins(one.spec)
        new = await control.apply_object(
            one.kind, namespace, name, spec, source=source, source_hash=source_hash
        )
        verb = "created" if old is None else "configured"
        if old is not None and old.generation == new.generation:
            verb = "unchanged"
        applied.append(Applied(one.kind, name, verb))
    return applied


def _place(resource: Resource) -> tuple[str, str]:
    return resource.metadata.namespace, resource.metadata.name


def _problems(old: StoredObject | None, new: Resource) -> list[str]:
    if old is None:
        return []
    if old.deleted_at is not None:
        return ["it is being deleted; apply it again when it is gone"]
    return [str(error) for error in model.changed_for_good(resource_of(old), new)]


async def delete(control: Control, kind: str, namespace: str, name: str) -> None:
    """Ask for an object's deletion; the reconciler does it.

    Raises:
        NotFoundError: there is no such object.
        ForbiddenError: its deletion is protected, or a tenant still has pipelines.
        UnavailableError: the control schema does not answer.
    """
    found = {key_of(one): one for one in await control.objects()}
    one = found.get((kind, namespace, name))
    if one is None:
        raise errors.NotFoundError(f'{kind.lower()}s.{model.GROUP} "{name}" not found')
    resource = resource_of(one)
    if isinstance(resource, LogTenant):
        if resource.spec.deletion_protection:
            raise errors.ForbiddenError(
                f'LogTenant "{name}" has spec.deletionProtection.',
                hint="Set it to false first, if this is meant.",
            )
        pipelines = [
            other.name
            for other in found.values()
            if other.kind == "LogPipeline"
            and other.namespace == namespace
            and _refers_to(other, name)
        ]
        if pipelines:
            raise errors.ForbiddenError(
                f'LogTenant "{name}" still has pipelines: {", ".join(sorted(pipelines))}.',
                hint="Delete them first: logweir delete logpipeline NAME.",
            )
    await control.delete_object(kind, namespace, name)


def _refers_to(found: StoredObject, tenant: str) -> bool:
    resource = resource_of(found)
    return isinstance(resource, LogPipeline) and resource.spec.tenant_ref.name == tenant
