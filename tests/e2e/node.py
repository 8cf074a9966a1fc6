"""The inside of the box: PID 1 of namespaces of its own, which makes them a Kubernetes node.

    python -m e2e.node FOLDER      started by box.py alone, in new PID, mount and network namespaces

    etcd, kube-apiserver, kube-controller-manager, kube-scheduler      10.244.0.1:6443
    containerd, kubelet, kube-proxy, policies.py                       pods 10.244.0.0/24 on cni0
                                                                       Services 10.96.0.0/16

There is no way out of the network namespace. What these programs write to /run, /var and /etc lies
in memory and ends with the box, the machine's own sysctls are covered by files, and cgroups lie
below `/lw`. When PID 1 ends, the kernel kills all of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import msgspec
import yaml

ADDRESS: Final = "10.244.0.1"
API_PORT: Final = 6443
NODE: Final = "node1"
CGROUP: Final = "lw"
DNS: Final = "10.96.0.10"
SERVICES: Final = "10.96.0.0/16"
PODS: Final = "10.244.0.0/24"
PAUSE: Final = "localhost/logweir-e2e/pause:1"

_SYSCTLS: Final = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
"""What the kubelet wants of the whole machine. It gets files that say so already."""


class Plan(msgspec.Struct, frozen=True):
    """What the box is made of: `box.py` writes it, this process reads it.

    Attributes:
        programs: name -> path of the control plane's programs.
        identities: the folder of certificates and kubeconfigs.
        containerd_root: where images stay from one box to the next.
        cni: the folder of the CNI plugins.
    """

    programs: dict[str, str]
    identities: str
    containerd_root: str
    cni: str


def main(folder: Path) -> NoReturn:
    """Make the node, say so by the file `started`, and end when any of its programs does."""
    signal.signal(signal.SIGTERM, _end)
    plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)
    _make_mounts(folder)
    make_cgroups()
    _make_network()
    _write_files(folder, plan)
    running = {}
    for name, argv in _commands(folder, plan).items():
        running[name] = _start(folder, name, argv)
        if name == "kube-apiserver":
            _wait(running, _api_is_ready)  # the others would give up, or come back late
        elif name == "containerd":
            _wait(running, _containerd_answers)
    (folder / "started").touch()
    names = {process.pid: name for name, process in running.items()}
    while True:
        pid, status = os.wait()  # also of the orphans that the kernel hands to PID 1
        if pid in names:
            code = os.waitstatus_to_exitcode(status)
            sys.exit(f"{names[pid]} ended with {code}; see the logs in {folder}/logs")


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _make_mounts(folder: Path) -> None:
    """Let everything that is written outside of the folder be forgotten, and the kubelet share."""
    scratch = folder / "scratch"
    scratch.mkdir()
    _run("mount", "--make-rshared", "/")
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", scratch)
    for name in ("var", "etc"):
        upper, work = scratch / name, scratch / f"{name}.work"
        upper.mkdir()
        work.mkdir()
        options = f"lowerdir=/{name},upperdir={upper},workdir={work}"
        _run("mount", "-t", "overlay", "-o", options, "overlay", f"/{name}")
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for name, value in _SYSCTLS.items():
        private = scratch / name.replace("/", "-")
        private.write_text(f"{value}\n")
        _run("mount", "--bind", private, f"/proc/sys/{name}")


def make_cgroups() -> None:
    """Make the node's group in each hierarchy of the machine."""
    for parent in hierarchies("cgroup") or hierarchies("cgroup2"):
        group = parent / CGROUP
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (group / name).exists() and not (group / name).read_text().strip():
                whole = (
                    (parent / name) if (parent / name).exists() else parent / f"{name}.effective"
                )
                (group / name).write_text(whole.read_text())
        offered = parent / "cgroup.controllers"
        if offered.exists():
            wanted = " ".join(f"+{name}" for name in offered.read_text().split())
            (parent / "cgroup.subtree_control").write_text(wanted)


def hierarchies(*kinds: str) -> list[Path]:
    """Return where the machine's cgroups of these kinds, else of all, are mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [
        Path(place) for _, place, kind, *_ in mounts if kind in (kinds or ("cgroup", "cgroup2"))
    ]


def _make_network() -> None:
    """Make a bridge for pods. Nothing leads out of it."""
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "cni0", "type", "bridge")
    _run("ip", "address", "add", f"{ADDRESS}/24", "dev", "cni0")
    _run("ip", "link", "set", "cni0", "up")
    # Gives the node's own packets to Services a route; kube-proxy's rules then rewrite them.
    _run("ip", "route", "add", SERVICES, "dev", "cni0")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    bridged = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    bridged.write_text("1")  # so that rules see what goes from pod to pod


def _write_files(folder: Path, plan: Plan) -> None:
    (folder / "logs").mkdir()
    (folder / "cni").mkdir()
    (folder / "resolv.conf").write_text("")  # nothing outside is to be asked
    (folder / "containerd.toml").write_text(_containerd_toml(folder, plan))
    (folder / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet_config(folder, plan)))
    (folder / "cni/10-bridge.conflist").write_text(json.dumps(_cni_config(folder)))


def _containerd_toml(folder: Path, plan: Plan) -> str:
    # Without CAP_SYS_RESOURCE runc could not lower a pod's oom_score_adj, and would fail.
    return f"""\
