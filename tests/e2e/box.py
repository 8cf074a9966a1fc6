"""A Kubernetes node in namespaces of its own, on this machine and without a trace: root, Linux.

    with Box.start() as box:
        box.load(archive)                         an image into the node's containerd
        box.kubeconfig                            for kubectl and helm, by a port of 127.0.0.1
        box.forward("10.96.1.2", 80)              -> (127.0.0.1, port), into the box

There is one box at a time. It dies with this process, also when that is killed; the sweep at the
next start removes what a killed one leaves behind: empty cgroups and a folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec
from controlplane import build
from controlplane.api import Api
from controlplane.identities import Identities
from e2e import node

PROGRAMS: Final = (*build.CLUSTER, "kubelet", "kube-proxy")
PACKAGES: Final = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "debootstrap": "debootstrap",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "ip": "iproute2",
}
"""Debian's package of each program that the machine must have."""
CNI_FOLDERS: Final = ("/usr/lib/cni", "/opt/cni/bin")

_START_WAIT_S: Final = 60.0
_CLONE_NEWNET: Final = 0x40000000


class Unfit(Exception):  # noqa: N818 - it says what is so
    """This machine cannot hold a box; the message says what it lacks."""


def cache() -> Path:
    """Return the folder for what stays from one box to the next."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "logweir" / "e2e"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_machine() -> None:
    """Raise Unfit, with all that is missing, unless a box can run here."""
    wrong = []
    if sys.platform != "linux" or os.geteuid() != 0:
        wrong.append("it takes Linux and root")
    missing = {package for name, package in PACKAGES.items() if shutil.which(name) is None}
    if not any(Path(folder, "bridge").exists() for folder in CNI_FOLDERS):
        missing.add("containernetworking-plugins")
    if missing:
        wrong.append(f"these are missing: apt-get install {' '.join(sorted(missing))}")
    if wrong:
        raise Unfit("no node in a box here: " + "; ".join(wrong))


class Box:
    """A running node.

    Attributes:
        folder: its state and logs; removed when it ends in order.
        kubeconfig: of cluster-admin, from outside of the box.
        api: requests as cluster-admin.
    """

    def __init__(self, folder: Path, programs: dict[str, Path]) -> None:
        self.folder = folder
        self._forwards: dict[tuple[str, int], socket.socket] = {}
        url = f"https://{node.ADDRESS}:{node.API_PORT}"
        identities = Identities(folder / "identities", url, node.ADDRESS)
        for name in (
            *("admin", "system:kube-controller-manager", "system:kube-scheduler"),
            *("system:kube-proxy", f"system:node:{node.NODE}"),
        ):
            identities.kubeconfig(name)
        identities.client("kubelet-client")
        identities.listener("kubelet", node.ADDRESS)
        cni = next(path for path in CNI_FOLDERS if Path(path, "bridge").exists())
        plan = node.Plan(
            programs={name: str(path) for name, path in programs.items()},
            identities=str(identities.folder),
            containerd_root=str(cache() / "containerd"),
            cni=cni,
        )
        (folder / "plan.json").write_bytes(msgspec.json.encode(plan))
        self._process = self._spawn()
        self._init = self._wait_for_start()
        host, port = self.forward(node.ADDRESS, node.API_PORT)
        admin = identities.folder / "admin.kubeconfig"
        self.kubeconfig = folder / "kubeconfig"
        fresh = folder / "kubeconfig.new"
        fresh.touch(0o600)
        fresh.write_text(admin.read_text().replace(url, f"https://{host}:{port}"))
        fresh.rename(self.kubeconfig)
        self.api = Api.of_kubeconfig(self.kubeconfig)

    @classmethod
    @contextlib.contextmanager
    def start(cls, *, keep: bool = False) -> Iterator[Self]:
        """Start the box, and end it after the block; `keep` leaves its folder with the logs.

        Raises:
            Unfit: the machine cannot hold one.
        """
        check_machine()
        programs = build.find(*PROGRAMS)
        with _turn():
            folder = cache() / "box"
            sweep(folder)
            folder.mkdir(mode=0o755)
            box = cls(folder, programs)
            try:
                yield box
            finally:
                box.stop()
                sweep(None if keep else folder)

    def stop(self) -> None:
        """End all of it."""
        if hasattr(self, "api"):
            self.api.close()
        for listening in self._forwards.values():
            listening.close()
        try:
            os.kill(self._init, signal.SIGKILL)  # and the kernel kills all others of its namespace
        except ProcessLookupError:
            text = (self.folder / "node.log").read_text().strip()
            print(f"the box had ended before: {text}", file=sys.stderr)
        self._process.wait()  # until they are gone

    def run(self, *argv: object, stdin: bytes = b"") -> str:
        """Run a program in the box and return what it prints.

        Raises:
            subprocess.CalledProcessError: it failed; `stderr` says why.
        """
        inside = ["nsenter", "-t", str(self._init), "-m", "-n", "-p", "--", *map(str, argv)]
        done = subprocess.run(inside, input=stdin, capture_output=True, check=True)
        return done.stdout.decode()

    def ctr(self, *words: object) -> str:
        """Run containerd's own client in the box, where the kubelet's images are."""
        return self.run("ctr", "--address", "/run/containerd.sock", "-n", "k8s.io", *words)

    def blobs(self) -> set[str]:
        """Return the digests of what containerd has already, "sha256:..." each."""
        return set(self.ctr("content", "ls", "-q").split())

    def load(self, archive: Path) -> None:
        """Take the image of an archive; layers that containerd has already need not be in it."""
        self.ctr("images", "import", archive)

    def forward(self, host: str, port: int) -> tuple[str, int]:
        """Return an address on this machine that leads to one in the box."""
        listening = self._forwards.get((host, port))
        if listening is None:
            listening = socket.create_server(("127.0.0.1", 0), backlog=128)
            self._forwards[host, port] = listening
            threading.Thread(
                target=self._accept, args=(listening, (host, port)), daemon=True
            ).start()
        found = listening.getsockname()
        return found[0], found[1]

    def _spawn(self) -> subprocess.Popen[bytes]:
        namespaces = ("--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL")
        argv = [
            *("setpriv", "--pdeathsig", "KILL", "unshare", *namespaces),
            *("--mount-proc", "--propagation", "private", "--"),
            *(sys.executable, "-m", "e2e.node", str(self.folder)),
        ]
        with (self.folder / "node.log").open("wb") as log:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )

    def _wait_for_start(self) -> int:
        deadline_s = time.monotonic() + _START_WAIT_S
        while not (self.folder / "started").exists():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self._process.kill()
                text = (self.folder / "node.log").read_text().strip()
                raise AssertionError(f"the box did not start: {text}; logs: {self.folder}/logs")
            time.sleep(0.02)
        pid = self._process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def _accept(self, listening: socket.socket, target: tuple[str, int]) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client, target), daemon=True).start()

    def _carry(self, client: socket.socket, target: tuple[str, int]) -> None:
        with client:
            try:
                inside = self._connect(target)
            except OSError:
                return
            with inside:
                back = threading.Thread(target=_pump, args=(inside, client), daemon=True)
                back.start()
                _pump(client, inside)
                back.join()

    def _connect(self, target: tuple[str, int]) -> socket.socket:
        """Connect from within the box; of this process, only the calling thread goes there."""
        with Path(f"/proc/{self._init}/ns/net").open("rb") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot enter the box")
        return socket.create_connection(target, timeout=5)


def sweep(folder: Path | None) -> None:
    """Remove what a box that is gone left: its cgroups, and its folder when one is given."""
    for root in node.hierarchies():
        for group in sorted((root / node.CGROUP).rglob("*/"), reverse=True):
            _remove_group(group)
        _remove_group(root / node.CGROUP)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_group(group: Path) -> None:
    """Remove an empty cgroup; the kernel takes a moment to notice that the last process went."""
    deadline_s = time.monotonic() + 10
    while group.is_dir():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Hold the cache's lock: there is one box at a time."""
    with (cache() / "box.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes, until either side ends."""
    source.settimeout(None)
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for one, side in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
        with contextlib.suppress(OSError):
            one.shutdown(side)


def main(words: Sequence[str]) -> None:
    """Hold a box until Ctrl-C, for a look around."""
    with Box.start(keep="--keep" in words) as box:
        print(f"export KUBECONFIG={box.kubeconfig}")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main(sys.argv[1:])
