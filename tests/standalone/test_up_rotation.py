"""Everything secret of a running `logweir up` is rotated under load, and nobody notices."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import msgspec
import psycopg
import pytest
import redis
import yaml
from reconciling import text
from upping import Up, upping
from websockets.sync.client import connect

from logweir.backends import control, provision, store
from logweir.core import keys, names
from logweir.core.binding import Login
from logweir.core.names import TenantId
from logweir.standalone import demo
from logweir.standalone.cluster_files import TenantKeys
from logweir.standalone.folder import Folder, Secrets, read_json
from logweir.standalone.up import site_of
from logweir_operator.bindings import Site

DEMO = TenantId("demo")
PAUSE_S = 0.02
PLATFORM = (
    *(provision.OPERATOR, provision.QUERY, provision.KEEPER),
    *(provision.AUTH, provision.JOURNAL_AUTH),
)


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with upping() as found:
        found.detach()
        yield found


class Load:
    """Sends and asks all the time, and follows a tail; what was not good stands in `problems`."""

    def __init__(self, up: Up) -> None:
        self.shown = up.shown()
        self.sent: list[str] = []
        self.queries = 0
        self.tailed: Counter[str] = Counter()
        self.problems: list[str] = []
        self.keys = {"ingest": [self.shown["ingest_key"]], "query": [self.shown["query_key"]]}
        self._is_done = threading.Event()
        self._is_tailing = threading.Event()
        self._is_over = threading.Event()
        works = (self._send, self._ask, self._tail)
        self._threads = [threading.Thread(target=self._work, args=(one,)) for one in works]

    def begin(self) -> None:
        self._threads[2].start()
        assert self._is_tailing.wait(20), self.problems
        for one in self._threads[:2]:
            one.start()

    def end(self) -> None:
        for one in self._threads[:2]:
            self._is_done.set()
            one.join(20)
        deadline_s = time.monotonic() + 20
        while len(self.tailed) < len(self.sent) and time.monotonic() < deadline_s:
            time.sleep(PAUSE_S)
        self._is_over.set()
        self._threads[2].join(20)

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.problems.append(f"{work.__name__}: {error!r}")

    def _send(self) -> None:
        with httpx2.Client(timeout=20) as client:
            for number in _until(self._is_done):
                message = f"numbered {number}"
                key = self.keys["ingest"][number % len(self.keys["ingest"])]
                answer = client.post(
                    self.shown["ingest_url"],
                    json={"message": message, "service": "load", "level": "info"},
                    headers={"authorization": f"Bearer {key}"},
                )
                if answer.status_code == 200:
                    self.sent.append(message)
                else:
                    self.problems.append(f"write: {answer.status_code} {answer.text}")

    def _ask(self) -> None:
        with httpx2.Client(timeout=20) as client:
            for number in _until(self._is_done):
                key = self.keys["query"][number % len(self.keys["query"])]
                answer = client.get(
                    f"{self.shown['url']}/api/v1/query",
                    params={"query": '{service="load"}', "limit": 10},
                    headers={"authorization": f"Bearer {key}"},
                )
                self.queries += 1
                if answer.status_code != 200:
                    self.problems.append(f"query: {answer.status_code} {answer.text}")

    def _tail(self) -> None:
        url = self.shown["url"].replace("http", "ws") + "/api/v1/tail?limit=1"
        headers = {"authorization": f"Bearer {self.shown['query_key']}"}
        with connect(url, additional_headers=headers) as socket:
            while True:
                try:
                    frame = json.loads(socket.recv(timeout=0.2))
                except TimeoutError:
                    if self._is_over.is_set():
                        return
                    continue
                if "live" in frame:
                    self._is_tailing.set()
                elif "records" in frame:
                    self.tailed.update(one["message"] for one in frame["records"])
                else:
                    self.problems.append(f"tail: {frame}")


def _until(done: threading.Event) -> Iterator[int]:
    number = 0
    while not done.wait(PAUSE_S):
        yield number
        number += 1


def rows(up: Up) -> control.Tenant:
    """The tenant's row, as the superuser reads it."""
    folder = Folder(up.data)
    secrets, ports = folder.read_secrets(), folder.ports()
    url = f"postgresql://postgres:{secrets.postgres_password}@127.0.0.1:{ports.postgres}/logweir"
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as connection:
        [row] = connection.execute("select * from logweir.tenants").fetchall()
    return msgspec.convert(row, control.Tenant)