version = 2
root = "{plan.containerd_root}"
state = "/run/containerd"
[grpc]
  address = "/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plan.cni}"
    conf_dir = "{folder}/cni"
"""


def _kubelet_config(folder: Path, plan: Plan) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd.sock",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failSwapOn": False,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{plan.identities}/ca.pem"},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS],
        "resolvConf": f"{folder}/resolv.conf",
        "tlsCertFile": f"{plan.identities}/kubelet.pem",
        "tlsPrivateKeyFile": f"{plan.identities}/kubelet.key",
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "maxPods": 100,
        "oomScoreAdj": 0,
        "readOnlyPort": 0,
        "syncFrequency": "10s",  # how soon pods see a Secret's new content
        "configMapAndSecretChangeDetectionStrategy": "Watch",
    }


def _cni_config(folder: Path) -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": PODS, "rangeStart": "10.244.0.10"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": f"{folder}/scratch/addresses",
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "k8s", "plugins": [bridge, ports]}


def _commands(folder: Path, plan: Plan) -> dict[str, list[str]]:
    """Return each program's command; they find each other by trying again."""

    def program(name: str, **flags: object) -> list[str]:
        words = [f"--{flag.replace('_', '-')}={_word(value)}" for flag, value in flags.items()]
        return [plan.programs[name], *words]

    known = plan.identities
    return {
        "etcd": program(
            "etcd",
            data_dir=folder / "etcd",
            listen_client_urls="http://127.0.0.1:2379",
            advertise_client_urls="http://127.0.0.1:2379",
            listen_peer_urls="http://127.0.0.1:2380",
            unsafe_no_fsync=True,
            log_level="warn",
        ),
        "kube-apiserver": program(
            "kube-apiserver",
            etcd_servers="http://127.0.0.1:2379",
            bind_address=ADDRESS,
            advertise_address=ADDRESS,
            secure_port=API_PORT,
            tls_cert_file=f"{known}/kube-apiserver.pem",
            tls_private_key_file=f"{known}/kube-apiserver.key",
            client_ca_file=f"{known}/ca.pem",
            service_account_issuer="https://kubernetes.default.svc.cluster.local",
            service_account_key_file=f"{known}/tokens.pub",
            service_account_signing_key_file=f"{known}/tokens.key",
            service_cluster_ip_range=SERVICES,
            authorization_mode="Node,RBAC",
            enable_admission_plugins="NodeRestriction,OwnerReferencesPermissionEnforcement",
            kubelet_client_certificate=f"{known}/kubelet-client.pem",
            kubelet_client_key=f"{known}/kubelet-client.key",
            kubelet_certificate_authority=f"{known}/ca.pem",
            kubelet_preferred_address_types="InternalIP",
            allow_privileged=False,
        ),
        "kube-controller-manager": program(
            "kube-controller-manager",
            kubeconfig=f"{known}/system-kube-controller-manager.kubeconfig",
            service_account_private_key_file=f"{known}/tokens.key",
            root_ca_file=f"{known}/ca.pem",
            use_service_account_credentials=True,
            leader_elect=False,
        ),
        "kube-scheduler": program(
            "kube-scheduler",
            kubeconfig=f"{known}/system-kube-scheduler.kubeconfig",
            leader_elect=False,
        ),
        "containerd": ["containerd", "--config", str(folder / "containerd.toml")],
        "kubelet": _ten_times(
            program(
                "kubelet",
                config=folder / "kubelet.yaml",
                kubeconfig=f"{known}/system-node-{NODE}.kubeconfig",
                hostname_override=NODE,
                node_ip=ADDRESS,
                root_dir=folder / "kubelet",
                cert_dir=folder / "kubelet-certificates",
            )
        ),
        "kube-proxy": program(
            "kube-proxy",
            kubeconfig=f"{known}/system-kube-proxy.kubeconfig",
            proxy_mode="iptables",
            cluster_cidr=PODS,
            conntrack_max_per_core=0,
            hostname_override=NODE,
            oom_score_adj=0,
        ),
        "policies": [
            *(sys.executable, "-m", "e2e.policies", f"{known}/admin.kubeconfig"),
        ],
    }


def _ten_times(argv: Sequence[str]) -> list[str]:
    """Return a command that starts a program again when it ends, as an init system does: a kubelet
    ends while containerd, which listens already, takes stock of what a killed box left."""
    script = 'for _ in 1 2 3 4 5 6 7 8 9 10; do "$@"; sleep 0.5; done'
    return ["sh", "-c", script, *argv[:1], *argv]


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _start(folder: Path, name: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
    with (folder / f"logs/{name}.log").open("wb") as log:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )


def _wait(running: Mapping[str, subprocess.Popen[bytes]], look: Callable[[], None]) -> None:
    """Wait until looking raises no OSError any more, or one of the programs ends."""
    while True:
        ended = [name for name, process in running.items() if process.poll() is not None]
        if ended:
            sys.exit(f"{', '.join(ended)} ended before the node was ready")
        with contextlib.suppress(OSError):
            look()
            return
        time.sleep(0.05)


def _api_is_ready() -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    asked = f"https://{ADDRESS}:{API_PORT}/readyz"
    urllib.request.urlopen(asked, context=context, timeout=5).close()


def _containerd_answers() -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/run/containerd.sock")


def _run(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
