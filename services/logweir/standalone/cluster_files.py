"""Files that the reconciler of `up` writes for people and commands; 0600, replaced whole.

cluster.py --writes--> access.json, keys/<namespace>.<tenant>.json --read--> status, send, query
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from logweir.core import keys
from logweir.standalone.folder import Folder, write_json


class Access(msgspec.Struct, frozen=True):
    """What a newcomer needs: where the first tenant's records go in, and the keys for it."""

    tenant: str = ""
    pipeline: str = ""
    ingest_url: str = ""
    ingest_key: str = ""
    query_key: str = ""
    problems: list[str] = []


class TenantKeys(msgspec.Struct, frozen=True):
    """A file of keys/: what the users of one tenant are given.

    `keys` are texts by name; `only_for` names the pipeline of those that are good for one only.
    """

    tenant: str
    name: str
    namespace: str
    url: str
    pipelines: list[str]
    keys: dict[str, str]
    only_for: dict[str, str] = {}

    def key(self, prefix: str, pipeline: str) -> str:
        """Return a key of a class, by its prefix, that is good for a pipeline; else an empty text.

        One that is good for all pipelines comes first.
        """
        fitting = [
            (name in self.only_for, text)
            for name, text in self.keys.items()
            if text.startswith(prefix) and self.only_for.get(name, pipeline) == pipeline
        ]
        return min(fitting, default=(False, ""))[1]


def write(
    folder: Folder, tenants: Sequence[TenantKeys], kept: set[str], problems: Sequence[str]
) -> None:
    """Write the keys of tenants, the first usable ones for `logweir status`; remove all others.

    Args:
        folder: of the `up`.
        tenants: the oldest first.
        kept: names of files of tenants that are not made yet, or not any more.
        problems: what is wrong with manifests.

    Raises:
        SetupError: a file cannot be written.
    """
    names = set(kept)
    for one in tenants:
        name = file_name(one.namespace, one.name)
        names.add(name)
        write_json(folder.keys / name, one)
    for path in folder.keys.glob("*.json"):
        if path.name not in names:
            path.unlink(missing_ok=True)
    first = next((one for one in tenants if one.pipelines), None)
    access = _access(first) if first else Access()
    write_json(folder.access, msgspec.structs.replace(access, problems=list(problems)))


def file_name(namespace: str, name: str) -> str:
    """Return the name of a tenant's file of keys; neither part has a dot."""
    return f"{namespace}.{name}.json"


def _access(one: TenantKeys) -> Access:
    keyed = (name for name in one.pipelines if one.key(keys.INGEST_PREFIX, name))
    pipeline = next(keyed, one.pipelines[0])
    return Access(
        tenant=one.tenant,
        pipeline=pipeline,
        ingest_url=f"{one.url}/{pipeline}/ingest",
        ingest_key=one.key(keys.INGEST_PREFIX, pipeline),
        query_key=one.key(keys.ACCESS_PREFIX, pipeline),
    )
