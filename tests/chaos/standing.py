"""A real `logweir up` in a folder of its own, and the doors that its owner has to look inside.

    proxy.py (links; for root, small disks) <- launch.py: `logweir up` with shims.py

Each round of a run has a tenant of its own, so that what is there can be read round by round.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import msgspec
import psutil
from chaos import launch, shims
from chaos.proxy import Proxy
from redis import asyncio as redis

from logweir.backends import provision, redis_client
from logweir.core import names
from logweir.core.binding import CollectorBinding, CollectorTenant, JournalServer, Login
from logweir.core.names import TenantId
from logweir.standalone import cluster_files, servers
from logweir.standalone.folder import Folder, read_json
from logweir.standalone.status import Shown, show
from logweir.standalone.supervisor import ProcessStatus

READY_S = 120.0
BACK_S = 60.0
"""How long a killed process may take to be ready again, on a machine that does much else."""

DISKS_BYTES = {"postgres": 3 << 30, "valkey": 1 << 30}
"""The small disks of the servers' folders, where this is root."""

PIPELINE = "load"
MANIFEST = """\
apiVersion: logweir.dev/v1alpha1
kind: LogTenant
metadata:
  name: {name}
spec:
  deletionPolicy: Delete
  apiKeys:
    - name: in
      scopes: [ingest]
    - name: out
      scopes: [query]
---
apiVersion: logweir.dev/v1alpha1
kind: LogPipeline
metadata:
  name: load
spec:
  tenantRef:
    name: {name}
"""


def _can_mount(place: Path) -> bool:
    """Whether this may make small disks: as root on Linux, where containers are not too closed."""
    if os.geteuid() != 0 or sys.platform != "linux":
        return False
    mount = f"mount -t tmpfs none {place}"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Place(msgspec.Struct, frozen=True):
    """A tenant with its one pipeline, and what its users are given. The URLs lead to the gateway:
    `ingest_url` through the clients' link."""

    name: str
    tenant: str
    ingest_url: str
    ingest_key: str
    query_key: str