def site(up: Up) -> Site:
    return site_of(Folder(up.data).read_secrets(), Folder(up.data).ports())


def logins(found: Site, row: control.Tenant) -> tuple[list[Login], list[Login]]:
    """Logins of PostgreSQL and of Valkey that a row names, and those of the platform."""
    roots = found.of(row.root_version)
    users = [names.redis_user(row.id, kind) for kind in ("in", "col", "tail")]
    platform = [found.login(one) for one in (provision.QUERY, provision.KEEPER, provision.AUTH)]
    return (
        [Login(*provision.tenant_password(roots, row, kind)) for kind in ("w", "r", "k")]
        + platform,
        [
            *(found.journal_login(row, user) for user in users),
            found.login(provision.JOURNAL_AUTH),
        ],
    )


def good_ones(found: Site, row: control.Tenant) -> list[str]:
    """Which of the logins that a row names are let in."""
    stores, journals = logins(found, row)
    good = []
    for one in stores:
        try:
            psycopg.connect(store.conninfo(found.store, one, "test")).close()
            good.append(one.user)
        except psycopg.OperationalError:
            pass
    for one in journals:
        client = redis.Redis(
            port=found.journal.port, username=one.user, password=one.password, driver_info=None
        )
        try:
            client.ping()
            good.append(one.user)
        except redis.AuthenticationError:
            pass
        client.close()
    return good


def until_steady(up: Up, revision: int, root_version: int) -> control.Tenant:
    def is_steady() -> control.Tenant | None:
        row = rows(up)
        is_done = row.rotation == "steady" and row.writer_revision >= revision
        return row if is_done and row.root_version == root_version else None

    return up.until(is_steady, 90)


def tenant_keys(up: Up) -> TenantKeys:
    return read_json(up.data / "keys" / "default.demo.json", TenantKeys)


def secret_texts(secrets: Secrets, found: Site, row: control.Tenant, to: int) -> set[str]:
    """Every secret that there can have been until the revisions of a row."""
    texts = {secrets.postgres_password, secrets.valkey_password}
    for one in secrets.roots:
        texts |= {one.write, one.maintain, one.read, one.sign}
    for version, roots in found.held.items():
        for login in PLATFORM:
            texts.add(provision.platform_password(roots, login))
        for revision in range(1, to + 1):
            texts.add(keys.ingest_secret(roots.sign, row.id, revision).hex())
            texts.add(keys.access_secret(roots.sign, revision).hex())
            for slot in ("a", "b"):
                for kind in ("w", "r", "k"):
                    login = names.login(row.id, kind, slot)
                    texts.add(keys.password(roots.of(kind), row.id, login, revision))
            at = msgspec.structs.replace(row, redis_revision=revision, root_version=version)
            texts |= {one.password for one in logins(found, at)[1]}
    digests = {hashlib.sha256(one.encode()).hexdigest() for one in texts}
    return {one for one in texts | digests if one}


