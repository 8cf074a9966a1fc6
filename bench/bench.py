"""The state of a run: the site under test, how much is measured, what was found so far."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import corpus
import httpx2
import machine
import site_
from figures import Cost, Figure, number

HERE = Path(__file__).parent
OUT = HERE / "out"
START_NS = 1_780_272_000_000_000_000  # 2026-06-01, long before today: no record is in the future
BATCH = 1000
SENDERS = 16
READERS = ("query", "postgres")
QUERY_KNOWS_S = 2.5
"""Query looks for new pipelines every 2 s, and cannot be asked whether it knows one."""

SETTLE_S = 0.3
"""After the last commit: acks and what else belongs to the records just stored."""


class Size(NamedTuple):
    """How much is measured."""

    records: int
    repetitions: int
    single_requests: int
    probes: int


SIZES = {"full": Size(2_000_000, 5, 40_000, 60), "quick": Size(200_000, 3, 8_000, 20)}


class Bench:
    """A site with its load generator. `say` gets a line for a person at each step."""

    def __init__(
        self, site: site_.Site, size: Size, load: Path, say: Callable[[str], None]
    ) -> None:
        self.site = site
        self.size = size
        self.load = load
        self.say = say
        self.folder = site.folder
        self.figures: list[Figure] = []
        self.noise = machine.Noise()
        self.last_used = machine.Cpu({})
        self._tenants = 0

    def add(self, found: Figure) -> None:
        self.figures.append(found)
        spread = f"{number(found.low)} to {number(found.high)}"
        beside = f"; {found.beside}" if found.beside else ""
        self.say(
            f"{found.row} ({found.corpus}): {number(found.ratio)} ({spread}){beside}:"
            f" {found.verdict.strip('*')}"
        )

    def found(self, key: str) -> Figure | None:
        """The figure of a row that was measured already."""
        return next((one for one in self.figures if one.key == key), None)

    def tenant(self, *, is_read: bool = False, quotas: str = "") -> site_.Tenant:
        """A new tenant whose segments stay as the collector made them."""
        self._tenants += 1
        (made,) = self.tenants([f"bench-{self._tenants}"], is_read=is_read, quotas=quotas)
        return made

    def tenants(
        self, names: Sequence[str], *, is_read: bool, quotas: str = ""
    ) -> list[site_.Tenant]:
        """New tenants; when they will be read, also query knows their pipelines on return."""
        made = self.site.tenants(names, quotas)
        for one in made:
            one.keep_keeper_away()
        if is_read:
            time.sleep(QUERY_KNOWS_S)
        return made

    def heads(self, tenants: Sequence[site_.Tenant]) -> Path:
        path = Path(tempfile.mkstemp(prefix="heads-", dir=self.folder)[1])
        return corpus.write_parts((one.head() for one in tenants), path)

    def loading(
        self,
        tenants: Sequence[site_.Tenant],
        bodies: Path,
        requests: int,
        senders: int = SENDERS,
        rate: float = 0,
    ) -> subprocess.Popen[str]:
        """Begin to send bodies straight to ingest; `rate` is in requests a second."""
        words = ("127.0.0.1", self.site.ingest_port, self.heads(tenants), bodies, senders)
        return subprocess.Popen(
            [self.load, *map(str, (*words, requests, rate))], stdout=subprocess.PIPE, text=True
        )

    def send(
        self, tenant: site_.Tenant, bodies: Path, requests: int, senders: int = SENDERS
    ) -> dict[str, Any]:
        """Send bodies straight to ingest; return what the load generator measured."""
        done = self.loading([tenant], bodies, requests, senders)
        text, _ = done.communicate()
        if done.returncode:
            raise RuntimeError(f"the load generator ended with {done.returncode}")
        return json.loads(text)

    def stored(self, tenant: site_.Tenant, bodies: Path, requests: int, records: int) -> Cost:
        """Send bodies until all is committed; what that takes, with CPU of the writing servers."""
        before, began_s = self.site.cpu(), time.monotonic()
        self.send(tenant, bodies, requests)
        wall_s = tenant.wait_stored(records) - began_s
        time.sleep(SETTLE_S)
        cpu_s, self.last_used = self.site.used(before)
        return Cost(wall_s, cpu_s)

    def timed(self, ask: Callable[[], object], times: int = 1) -> Cost:
        """What asking takes, the mean of some times: the clock, and CPU of query and PostgreSQL."""
        before, began_s = self.site.cpu(), time.monotonic()
        for _ in range(times):
            ask()
        wall_s = time.monotonic() - began_s
        used = self.site.cpu().since(before)
        return Cost(wall_s / times, sum(used.by_name[name] for name in READERS) / times)


def needle_id(kind: str) -> str:
    """The same rare id in each corpus's needles."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"needle {kind}"))


def with_needles(lines: Iterable[bytes], count: int, kind: str, needles: int) -> Iterator[bytes]:
    """Yield the lines, some of them with a needle as their message."""
    step = count // needles
    places = {place * step + step // 2 for place in range(needles)}
    for place, line in enumerate(lines):
        if place not in places:
            yield line
            continue
        fields = json.loads(line)
        fields["message"] = f"a zebra crossing {needle_id(kind)} was seen"
        yield json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def probe_waits_s(tenants: Sequence[site_.Tenant], probes: int) -> list[float]:
    """Seconds from before a request is sent until its record is in a query's answer.

    Each tenant has a prober of its own, that has one record under way at a time.
    """
    waits_s: list[float] = []

    def probe(tenant: site_.Tenant) -> None:
        with httpx2.Client(timeout=60, trust_env=False) as http:
            waits_s.extend(_probe_s(tenant, http) for _ in range(probes // len(tenants)))

    threads = [threading.Thread(target=probe, args=[one]) for one in tenants]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return waits_s


def _probe_s(tenant: site_.Tenant, http: httpx2.Client) -> float:
    token = uuid.uuid4().hex
    began_s = time.monotonic()
    http.post(
        f"{tenant.site.url}/t/{tenant.name}/{tenant.name}/ingest",
        json={"message": f"probe {token}", "level": "info", "service": "probe"},
        headers={"authorization": f"Bearer {tenant.ingest_key}"},
    ).raise_for_status()
    params = {"query": f'{{service="probe"}} |= "{token}"', "start": "-5m"}
    while not http.get(
        tenant.site.url + "/api/v1/query",
        params=params,
        headers={"x-api-key": tenant.query_key},
    ).json()["records"]:
        time.sleep(0.02)
    return time.monotonic() - began_s


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def compiled_load(folder: Path) -> Path:
    """The load generator, compiled by the machine's C compiler."""
    program = folder / "load"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "load.c"], check=True)
    return program
