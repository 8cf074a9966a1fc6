"""What the script works on: a release of the chart, a tenant with two pipelines, their doors."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2
import msgspec
from e2e.target import Cluster, Failed, until

from logweir.core.binding import IngestBinding, IngestTenant

if TYPE_CHECKING:
    from e2e.counting import Load

RELEASE: Final = "logweir"
HOME: Final = "logweir"
"""The namespace of the release."""
TENANTS: Final = ("acme", "counted")
"""Of its LogTenants, which are also the names of their namespaces."""
HERE: Final = Path(__file__).parent
CHART: Final = "charts/logweir"

_RESTRICTED: Final = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}
_PROBE: Final = """\
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
except OSError as error:
    sys.exit(f"refused: {error}")
"""


class Scene:
    """One run of the script.

    Attributes:
        cluster: that it plays on.
        counted: the load whose records are counted, once a step has made it.
        tally: what was counted, for the end of the script.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.counted: Load | None = None
        self.tally: dict[str, int] = {}
        self._keys: dict[tuple[str, str], str] = {}

    def close(self) -> None:
        """End a load that a step left running."""
        if self.counted is not None:
            self.counted.give_up()

    # ---- objects ------------------------------------------------------------------------------

    def make_namespace(self, name: str) -> None:
        """Make a namespace whose pods must meet the restricted Pod Security level."""
        metadata = {"name": name, "labels": _RESTRICTED}
        self.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def apply_file(self, name: str) -> None:
        """Apply a file of this folder, with Logweir's image in place of IMAGE."""
        self.cluster.apply((HERE / name).read_text().replace("IMAGE", self.image()))

    def image(self) -> str:
        """Return the name of Logweir's image in this cluster."""
        image = self.cluster.values["image"]
        return f"{image['repository']}:{image['tag']}"

    def wait_ready(self, namespace: str, wait_s: int = 120) -> None:
        """Wait until all LogTenants and LogPipelines of a namespace say that they are Ready."""
        self.cluster.kubectl(
            *("-n", namespace, "wait", "--for=condition=Ready", f"--timeout={wait_s}s"),
            *("logtenants,logpipelines", "--all"),
            wait_s=wait_s + 30,
        )

    def pipeline(self, name: str, namespace: str = "acme") -> dict[str, Any]:
        """Return a LogPipeline."""
        return self.cluster.get("logpipeline", name, namespace)

    def served(self, pipeline: str, namespace: str = "acme") -> IngestTenant:
        """Return what a pipeline's ingest is told to serve: by its binding."""
        text = self.secret(namespace, f"{pipeline}-ingest-binding")["binding.json"]
        (found,) = msgspec.json.decode(text, type=IngestBinding).tenants
        return found

    def collectors(self, name: str, namespace: str = "acme") -> tuple[int, int]:
        """Return how many collectors a pipeline is to have, and how many are ready."""
        found = self.cluster.get("deployment", f"{name}-collector", namespace)
        return found["spec"].get("replicas", 0), found["status"].get("readyReplicas", 0)

    def pods(self, namespace: str) -> list[dict[str, Any]]:
        """Return the pods that are to go on running, so no Job's."""
        return [
            one
            for one in self.cluster.list("pods", namespace)
            if one["status"].get("phase") not in ("Succeeded", "Failed")
            and "deletionTimestamp" not in one["metadata"]
        ]

    def pod_names(self, *namespaces: str) -> set[str]:
        """Return the names of those pods."""
        return {pod["metadata"]["name"] for one in namespaces for pod in self.pods(one)}

    def is_whole(self, namespace: str, number: int = 1) -> bool:
        """Say whether there are so many of such pods, or more, and all of them are ready."""
        pods = self.pods(namespace)
        return len(pods) >= number and all(
            any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
            for conditions in (pod["status"].get("conditions", []) for pod in pods)
        )

    def secret(self, namespace: str, name: str) -> dict[str, str]:
        """Return a Secret's content."""
        data = self.cluster.get("secret", name, namespace)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def key(self, name: str, tenant: str = "acme") -> str:
        """Return the text of a tenant's API key, from its Secret."""
        if (tenant, name) not in self._keys:
            found = self.secret(tenant, f"{tenant}-key-{name}")
            self._keys[tenant, name] = found["key"]
        return self._keys[tenant, name]

    # ---- doors --------------------------------------------------------------------------------

    def ingest_url(self, pipeline: str, namespace: str = "acme") -> str:
        """Return where records of a pipeline go in: by its Service."""
        host, port = self.cluster.reach(namespace, f"{pipeline}-ingest", 80)
        return f"http://{host}:{port}"

    def platform_url(self) -> str:
        """Return where the platform is reached: by the gateway's Service."""
        host, port = self.cluster.reach(HOME, f"{RELEASE}-gateway", 80)
        return f"http://{host}:{port}"

    def send(self, message: str, pipeline: str, namespace: str = "acme") -> float:
        """Send a line, until it is acknowledged; return when that was (time.monotonic)."""

        def post() -> float:
            answer = httpx2.post(
                f"{self.ingest_url(pipeline, namespace)}/ingest",
                json={"service": "e2e", "level": "info", "message": message},
                headers={"X-API-Key": self.key("in", namespace), "Idempotency-Key": message},
                trust_env=False,
                timeout=10,
            )
            if answer.status_code != 200:
                raise Failed(f"ingest: {answer.status_code} {answer.text[:300]}")
            return time.monotonic()

        return until("a line is taken", _tried(post), wait_s=60)

    def find(self, message: str, tenant: str = "acme", wait_s: float = 60) -> float:
        """Wait until a line is found by query; return when that was (time.monotonic)."""

        def look() -> float:
            records = self.query(f'{{service="e2e"}} |= "{message}"', tenant)
            return time.monotonic() if len(records) == 1 else 0.0

        return until(f"{message!r} is found once", _tried(look), wait_s=wait_s, every_s=0.1)

    def query(self, words: str, tenant: str = "acme") -> list[Mapping[str, Any]]:
        """Return the records that a query finds, by the gateway."""
        found: list[Mapping[str, Any]] = self._ask("query", words, tenant, limit="1000")["records"]
        return found

    def count(self, words: str, tenant: str = "acme") -> int:
        """Return how many records of the last hour a selector finds."""
        answer = self._ask("histogram", words, tenant, buckets="1")
        return sum(sum(one["counts"]) for one in answer["series"])

    def _ask(self, what: str, words: str, tenant: str, **more: str) -> dict[str, Any]:
        now_ns = time.time_ns()
        answer = httpx2.get(
            f"{self.platform_url()}/api/v1/{what}",
            params={
                "query": words,
                "start": str(now_ns - 3600 * 10**9),
                "end": str(now_ns + 60 * 10**9),
                **more,
            },
            headers={"Authorization": f"Bearer {self.key('out', tenant)}"},
            trust_env=False,
            timeout=60,
        )
        if answer.status_code != 200:
            raise Failed(f"{what}: {answer.status_code} {answer.text[:300]}")
        found: dict[str, Any] = answer.json()
        return found

    # ---- probes -------------------------------------------------------------------------------

    def reaches(
        self, namespace: str, targets: Sequence[tuple[str, int]], labels: Mapping[str, str]
    ) -> list[bool]:
        """Say for each (host, port) whether a pod in a namespace, with these labels, gets there."""
        safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        containers = [
            {
                "name": f"probe-{number}",
                "image": self.image(),
                "command": ["python3", "-c", _PROBE, host, str(port)],
                "securityContext": {**safe, "readOnlyRootFilesystem": True},
            }
            for number, (host, port) in enumerate(targets)
        ]
        self.cluster.kubectl("-n", namespace, "delete", "pod", "probe", "--ignore-not-found")
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "probe", "namespace": namespace, "labels": dict(labels)},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 0,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    # An address of its own takes the stand-in a moment to know.
                    "initContainers": [
                        {
                            **containers[0],
                            "name": "pause",
                            "command": ["python3", "-c", "import time; time.sleep(1.5)"],
                        }
                    ],
                    "containers": containers,
                },
            }
        )

        def ended() -> list[dict[str, Any]]:
            status = self.cluster.get("pod", "probe", namespace)["status"]
            states = status.get("containerStatuses", [])
            done = [one for one in states if "terminated" in one["state"]]
            return done if len(done) == len(targets) else []

        states = {one["name"]: one["state"]["terminated"] for one in until("probes end", ended)}
        self.cluster.kubectl("-n", namespace, "delete", "pod", "probe")
        return [states[one["name"]]["exitCode"] == 0 for one in containers]


def _tried(look: Callable[[], float]) -> Callable[[], float]:
    """Let a connection that breaks be a reason to look again."""

    def once() -> float:
        try:
            return look()
        except (httpx2.TransportError, json.JSONDecodeError) as error:
            raise Failed(str(error) or type(error).__name__) from error

    return once
