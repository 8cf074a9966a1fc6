"""A real Kubernetes control plane for tests, on free ports of the loopback address.

    binaries -> etcd -> kube-apiserver                                level 4, `start()`
                           <- kube-controller-manager, kube-scheduler, our kubelet    level 5

`fixtures.py` has what tests take; this module is for who needs a plane of their own. A plane lives
in a folder with all its state and logs, dies with the process that started it, also when that is
killed, and leaves nothing but the folder.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

from controlplane import build
from controlplane.api import Api, until
from controlplane.identities import Identities
from controlplane.kubelet import Kubelet

from logweir.standalone import servers

CRDS: Final = Path(__file__).parents[2] / "crds"
ADMISSION: Final = "NodeRestriction,OwnerReferencesPermissionEnforcement"

_AUDIT_POLICY: Final = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts"]}
- {level: None}
"""


class Process(servers.Server):
    """One of the control plane's programs, with its flags."""

    def __init__(self, path: Path, folder: Path, *flags: str, probe: tuple[int, str] = (0, "")):
        super().__init__()
        self.name = path.name
        self._path, self._folder, self._flags, self._probe = path, folder, flags, probe

    def prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def command(self) -> servers.Command:
        argv = (str(self._path), *self._flags)
        # Killed, as there is nothing to save.
        return servers.Command(argv, self._folder, dict(os.environ), stop_signal=signal.SIGKILL)

    def ready(self) -> bool:
        port, path = self._probe
        if not port:
            return True
        request = f"GET {path} HTTP/1.0\r\n\r\n".encode()
        is_secure = self.name == "kube-apiserver"
        answer = servers.talk(port, request, lambda got: b"\n" in got, with_tls=is_secure)
        return b" 200 " in answer.partition(b"\n")[0]

    def run(self) -> None:
        """Start it, with its log beside its folder."""
        self.start(self._folder / f"{self.name}.log", wait_s=60)


