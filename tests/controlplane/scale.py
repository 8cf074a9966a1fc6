"""What many tenants and pipelines cost an operator that runs: time, requests, processor, memory.

    report = scale.run(plane, pid, ("logs", "operator"))       # 10 tenants, 1,000 pipelines
    print(report)

A probe, a pipeline of a tenant of its own, is changed while the others are made: how long it waits
says whether the queue is fair. Then nothing happens for a while, which should cost nothing.
Requests are counted twice: those of the operator's account by the audit log, and those of everybody
by the API server's own metrics.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import psutil
from controlplane import audit
from controlplane.api import Api, Object, until
from controlplane.plane import Plane
from prometheus_client.parser import text_string_to_metric_families

API_VERSION: Final = "logweir.dev/v1alpha1"
WRITERS: Final = 8
PREFIX: Final = "scale-"
PROBE: Final = f"{PREFIX}probe"

Account = tuple[str, str]
"""Namespace and name of a ServiceAccount."""
Requests = Counter[tuple[str, str]]
"""Number of requests by verb and resource."""


@dataclass
class Spent:
    """What processes spent of the processor, and the most memory that one had at once."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    peak_mb: float = 0.0


@dataclass
class Report:
    """What it cost; `str` of it is a table."""

    tenants: int
    pipelines: int
    created_s: float
    converged_s: float
    probe_s: float
    busy: Spent
    asked: Requests
    served: Requests
    idle_s: float
    idle: Spent
    idle_asked: Requests

    def __str__(self) -> str:
        lines = [
            f"{self.tenants} tenants, {self.pipelines} pipelines",
            f"  created in      {self.created_s:8.1f} s",
            f"  converged in    {self.converged_s:8.1f} s, counted from the first",
            f"  probe waited    {self.probe_s:8.1f} s",
            f"  peak memory     {self.busy.peak_mb:8.1f} MB",
            f"  requests        {self.asked.total():8d}, of {self.served.total()} of everybody",
            *_spent(self.busy),
            *(f"    {verb:8} {what:32} {n:8d}" for (verb, what), n in self.asked.most_common(20)),
            f"idle for {self.idle_s:.0f} s",
            f"  peak memory     {self.idle.peak_mb:8.1f} MB",
            f"  requests        {self.idle_asked.total():8d}",
            *_spent(self.idle),
        ]
        return "\n".join(lines)


def run(
    plane: Plane,
    pid: int,
    account: Account,
    tenants: int = 10,
    pipelines: int = 1000,
    idle_s: float = 60.0,
    wait_s: float = 600.0,
) -> Report:
    """Make the tenants and pipelines, wait until all are reconciled, then watch it idle.

    Args:
        plane: a control plane that has our kinds; no other work is to go on there.
        pid: the operator's process.
        account: as whom the operator asks.
        tenants: each gets a namespace.
        pipelines: number in all, shared evenly by the tenants.
        idle_s: how long to watch once all is done.
        wait_s: how long it may take at most.
    """
    processes = {"operator": pid, **plane.pids()}
    make(plane.api, [PROBE], 1)
    until(lambda: is_reconciled(plane.api.get("LogPipeline", "p0", PROBE)), wait_s)
    names = [f"{PREFIX}{number}" for number in range(tenants)]
    before, served_before = audit.mark(plane), served(plane.api)
    with Watch(processes) as watch:
        began_s = time.monotonic()
        make(plane.api, names, pipelines)
        created_s = time.monotonic() - began_s
        probe_s = _probe(plane.api, wait_s)
        until(lambda: all(map(is_reconciled, _made(plane.api, names))), wait_s, every_s=1.0)
        converged_s = time.monotonic() - began_s
    asked = count(plane, account, before)
    all_served = served(plane.api) - served_before
    before = audit.mark(plane)
    with Watch(processes) as idling:
        time.sleep(idle_s)
    return Report(
        tenants,
        pipelines,
        created_s,
        converged_s,
        probe_s,
        watch.spent,
        asked,
        all_served,
        idle_s,
        idling.spent,
        count(plane, account, before),
    )


def make(api: Api, namespaces: list[str], pipelines: int) -> None:
    """Apply a tenant for each namespace, which is made, and so many pipelines in all."""
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda name: api.apply(*_tenant(name)), namespaces))
        list(pool.map(api.apply, _pipelines(namespaces, pipelines)))


def _tenant(namespace: str) -> tuple[Object, Object]:
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    quotas = {"maxPipelines": 1000}
    return space, _resource("LogTenant", "tenant", namespace, {"quotas": quotas})


def _pipelines(namespaces: list[str], count: int) -> Iterator[Object]:
    for number, namespace in zip(range(count), itertools.cycle(namespaces), strict=False):
        name = f"p{number // len(namespaces)}"
        yield _resource("LogPipeline", name, namespace, {"tenantRef": {"name": "tenant"}})


def _resource(kind: str, name: str, namespace: str, spec: Object) -> Object:
    named = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": named, "spec": spec}


def is_reconciled(resource: Object) -> bool:
    """Say whether the operator has dealt with what the resource says now."""
    seen = resource.get("status", {}).get("observedGeneration")
    return bool(seen == resource["metadata"]["generation"])


def _made(api: Api, namespaces: list[str]) -> list[Object]:
    kinds = ("LogTenant", "LogPipeline")
    return [one for name in namespaces for kind in kinds for one in api.list(kind, name)]


def _probe(api: Api, wait_s: float) -> float:
    """Change the probe's spec, and return how long the operator took to see it, in seconds."""
    began_s = time.monotonic()
    api.patch("LogPipeline", "p0", PROBE, {"spec": {"ingest": {"replicas": 3}}})
    until(lambda: is_reconciled(api.get("LogPipeline", "p0", PROBE)), wait_s)
    return time.monotonic() - began_s


def count(plane: Plane, account: Account, since: int) -> Requests:
    """Count an account's requests since a mark of the audit log."""
    seen = audit.requests(plane, *account, since)
    return Counter((one.right.verb, one.right.resource) for one in seen)


def served(api: Api) -> Requests:
    """Count what the API server has answered since it started, by its own metrics."""
    found: Requests = Counter()
    for family in text_string_to_metric_families(api.text("/metrics")):
        if family.name != "apiserver_request":
            continue
        for sample in family.samples:
            labels = sample.labels
            resource = "/".join(filter(None, (labels["resource"], labels["subresource"])))
            found[labels["verb"].lower(), resource] += int(sample.value)
    return found


class Watch:
    """Looks at processes as long as it is open; `spent` says what they spent in that time."""

    def __init__(self, processes: dict[str, int], every_s: float = 0.5) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._first = next(iter(self._processes.values()))
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.spent = Spent()

    def __enter__(self) -> Watch:
        self._before = self._cpu_s()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        now = self._cpu_s()
        self.spent.cpu_s = {name: now[name] - self._before[name] for name in now}

    def _look(self) -> None:
        while True:
            self.spent.peak_mb = max(self.spent.peak_mb, self._first.memory_info().rss / 1e6)
            if self._ended.wait(self._every_s):
                return

    def _cpu_s(self) -> dict[str, float]:
        times = {name: one.cpu_times() for name, one in self._processes.items()}
        return {name: one.user + one.system for name, one in times.items()}


def _spent(spent: Spent) -> Iterator[str]:
    return (f"  processor, {name:24} {cpu_s:8.2f} s" for name, cpu_s in spent.cpu_s.items())
