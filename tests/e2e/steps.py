"""The script: each step does one thing to a cluster, and looks at what came of it.

    STEPS, in their order; each returns a sentence of what it found, or raises Failed.

A step may count on what those before it left.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from e2e import counting
from e2e.scene import CHART, HERE, HOME, RELEASE, Scene
from e2e.target import Failed, until

Step = Callable[[Scene], str]

WAKE_S: Final = 10.0
"""A line to a pipeline without collectors is found within this time."""

_FLOOD: Final = 60_000
"""Lines that are sent to a sleeping pipeline."""

_GROUND: Final = "ground"
_OTHER: Final = "elsewhere"
"""A namespace that has nothing to do with Logweir."""


def ground(scene: Scene) -> str:
    """What the script counts on is there: volumes, DNS, routes, and policies that are enforced."""
    scene.make_namespace(_GROUND)
    scene.apply_file("ground.yaml")
    scene.cluster.kubectl("-n", _GROUND, "rollout", "status", "deploy/files", "--timeout=60s")
    files = [("files", 80), ("kube-dns.kube-system.svc.cluster.local", 53)]
    friend = scene.reaches(_GROUND, files, {"role": "friend"})
    other = scene.reaches(_GROUND, files, {"role": "other"})
    if (friend, other) != ([True, True], [False, True]):
        raise Failed(f"policies are not enforced: a friend {friend}, another {other}")
    for host in ("ingress.ground", "route.ground"):
        until(f"{host} answers", lambda host=host: _by_traefik(scene, host, "/") == "200")
    if (elsewhere := _by_traefik(scene, "other.ground", "/")) != "404":
        raise Failed(f"a host that nothing serves answers {elsewhere}")
    scene.cluster.kubectl("delete", "namespace", _GROUND, "--wait=false")
    return "a pod has its volume and its name, Traefik leads to it, a policy keeps others out"


def install(scene: Scene) -> str:
    """Install the chart with its own databases, and wait until all of it is ready."""
    scene.make_namespace(HOME)
    begin_s = time.monotonic()
    scene.cluster.helm("install", RELEASE, CHART, *_options(scene), *_WAIT)
    pods = [one["metadata"]["name"] for one in _pods(scene, HOME)]
    return f"{len(pods)} pods ready after {time.monotonic() - begin_s:.0f} s: {', '.join(pods)}"


def make_tenants(scene: Scene) -> str:
    """Apply a tenant with two pipelines, and one whose records are to be counted."""
    begin_s = time.monotonic()
    for name in ("acme", "counted"):
        scene.make_namespace(name)
        scene.apply_file(f"{name}.yaml")
    for name in ("acme", "counted"):
        scene.wait_ready(name)
    return f"two tenants and three pipelines Ready after {time.monotonic() - begin_s:.0f} s"


def first_line(scene: Scene) -> str:
    """A line goes in by curl, and out by query."""
    url = f"{scene.ingest_url('jobs')}/ingest"
    body = '{"service": "e2e", "level": "info", "message": "the first line"}'
    key = ["-H", f"Authorization: Bearer {scene.key('in')}"]

    def curl() -> str:
        argv = ["curl", "-sS", "--fail-with-body", "-m", "10", url, *key, "-d", body]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"curl: {done.stdout} {done.stderr}")
        return done.stdout.strip()

    answer = until("curl is answered", curl, wait_s=30)
    begin_s = time.monotonic()
    found_s = scene.find("the first line") - begin_s
    return f"{answer}; found {found_s:.1f} s after the answer"


def sleep(scene: Scene) -> str:
    """A pipeline that nothing comes to has no collectors."""
    begin_s = time.monotonic()
    _wait_for_none(scene)
    return f"web went to zero collectors, {time.monotonic() - begin_s:.0f} s after it was looked at"


def load(scene: Scene) -> str:
    """Load on a sleeping pipeline makes lag, lag makes collectors, collectors drain it."""
    begin_s = time.monotonic()
    site = counting.Site(scene, "acme", "web")
    sent = counting.flood(scene, "web", _FLOOD)
    sent_s = time.monotonic() - begin_s
    lag, most = site.entries(), scene.collectors("web")[1]

    def is_drained() -> bool:
        nonlocal lag, most
        lag = max(lag, site.entries())
        most = max(most, scene.collectors("web")[1])
        return site.entries() == 0 and scene.count('{service="flood"}') == _FLOOD

    until("the lag is drained", is_drained, wait_s=120)
    if most < 2:
        raise Failed(f"there was never more than {most} collector")
    drained_s = time.monotonic() - begin_s
    return (
        f"{_FLOOD} lines ({sent >> 20} MiB) sent in {sent_s:.0f} s, {lag} blocks waited at most, "
        f"{most} collectors, all found after {drained_s:.0f} s"
    )


def told(scene: Scene) -> str:
    """The status of a pipeline tells what its users want to know."""
    status = scene.pipeline("web")["status"]
    wanted = ("observedGeneration", "pipelineId", "url", "ingest", "collector", "lag", "conditions")
    missing = [name for name in wanted if name not in status]
    if missing:
        raise Failed(f"the status of web has no {', '.join(missing)}")
    return f"it is at {status['url']}; lag {status['lag']}"


def wake(scene: Scene) -> str:
    """It goes to zero again; one line wakes it, and is found within ten seconds."""
    _wait_for_none(scene)
    sent_s = scene.send("wake up", "web")
    took_s = scene.find("wake up") - sent_s
    if took_s > WAKE_S:
        raise Failed(f"the line was found {took_s:.1f} s after it was taken")
    return f"found {took_s:.1f} s after it was taken, with no collector before"


def routes(scene: Scene) -> str:
    """Ingress and HTTPRoute lead through a real controller to the pipelines, and nowhere else."""
    tenant = scene.served("web").tenant
    key = ("-H", f"Authorization: Bearer {scene.key('in')}")
    for host, pipeline in (("logs.example.com", "web"), ("jobs.example.com", "jobs")):
        path = f"/t/{tenant}/{pipeline}/ingest"
        line = f'{{"service": "e2e", "level": "info", "message": "by {host}"}}'
        words = (*key, "-d", line)
        until(
            f"{host} answers",
            lambda host=host, path=path, words=words: (
                _by_traefik(scene, host, path, words) == "200"
            ),
            wait_s=30,
        )
        found = {
            "another host": _by_traefik(scene, "other.example.com", path, words),
            "another path": _by_traefik(scene, host, "/t/other/web/ingest", words),
            "no key": _by_traefik(scene, host, path, words[2:]),
        }
        if found != {"another host": "404", "another path": "404", "no key": "401"}:
            raise Failed(f"{host}: {found}")
        scene.find(f"by {host}")
    return "Traefik leads to both pipelines, by Ingress and by HTTPRoute; 404 elsewhere"


def policies(scene: Scene) -> str:
    """Only those get to a pod who are let in: default deny, and what the policies open."""
    scene.make_namespace(_OTHER)
    web = ("web-ingest.acme.svc.cluster.local", 80)
    metrics = ("web-ingest.acme.svc.cluster.local", 9090)
    redis = (f"{RELEASE}-redis.{HOME}.svc.cluster.local", 6379)
    postgres = (f"{RELEASE}-postgres.{HOME}.svc.cluster.local", 5432)
    dns = ("kube-dns.kube-system.svc.cluster.local", 53)
    gateway = (f"{RELEASE}-gateway.{HOME}.svc.cluster.local", 80)
    targets = [web, metrics, redis, postgres, gateway, dns]
    expected: Mapping[str, tuple[dict[str, str], str, Sequence[bool]]] = {
        "a stranger": ({}, _OTHER, [False, False, False, False, True, True]),
        "the ingress controller": ({}, "traefik", [True, False, False, False, True, True]),
    }
    wrong = []
    for who, (labels, namespace, right) in expected.items():
        found = scene.reaches(namespace, targets, labels)
        wrong += [
            f"{who} {'reaches' if is_in else 'does not reach'} {host}:{port}"
            for (host, port), is_in, should in zip(targets, found, right, strict=True)
            if is_in != should
        ]
    if wrong:
        raise Failed("; ".join(wrong))
    return "a stranger reaches the gateway alone, the ingress controller ingest's port too"


def rotate(scene: Scene) -> str:
    """Credentials rotate under load, and no request notices."""
    running = _counted(scene)
    running.start()
    until("the load runs", lambda: running.acked > 500, wait_s=60)
    before = _credentials(scene)["revision"]
    retries = len(running.retries())
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    scene.cluster.kubectl(
        "-n", "counted", "annotate", "logtenant", "counted", f"logweir.dev/rotate-at={now}"
    )
    begin_s = time.monotonic()
    until("the revision goes up", lambda: _credentials(scene)["revision"] > before, wait_s=60)
    ends = running.acked + 6000
    until("the load goes on", lambda: running.acked > ends, wait_s=90)
    noticed = running.retries()[retries:]
    if noticed:
        raise Failed(f"requests had to be sent again: {noticed[:10]}")
    return (
        f"revision {before} -> {_credentials(scene)['revision']}, {running.acked} records later "
        f"({time.monotonic() - begin_s:.0f} s) no request was sent twice"
    )


def kill(scene: Scene) -> str:
    """Each pod is killed under load; every acknowledged record is stored once."""
    running = _counted(scene)
    killed = []
    for namespace in (HOME, "counted"):
        for pod in _pods(scene, namespace):
            name = pod["metadata"]["name"]
            running.fault(f"kill {name}")
            scene.cluster.kill(namespace, name)
            killed.append(name)
            until(
                f"{namespace} is whole again after {name} was killed",
                lambda namespace=namespace: _are_ready(scene, namespace),
                wait_s=90,
            )
            ends = running.acked + 300
            until("the load goes on", lambda ends=ends: running.acked > ends, wait_s=60)
    running.stop()
    verdict = running.judge()
    numbers = verdict.numbers
    return (
        f"{len(killed)} pods killed, {numbers['records acked']} records acknowledged, "
        f"{len(running.retries())} requests sent again: 0 lost, 0 doubled"
    )


def upgrade(scene: Scene) -> str:
    """An upgrade rolls the platform, and no pod of a pipeline."""
    before = _names(scene, "acme", "counted")
    begin_s = time.monotonic()
    change = ("--set", "podAnnotations.e2e=upgraded")
    scene.cluster.helm("upgrade", RELEASE, CHART, *_options(scene), *_WAIT, *change)
    took_s = time.monotonic() - begin_s
    scene.send("after the upgrade", "jobs")
    scene.find("after the upgrade")
    if _names(scene, "acme", "counted") - before:
        raise Failed(f"new pods: {_names(scene, 'acme', 'counted') - before}")
    return f"ready after {took_s:.0f} s; a line went in and out, no pod of a pipeline is new"


def test(scene: Scene) -> str:
    """`helm test` sends a line and finds it."""
    begin_s = time.monotonic()
    scene.cluster.helm("test", RELEASE, "-n", HOME, "--logs", "--timeout", "2m")
    return f"passed after {time.monotonic() - begin_s:.0f} s"


def uninstall(scene: Scene) -> str:
    """What is removed is the platform; resources, keys and data stay."""
    words = ("-n", HOME, "--wait", "--cascade", "foreground", "--timeout", "2m")
    scene.cluster.helm("uninstall", RELEASE, *words)
    until("pods of the release are gone", lambda: not _pods(scene, HOME), wait_s=60)
    left = {
        "resources": len(scene.cluster.list("logpipelines", "acme")),
        "keys": len([1 for name in _secrets(scene, "acme") if name.startswith("acme-key-")]),
        "roots": len([1 for name in _secrets(scene, HOME) if name == f"{RELEASE}-roots"]),
        "volumes": len(scene.cluster.list("pvc", HOME)),
    }
    if left != {"resources": 2, "keys": 2, "roots": 1, "volumes": 2}:
        raise Failed(f"left behind: {left}")
    return f"left are {left}"


def reinstall(scene: Scene) -> str:
    """Installed again, it finds what it left, and the records too."""
    begin_s = time.monotonic()
    scene.cluster.helm("install", RELEASE, CHART, *_options(scene), *_WAIT)
    scene.find("the first line", wait_s=60)
    scene.send("and on it goes", "jobs")
    scene.find("and on it goes")
    return f"the first line was found again after {time.monotonic() - begin_s:.0f} s"


STEPS: Final[Sequence[Step]] = (
    *(
        ground,
        install,
        make_tenants,
        first_line,
        sleep,
        load,
        told,
        wake,
        routes,
        policies,
        rotate,
        kill,
    ),
    *(upgrade, test, uninstall, reinstall),
)

_WAIT: Final = ("--wait", "--wait-for-jobs", "--timeout", "4m")


def _options(scene: Scene) -> list[object]:
    values = scene.cluster.folder / "values.json"
    values.write_text(json.dumps(scene.cluster.values))
    return ["-n", HOME, "-f", HERE / "values.yaml", "-f", values]


def _by_traefik(scene: Scene, host: str, path: str, words: Sequence[str] = ()) -> str:
    """Return the status that curl gets for a host and path from the controller of routes."""
    address, port = scene.cluster.reach("traefik", "traefik", 80)
    argv = ["curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", *words]
    argv += [f"http://{address}:{port}{path}", "-H", f"Host: {host}"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def _pods(scene: Scene, namespace: str) -> list[dict[str, Any]]:
    """Return the pods that are to go on running, so no Job's."""
    return [
        one
        for one in scene.cluster.list("pods", namespace)
        if one["status"].get("phase") not in ("Succeeded", "Failed")
        and "deletionTimestamp" not in one["metadata"]
    ]


def _are_ready(scene: Scene, namespace: str) -> bool:
    pods = _pods(scene, namespace)
    return bool(pods) and all(
        any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        for conditions in (pod["status"].get("conditions", []) for pod in pods)
    )


def _names(scene: Scene, *namespaces: str) -> set[str]:
    return {pod["metadata"]["name"] for one in namespaces for pod in _pods(scene, one)}


def _secrets(scene: Scene, namespace: str) -> list[str]:
    return [one["metadata"]["name"] for one in scene.cluster.list("secrets", namespace)]


def _wait_for_none(scene: Scene) -> None:
    until("web has no collectors", lambda: scene.collectors("web") == (0, 0), wait_s=120)


def _credentials(scene: Scene) -> Mapping[str, Any]:
    found: Mapping[str, Any] = scene.cluster.get("logtenant", "counted", "counted")["status"]
    credentials: Mapping[str, Any] = found["credentials"]
    return credentials


def _counted(scene: Scene) -> counting.Load:
    """Return the counted load, which `rotate` starts and `kill` stops."""
    if scene.counted is None:
        site = counting.Site(scene, "counted", "load")
        scene.counted = counting.Load(site, scene.cluster.folder, seed=6)
    return scene.counted
