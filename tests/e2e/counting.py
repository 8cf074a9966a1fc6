"""Counted load on a tenant of a cluster: the producers, the history and the verdict of `chaos`."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Final, TypeVar
from urllib.parse import quote

import httpx2
import msgspec
import psycopg
from chaos import checker, history, truth
from chaos.checker import Verdict
from chaos.numbered import Maker
from chaos.producer import Door, Producer, run_all
from chaos.standing import Place
from e2e.scene import HOME, RELEASE, Scene
from e2e.target import Failed
from redis import asyncio as redis
from redis import exceptions

from logweir.backends import provision, redis_client, store
from logweir.core import names
from logweir.core.binding import (
    CollectorBinding,
    IngestBinding,
    JournalServer,
    Login,
    PostgresServer,
)
from logweir.core.names import TenantId

STYLES: Final = ("numbered", "free", "numbered", "free")
RECORDS_PER_REQUEST: Final = 40
RECEIPTS: Final = 100

_FLOOD_LINES: Final = 1000
_FLOOD_PAUSE_S: Final = 0.25
"""So many lines in a request, and so long between two."""

Binding = TypeVar("Binding", IngestBinding, CollectorBinding)


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

    def give_up(self) -> None:
        """Send nothing new, and wait for nothing."""
        self._enough.set()

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


class Flood:
    """More lines than one collector should store, in a thread, from `start` to `stop`."""

    def __init__(self, scene: Scene, pipeline: str) -> None:
        self._url, self._key = f"{scene.ingest_url(pipeline)}/ingest", scene.key("in")
        self._lines = 0
        self._enough = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> int:
        """End it, and return how many lines were taken."""
        self._enough.set()
        self._thread.join(60)
        if self._error is not None:
            raise self._error
        return self._lines

    def _run(self) -> None:
        try:
            headers = {"X-API-Key": self._key}
            with httpx2.Client(headers=headers, trust_env=False, timeout=30) as client:
                while not self._enough.wait(_FLOOD_PAUSE_S):
                    self._send(client, str(self._lines))
        except BaseException as error:  # `stop` raises it
            self._error = error

    def _send(self, client: httpx2.Client, key: str) -> None:
        # Digits that do not compress, so that the backlog has some weight.
        batch = [
            {"service": "flood", "level": "info", "message": secrets.token_hex(64)}
            for _ in range(_FLOOD_LINES)
        ]
        while True:
            answer = client.post(self._url, json=batch, headers={"Idempotency-Key": key})
            if answer.status_code == 200:
                self._lines += len(batch)
                return
            if answer.status_code not in (429, 503):
                raise Failed(f"flood: {answer.status_code} {answer.text[:300]}")
            time.sleep(float(answer.headers.get("Retry-After", 1)))


def logins(scene: Scene, namespace: str, pipeline: str) -> dict[str, Login]:
    """Return what a pipeline's pods log in with, by what it is for: from their Secrets."""

    def of(role: str, kind: type[Binding]) -> Binding:
        text = scene.secret(namespace, f"{pipeline}-{role}-binding")["binding.json"]
        return msgspec.json.decode(text, type=kind)

    (ingest,) = of("ingest", IngestBinding).tenants
    (collector,) = of("collector", CollectorBinding).tenants
    return {
        "ingest at Redis": ingest.login,
        "collector at Redis": collector.journal_login,
        "collector at PostgreSQL": collector.store_login,
    }


async def accepted(scene: Scene, wanted: Mapping[str, Login]) -> list[str]:
    """Return which of these logins their servers let in, in the order of their names."""

    async def redis_takes(login: Login) -> bool:
        host, port = scene.cluster.reach(HOME, f"{RELEASE}-redis", 6379)
        client = redis_client.client(JournalServer(host, port), login)
        try:
            await client.execute_command("AUTH", login.user, login.password)
        except exceptions.AuthenticationError:
            return False
        finally:
            await client.aclose()
        return True

    async def postgres_takes(login: Login) -> bool:
        host, port = scene.cluster.reach(HOME, f"{RELEASE}-postgres", 5432)
        server = PostgresServer(host, port, provision.DATABASE)
        try:
            made = await psycopg.AsyncConnection.connect(store.conninfo(server, login, "e2e"))
        except psycopg.OperationalError:
            return False
        await made.close()
        return True

    return [
        name
        for name, login in sorted(wanted.items())
        if await (redis_takes if name.endswith("Redis") else postgres_takes)(login)
    ]
