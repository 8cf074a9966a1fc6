"""A Logweir of the benchmark's own: `logweir up` in a temporary folder, and doors to it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import machine
import psycopg

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
STORED_WAIT_S = 600
WRITERS = ("ingest", "valkey", "collector", "postgres")
"""What a record passes through until it is committed; the load goes straight to ingest."""

MANIFEST = """\
apiVersion: logweir.dev/v1alpha1
kind: LogTenant
metadata: {{name: {name}}}
spec:
  tenantId: {name}
  retention: {{days: 3650}}
  quotas: {{bufferBytes: 8589934592{quotas}}}
  apiKeys:
    - {{name: in, scopes: [ingest]}}
    - {{name: out, scopes: [query]}}
---
apiVersion: logweir.dev/v1alpha1
kind: LogPipeline
metadata: {{name: {name}}}
spec:
  tenantRef: {{name: {name}}}
"""


class Tenant:
    """One tenant with one pipeline of the same name."""

    def __init__(self, site: Site, name: str, keys: dict[str, str]) -> None:
        self.site = site
        self.name = name
        self.ingest_key, self.query_key = keys["in"], keys["out"]
        self.schema = "t_" + name.replace("-", "_")
        self.raw = site.folder / f"{name}.ndjson"
        self.wal_bytes = 0
        self.vacuum_wal_bytes = 0

    def head(self) -> bytes:
        """The request's head for the load generator."""
        return (
            f"POST /t/{self.name}/{self.name}/ingest HTTP/1.1\r\nHost: bench\r\n"
            f"Authorization: Bearer {self.ingest_key}\r\n"
            "Content-Type: application/x-ndjson\r\n".encode()
        )

    def stored(self) -> int:
        """Records that are committed."""
        return self.site.value(f"select coalesce(sum(stored), 0)::int8 from {self.schema}.usage")

    def keep_keeper_away(self) -> None:
        """Hold the tenant's lease, so that nothing of it is merged: what is measured is hot."""
        self.site.sql.execute(
            "insert into logweir.leases (name, holder, until) values (%s, 'bench', now() + '1 day')"
            " on conflict (name) do update set holder = excluded.holder, until = excluded.until",
            [f"keeper/{self.name}"],
        )

    def wait_stored(self, count: int) -> float:
        """Wait until so many records are committed; return the moment."""
        deadline_s = time.monotonic() + STORED_WAIT_S
        while self.stored() < count:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self.stored()} of {count} records are stored")
            time.sleep(0.005)
        return time.monotonic()

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """JSON of the read API, through the gateway."""
        answer = self.site.http.get(
            self.site.url + path, params=params, headers={"x-api-key": self.query_key}
        )
        answer.raise_for_status()
        return answer.json()

    def vacuum(self) -> int:
        """Vacuum the tenant's segments, some time after they were written; return WAL bytes.

        With checksums a page is logged whole when it is first changed after a checkpoint, be it
        by a hint that its rows are committed.
        """
        self.site.sql.execute("checkpoint")
        before = self.site.wal_bytes()
        self.site.sql.execute(f"vacuum {self.schema}.segments")
        return self.site.wal_bytes() - before

    def disk_bytes(self) -> int:
        """Bytes of the tenant's segments, with indexes and TOAST."""
        return self.site.value(
            "select sum(pg_total_relation_size(c.oid))::int8 from pg_class c"
            f" where c.relnamespace = '{self.schema}'::regnamespace and c.relispartition"
            " and c.relkind = 'r'"
        )


class Site:
    """A running `logweir up`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._run("up", "--port", "0", "--detach")
        status = json.loads(self._run("status", "--json"))
        self.url: str = status["url"]
        self.pids: dict[str, int] = {one["name"]: one["pid"] for one in status["processes"]}
        self.pids["supervisor"] = json.loads((self.data / "status.json").read_text())["pid"]
        secrets = json.loads((self.data / "secrets.json").read_text())
        ports = json.loads((self.data / "ports.json").read_text())
        self.valkey_port: int = ports["valkey"]
        self.postgres_url = (
            f"postgresql://postgres:{secrets['postgres_password']}@127.0.0.1:{ports['postgres']}"
        )
        self.sql = psycopg.connect(self.postgres_url + "/logweir", autocommit=True)
        self.http = httpx2.Client(timeout=600, trust_env=False)
        config = (self.data / "gateway" / "nginx.conf").read_text()
        self.port = int(self.url.rsplit(":", 1)[1])
        self.ingest_port = int(re.search(r"upstream ingest \{[^}]*:(\d+)", config)[1])

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [BIN / "logweir", *words, "--data", self.data], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return done.stdout

    def value(self, query: str) -> Any:
        return self.sql.execute(query).fetchone()[0]

    def tenants(self, names: Sequence[str], quotas: str = "") -> list[Tenant]:
        """Make tenants and wait until all of them are let in; `quotas` are more of YAML's."""
        path = self.folder / f"{names[0]}.yaml"
        text = "---\n".join(MANIFEST.format(name=name, quotas=quotas) for name in names)
        path.write_text(text)
        self._run("apply", "-f", str(path))
        return [self._served(name) for name in names]

    def _served(self, name: str) -> Tenant:
        keys = self.data / "keys" / f"default.{name}.json"
        while True:
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                found = json.loads(keys.read_text())
                if found["pipelines"]:
                    made = Tenant(self, name, found["keys"])
                    break
            time.sleep(0.05)
        for path, key in (
            (f"/t/{name}/{name}/ingest", made.ingest_key),
            ("/api/v1/labels", made.query_key),
        ):
            while self.http.post(self.url + path, headers={"x-api-key": key}).status_code == 401:
                time.sleep(0.1)
        return made

    def cpu(self) -> machine.Cpu:
        return machine.cpu(self.pids)

    def used(self, before: machine.Cpu) -> tuple[float, machine.Cpu]:
        """CPU seconds since then of what a record passes through until it is committed, and all."""
        used = self.cpu().since(before)
        names = [name for name in used.by_name if name.startswith(WRITERS)]
        return sum(used.by_name[name] for name in names), used

    @contextlib.contextmanager
    def without_autovacuum(self) -> Iterator[None]:
        """Keep housekeeping, which comes once a minute or not, out of what is measured."""
        try:
            self._autovacuum("off")
            yield
        finally:
            self._autovacuum("on")

    def _autovacuum(self, state: str) -> None:
        self.sql.execute(f"alter system set autovacuum = {state}")
        self.sql.execute("select pg_reload_conf()")

    def wal_bytes(self) -> int:
        return int(self.value("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8"))

    def close(self) -> None:
        self.sql.close()
        self.http.close()
        self._run("down")


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running() -> Iterator[Site]:
    """A Logweir that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="logweir-bench-"))
    folder.chmod(0o755)
    site = None
    try:
        site = Site(folder)
        yield site
    finally:
        if site is not None:
            site.close()
        shutil.rmtree(folder, ignore_errors=True)
