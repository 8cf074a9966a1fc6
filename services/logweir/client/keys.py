"""`logweir keys`: the key API as a client sees it, and what a key's text says by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from logweir.client import api
from logweir.client.api import Target
from logweir.core import access, errors, keys

PATH: Final = "/api/v1/keys"
GOOD: Final = ("active", "ending")


class ApiKey(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A key as the API shows it; `key` is its text, which only a new one has."""

    name: str
    id: str
    scopes: list[str]
    pipeline: str | None
    generation: int
    origin: str
    state: str
    created_at: str
    created_by: str
    expires_at: str | None
    revoked_at: str | None
    key: str = ""

    @property
    def is_good(self) -> bool:
        """Whether it is good for something now."""
        return self.state in GOOD


class _Listed(msgspec.Struct, frozen=True):
    keys: list[ApiKey]


class Checked(msgspec.Struct, frozen=True, rename="camel"):
    """What a key's text says. `pipeline` is an id, null for all of the tenant's."""

    kind: str = msgspec.field(name="class")
    tenant: str
    pipeline: int | None
    scopes: list[str]
    expires_at: datetime | None
    is_expired: bool
    id: str
    revision: int


def create(
    target: Target, name: str, scopes: Sequence[str], pipeline: str | None, ends: datetime | None
) -> ApiKey:
    """Make a key.

    Raises:
        AnswerError, UnavailableError: as of all functions here that take a target.
    """
    body = {"name": name, "scopes": list(scopes), "pipeline": pipeline, "expiresAt": ends}
    return _call(target, "POST", PATH, body, ApiKey)


def listed(target: Target) -> list[ApiKey]:
    """Return all keys that the API remembers."""
    return _call(target, "GET", PATH, None, _Listed).keys


def roll(target: Target, name: str, overlap_s: int, ends: datetime | None) -> ApiKey:
    """Make the next generation of a key."""
    body: dict[str, Any] = {"overlapSeconds": overlap_s}
    if ends is not None:
        body["expiresAt"] = ends
    return _call(target, "POST", f"{PATH}/{quote(name, safe='')}/roll", body, ApiKey)


def revoke(target: Target, name: str) -> None:
    """Revoke a key."""
    with api.client(target) as http:
        api.send(http, target, "DELETE", f"{PATH}/{quote(name, safe='')}")


def _call(target: Target, method: str, path: str, body: object, kind: type[api.Kind]) -> api.Kind:
    with api.client(target) as http:
        return api.decode(api.send(http, target, method, path, body), kind)


def checked(text: str) -> Checked:
    """Return what a key says.

    Raises:
        MistypedKeyError: its checksum does not fit.
        BadRequestError: it is no key.
    """
    try:
        key = access.read(text).key
    except access.MistypedKeyError:
        raise
    except errors.UnauthorizedError as cause:
        raise errors.BadRequestError(
            "This is no key of Logweir.",
            hint=f"They begin with {keys.INGEST_PREFIX} or {keys.ACCESS_PREFIX}.",
        ) from cause
    ends_s = key.expires_at_s
    return Checked(
        kind="ingest" if key.is_ingest else "access",
        tenant=key.tenant,
        pipeline=key.pipeline or None,
        scopes=[name for name, scope in keys.SCOPE_NAMES.items() if key.permits(scope)],
        expires_at=datetime.fromtimestamp(ends_s, UTC) if ends_s else None,
        is_expired=0 < ends_s <= time.time(),
        id=str(key.key_id),
        revision=key.revision,
    )


def sheet(found: Checked) -> str:
    """Return what a key says, for a person."""
    ends = f"{found.expires_at:%Y-%m-%d %H:%M:%S} UTC" if found.expires_at else "never"
    rows = [
        ("class", found.kind),
        ("tenant", found.tenant),
        ("pipeline", "all" if found.pipeline is None else f"the one with id {found.pipeline}"),
        ("scopes", ", ".join(found.scopes)),
        ("expires", ends + (" (it has)" if found.is_expired else "")),
        ("id", found.id),
        ("signed by", f"revision {found.revision}; only a server can tell whether it was"),
    ]
    return "\n".join(f"{name:<10} {value}" for name, value in rows)


def table(found: Sequence[ApiKey]) -> str:
    """Return keys as a table, for a person."""
    lines = [
        ("NAME", "SCOPES", "PIPELINE", "STATE", "GENERATION", "ORIGIN", "ENDS", "CREATED", "ID")
    ]
    for one in found:
        ends = min(filter(None, (one.revoked_at, one.expires_at)), default="")
        lines.append(
            (
                one.name,
                ",".join(one.scopes),
                one.pipeline or "all",
                one.state,
                str(one.generation),
                one.origin,
                _minute(ends) or "never",
                _minute(one.created_at),
                one.id,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _minute(at: str) -> str:
    """A time of the API to the minute; it is UTC."""
    return at[:16].replace("T", " ") + "Z" if at else ""
