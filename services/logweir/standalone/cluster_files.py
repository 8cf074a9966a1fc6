"""Files that the reconciler of `up` writes for people and commands; 0600, replaced whole.

cluster.py --writes--> access.json, keys/<namespace>.<tenant>.json --read--> status, send, query
"""

from __future__ import annotations

import msgspec


class Access(msgspec.Struct, frozen=True):
    """What a newcomer needs: where the first tenant's records go in, and the keys for it."""

    tenant: str = ""
    pipeline: str = ""
    ingest_url: str = ""
    ingest_key: str = ""
    query_key: str = ""
    problems: list[str] = []


class TenantKeys(msgspec.Struct, frozen=True):
    """A file of keys/: what the users of one tenant are given."""

    tenant: str
    name: str
    namespace: str
    url: str
    pipelines: list[str]
    keys: dict[str, str]
