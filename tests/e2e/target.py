"""A cluster as the end-to-end script sees it: kubectl, helm, and a way in to a Service's port.

Cluster    any cluster that a kubeconfig leads to; ways in are `kubectl port-forward`
Boxed      the node in a box; ways in go to the Service's own address
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx2
from controlplane import build
from controlplane.api import ApiError
from e2e.box import Box

Found = TypeVar("Found")
Object = dict[str, Any]
ROOT: Final = Path(__file__).parents[2]


class Failed(Exception):  # noqa: N818 - a step did
    """A command failed, or something did not come about; the message says what there was."""


class Cluster:
    """A cluster with the images in it.

    Args:
        kubeconfig: of cluster-admin.
        values: what the chart is to be told of this cluster.
        folder: for files of the script, which goes with the cluster.
    """

    def __init__(self, kubeconfig: Path, values: Mapping[str, Any], folder: Path) -> None:
        self.kubeconfig, self.values, self.folder = kubeconfig, values, folder
        self._programs = build.find("kubectl", "helm")
        self._ways: dict[tuple[str, str, int], _Way] = {}

    def close(self) -> None:
        """End the ways in."""
        for way in self._ways.values():
            way.close()

    def kubectl(self, *words: object, stdin: str = "", wait_s: float = 180) -> str:
        """Run kubectl and return what it prints.

        Raises:
            Failed: it did, with its words.
        """
        return self._run("kubectl", words, stdin, wait_s)

    def helm(self, *words: object, wait_s: float = 300) -> str:
        """Run helm and return what it prints; likewise."""
        return self._run("helm", words, "", wait_s)

    def apply(self, *objects: Object | str) -> None:
        """Apply objects, or texts in YAML, as a user does."""
        texts = [one if isinstance(one, str) else json.dumps(one) for one in objects]
        self.kubectl("apply", "--server-side", "-f", "-", stdin="\n---\n".join(texts))

    def get(self, kind: str, name: str, namespace: str) -> Object:
        """Return an object."""
        found: Object = json.loads(self.kubectl("-n", namespace, "get", kind, name, "-o", "json"))
        return found

    def list(self, kind: str, namespace: str, selector: str = "") -> list[Object]:
        """Return objects of a kind, those that a label selector fits."""
        words = ["-l", selector] if selector else []
        text = self.kubectl("-n", namespace, "get", kind, *words, "-o", "json")
        found: list[Object] = json.loads(text)["items"]
        return found

    def kill(self, namespace: str, pod: str) -> None:
        """End a pod without a word; its controller makes another one."""
        self.kubectl("-n", namespace, "delete", "pod", pod, "--force", "--grace-period=0")

    def reach(self, namespace: str, service: str, port: int) -> tuple[str, int]:
        """Return an address on this machine that leads to a Service's port."""
        key = (namespace, service, port)
        if key not in self._ways:
            argv = self._argv("kubectl", ["-n", namespace, "port-forward", f"service/{service}"])
            self._ways[key] = _Way([*argv, f":{port}"])
        return "127.0.0.1", self._ways[key].port()

    def _argv(self, program: str, words: Sequence[object]) -> list[str]:
        return [
            *(str(self._programs[program]), "--kubeconfig", str(self.kubeconfig)),
            *map(str, words),
        ]

    def _run(self, program: str, words: Sequence[object], stdin: str, wait_s: float) -> str:
        argv = self._argv(program, words)
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=wait_s,
            cwd=ROOT,
            env={**os.environ, "KUBECACHEDIR": str(self.folder / "kubectl")},
            check=False,
        )
        if done.returncode != 0:
            said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}".strip()
            raise Failed(f"{program} {' '.join(map(str, words))}: {said}")
        return done.stdout


