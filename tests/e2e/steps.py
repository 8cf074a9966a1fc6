"""The script: each step does one thing to a cluster, and looks at what came of it.

    STEPS, in their order; each returns a sentence of what it found, or raises Failed.

A step may count on what those before it left. Here are those of a release's life.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Final

from e2e import faults, routing, traffic
from e2e.scene import CHART, HERE, HOME, RELEASE, TENANTS, Scene
from e2e.target import Failed, until

Step = Callable[[Scene], str]

_WAIT: Final = ("--wait", "--wait-for-jobs", "--timeout", "4m")


def install(scene: Scene) -> str:
    """Install the chart with its own databases, and wait until all of it is ready."""
    scene.make_namespace(HOME)
    begin_s = time.monotonic()
    scene.cluster.helm("install", RELEASE, CHART, *_options(scene), *_WAIT)
    took_s = time.monotonic() - begin_s
    if not scene.is_whole(HOME):
        raise Failed("helm says that all is ready, but it is not")
    return f"{len(scene.pod_names(HOME))} pods ready after {took_s:.0f} s"


def make_tenants(scene: Scene) -> str:
    """Apply a tenant with two pipelines, and one whose records are to be counted."""
    begin_s = time.monotonic()
    for name in TENANTS:
        scene.make_namespace(name)
        scene.apply_file(f"{name}.yaml")
    for name in TENANTS:
        scene.wait_ready(name)
    return f"two tenants and three pipelines Ready after {time.monotonic() - begin_s:.0f} s"


def upgrade(scene: Scene) -> str:
    """An upgrade rolls the platform, and no pod of a pipeline."""
    before = scene.pod_names(*TENANTS)
    begin_s = time.monotonic()
    change = ("--set", "podAnnotations.e2e=upgraded")
    scene.cluster.helm("upgrade", RELEASE, CHART, *_options(scene), *_WAIT, *change)
    took_s = time.monotonic() - begin_s
    scene.send("after the upgrade", "jobs")
    scene.find("after the upgrade")
    if new := scene.pod_names(*TENANTS) - before:
        raise Failed(f"new pods: {new}")
    return f"ready after {took_s:.0f} s; a line went in and out, no pod of a pipeline is new"


def test(scene: Scene) -> str:
    """`helm test` sends a line and finds it."""
    begin_s = time.monotonic()
    scene.cluster.helm("test", RELEASE, "-n", HOME, "--logs", "--timeout", "2m")
    return f"passed after {time.monotonic() - begin_s:.0f} s"


def uninstall(scene: Scene) -> str:
    """What is removed is the platform; resources, keys and data stay, and it says where."""
    notes = scene.cluster.helm("get", "notes", RELEASE, "-n", HOME)
    words = ("-n", HOME, "--wait", "--cascade", "foreground", "--timeout", "2m")
    scene.cluster.helm("uninstall", RELEASE, *words)
    until("pods of the release are gone", lambda: not scene.pod_names(HOME), wait_s=60)
    keys = [name for name in _names(scene, "secrets", "acme") if name.startswith("acme-key-")]
    pipelines, volumes = _names(scene, "logpipelines", "acme"), _names(scene, "pvc", HOME)
    own = [f"{RELEASE}-{name}" for name in ("postgres", "redis", "roots")]
    secrets = [name for name in _names(scene, "secrets", HOME) if name in own]
    if [len(keys), len(pipelines), len(volumes), len(secrets)] != [2, 2, 2, 3]:
        raise Failed(f"left behind: {keys}, {pipelines}, {volumes}, {secrets}")
    untold = [name for name in (*volumes, *secrets) if name not in notes]
    if untold:
        raise Failed(f"the notes say nothing of {untold}: {notes}")
    return f"left are {', '.join([*pipelines, *keys, *secrets, *volumes])}, as the notes say"


def reinstall(scene: Scene) -> str:
    """Installed again, it finds what it left, and the records too."""
    begin_s = time.monotonic()
    scene.cluster.helm("install", RELEASE, CHART, *_options(scene), *_WAIT)
    scene.find("the first line", wait_s=60)
    scene.send("and on it goes", "jobs")
    scene.find("and on it goes")
    return f"the first line was found again after {time.monotonic() - begin_s:.0f} s"


STEPS: Final[Sequence[Step]] = (
    *(routing.ground, install, make_tenants, traffic.first_line),
    *(traffic.sleep, traffic.load, traffic.told, traffic.scale, traffic.wake),
    *(routing.routes, routing.policies),
    *(faults.rotate, faults.kill),
    *(upgrade, test, uninstall, reinstall),
)


def _options(scene: Scene) -> list[object]:
    values = scene.cluster.folder / "values.json"
    values.write_text(json.dumps(scene.cluster.values))
    return ["-n", HOME, "-f", HERE / "values.yaml", "-f", values]


def _names(scene: Scene, kind: str, namespace: str) -> list[str]:
    return [one["metadata"]["name"] for one in scene.cluster.list(kind, namespace)]
