"""`logweir get`: resources as tables, YAML or JSON; and the addresses and keys of tenants."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from logweir.backends.control import StoredObject
from logweir.client.output import size
from logweir.core import errors
from logweir.core.keys import ACCESS_PREFIX
from logweir.standalone import objects
from logweir.standalone.cluster_files import Access, TenantKeys, file_name
from logweir.standalone.folder import Folder, read_json
from logweir_operator import resources

_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def text(found: Sequence[StoredObject], kind: str, namespace: str, name: str, form: str) -> str:
    """Return resources as `get` prints them; an empty text when a table has no rows.

    Raises:
        BadRequestError: there is no such kind or form.
        NotFoundError: there is no resource of this name.
    """
    if form not in ("", "wide", "yaml", "json"):
        raise errors.BadRequestError(f"-o {form} is not known.", hint="It is wide, yaml or json.")
    kinds = sorted(set(objects.KINDS.values()), reverse=True)
    if kind != "all":
        kinds = [objects.kind_of(kind)]
    chosen = [
        one
        for one in found
        if one.kind in kinds and one.namespace == namespace and name in ("", one.name)
    ]
    if name and not chosen:
        raise objects.not_found(kinds[0], name)
    if form in ("yaml", "json"):
        return _document(chosen, form, is_one=bool(name))
    if not chosen:
        return ""
    return "\n\n".join(
        _table([one for one in chosen if one.kind == each], is_wide=form == "wide")
        for each in kinds
        if any(one.kind == each for one in chosen)
    )


def _document(chosen: Sequence[StoredObject], form: str, *, is_one: bool) -> str:
    documents = [resources.document_of(one) for one in chosen]
    whole: Any = (
        documents[0] if is_one else {"apiVersion": "v1", "kind": "List", "items": documents}
    )
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(whole)).decode()
    import yaml

    dumped: str = yaml.safe_dump(msgspec.to_builtins(whole), sort_keys=False, allow_unicode=True)
    return dumped.rstrip()


def _table(rows: Sequence[StoredObject], *, is_wide: bool) -> str:
    is_tenant = rows[0].kind == "LogTenant"
    heads = ["NAME", "ID" if is_tenant else "TENANT", "READY", "REASON", "AGE"]
    if is_tenant:
        heads[4:4] = ["STORED", "OLDEST", "NEXT-DROP"]
    if is_wide:
        heads.append("MESSAGE" if is_tenant else "URL")
    lines = [heads]
    for one in rows:
        ready = _ready(one)
        second = one.status.get("tenantId", "") if is_tenant else resources.tenant_name(one)
        line = [one.name, second, ready["status"], ready["reason"], _age(one.created_at)]
        if is_tenant:
            line[4:4] = _storage(one)
        if is_wide:
            line.append(ready["message"] if is_tenant else one.status.get("url", ""))
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _ready(one: StoredObject) -> dict[str, str]:
    found: dict[str, str] = {"status": "Unknown", "reason": "", "message": ""}
    for condition in one.status.get("conditions", ()):
        if condition["type"] == "Ready":
            found = condition
    if one.deleted_at is not None and found["reason"] != "Deleting":  # not yet looked at
        return {"status": "False", "reason": "Deleting", "message": "It is being deleted."}
    return found


def _storage(one: StoredObject) -> list[str]:
    """What a tenant has stored, how old the oldest of it is, and in how long it goes."""
    found = one.status.get("storage", {})
    if not found:
        return ["", "", ""]
    oldest, drop = found.get("oldestRecord"), found.get("nextDrop")
    return [
        size(found["storedBytes"]),
        _age(datetime.fromisoformat(oldest)) if oldest else "",
        _length(datetime.fromisoformat(drop) - datetime.now(UTC)) if drop else "",
    ]


def _age(since: datetime) -> str:
    return _length(datetime.now(UTC) - since)


def _length(length: timedelta) -> str:
    seconds = max(0, int(length.total_seconds()))
    for unit, unit_s in _UNITS:
        if seconds >= 2 * unit_s or unit_s == 1:
            return f"{seconds // unit_s}{unit}"
    return "0s"


def keys(place: Folder, namespace: str, tenant: str) -> str:
    """Return a tenant's API keys as JSON; without a name, of the first tenant.

    Raises:
        NotFoundError: there is no such tenant with keys.
    """
    found = tenant_keys(place, namespace, tenant)
    return msgspec.json.format(msgspec.json.encode(found)).decode()


def tenant_keys(place: Folder, namespace: str, tenant: str) -> TenantKeys:
    """Return the address and the keys of a tenant; without a name, of the first one.

    Raises:
        NotFoundError: there is no such tenant with keys.
    """
    if not tenant:
        access = read_json(place.access, Access)
        for path in sorted(place.keys.glob("*.json")):
            found = read_json(path, TenantKeys)
            if found.tenant == access.tenant:
                return found
        raise errors.NotFoundError(
            "There is no tenant with a pipeline.", hint="'logweir get all' lists what there is."
        )
    path = place.keys / file_name(namespace, tenant)
    if not path.exists():
        raise errors.NotFoundError(
            f"There are no keys of a LogTenant {tenant!r} in namespace {namespace!r}.",
            hint="'logweir get logtenants' lists them; keys are made by spec.apiKeys.",
        )
    return read_json(path, TenantKeys)


def address(place: Folder, tenant: str, pipeline: str, prefix: str) -> tuple[str, str]:
    """Return a pipeline's base URL and a key for it.

    Args:
        place: of a running `up`.
        tenant: the LogTenant, as NAME or NAMESPACE/NAME; empty for the first one.
        pipeline: its name; empty for the first one that has such a key.
        prefix: of the class of key: lwi_ or lwa_.

    Raises:
        NotFoundError: there is no such tenant or pipeline, or it has no such key.
    """
    namespace, _, name = tenant.rpartition("/")
    found = tenant_keys(place, namespace or "default", name)
    if pipeline and pipeline not in found.pipelines:
        raise errors.NotFoundError(
            f"LogTenant {found.name!r} has no pipeline {pipeline!r}.",
            hint=f"It has: {', '.join(found.pipelines) or 'none'}.",
        )
    # Reading needs no pipeline: what a deleted one has left is read as well.
    every = found.pipelines or [""] if prefix == ACCESS_PREFIX else found.pipelines
    for wanted in [pipeline] if pipeline else every:
        key = found.key(prefix, wanted)
        if key:
            return f"{found.url}/{wanted}", key
    scope = "ingest" if prefix == "lwi_" else "query"
    raise errors.NotFoundError(
        f"LogTenant {found.name!r} has no pipeline, or no key with the scope {scope!r}.",
        hint="Add one to its spec.apiKeys, or give --url and --key.",
    )
