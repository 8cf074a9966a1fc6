"""A node that runs no containers: it says of each pod what a test wants it to say.

    kubelet.behave(namespace, {"app": "web"}, Behaviour(start_s=2.0))     pods take two seconds
    kubelet.behave(namespace, {"app": "web"}, Behaviour(ready=False))     and now they are not ready

Without a word pods start at once and are ready, and those that are not restarted (of Jobs) succeed.
A pod that is deleted goes after `stop_s`. Two threads: one watches the pods of the node, the other
writes what is due; both outlive a restart of the API server.
"""

from __future__ import annotations

import contextlib
import datetime
import heapq
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httpx2 as httpx
from controlplane.api import Api, ApiError, Object

NODE: Final = "node1"
HEARTBEAT_S: Final = 10.0
RETRY_S: Final = 0.2


@dataclass(frozen=True)
class Behaviour:
    """What a pod does: when it is started, whether it gets ready, how it ends.

    `exits` is the code with which its containers end once they have started; None: they run on.
    """

    start_s: float = 0.0
    ready: bool = True
    stop_s: float = 0.0
    exits: int | None = None


@dataclass
class _Seen:
    """A pod as it is known, since when, and what was written of it."""

    pod: Object
    since_s: float
    address: str
    stopping_since_s: float | None = None
    written: tuple[object, ...] = ()


