"""Counted load on a tenant of a cluster: the producers, the history and the verdict of `chaos`."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Final
from urllib.parse import quote

import httpx2
from chaos import checker, history, truth
from chaos.checker import Verdict
from chaos.numbered import Maker
from chaos.producer import Door, Producer, run_all
from chaos.standing import Place
from e2e.scene import HOME, RELEASE, Scene
from e2e.target import Failed
from redis import asyncio as redis

from logweir.backends import provision, redis_client
from logweir.core import names
from logweir.core.binding import JournalServer, Login
from logweir.core.names import TenantId

STYLES: Final = ("numbered", "free", "numbered", "free")
RECORDS_PER_REQUEST: Final = 40
RECEIPTS: Final = 100


class Site:
    """A tenant with one pipeline, as `chaos.truth` wants to look into it: what `Up` is there."""

    def __init__(self, scene: Scene, namespace: str, pipeline: str) -> None:
        self._scene = scene
        served = scene.served(pipeline, namespace)
        self._tenant, self._pipeline = served.tenant, served.pipelines[0].id
        self.place = Place(
            name=namespace,
            tenant=self._tenant,
            ingest_url=f"{scene.ingest_url(pipeline, namespace)}/ingest",
            ingest_key=scene.key("in", namespace),
            query_key=scene.key("out", namespace),
        )

    def tenant(self) -> SimpleNamespace:
        return SimpleNamespace(tenant=TenantId(self._tenant))

    def shown(self) -> SimpleNamespace:
        return SimpleNamespace(url=self._scene.platform_url())

    def prefix(self) -> str:
        return names.journal_pipeline(self.tenant().tenant, self._pipeline)

    def entries(self) -> int:
        """Return how many blocks wait in the journal."""

        async def length() -> int:
            journal = self.journal()
            try:
                return int(await journal.xlen(f"{self.prefix()}q"))
            finally:
                await journal.aclose()

        return asyncio.run(length())

    def superuser(self) -> str:
        host, port = self._scene.cluster.reach(HOME, f"{RELEASE}-postgres", 5432)
        found = self._scene.secret(HOME, f"{RELEASE}-postgres")
        login = f"{quote(found['username'])}:{quote(found['password'])}"
        schema = names.schema(self.tenant().tenant)
        place = f"{host}:{port}/{provision.DATABASE}"
        return f"postgresql://{login}@{place}?options=-csearch_path%3D{schema}"

    def journal(self) -> redis.Redis:
        host, port = self._scene.cluster.reach(HOME, f"{RELEASE}-redis", 6379)
        found = self._scene.secret(HOME, f"{RELEASE}-redis")
        return redis_client.client(
            JournalServer(host, port), Login(found["username"], found["password"])
        )


class Load:
    """Producers in a thread, from `start` to `stop`; every request and answer is on file."""

    def __init__(self, site: Site, folder: Path, seed: int) -> None:
        self._site, self._seed = site, seed
        self._log = history.Log(folder / f"history-{seed}.ndjson")
        self._enough = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.producers, self.records_per_s = 8, 400

    @property
    def acked(self) -> int:
        """Records that were acknowledged so far."""
        return self._log.acked

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let what is begun come to its end."""
        self._enough.set()
        self._thread.join(120)
        self._log.close()
        if self._error is not None:
            raise self._error

    def fault(self, what: str) -> None:
        """Put on file what is done to the system now."""
        self._log.write(history.Fault(time.time(), what))

    def retries(self) -> list[str]:
        """Return why requests were sent again, so far."""
        lines = history.read(self._log.path)
        return [one.why for one in lines if isinstance(one, history.Retry)]

    def judge(self, drain_s: float = 90) -> Verdict:
        """Wait until the journal is empty, and compare what was said with what is stored.

        Raises:
            Failed: records stay in the journal, or something is lost, doubled or not as said.
        """
        is_drained = asyncio.run(truth.drained(self._site, drain_s))  # type: ignore[arg-type]
        found = history.fold(history.read(self._log.path))
        receipts = truth.sample(found, self._seed, RECEIPTS)
        there = asyncio.run(truth.read(self._site, receipts))  # type: ignore[arg-type]
        verdict = checker.judge(found, there)
        if verdict.misses or not is_drained:
            raise Failed(checker.report(verdict, self._seed))
        return verdict

    def _run(self) -> None:
        try:
            asyncio.run(self._produce())
        except BaseException as error:  # `stop` raises it
            self._error = error

    async def _produce(self) -> None:
        door = Door(self._site.place.ingest_url, self._site.place.ingest_key)
        pause_s = self.producers * RECORDS_PER_REQUEST / self.records_per_s
        makers = [
            Maker(number, self._seed, STYLES[number % len(STYLES)], time.time)
            for number in range(self.producers)
        ]
        stop = asyncio.Event()
        load = asyncio.create_task(
            run_all([Producer(one, door, self._log, pause_s=pause_s) for one in makers], stop)
        )
        await asyncio.to_thread(self._enough.wait)
        stop.set()
        await load


def flood(scene: Scene, pipeline: str, lines: int) -> int:
    """Send so many lines as fast as they are taken; return how many bytes they had."""
    url, key = scene.ingest_url(pipeline), scene.key("in")
    line = {"service": "flood", "level": "info", "message": ""}
    sent = 0
    with httpx2.Client(headers={"X-API-Key": key}, trust_env=False, timeout=30) as client:
        for first in range(0, lines, 1000):
            # Digits that compress badly, so that the backlog has some weight.
            batch = [
                {**line, "message": f"flood {number} {hash((number, 'salt')):x}"}
                for number in range(first, min(first + 1000, lines))
            ]
            while True:
                answer = client.post(f"{url}/ingest", json=batch)
                if answer.status_code == 200:
                    break
                if answer.status_code not in (429, 503):
                    raise Failed(f"flood: {answer.status_code} {answer.text[:300]}")
                time.sleep(float(answer.headers.get("Retry-After", 1)))
            sent += len(answer.request.content)
    return sent
