"""Custom resources of `up`: applied, listed and deleted in the control schema, by kubectl's words.

A manifest that is wrong changes nothing: all of a file is checked before any of it is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from logweir.backends.control import Control, ObjectLeavingError, StoredObject
from logweir.backends.rotations import Rotations
from logweir.core import errors, states
from logweir.core.names import TenantId
from logweir_operator import manifest, model, rules
from logweir_operator.model import Resource
from logweir_operator.resources import Key, Reader, key_of, tenant_name

KINDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("logtenant", "logtenants", "lt", "ltenant"), "LogTenant"),
    **dict.fromkeys(("logpipeline", "logpipelines", "lp", "lpipe"), "LogPipeline"),
}
"""Kinds by the words that kubectl knows for them."""


class LeavingError(manifest.ManifestError):
    """What is to be applied is being deleted: later it can be."""


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
    found = KINDS.get(text.lower().removesuffix(f".{model.GROUP}"))
    if found is None:
        raise errors.BadRequestError(
            f"There is no resource type {text!r}.",
            hint="Known: logtenants (lt), logpipelines (lp).",
        )
    return found


def not_found(kind: str, name: str) -> errors.NotFoundError:
    """Return the error of an object that is not there."""
    return errors.NotFoundError(f'{kind.lower()}s.{model.GROUP} "{name}" not found')


async def apply(
    control: Control, resources: Sequence[Resource], *, source: str = "", source_hash: str = ""
) -> list[Applied]:
    """Write resources into the control schema, all of them or none.

    Raises:
        ManifestError: one changes what is immutable.
        LeavingError: one is being deleted.
        UnavailableError: the control schema does not answer.
    """
    before = {key_of(one): one for one in await control.objects()}
    _check(before, resources)
    try:
        made = await control.apply_objects(
            [(*_key(one), msgspec.to_builtins(one.spec)) for one in resources],
            source=source,
            source_hash=source_hash,
        )
    except ObjectLeavingError as error:
        raise LeavingError(error.message) from error
    applied = []
    for new in made:
        old = before.get(key_of(new))
        before[key_of(new)] = new
        verb = "created" if old is None else "configured"
        if old is not None and old.generation == new.generation:
            verb = "unchanged"
        applied.append(Applied(new.kind, new.name, verb))
    return applied


def _key(resource: Resource) -> Key:
    return (resource.kind, resource.metadata.namespace, resource.metadata.name)


def _check(before: Mapping[Key, StoredObject], resources: Sequence[Resource]) -> None:
    known: dict[Key, Resource] = {}
    wrong, leaving = [], []
    for one in resources:
        key = _key(one)
        title = f'{one.kind} "{one.metadata.name}"'
        old = before.get(key)
        if old is not None and old.deleted_at is not None:
            leaving.append(f"{title} is being deleted; apply it again when it is gone")
            continue
        if key not in known and old is not None:
            live, _ = Reader().read([old])  # one that cannot be read may be replaced by anything
            known.update({of.key: of.resource for of in live})
        if key in known:
            changed = rules.changed_for_good(known[key], one)
            wrong += [f"{title}: {problem}" for problem in changed]
        known[key] = one
    if wrong:
        raise manifest.ManifestError("\n".join([*wrong, *leaving]))
    if leaving:
        raise LeavingError("\n".join(leaving))


async def delete(control: Control, kind: str, namespace: str, name: str) -> None:
    """Ask for an object's deletion; the reconciler does it.

    Raises:
        NotFoundError: there is no such object.
        ForbiddenError: its deletion is protected, or a tenant still has pipelines.
        UnavailableError: the control schema does not answer.
    """
    found = await control.objects()
    one = next((one for one in found if key_of(one) == (kind, namespace, name)), None)
    if one is None:
        raise not_found(kind, name)
    if kind == "LogTenant":
        _check_may_go(one, found)
    await control.delete_object(kind, namespace, name)


def _check_may_go(tenant: StoredObject, found: Iterable[StoredObject]) -> None:
    if tenant.spec.get("deletionProtection"):
        raise errors.ForbiddenError(
            f'LogTenant "{tenant.name}" has spec.deletionProtection.',
            hint="Set it to false first, if this is meant.",
        )
    pipelines = sorted(
        one.name
        for one in found
        if one.kind == "LogPipeline"
        and one.deleted_at is None  # one that is going is waited for
        and one.namespace == tenant.namespace
        and tenant_name(one) == tenant.name
    )
    if pipelines:
        raise errors.ForbiddenError(
            f'LogTenant "{tenant.name}" still has pipelines: {", ".join(pipelines)}.',
            hint="Delete them first: logweir delete logpipeline NAME.",
        )


async def rotating(control: Control, only: TenantId | None = None) -> dict[TenantId, int]:
    """Return the tenants that rotate when they are asked to, with their signing revisions.

    Raises:
        UnavailableError: the control schema does not answer.
    """
    suspended = {
        (one.namespace, one.name) for one in await control.objects() if one.spec.get("suspend")
    }
    return {
        row.id: row.ingest_revision
        for row in await control.tenants()
        if row.state in states.MADE
        and (row.namespace, row.name) not in suspended
        and only in (None, row.id)
    }


async def until_signed_anew(
    control: Rotations, subject: str, before: Mapping[TenantId, int], poll_s: float = 0.5
) -> None:
    """Wait until a rotation is begun, and new keys of all these tenants are signed with a newer
    revision than `before`.

    Raises:
        UnavailableError: the control schema does not answer.
    """
    while True:
        now = await rotating(control)
        is_signed = all(now[one] > revision for one, revision in before.items() if one in now)
        if is_signed and subject not in await control.requests():
            return
        await asyncio.sleep(poll_s)


async def until_gone(
    control: Control,
    wanted: Collection[Key],
    say: Callable[[str], None] = lambda _: None,
    poll_s: float = 0.2,
) -> None:
    """Wait until objects that were deleted are gone, and say what each of them waits for.

    Raises:
        UnavailableError: the control schema does not answer.
    """
    said: dict[Key, str] = {}
    while True:
        found = await control.objects()
        leaving = [one for one in found if one.deleted_at is not None and key_of(one) in wanted]
        if not leaving:
            return
        for one in leaving:
            waits_for = waits_for_of(one)
            if waits_for and said.get(key_of(one)) != waits_for:
                said[key_of(one)] = waits_for
                say(f"{one.kind.lower()}/{one.name}: {waits_for}")
        await asyncio.sleep(poll_s)


async def tenant_id(control: Control, tenant: str) -> TenantId:
    """Return the id of a LogTenant, given as NAME or NAMESPACE/NAME.

    Raises:
        NotFoundError: there is none, or it is not made yet.
        UnavailableError: the control schema does not answer.
    """
    namespace, _, name = tenant.rpartition("/")
    wanted = (namespace or "default", name)
    for row in await control.tenants():
        if (row.namespace, row.name) == wanted and row.state != "provisioning":
            return row.id
    raise not_found("LogTenant", tenant)


def waits_for_of(one: StoredObject) -> str:
    """Return what a deletion waits for, by the object's status; nothing before it was looked at."""
    conditions = one.status.get("conditions", ())
    return next((c["message"] for c in conditions if c["reason"] == "Deleting"), "")