class Kubelet:
    """The node `node1` of a control plane."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._rules: list[tuple[str, Mapping[str, str], Behaviour]] = []
        self._pods: dict[str, _Seen] = {}
        self._due: list[tuple[float, str]] = []
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._addresses = (f"10.244.{n // 250}.{n % 250 + 1}" for n in range(1, 60_000))
        self._threads = [
            threading.Thread(target=one, daemon=True, name=f"kubelet-{one.__name__}")
            for one in (self._watch, self._write, self._beat)
        ]

    def start(self) -> None:
        """Register the node, and begin."""
        self._api.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        self._api.patch("Node", NODE, None, {"status": _node_status()}, "status")
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, once the API server has ended: what reads from it notices by that."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(5)
        self._api.close()

    def behave(self, namespace: str, labels: Mapping[str, str], behaviour: Behaviour) -> None:
        """Say how pods with these labels behave, now and later; the last word wins."""
        with self._changed:
            self._rules.insert(0, (namespace, labels, behaviour))
            for uid in self._pods:
                self._look_at(uid, 0.0)

    def _behaviour(self, pod: Object) -> Behaviour:
        labels = pod["metadata"].get("labels", {})
        for namespace, wanted, behaviour in self._rules:
            if namespace == pod["metadata"]["namespace"] and wanted.items() <= labels.items():
                return behaviour
        return Behaviour(exits=None if pod["spec"]["restartPolicy"] == "Always" else 0)

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                self._follow()
            except (ApiError, httpx.HTTPError, httpx.StreamError, OSError, ValueError):
                self._stopped.wait(RETRY_S)

    def _follow(self) -> None:
        query = {"fieldSelector": f"spec.nodeName={NODE}"}
        path = self._api.kind("Pod").path(None)
        listed = self._api.request("GET", path, query=query)
        with self._changed:
            self._pods = {
                uid: seen
                for uid, seen in self._pods.items()
                if uid in {pod["metadata"]["uid"] for pod in listed["items"]}
            }
        for pod in listed["items"]:
            self._note("MODIFIED", pod)
        query["resourceVersion"] = listed["metadata"]["resourceVersion"]
        for event, pod in self._api.watch("Pod", query):
            if event != "BOOKMARK":
                self._note(event, pod)

    def _note(self, event: str, pod: Object) -> None:
        uid, now_s = pod["metadata"]["uid"], time.monotonic()
        with self._changed:
            if event == "DELETED":
                self._pods.pop(uid, None)
                return
            if uid not in self._pods:
                self._pods[uid] = _Seen(pod, now_s, next(self._addresses))
            seen = self._pods[uid]
            seen.pod = pod
            if "deletionTimestamp" in pod["metadata"] and seen.stopping_since_s is None:
                seen.stopping_since_s = now_s
            self._look_at(uid, 0.0)

    def _look_at(self, uid: str, at_s: float) -> None:
        heapq.heappush(self._due, (at_s, uid))
        self._changed.notify_all()

    def _write(self) -> None:
        while not self._stopped.is_set():
            with self._changed:
                now_s = time.monotonic()
                if not self._due or self._due[0][0] > now_s:
                    self._changed.wait(self._due[0][0] - now_s if self._due else None)
                    continue
                _, uid = heapq.heappop(self._due)
                seen = self._pods.get(uid)
                behaviour = self._behaviour(seen.pod) if seen else None
            if seen is None or behaviour is None:
                continue
            try:
                next_s = self._bring_on(seen, behaviour, now_s)
            except (ApiError, httpx.HTTPError) as error:
                is_gone = isinstance(error, ApiError) and error.code in {404, 409}
                next_s = None if is_gone else now_s + RETRY_S
            if next_s is not None:
                with self._changed:
                    self._look_at(uid, next_s)

    def _bring_on(self, seen: _Seen, behaviour: Behaviour, now_s: float) -> float | None:
        """Write what is due of a pod; return when to look at it again, or None."""
        named = seen.pod["metadata"]
        if seen.stopping_since_s is not None:
            ends_s = seen.stopping_since_s + behaviour.stop_s
            if now_s < ends_s:
                return ends_s
            self._api.delete(
                "Pod",
                named["name"],
                named["namespace"],
                gracePeriodSeconds=0,
                preconditions={"uid": named["uid"]},
            )
            return None
        starts_s = seen.since_s + behaviour.start_s
        is_started = now_s >= starts_s
        shown = (is_started, behaviour.ready, behaviour.exits)
        if shown != seen.written:
            status = _pod_status(seen, behaviour, is_started=is_started)
            self._api.patch("Pod", named["name"], named["namespace"], {"status": status}, "status")
            seen.written = shown
        return None if is_started else starts_s

    def _beat(self) -> None:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NODE, "namespace": "kube-node-lease"},
        }
        while not self._stopped.is_set():
            spec = {
                "holderIdentity": NODE,
                "leaseDurationSeconds": 40,
                "renewTime": _now(micro=True),
            }
            with contextlib.suppress(ApiError, httpx.HTTPError):
                self._api.apply({**lease, "spec": spec})
            self._stopped.wait(HEARTBEAT_S)


def _node_status() -> Object:
    capacity = {"cpu": "1000", "memory": "4Ti", "pods": "20000", "ephemeral-storage": "10Ti"}
    conditions = [_condition("Ready", is_true=True)]
    return {"capacity": capacity, "allocatable": capacity, "conditions": conditions}


def _pod_status(seen: _Seen, behaviour: Behaviour, *, is_started: bool) -> Object:
    is_over = is_started and behaviour.exits is not None
    is_ready = is_started and behaviour.ready and not is_over
    state: Object = {"waiting": {"reason": "ContainerCreating"}}
    phase = "Pending"
    if is_over:
        state = {"terminated": {"exitCode": behaviour.exits}}
        phase = "Failed" if behaviour.exits else "Succeeded"
    elif is_started:
        state, phase = {"running": {"startedAt": _now()}}, "Running"
    containers = [
        {
            "name": one["name"],
            "image": one["image"],
            "imageID": "",
            "ready": is_ready,
            "started": is_started and not is_over,
            "restartCount": 0,
            "state": state,
        }
        for one in seen.pod["spec"]["containers"]
    ]
    return {
        "phase": phase,
        "startTime": seen.pod["metadata"]["creationTimestamp"],
        "podIP": seen.address,
        "podIPs": [{"ip": seen.address}],
        "conditions": [
            _condition("PodScheduled", is_true=True),
            _condition("Initialized", is_true=True),
            _condition("ContainersReady", is_true=is_ready),
            _condition("Ready", is_true=is_ready),
        ],
        "containerStatuses": containers,
    }


def _condition(name: str, *, is_true: bool) -> Object:
    return {"type": name, "status": str(is_true), "lastTransitionTime": _now()}


def _now(*, micro: bool = False) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")
