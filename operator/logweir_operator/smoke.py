"""`helm test`: a tenant and a pipeline are made, a line goes in and is found. And what an uninstall
would leave behind.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final

from logweir.client import read, send
from logweir.client.api import Target
from logweir.core import errors
from logweir_operator.kube import CORE_KINDS, RESOURCES, Kind, Kube, Object

READY_S: Final = 180.0
FOUND_S: Final = 30.0
GONE_S: Final = 30.0
POLL_S: Final = 0.5

Say = Callable[[str], None]


async def run(kube: Kube, namespace: str, name: str, query_url: str, say: Say) -> None:
    """Send a line and find it.

    Args:
        kube: with rights for LogTenant, LogPipeline and key Secrets of this name.
        namespace: that the operator looks after.
        name: of the tenant and of its pipeline, which are deleted at the end.
        query_url: of the gateway.
        say: gets a line for a person at each step.

    Raises:
        UnavailableError: something was not ready, or the line not found, in time.
        LogweirError: a step was refused.
    """
    await _delete(kube, namespace, name)
    specs = {"LogTenant": _TENANT, "LogPipeline": {"tenantRef": {"name": name}}}
    for kind_name, spec in specs.items():
        await kube.apply(
            {
                "apiVersion": RESOURCES[kind_name].api_version,
                "kind": kind_name,
                "metadata": {"name": name, "namespace": namespace},
                "spec": spec,
            },
            manager="logweir-smoke-test",
        )
    try:
        for kind in RESOURCES.values():
            await _until(partial(_unready, kube, kind, namespace, name), READY_S)
            say(f"{kind.name} {name}: ready")
        keys = [await _key(kube, namespace, f"{name}-key-{one}") for one in ("in", "out")]
        needle = f"smoke test {secrets.token_hex(8)}"
        ingest = Target(f"http://{name}-ingest.{namespace}", keys[0])
        defaults = send.Defaults("smoke-test", "info", "")
        await asyncio.to_thread(send.send, ingest, [needle.encode()], defaults)
        say(f"sent: {needle}")
        sent_s = time.monotonic()
        await _until(lambda: _missing(Target(query_url, keys[1]), needle), FOUND_S)
        say(f"found after {time.monotonic() - sent_s:.1f} s")
    finally:
        await _delete(kube, namespace, name)


_TENANT: Final[Object] = {
    "displayName": "made by helm test",
    "deletionPolicy": "Delete",
    "apiKeys": [{"name": "in", "scopes": ["ingest"]}, {"name": "out", "scopes": ["query"]}],
}


async def left(kube: Kube, namespaces: Collection[str]) -> list[str]:
    """Return all resources of these namespaces, of all when none is named: KIND NAMESPACE/NAME."""
    return [
        f"{name} {one['metadata']['namespace']}/{one['metadata']['name']}"
        for name, kind in RESOURCES.items()
        for namespace in namespaces or ("",)
        for one in (await kube.list(kind, namespace)).items
    ]


async def guard(kube: Kube, namespaces: Collection[str]) -> None:
    """Do nothing when there is no resource any more.

    Raises:
        SetupError: there is, with the list.
    """
    found = await left(kube, namespaces)
    if found:
        raise errors.SetupError(
            "There are resources that only a running operator can delete: " + ", ".join(found),
            hint="Delete them first. To keep them for a later installation, uninstall with"
            " uninstall.guard=false: they stay, and so does their data.",
        )


async def _until(why_not: Callable[[], Any], wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    while why := await why_not():
        if time.monotonic() > deadline_s:
            raise errors.UnavailableError(f"Not within {wait_s:.0f} s: {why}")
        await asyncio.sleep(POLL_S)


async def _unready(kube: Kube, kind: Kind, namespace: str, name: str) -> str:
    found = await kube.get(kind, namespace, name) or {}
    conditions = (found.get("status") or {}).get("conditions") or ()
    ready = next((one for one in conditions if one["type"] == "Ready"), None)
    if ready is None:
        return f"{kind.name} {name} has no status; does the operator run?"
    return "" if ready["status"] == "True" else f"{kind.name} {name}: {ready['message']}"


async def _key(kube: Kube, namespace: str, name: str) -> str:
    found = await kube.get(CORE_KINDS["Secret"], namespace, name)
    if found is None:
        raise errors.NotFoundError(f"There is no Secret {name} in {namespace}.")
    return base64.b64decode(found["data"]["key"]).decode()


async def _missing(target: Target, needle: str) -> str:
    asked = read.Asked(f'{{service="smoke-test"}} |= "{needle}"')
    try:
        found = await asyncio.to_thread(lambda: list(read.query(target, asked, 1)))
    except errors.UnavailableError as error:
        return str(error)
    return "" if found else "the line is not found"


async def _delete(kube: Kube, namespace: str, name: str) -> None:
    """Delete what the test has made, the pipeline first, and wait until it is gone."""
    for kind in (RESOURCES["LogPipeline"], RESOURCES["LogTenant"]):
        found = await kube.get(kind, namespace, name)
        if found is not None:
            await kube.delete(kind, namespace, name, found["metadata"]["uid"])
    for kind in RESOURCES.values():
        await _until(partial(_there, kube, kind, namespace, name), GONE_S)


async def _there(kube: Kube, kind: Kind, namespace: str, name: str) -> str:
    found = await kube.get(kind, namespace, name)
    return f"{kind.name} {name} is still being deleted" if found is not None else ""