class Boxed(Cluster):
    """The node in a box."""

    def __init__(self, box: Box, values: Mapping[str, Any]) -> None:
        folder = box.folder / "script"
        folder.mkdir()
        super().__init__(box.kubeconfig, values, folder)
        self._box = box

    def reach(self, namespace: str, service: str, port: int) -> tuple[str, int]:
        spec = self._box.api.get("Service", service, namespace)["spec"]
        return self._box.forward(spec["clusterIP"], port)

    def kill(self, namespace: str, pod: str) -> None:
        """Kill a pod's first process as by kill -9; the kubelet starts it again."""
        (status,) = self._box.api.get("Pod", pod, namespace)["status"]["containerStatuses"]
        container = status["containerID"].removeprefix("containerd://")
        self._box.ctr("tasks", "kill", "--signal", "SIGKILL", container)
        until(
            f"{pod} is seen to be dead",
            lambda: self._restarts(namespace, pod) > status["restartCount"],
            wait_s=60,
        )

    def _restarts(self, namespace: str, pod: str) -> int:
        (status,) = self._box.api.get("Pod", pod, namespace)["status"]["containerStatuses"]
        count: int = status["restartCount"]
        return count


class _Way:
    """A `kubectl port-forward` that is begun again when its pod goes."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv
        self._port = 0
        self._is_open = True
        self._process: subprocess.Popen[str] | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def port(self) -> int:
        """Return the port on this machine, which may be another one after a pod went."""
        with self._changed:
            self._changed.wait_for(lambda: self._port, timeout=30)
            return self._port

    def close(self) -> None:
        self._is_open = False
        if self._process is not None:
            self._process.terminate()
        self._thread.join(10)

    def _keep(self) -> None:
        port = ""
        while self._is_open:
            # The port that it got the first time, so that who knows it can go on.
            argv = [*self._argv[:-1], f"{port}{self._argv[-1]}"]
            self._process = subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if line.startswith("Forwarding from 127.0.0.1:"):
                    port = line.split(":")[1].split()[0]
                    with self._changed:
                        self._port = int(port)
                        self._changed.notify_all()
                elif "lost connection" in line:
                    self._process.terminate()
            self._process.wait()
            time.sleep(0.2)


def until(what: str, look: Callable[[], Found], wait_s: float = 60, every_s: float = 0.3) -> Found:
    """Look again until there is something true, and return it.

    Raises:
        Failed: there was nothing in time.
    """
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            seen, why = look(), ""
        except (Failed, ApiError, OSError, httpx2.TransportError) as error:
            seen, why = None, f": {error}"  # type: ignore[assignment]
        if seen:
            return seen
        if time.monotonic() > deadline_s:
            raise Failed(f"{what}: not within {wait_s:.0f} s, but {seen!r}{why}")
        time.sleep(every_s)


def tell(cluster: Cluster, namespaces: Sequence[str]) -> None:
    """Print what the namespaces' objects are, what happened, and what pods said last."""
    for namespace in namespaces:
        print(f"\n==== {namespace}", flush=True)
        for words in (
            ("get", "all,pvc", "-o", "wide"),
            ("get", "logtenants,logpipelines", "-o", "yaml"),
            ("get", "events", "--sort-by=.lastTimestamp"),
        ):
            _print(cluster, 12000, "-n", namespace, *words)
        try:
            pods = cluster.list("pods", namespace)
        except (Failed, subprocess.TimeoutExpired):
            continue
        for pod in pods:
            logs = ("-n", namespace, "logs", pod["metadata"]["name"], "--all-containers")
            print(f"---- {namespace}/{pod['metadata']['name']}", flush=True)
            states = pod["status"].get("containerStatuses", [])
            if any(one["restartCount"] for one in states):
                _print(cluster, 3000, *logs, "--tail=15", "--prefix", "--previous")
            _print(cluster, 5000, *logs, "--tail=25", "--prefix")


def _print(cluster: Cluster, most: int, *words: str) -> None:
    """Print the end of what kubectl says, or why it does not."""
    try:
        print(cluster.kubectl(*words, wait_s=30)[-most:], flush=True)
    except (Failed, subprocess.TimeoutExpired) as error:
        print(error, flush=True)