class Up:
    """One `logweir up`, started by its command and stopped by it.

    Args:
        code: a folder with the packages to run, when these are not our own.
    """

    place: Place

    def __init__(self, code: Path | None = None) -> None:
        self._code = [str(code)] if code else []
        # The servers of a root's `up` run as another user, who must be able to enter.
        self.folder = Path(tempfile.mkdtemp(prefix="logweir-chaos-"))
        self.folder.chmod(0o755)
        self.data = Folder(self.folder / "data")
        self.shims = shims.Shims(self.folder) if shims.can_be_built() else None
        self.data.path.mkdir(mode=0o755)
        self.disks = DISKS_BYTES if _can_mount(self.data.path) else {}
        for one in self.disks:
            (self.data.path / one).mkdir(mode=0o755)
        self.proxy = Proxy(
            self.data.path / "ports.json",
            {self.data.path / name: size_bytes for name, size_bytes in self.disks.items()},
            self.folder / "proxy.log",
        )
        self._failpoints = self.folder / "failpoints"
        self._port = servers.free_port()
        self._process: subprocess.Popen[bytes] | None = None

    # ---- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and return when it is ready."""
        self.launch()
        assert self._process is not None
        deadline_s = time.monotonic() + READY_S
        while not self.shown().ready:
            assert self._process.poll() is None, f"it ended: {self.words()}"
            assert time.monotonic() < deadline_s, f"not ready: {self.shown().processes}"
            time.sleep(0.05)

    def launch(self) -> None:
        """Start it, where its disks are and with what the faults need."""
        env = {**os.environ, **(self.shims.environment() if self.shims else {})}
        env["PYTHONPATH"] = os.pathsep.join([*self._code, str(Path(__file__).parent.parent)])
        env |= {"LOGWEIR_MODE": "test", "LOGWEIR_FAILPOINT": f"@{self._failpoints}"}
        env[launch.LINKS] = msgspec.json.encode(self.proxy.listen).decode()
        command = [sys.executable, "-m", "chaos.launch", "up"]
        command += ["--data", str(self.data.path), "--port", str(self._port)]
        with (self.folder / "up.log").open("ab") as output:
            self._process = subprocess.Popen(
                [*self._where(), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=env,
            )

    def _where(self) -> list[str]:
        """Before a command: run it where the small disks are."""
        return ["nsenter", f"--mount=/proc/{self.proxy.pid}/ns/mnt"] if self.disks else []

    def inside(self, path: Path) -> Path:
        """Return how a file of the data folder is reached from here."""
        return Path(f"/proc/{self.proxy.pid}/root{path}") if self.disks else path

    def resize(self, name: str, size_bytes: int) -> None:
        """Change how much a server's disk holds; as much as it holds, and it is full."""
        where = self.data.path / name
        command = ["mount", "-o", f"remount,size={size_bytes}", str(where)]
        subprocess.run([*self._where(), *command], check=True)

    def command(self, *words: str) -> str:
        """Run another command of `logweir` on it; return what it prints."""
        command = [sys.executable, "-m", "logweir.cli", *words, "--data", str(self.data.path)]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=150
        ).stdout

    def arm(self, failpoints: str) -> None:
        """Have roles that start from now on these failpoints; empty for none."""
        fresh = self._failpoints.with_suffix(".new")
        fresh.write_text(failpoints)
        fresh.replace(self._failpoints)

    def log(self, name: str) -> str:
        """What a process has written to its log since that was rotated."""
        path = self.data.logs / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def words(self) -> str:
        """What it said last."""
        return (self.folder / "up.log").read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        """Kill the supervisor, and with it everything; return when that is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> list[str]:
        """Stop it in order; return what is left of it all the same, which is then killed."""
        for one in self._own():
            one.send_signal(signal.SIGCONT)
        self.command("down")
        if self._process is not None:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.proxy.stop()
        left = []
        for one in self._own():
            left.append(f"{one.pid} {one.name()}")
            one.kill()
        return left

    def _own(self) -> list[psutil.Process]:
        """All processes of this folder: named by their command, or standing in it."""
        return [one for one in psutil.process_iter() if self._is_own(one)]

    def _is_own(self, process: psutil.Process) -> bool:
        try:
            words = [*process.cmdline(), process.cwd()]
            is_ended = process.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
        is_named = any(str(self.folder) in word for word in words)
        is_other = process.pid in (os.getpid(), self.proxy.pid)
        return is_named and not is_ended and not is_other

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- what it says ------------------------------------------------------------------------

    def shown(self) -> Shown:
        """What `logweir status --json` prints."""
        return show(self.data)

    def process(self, name: str) -> ProcessStatus:
        shown = self.shown()
        found = [one for one in shown.processes if one.name == name]
        return found[0] if found else ProcessStatus(name, None, "not there", 0, "")

    def family(self, name: str) -> list[psutil.Process]:
        """A process of `up` with all that it has started; empty while it is away."""
        try:
            first = psutil.Process(self.process(name).pid or -1)
            return [first, *first.children(recursive=True)]
        except (psutil.Error, ValueError):
            return []

    async def ready(self, name: str, not_pid: int = 0) -> int:
        """Wait until a process is ready, and another one than that; return its id."""
        deadline_s = time.monotonic() + BACK_S
        while True:
            found = self.process(name)
            if found.state == "ready" and found.pid and found.pid != not_pid:
                return found.pid
            assert time.monotonic() < deadline_s, f"{name} is not ready: {found}"
            await asyncio.sleep(0.05)

    async def all_ready(self) -> None:
        """Wait until all of it is ready."""
        deadline_s = time.monotonic() + BACK_S
        while not (found := self.shown()).ready:
            assert time.monotonic() < deadline_s, f"not ready: {found.processes}"
            await asyncio.sleep(0.05)

    # ---- its tenants -------------------------------------------------------------------------

    async def open(self, name: str) -> None:
        """Make a tenant with a pipeline, and use it from now on."""
        manifest = self.folder / f"{name}.yaml"
        manifest.write_text(MANIFEST.format(name=name))
        await asyncio.to_thread(self.command, "apply", "-f", str(manifest))
        keys = self.data.keys / cluster_files.file_name("default", name)
        deadline_s = time.monotonic() + BACK_S
        while not (keys.exists() and self._is_served(name)):
            assert time.monotonic() < deadline_s, f"{name} is not served: {self.words()}"
            await asyncio.sleep(0.1)
        found = read_json(keys, cluster_files.TenantKeys)
        base = f"http://{servers.LOOPBACK}:{self.proxy.listen['client-gateway']}"
        self.place = Place(
            name=name,
            tenant=found.tenant,
            ingest_url=f"{base}/t/{found.tenant}/{PIPELINE}/ingest",
            ingest_key=found.keys["in"],
            query_key=found.keys["out"],
        )
        await self._known(deadline_s)

    async def _known(self, deadline_s: float) -> None:
        """Wait until ingest knows the new key: it reads its binding twice a second."""
        headers = {"Authorization": f"Bearer {self.place.ingest_key}"}
        async with httpx2.AsyncClient(headers=headers, trust_env=False, timeout=5) as client:
            while (await client.post(self.place.ingest_url)).status_code != 400:
                assert time.monotonic() < deadline_s, "ingest does not know the key"
                await asyncio.sleep(0.05)

    def _is_served(self, name: str) -> bool:
        keys = read_json(
            self.data.keys / cluster_files.file_name("default", name), cluster_files.TenantKeys
        )
        return PIPELINE in keys.pipelines and {"in", "out"} <= set(keys.keys)

    async def close(self, name: str) -> None:
        """Delete a tenant, with all that it stored."""
        for what in (f"logpipeline/{PIPELINE}", f"logtenant/{name}"):
            kind, _, one = what.partition("/")
            await asyncio.to_thread(self.command, "delete", kind, one)

    def tenant(self) -> CollectorTenant:
        """The tenant with its one pipeline, as the collector knows it."""
        text = (self.data.bindings / "collector.json").read_bytes()
        tenants = msgspec.json.decode(text, type=CollectorBinding).tenants
        [found] = [one for one in tenants if one.tenant == self.place.tenant]
        return found

    # ---- its doors ---------------------------------------------------------------------------

    def superuser(self, tenant: TenantId | None = None) -> str:
        """libpq's URL of the superuser, in a tenant's schema: of the open one, if none is named."""
        port, secret = self.data.ports().postgres, self.data.secrets().postgres_password
        place = f"{servers.LOOPBACK}:{port}/{provision.DATABASE}"
        schema = names.schema(tenant or self.tenant().tenant)
        return f"postgresql://postgres:{secret}@{place}?options=-csearch_path%3D{schema}"

    def journal(self) -> redis.Redis:
        """The journal, as the operator."""
        server = JournalServer(servers.LOOPBACK, self.data.ports().valkey)
        login = Login("lw_operator", self.data.secrets().valkey_password)
        return redis_client.client(server, login)

    def prefix(self) -> str:
        """Of the pipeline's keys in the journal."""
        found = self.tenant()
        return names.journal_pipeline(found.tenant, found.pipelines[0].id)


@contextlib.contextmanager
def running() -> Iterator[Up]:
    """A running `logweir up`, of which nothing is left afterwards but its folder."""
    found = Up()
    try:
        found.start()
        yield found
    finally:
        left = found.stop()
    assert not left, f"still running after `logweir down`: {left}"
