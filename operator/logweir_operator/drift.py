"""Whether a live object is as it is wanted. Pure.

What server-side apply would do nothing to: each field of the intent has its value, whatever else
the server and others have added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

INTENT: Final = "logweir.dev/intent"
"""Annotation of each child with the hash of what was applied: a field that is wanted no more is
no difference that one can see in the live object."""

_KEYS: Final = ("name", "mountPath", "containerPort", "port", "uid", "topologyKey", "type")
"""What tells the elements of a list apart, as Kubernetes' own lists of maps have it."""


def signed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with the hash of all of it as an annotation."""
    encoded = msgspec.json.encode(document, order="deterministic")
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    meta = dict(document["metadata"])
    meta["annotations"] = {**(meta.get("annotations") or {}), INTENT: digest}
    return {**document, "metadata": meta}


def difference(live: object, wanted: object, path: str = "") -> str:
    """Return the path of a field that is not as it is wanted; empty when all are.

    Args:
        live: a field of the live object.
        wanted: the same field of the intent.
        path: of the field.
    """
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return path or "."
        for name, value in wanted.items():
            if name not in live:
                # The server leaves empty maps and lists out.
                if value in ({}, [], None):
                    continue
                return f"{path}.{name}"
            if found := difference(live[name], value, f"{path}.{name}"):
                return found
        return ""
    if isinstance(wanted, Sequence) and not isinstance(wanted, str | bytes):
        return _list_difference(live, wanted, path)
    return "" if live == wanted else path or "."


def _list_difference(live: object, wanted: Sequence[Any], path: str) -> str:
    if not isinstance(live, Sequence) or isinstance(live, str | bytes):
        return path
    key = _key_of(wanted)
    if key is None:
        if len(live) != len(wanted):
            return path
        pairs = [(f"{path}[{at}]", live[at], one) for at, one in enumerate(wanted)]
    else:
        by_key = {one.get(key): one for one in live if isinstance(one, Mapping)}
        pairs = [(f"{path}[{key}={one[key]}]", by_key.get(one[key]), one) for one in wanted]
    for at, found, one in pairs:
        if different := difference(found, one, at):
            return different
    return ""


def _key_of(wanted: Sequence[Any]) -> str | None:
    if not wanted or not all(isinstance(one, Mapping) for one in wanted):
        return None
    for key in _KEYS:
        values = [one.get(key) for one in wanted]
        if None not in values and len(set(values)) == len(values):
            return key
    return None
