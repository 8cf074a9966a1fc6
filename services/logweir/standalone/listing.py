"""`logweir get`: resources as tables, YAML or JSON; and the addresses and keys of tenants."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from logweir.backends.control import StoredObject
from logweir.core import errors
from logweir.standalone import objects
from logweir.standalone.cluster_files import Access, TenantKeys
from logweir.standalone.folder import Folder, read_json

_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def text(found: Sequence[StoredObject], kind: str, namespace: str, name: str, form: str) -> str:
    """Return resources as `get` prints them.

    Raises:
        BadRequestError: there is no such kind or form.
        NotFoundError: there is no resource of this name.
    """
    if form not in ("", "wide", "yaml", "json"):
        raise errors.BadRequestError(f"-o {form} is not known.", hint="It is wide, yaml or json.")
    kinds = sorted(set(objects.PLURALS.values()), reverse=True)
    if kind != "all":
        kinds = [objects.kind_of(kind)]
    chosen = [
        one
        for one in found
        if one.kind in kinds and one.namespace == namespace and name in ("", one.name)
    ]
    if name and not chosen:
        raise errors.NotFoundError(f'{kinds[0].lower()}s.logweir.dev "{name}" not found')
    if form in ("yaml", "json"):
        return _document(chosen, form, is_one=bool(name))
    if not chosen:
        return f"No resources found in namespace {namespace}."
    return "\n\n".join(
        _table([one for one in chosen if one.kind == each], is_wide=form == "wide")
        for each in kinds
        if any(one.kind == each for one in chosen)
    )


def _document(chosen: Sequence[StoredObject], form: str, *, is_one: bool) -> str:
    documents = [objects.document_of(one) for one in chosen]
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
    if is_wide:
        heads.append("MESSAGE" if is_tenant else "URL")
    lines = [heads]
    for one in rows:
        ready = _ready(one)
        second = one.status.get("tenantId", "") if is_tenant else one.spec["tenantRef"]["name"]
        line = [one.name, second, ready["status"], ready["reason"], _age(one.created_at)]
        if is_wide:
            line.append(ready["message"] if is_tenant else one.status.get("url", ""))
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _ready(one: StoredObject) -> dict[str, str]:
    if one.deleted_at is not None:
        return {"status": "False", "reason": "Deleting", "message": "It is being deleted."}
    for condition in one.status.get("conditions", ()):
        if condition["type"] == "Ready":
            found: dict[str, str] = condition
            return found
    return {"status": "Unknown", "reason": "", "message": ""}


def _age(created_at: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - created_at).total_seconds()))
    for unit, size in _UNITS:
        if seconds >= 2 * size or size == 1:
            return f"{seconds // size}{unit}"
    return "0s"


def keys(place: Folder, namespace: str, tenant: str) -> str:
    """Return a tenant's API keys as JSON; without a name, of the first tenant.

    Raises:
        NotFoundError: there is no such tenant with keys.
    """
    found = _tenant_keys(place, namespace, tenant)
    return msgspec.json.format(msgspec.json.encode(found)).decode()


def _tenant_keys(place: Folder, namespace: str, tenant: str) -> TenantKeys:
    if not tenant:
        access = read_json(place.path / "access.json", Access)
        for path in sorted(place.keys.glob("*.json")):
            found = read_json(path, TenantKeys)
            if found.tenant == access.tenant:
                return found
    path = place.keys / f"{namespace}.{tenant}.json"
    if not tenant or not path.exists():
        raise errors.NotFoundError(
            f"There are no keys of a LogTenant {tenant!r} in namespace {namespace!r}.",
            hint="'logweir get logtenants' lists them; keys are made by spec.apiKeys.",
        )
    return read_json(path, TenantKeys)


def address(place: Folder, tenant: str, prefix: str) -> tuple[str, str]:
    """Return a pipeline's base URL and a key whose text begins with `prefix`.

    Args:
        place: of a running `up`.
        tenant: the LogTenant's name; empty for the first one.
        prefix: of the class of key: lwi_ or lwa_.

    Raises:
        NotFoundError: there is no such tenant, or it has no such key.
    """
    found = _tenant_keys(place, "default", tenant)
    key = next((text for text in found.keys.values() if text.startswith(prefix)), "")
    if not key or not found.pipelines:
        scope = "ingest" if prefix == "lwi_" else "query"
        raise errors.NotFoundError(
            f"LogTenant {found.name!r} has no pipeline, or no key with the scope {scope!r}.",
            hint="Add one to its spec.apiKeys, or give --url and --key.",
        )
    return f"{found.url}/{found.pipelines[0]}", key
