"""Every kind of credential that tenant A, tenant B or a stranger may come with."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final

import msgspec
import world

from logweir.backends import provision
from logweir.core import keys
from logweir.core.names import PipelineId, TenantId

ADMIN: Final = keys.SCOPE_ADMIN
INGEST: Final = keys.SCOPE_INGEST
QUERY: Final = keys.SCOPE_QUERY

OTHER_ROOT: Final = b"?" * keys.ROOT_BYTES
MINUTE_AGO_S: Final = 1_700_000_000


class Credential(msgspec.Struct, frozen=True):
    """A key's text, and the tenant whose data it may show: "" for none."""

    text: str
    owner: str = ""


CARRIERS: Final[dict[str, Callable[[str], tuple[str, str]]]] = {
    "Bearer": lambda text: ("authorization", f"Bearer {text}"),
    "X-API-Key": lambda text: ("x-api-key", text),
    "Basic": lambda text: (
        "authorization",
        "Basic " + base64.b64encode(f"any:{text}".encode("latin-1")).decode(),
    ),
}


async def all_kinds(a: world.Tenant, b: world.Tenant) -> dict[str, Credential]:
    """Make each kind of credential, good or bad, by the name that the table of the matrix has.

    Revokes all other keys of A: call it first.
    """
    revoked_send, revoked_read = await a.api_key(INGEST), await a.api_key(QUERY | ADMIN)
    await a.control.revoke_api_keys(a.id, [])
    rows = [one for one in await a.control.api_keys() if one.tenant == a.id]
    await provision.publish_revocations(a.redis, a.id, [one.id for one in rows])
    first, second = a.pipeline, a.pipelines["second"].id
    good = {
        "ingest": Credential(await a.api_key(INGEST, first), a.id),
        "ingest, all pipelines": Credential(await a.api_key(INGEST), a.id),
        "ingest, 2nd pipeline": Credential(await a.api_key(INGEST, second), a.id),
        "query": Credential(await a.api_key(QUERY), a.id),
        "query, 2nd pipeline": Credential(await a.api_key(QUERY, second), a.id),
        "admin": Credential(await a.api_key(ADMIN), a.id),
        "no scopes": Credential(keys.encode(api_key(a.id, 0), keys.access_secret(a.roots.sign, 1))),
        "admin, 2nd pipeline": Credential(await a.api_key(ADMIN, second), a.id),
        "query and admin": Credential(await a.api_key(QUERY | ADMIN), a.id),
        "other's ingest": Credential(await b.api_key(INGEST, b.pipeline), b.id),
        "other's query": Credential(await b.api_key(QUERY), b.id),
        "other's admin": Credential(await b.api_key(ADMIN), b.id),
    }
    bad = {
        "none": "",
        "malformed": "lwi_",
        "not a key": "Passw0rd",
        "too long": "lwa_" + "a" * 2000,
        "mistyped": _mistyped(good["ingest"].text),
        "mistyped query": _mistyped(good["query"].text),
        "revoked ingest": revoked_send,
        "revoked query": revoked_read,
        **_expired(a),
        **_forged(a, b),
    }
    return good | {name: Credential(text) for name, text in bad.items()}


def _mistyped(text: str) -> str:
    letter = "b" if text[30] == "a" else "a"
    return text[:30] + letter + text[31:]


def api_key(tenant: TenantId, scopes: int, **fields: int) -> keys.ApiKey:
    """A key for all pipelines that no table knows, of revision 1 unless it is said otherwise."""
    made = keys.ApiKey(tenant, (1 << 40) + scopes, PipelineId(0), scopes, 0, 1)
    return msgspec.structs.replace(made, **fields)


def _expired(a: world.Tenant) -> dict[str, str]:
    return {
        f"expired {name}": a.key_text(api_key(a.id, scopes, expires_at_s=MINUTE_AGO_S))
        for name, scopes in (("ingest", INGEST), ("query", QUERY | ADMIN))
    }


def _forged(a: world.Tenant, b: world.Tenant) -> dict[str, str]:
    """Texts whose checksum is right and whose signature is not."""
    sign = a.roots.sign
    a_ingest, b_ingest = (keys.ingest_secret(sign, one.id, 1) for one in (a, b))
    access = keys.access_secret(sign, 1)
    nobody = TenantId("nobody-at-all")
    everything = QUERY | ADMIN
    return {
        "forged ingest": keys.encode(
            api_key(a.id, INGEST), keys.ingest_secret(OTHER_ROOT, a.id, 1)
        ),
        "forged query": keys.encode(api_key(a.id, everything), keys.access_secret(OTHER_ROOT, 1)),
        "access key by own ingest secret": keys.encode(api_key(a.id, everything), a_ingest),
        "all scopes by own ingest secret": keys.encode(
            api_key(a.id, everything | INGEST), a_ingest
        ),
        "ingest key by other's ingest secret": keys.encode(api_key(a.id, INGEST), b_ingest),
        "other's ingest key by own secret": keys.encode(api_key(b.id, INGEST), a_ingest),
        "ingest key by the access secret": keys.encode(api_key(a.id, INGEST), access),
        "of no tenant": keys.encode(api_key(nobody, everything), access),
        "ingest of no tenant": keys.encode(
            api_key(nobody, INGEST), keys.ingest_secret(sign, nobody, 1)
        ),
        "of no pipeline": keys.encode(api_key(a.id, everything, pipeline=9_999_999), access),
        "ingest of no pipeline": keys.encode(api_key(a.id, INGEST, pipeline=9_999_999), a_ingest),
        "of a foreign pipeline": keys.encode(
            api_key(a.id, everything, pipeline=b.pipeline), access
        ),
        "ingest of a foreign pipeline": keys.encode(
            api_key(a.id, INGEST, pipeline=b.pipeline), a_ingest
        ),
        "of a retired revision": keys.encode(
            api_key(a.id, everything, revision=0), keys.access_secret(sign, 0)
        ),
        "ingest of a retired revision": keys.encode(
            api_key(a.id, INGEST, revision=0), keys.ingest_secret(sign, a.id, 0)
        ),
    }
