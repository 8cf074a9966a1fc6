"""A real `logweir up` in a folder of its own, and the doors that its owner has to look inside."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil
from redis import asyncio as redis

from logweir.backends import provision, redis_client
from logweir.core import names
from logweir.core.binding import CollectorBinding, CollectorTenant, JournalServer, Login
from logweir.standalone import servers
from logweir.standalone.folder import Folder
from logweir.standalone.status import Shown, show
from logweir.standalone.supervisor import ProcessStatus

READY_S = 120.0
BACK_S = 60.0
"""How long a killed process may take to be ready again, on a machine that does much else."""


class Up:
    """One `logweir up`, started by its command and stopped by it."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        # The servers of a root's `up` run as another user, who must be able to enter.
        self.folder = Path(tempfile.mkdtemp(prefix="logweir-chaos-"))
        self.folder.chmod(0o755)
        self._place = Folder(self.folder / "data")
        self._failpoints = self.folder / "failpoints"
        self._environment = {
            **os.environ,
            "LOGWEIR_MODE": "test",
            "LOGWEIR_FAILPOINT": f"@{self._failpoints}",
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    # ---- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and return when it is ready."""
        with (self.folder / "up.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command("up", "--port", "0"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self._environment,
            )
        deadline_s = time.monotonic() + READY_S
        while not self.shown().ready:
            assert self._process.poll() is None, f"it ended: {self.words()}"
            assert time.monotonic() < deadline_s, f"not ready: {self.shown().processes}"
            time.sleep(0.05)

    def _command(self, command: str, *more: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "logweir.cli",
            command,
            "--data",
            str(self._place.path),
            *more,
        ]

    def arm(self, failpoints: str) -> None:
        """Have roles that start from now on these failpoints; empty for none."""
        fresh = self._failpoints.with_suffix(".new")
        fresh.write_text(failpoints)
        fresh.replace(self._failpoints)

    def log(self, name: str) -> str:
        """What a process has written to its log since that was rotated."""
        path = self._place.logs / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def words(self) -> str:
        """What it said last."""
        return (self.folder / "up.log").read_text(errors="replace")[-2000:]

    def stop(self) -> list[str]:
        """Stop it in order; return what is left of it all the same, which is then killed."""
        for one in self._own():
            one.send_signal(signal.SIGCONT)
        subprocess.run(self._command("down"), check=False, capture_output=True, timeout=150)
        if self._process is not None:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
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
        return is_named and not is_ended and process.pid != os.getpid()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- what it says ------------------------------------------------------------------------

    def shown(self) -> Shown:
        """What `logweir status --json` prints."""
        return show(self._place)

    def process(self, name: str) -> ProcessStatus:
        return next(one for one in self.shown().processes if one.name == name)

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

    # ---- its doors ---------------------------------------------------------------------------

    def tenant(self) -> CollectorTenant:
        """The one tenant with its one pipeline, as the collector knows it."""
        text = (self._place.bindings / "collector.json").read_bytes()
        [found] = msgspec.json.decode(text, type=CollectorBinding).tenants
        return found

    def superuser(self) -> str:
        """libpq's URL of the superuser, in the tenant's schema."""
        port, secret = self._place.ports().postgres, self._place.secrets().postgres_password
        place = f"{servers.LOOPBACK}:{port}/{provision.DATABASE}"
        schema = names.schema(self.tenant().tenant)
        return f"postgresql://postgres:{secret}@{place}?options=-csearch_path%3D{schema}"

    def journal(self) -> redis.Redis:
        """The journal, as the operator."""
        server = JournalServer(servers.LOOPBACK, self._place.ports().valkey)
        login = Login("lw_operator", self._place.secrets().valkey_password)
        return redis_client.client(server, login)

    def prefix(self) -> str:
        """Of the pipeline's keys in the journal."""
        found = self.tenant()
        return names.journal_pipeline(found.tenant, found.pipelines[0].id)
