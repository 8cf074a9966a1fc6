"""Steps under counted load: credentials rotate, pods die, and no record is lost or doubled."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Mapping
from typing import Any, Final

from e2e import counting
from e2e.scene import HOME, Scene
from e2e.target import Failed, until

TENANT: Final = "counted"

_LOADED_RECORDS: Final = 2000
"""So many more were acknowledged: the load goes on."""


def rotate(scene: Scene) -> str:
    """Credentials rotate under load: no request notices, and the old ones are good no more."""
    running = _counted(scene)
    running.start()
    until("the load runs", lambda: running.acked > 500, wait_s=60)
    before, old = _credentials(scene)["revision"], counting.logins(scene, TENANT, "load")
    retries, begin_s = len(running.retries()), time.monotonic()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    scene.cluster.kubectl(
        "-n", TENANT, "annotate", "logtenant", TENANT, f"logweir.dev/rotate-at={now}"
    )
    until("the revision goes up", lambda: _credentials(scene)["revision"] > before, wait_s=60)
    accepted = asyncio.run(counting.accepted(scene, old))
    if accepted != sorted(old):
        raise Failed(f"in the overlap only these old credentials are accepted: {accepted}")
    until("it is over", lambda: _credentials(scene)["phase"] == "steady", wait_s=120, every_s=1)
    took_s, ends = time.monotonic() - begin_s, running.acked + _LOADED_RECORDS
    until("the load goes on", lambda: running.acked > ends, wait_s=60)
    new = counting.logins(scene, TENANT, "load")
    accepted = asyncio.run(counting.accepted(scene, old))
    if accepted or asyncio.run(counting.accepted(scene, new)) != sorted(new):
        raise Failed(f"old credentials that are still accepted: {accepted}, or new ones are not")
    noticed = running.retries()[retries:]
    if noticed:
        raise Failed(f"requests had to be sent again: {noticed[:10]}")
    return (
        f"revision {before} -> {_credentials(scene)['revision']} in {took_s:.0f} s, "
        f"{running.acked} records sent, no request twice; {', '.join(old)}: the old are refused"
    )


def kill(scene: Scene) -> str:
    """Each pod is killed under load; every acknowledged record is stored once."""
    running = _counted(scene)
    killed = []
    for namespace in (HOME, TENANT):
        names = scene.pod_names(namespace)
        for name in sorted(names):
            running.fault(f"kill {name}")
            scene.cluster.kill(namespace, name)
            killed.append(name)
            until(
                f"{namespace} is whole again after {name} was killed",
                lambda namespace=namespace, names=names: scene.is_whole(namespace, len(names)),
                wait_s=90,
            )
            ends = running.acked + 300
            until("the load goes on", lambda ends=ends: running.acked > ends, wait_s=60)
    running.stop()
    counts = running.judge().numbers
    scene.tally |= {"pods killed": len(killed), **counts, "lost": 0, "doubled": 0}
    return (
        f"{len(killed)} pods killed, {counts['records acked']} records acknowledged, "
        f"{len(running.retries())} requests sent again: 0 lost, 0 doubled"
    )


def _credentials(scene: Scene) -> Mapping[str, Any]:
    found: Mapping[str, Any] = scene.cluster.get("logtenant", TENANT, TENANT)["status"]
    credentials: Mapping[str, Any] = found["credentials"]
    return credentials


def _counted(scene: Scene) -> counting.Load:
    """Return the counted load, which `rotate` starts and `kill` stops."""
    if scene.counted is None:
        site = counting.Site(scene, TENANT, "load")
        scene.counted = counting.Load(site, scene.cluster.folder, seed=6)
    return scene.counted