def test_all_secrets_are_rotated_under_load_and_no_write_query_or_tail_fails(up):
    load, first, first_site = Load(up), rows(up), site(up)
    first_secrets = Folder(up.data).read_secrets()
    load.begin()

    assert "begins" in up.ok("rotate", "demo", "--overlap-seconds", 0)
    second = until_steady(up, 2, 1)
    roll_keys(up, load)
    assert "begins" in up.ok("rotate", "--roots", "--overlap-seconds", 0, "--no-wait")
    until_new_roots = Folder(up.data)
    up.until(lambda: len(until_new_roots.read_secrets().roots) == 2, 20)
    both_secrets, both_site = until_new_roots.read_secrets(), site(up)
    third = until_steady(up, 3, 2)
    up.until(lambda: not until_new_roots.read_secrets().roots[0].read, 20)
    roll_keys(up, load)
    load.end()

    assert load.problems == []
    assert len(load.sent) > 300
    assert load.queries > 300
    assert load.tailed == Counter(load.sent)
    found = up.until_found('{service="load"}', min(5000, len(load.sent)))
    assert Counter(found) == Counter(load.sent[-5000:])
    assert (second.ingest_revision, third.ingest_revision) == (2, 3)
    assert {one["restarts"] for one in up.shown()["processes"]} == {0}
    assert {one["state"] for one in up.shown()["processes"]} == {"ready"}
    assert "password authentication failed" not in said(up)

    assert good_ones(first_site, first) == []
    assert good_ones(both_site, second) == []
    assert len(good_ones(site(up), third)) == 10

    texts = secret_texts(both_secrets, both_site, third, 3)
    texts |= {one for some in load.keys.values() for one in some}
    texts |= {one.sign for one in first_secrets.roots}
    assert len(texts) > 80
    everything = said(up) + arguments(up)
    assert [one for one in texts if one in everything] == []


def roll_keys(up: Up, load: Load) -> None:
    """Make one more key of each kind; the load uses them at once, and those of before as well."""
    number = len(load.keys["query"])
    documents = list(yaml.safe_load_all(demo.MANIFEST))
    documents[0]["spec"]["apiKeys"].append({"name": "admin", "scopes": ["admin"]})
    documents[0]["spec"]["apiKeys"] += [
        {"name": f"{scope}-{one}", "scopes": [scope]}
        for scope in ("ingest", "query")
        for one in range(1, number + 1)
    ]
    up.ok("apply", "-f", "-", given=text(*documents))
    fresh = up.until(lambda: tenant_keys(up).keys.get(f"query-{number}") and tenant_keys(up).keys)
    for scope in ("ingest", "query"):
        load.keys[scope].append(fresh[f"{scope}-{number}"])
        load.keys[scope].append(key_by_api(up, fresh["admin"], f"{scope}-api-{number}", scope))
    time.sleep(1)


def key_by_api(up: Up, admin_key: str, name: str, scope: str) -> str:
    answer = httpx2.post(
        f"{up.shown()['url']}/api/v1/keys",
        json={"name": name, "scopes": [scope]},
        headers={"authorization": f"Bearer {admin_key}"},
        timeout=20,
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["key"])


def said(up: Up) -> str:
    """All that processes of the `up` have written."""
    logs: list[Path] = [one for one in (up.data / "logs").rglob("*") if one.is_file()]
    logs += [one for one in (up.data / "gateway").rglob("*.log") if one.is_file()]
    return "\n".join(one.read_text(errors="replace") for one in logs)


def arguments(up: Up) -> str:
    """Command lines and environments of its processes."""
    found = []
    for one in up.family():
        found += [*one.cmdline(), *one.environ().values()]
    return "\n".join(found)


def test_a_tenant_that_is_not_there_cannot_be_rotated(up):
    ran = up.run("rotate", "nobody")

    assert ran.returncode == 1
    assert '"nobody" not found' in ran.stderr


def test_a_rotation_is_of_a_tenant_or_of_the_roots(up):
    for arguments in ((), ("demo", "--roots")):
        ran = up.run("rotate", *arguments)

        assert ran.returncode == 2
        assert "--roots" in ran.stderr


def test_a_restart_goes_on_with_the_secrets_of_then(up):
    before = Folder(up.data).read_secrets()
    up.ok("down")
    up.detach()

    assert up.post("after the restart").status_code == 200
    assert up.until_found('{service="shop"}') == ["after the restart"]
    assert Folder(up.data).read_secrets() == before