class Plane:
    """One control plane.

    Attributes:
        url: where the API server answers, also after it was restarted.
        api: requests as cluster-admin.
        kubeconfig: the file for kubectl, helm and others as cluster-admin.
        audit_log: one line for each request of a ServiceAccount (`audit.py` reads it).
        kubelet: the node that says of pods what tests want; only with controllers.
    """

    kubelet: Kubelet

    def __init__(self, folder: Path, binaries: dict[str, Path], *, controllers: bool) -> None:
        self.folder = folder
        self.has_controllers = controllers
        self._binaries = binaries
        self._numbers = itertools.count(1)
        etcd, peers, port = (servers.free_port() for _ in range(3))
        self.url = f"https://127.0.0.1:{port}"
        self.identities = Identities(folder / "identities", self.url)
        self.kubeconfig = self.identities.kubeconfig("admin")
        self.audit_log = folder / "audit.log"
        self._etcd = self._process(
            "etcd", *_etcd_flags(folder, etcd, peers), probe=(etcd, "/health")
        )
        self._server = self._process(
            "kube-apiserver", *self._server_flags(etcd, port), probe=(port, "/readyz")
        )
        self._others: list[Process] = []
        self._apis: list[Api] = []

    def start(self) -> None:
        """Start it, and wait until it answers and knows the project's kinds."""
        self._etcd.run()
        self._server.run()
        self.api = Api.of_kubeconfig(self.kubeconfig)
        self._apis.append(self.api)
        self.install_crds()
        if self.has_controllers:
            self._start_controllers()

    def stop(self) -> None:
        """End all processes."""
        for process in (*self._others, self._server, self._etcd):
            process.stop(wait_s=0)
        if hasattr(self, "kubelet"):
            self.kubelet.stop()
        for api in self._apis:
            api.close()

    def install_crds(self) -> None:
        """Apply the project's CRDs, and wait until their kinds are served."""
        files = sorted(CRDS.glob("*.yaml"))
        kinds = [self.api.apply_yaml(one.read_text())["spec"]["names"]["kind"] for one in files]
        until(lambda: all(map(self.api.serves, kinds)))

    def kill_api_server(self) -> None:
        """Kill the API server as by kill -9; what was written stays."""
        self._server.stop(wait_s=0)

    def start_api_server(self) -> None:
        """Start it again on the same port, with the same data and identities."""
        self._server.run()

    def restart_api_server(self, down_s: float = 0.0) -> None:
        """Kill it, and start it again after so many seconds."""
        self.kill_api_server()
        time.sleep(down_s)
        self.start_api_server()

    def pids(self) -> dict[str, int]:
        """Return the process of each program, by its name."""
        programs = (self._server, self._etcd, *self._others)
        return {one.name: one.process.pid for one in programs if one.process is not None}

    def make_namespace(self, enforce: str = "restricted") -> str:
        """Make a namespace with a new name; its pods must meet this Pod Security level."""
        name = f"test-{next(self._numbers)}"
        labels = {"pod-security.kubernetes.io/enforce": enforce}
        self.api.create(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": labels},
            }
        )
        return name

    def token(self, namespace: str, account: str, lasts_s: int = 3600) -> str:
        """Return a token of a ServiceAccount, which is made if there is none; at least 600 s."""
        named = {"name": account, "namespace": namespace}
        if self.api.find("ServiceAccount", account, namespace) is None:
            self.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named})
        path = self.api.kind("ServiceAccount").path(namespace, account, "token")
        asked = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": lasts_s},
        }
        token: str = self.api.request("POST", path, asked)["status"]["token"]
        return token

    def kubeconfig_of(self, namespace: str, account: str) -> Path:
        """Return the path of a kubeconfig with a ServiceAccount's token, good for an hour."""
        token = self.token(namespace, account)
        return self.identities.token_kubeconfig(f"{namespace}.{account}", namespace, token)

    def api_of(self, namespace: str, account: str) -> Api:
        """Return requests as a ServiceAccount, which is made if there is none."""
        self._apis.append(Api.of_kubeconfig(self.kubeconfig_of(namespace, account)))
        return self._apis[-1]

    def kubectl(self, *words: str, stdin: str = "", kubeconfig: Path | None = None) -> str:
        """Run kubectl, as cluster-admin by default, and return what it prints.

        Raises:
            subprocess.CalledProcessError: it failed; `stderr` says why.
        """
        argv = [self._binaries["kubectl"], "--kubeconfig", kubeconfig or self.kubeconfig, *words]
        environment = {**os.environ, "KUBECACHEDIR": str(self.folder / "kubectl")}
        return subprocess.run(
            argv, input=stdin, capture_output=True, text=True, check=True, env=environment
        ).stdout

    def _process(self, name: str, *flags: str, probe: tuple[int, str] = (0, "")) -> Process:
        return Process(self._binaries[name], self.folder, *flags, probe=probe)

    def _server_flags(self, etcd: int, port: int) -> list[str]:
        policy = self.folder / "audit-policy.yaml"
        policy.write_text(_AUDIT_POLICY)
        private, public = self.identities.service_accounts
        flags = {
            "etcd-servers": f"http://127.0.0.1:{etcd}",
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": port,
            "endpoint-reconciler-type": "none",
            "tls-cert-file": self.identities.server[0],
            "tls-private-key-file": self.identities.server[1],
            "client-ca-file": self.identities.authority,
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-key-file": public,
            "service-account-signing-key-file": private,
            "service-cluster-ip-range": "10.96.0.0/16",
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": ADMISSION,
            "allow-privileged": "true",
            "audit-policy-file": policy,
            "audit-log-path": self.audit_log,
        }
        if not self.has_controllers:
            # Nobody makes the ServiceAccount `default` there, and no pod could be made without.
            flags["disable-admission-plugins"] = "ServiceAccount"
        return [f"--{name}={value}" for name, value in flags.items()]

    def _start_controllers(self) -> None:
        fast = (
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=500",
            "--kube-api-burst=500",
        )
        manager = self._process(
            "kube-controller-manager",
            f"--kubeconfig={self.identities.kubeconfig('system:kube-controller-manager')}",
            f"--service-account-private-key-file={self.identities.service_accounts[0]}",
            f"--root-ca-file={self.identities.authority}",
            "--use-service-account-credentials",
            *fast,
        )
        scheduler = self._process(
            "kube-scheduler",
            f"--kubeconfig={self.identities.kubeconfig('system:kube-scheduler')}",
            *fast,
        )
        self._others = [scheduler, manager]
        for process in self._others:
            process.run()
        self.kubelet = Kubelet(Api.of_kubeconfig(self.kubeconfig))
        self.kubelet.start()
        until(lambda: self.api.find("ServiceAccount", "default", "default"), wait_s=60)


def start(folder: Path, *, controllers: bool = False) -> Plane:
    """Start a control plane in a folder; its programs are built when they are not there yet.

    Raises:
        build.Unavailable: there is nothing to take or to build them with.
        SetupError: one of them did not start, with its last words.
    """
    plane = Plane(
        folder, build.find(*(build.CLUSTER if controllers else build.API)), controllers=controllers
    )
    try:
        plane.start()
    except BaseException:
        plane.stop()
        raise
    return plane


def _etcd_flags(folder: Path, port: int, peers: int) -> list[str]:
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{port}",
        f"--advertise-client-urls=http://127.0.0.1:{port}",
        f"--listen-peer-urls=http://127.0.0.1:{peers}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
        f"--initial-cluster=default=http://127.0.0.1:{peers}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
