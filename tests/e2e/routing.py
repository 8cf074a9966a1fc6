"""Steps: what leads to pods, by Ingress and HTTPRoute, and what keeps others from them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Final, NamedTuple

from e2e.scene import HOME, RELEASE, Scene
from e2e.target import Failed, until

_GROUND: Final = "ground"
_OTHER: Final = "elsewhere"
"""A namespace that has nothing to do with Logweir."""

_CLUSTER: Final = "svc.cluster.local"
_PLACES: Final = {
    "ingest": (f"web-ingest.acme.{_CLUSTER}", 80),
    "metrics": (f"web-ingest.acme.{_CLUSTER}", 9090),
    "redis": (f"{RELEASE}-redis.{HOME}.{_CLUSTER}", 6379),
    "postgres": (f"{RELEASE}-postgres.{HOME}.{_CLUSTER}", 5432),
    "gateway": (f"{RELEASE}-gateway.{HOME}.{_CLUSTER}", 80),
    "DNS": (f"kube-dns.kube-system.{_CLUSTER}", 53),
}


class _Pod(NamedTuple):
    """A pod somewhere, and the places that it may get to."""

    namespace: str
    labels: dict[str, str]
    may: set[str]


_OURS: Final = {
    "app.kubernetes.io/managed-by": "logweir-operator",
    "app.kubernetes.io/name": "logweir",
    "app.kubernetes.io/part-of": "logweir",
    "logweir.dev/tenant": "acme",
}
_COLLECTOR: Final = {
    **_OURS,
    "app.kubernetes.io/component": "collector",
    "app.kubernetes.io/instance": "web",
}
_PODS: Final = {
    "a stranger": _Pod(_OTHER, {}, {"gateway", "DNS"}),
    "a stranger with our labels": _Pod(_OTHER, _COLLECTOR, {"redis", "postgres", "gateway", "DNS"}),
    "a sender next to the pipeline": _Pod("acme", {}, {"ingest", "gateway", "DNS"}),
    "a pod of the tenant": _Pod("acme", _OURS, set()),
    "a collector": _Pod("acme", _COLLECTOR, {"redis", "postgres", "DNS"}),
    "the ingress controller": _Pod("traefik", {}, {"ingest", "gateway", "DNS"}),
}


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
    wrong = []
    for who, pod in _PODS.items():
        found = scene.reaches(pod.namespace, list(_PLACES.values()), pod.labels)
        wrong += [
            f"{who} {'reaches' if is_in else 'does not reach'} {place}"
            for place, is_in in zip(_PLACES, found, strict=True)
            if is_in != (place in pod.may)
        ]
    if wrong:
        raise Failed("; ".join(wrong))
    return f"{len(_PODS)} pods reach what they may of {', '.join(_PLACES)}, and nothing else"


def _by_traefik(scene: Scene, host: str, path: str, words: Sequence[str] = ()) -> str:
    """Return the status that curl gets for a host and path from the controller of routes."""
    address, port = scene.cluster.reach("traefik", "traefik", 80)
    argv = ["curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", *words]
    argv += [f"http://{address}:{port}{path}", "-H", f"Host: {host}"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
