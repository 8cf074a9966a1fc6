"""The role from its first moment to its last: readiness, bindings, revocations, a lost journal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import httpx2
import ingest_door
import msgspec
import pytest
from builders import record, records
from prometheus_client import parser

from logweir.backends import journal, provision
from logweir.core import block, keys
from logweir.core.binding import IngestBinding, Login
from logweir.core.names import PipelineId, journal_pipeline
from logweir.ingest import app as ingest_app
from logweir.ingest.app import Ingest
from logweir.runtime import bindings, metrics
from logweir.runtime.life import Life
from logweir.runtime.settings import Listen, Settings


class Role:
    """The whole role in this process, with a binding file, as `logweir ingest` runs it."""

    def __init__(self, path: Path, url: str, ops_url: str) -> None:
        self.path = path
        self.http = httpx2.AsyncClient(base_url=url, timeout=20)
        self.ops = httpx2.AsyncClient(base_url=ops_url, timeout=20)

    def bind(self, *tenants) -> None:
        """Replace the binding file as a mounted Secret is replaced."""
        self.write(msgspec.json.encode(IngestBinding(tenants)))

    def write(self, content: bytes) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(self.path)

    async def post(self, key: str, body=None, path: str = "/ingest", **headers) -> httpx2.Response:
        sent = {"X-API-Key": key} | headers
        return await self.http.post(path, json=body or record(), headers=sent)

    async def readiness(self) -> tuple[int, dict]:
        got = await self.ops.get("/readyz")
        return got.status_code, got.json()["problems"]

    async def until_ready(self) -> None:
        await until(self.is_ready)

    async def is_ready(self) -> bool:
        return (await self.readiness())[0] == 200


async def until(true, wait_s: float = 8.0) -> None:
    """Ask until it is so; `true` is asynchronous."""
    async with asyncio.timeout(wait_s):
        while not await true():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(folder: Path):
    http, port = ingest_door.listening()
    ops, ops_port = ingest_door.listening()
    settings = Settings(
        role="ingest",
        binding=folder / "binding.json",
        ops=Listen(fd=ops.detach()),
        http=Listen(fd=http.detach()),
    )
    life = Life()
    task = asyncio.create_task(ingest_app.run(settings, life))
    role = Role(settings.binding, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ops_port}")
    try:
        async with role.http, role.ops:
            yield role
    finally:
        life.stopping.set()
        await task


@pytest.fixture
def quick(monkeypatch):
    """Look at the binding and ask the journals more often than in earnest."""
    monkeypatch.setattr(bindings, "POLL_S", 0.05)
    monkeypatch.setattr(ingest_app, "REVOCATION_POLL_S", 0.1)
    monkeypatch.setattr(journal, "REVOKED_TIMEOUT_S", 0.3)
    monkeypatch.setattr(journal, "APPEND_TIMEOUT_S", 0.5)


@pytest.fixture
async def role(quick, tmp_path):
    async with running(tmp_path) as made:
        yield made


async def ingest_key(tenant, pipeline: str = "default") -> str:
    return await tenant.api_key(keys.SCOPE_INGEST, tenant.pipelines[pipeline].id)


async def test_before_its_binding_is_there_the_role_is_not_ready_and_says_why(role, tenant):
    key = await ingest_key(tenant)

    status, problems = await role.readiness()
    early = await role.post(key)

    assert status == 503
    assert "No such file" in problems["binding"]
    assert problems["journal"] == "starting"
    assert early.status_code == 503, "a good key must not hear that it is bad"
    assert int(early.headers["retry-after"]) >= 1
    role.bind(tenant.ingest_binding())
    await role.until_ready()
    assert (await role.post(key)).status_code == 200


async def test_the_process_lives_also_while_it_is_not_ready(role):
    got = await role.ops.get("/livez")

    assert (got.status_code, got.json()) == (200, {"live": True})


async def test_a_binding_of_no_tenants_is_ready_and_knows_no_key(role, tenant):
    role.bind()

    await role.until_ready()

    assert (await role.post(await ingest_key(tenant))).status_code == 401


async def test_a_ready_role_is_ready_at_once(tmp_path, tenant):
    (tmp_path / "binding.json").write_bytes(
        msgspec.json.encode(IngestBinding((tenant.ingest_binding(),)))
    )
    started_s = time.monotonic()

    async with running(tmp_path) as role:
        await role.until_ready()

        assert time.monotonic() - started_s < 1.5


async def test_a_new_pipeline_is_served_and_a_removed_one_is_unknown(role, make_tenant):
    tenant = await make_tenant(pipelines=("default", "audit"))
    whole = tenant.ingest_binding()
    default, audit = sorted(whole.pipelines, key=lambda one: one.name != "default")
    role.bind(msgspec.structs.replace(whole, pipelines=(default,)))
    await role.until_ready()
    old, new = await ingest_key(tenant), await ingest_key(tenant, "audit")
    assert [(await role.post(key)).status_code for key in (old, new)] == [200, 401]

    role.bind(msgspec.structs.replace(whole, pipelines=(audit,)))

    await until(lambda: has_status(role, new, 200))
    assert (await role.post(old)).status_code == 401


async def has_status(role: Role, key: str, status: int) -> bool:
    return (await role.post(key)).status_code == status


async def test_a_changed_password_is_taken_and_the_old_connections_end(role, tenant):
    key = await ingest_key(tenant)
    role.bind(tenant.ingest_binding())
    await role.until_ready()
    await role.post(key)
    user = tenant.journal_login("in").user
    before = await connections(tenant, user)

    tenant.row = msgspec.structs.replace(tenant.row, redis_revision=2)
    pipelines = list(tenant.pipelines.values())
    await provision.provision_journal(
        tenant.redis, tenant.row, pipelines, tenant.roots, tenant.limits
    )
    role.bind(tenant.ingest_binding())

    async def are_new() -> bool:
        now = await connections(tenant, user)
        return bool(now) and not now & before

    await until(are_new)
    assert (await role.post(key)).status_code == 200
    assert len(await ingest_door.entries(tenant)) == 2


async def connections(tenant, user: str) -> set[str]:
    clients = await tenant.redis.client_list()
    return {one["id"] for one in clients if one["user"] == user}


async def test_a_removed_tenant_is_unknown_and_its_connections_are_closed(role, make_tenant):
    stays, goes = await make_tenant(), await make_tenant()
    key, gone_key = await ingest_key(stays), await ingest_key(goes)
    role.bind(stays.ingest_binding(), goes.ingest_binding())
    await role.until_ready()
    await role.post(gone_key)
    user = goes.journal_login("in").user
    assert await connections(goes, user)

    role.bind(stays.ingest_binding())

    async def are_closed() -> bool:
        return not await connections(goes, user)

    await until(are_closed)
    assert (await role.post(gone_key)).status_code == 401
    assert (await role.post(key)).status_code == 200


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda one: b"{", id="no JSON"),
        pytest.param(lambda one: b'{"tenants": [{}]}', id="a field missing"),
        pytest.param(
            lambda one: msgspec.json.encode(
                IngestBinding((msgspec.structs.replace(one, secrets={"1": "no hex"}),))
            ),
            id="a secret that is none",
        ),
    ],
)
async def test_a_broken_binding_is_reported_and_the_last_good_one_still_served(
    role, tenant, broken
):
    key = await ingest_key(tenant)
    role.bind(tenant.ingest_binding())
    await role.until_ready()

    role.write(broken(tenant.ingest_binding()))

    async def is_reported() -> bool:
        return "binding" in (await role.readiness())[1]

    await until(is_reported)
    assert (await role.post(key)).status_code == 200
    role.bind(tenant.ingest_binding())
    await role.until_ready()


async def test_a_key_is_refused_soon_after_it_is_revoked(role, tenant):
    key, other = await ingest_key(tenant), await ingest_key(tenant)
    role.bind(tenant.ingest_binding())
    await role.until_ready()
    assert (await role.post(key)).status_code == 200

    await provision.publish_revocations(tenant.redis, tenant.id, [keys.decode(key).key.key_id])

    await until(lambda: has_status(role, key, 401), wait_s=5)
    assert (await role.post(other)).status_code == 200


async def test_a_list_of_revoked_keys_that_is_none_is_reported_and_stops_nothing(role, tenant):
    key = await ingest_key(tenant)
    role.bind(tenant.ingest_binding())
    await role.until_ready()

    await tenant.redis.hset(cfg(tenant), "r:x", "1")

    await until(lambda: says_of_journal(role, "list the revoked keys"))
    assert (await role.post(key)).status_code == 200


def cfg(tenant) -> str:
    return journal_pipeline(tenant.id, tenant.pipeline).rsplit(":", 2)[0] + ":cfg"


async def test_hanging_journals_delay_no_other_tenants_revocations(
    role, make_tenant, start_journal
):
    own = start_journal()
    hang, tenant = [await make_tenant(own) for _ in range(20)], await make_tenant()
    key = await ingest_key(tenant)
    role.bind(*(one.ingest_binding() for one in [*hang, tenant]))
    await role.until_ready()
    os.kill(own.process.pid, signal.SIGSTOP)

    await provision.publish_revocations(tenant.redis, tenant.id, [keys.decode(key).key.key_id])

    await until(lambda: has_status(role, key, 401), wait_s=3)
    await until(lambda: says_of_journal(role, f"{hang[0].id}: The journal did not say"))


async def test_without_news_for_a_quarter_of_an_hour_keys_are_not_taken(tenant):
    now_s = time.time()
    app = Ingest(now_s=lambda: now_s)
    async with ingest_door.ingest(tenant, app) as door:
        now_s += 890
        good, good_age_s = await door.post(record()), news_age_s()
        now_s += 20
        stale, stale_age_s = await door.post(record()), news_age_s()
        await app._learn([tenant.id])
        untold = await door.post(record())
        await provision.publish_revocations(tenant.redis, tenant.id, [])
        life = Life()
        watching = asyncio.create_task(app.watch(life))

        async def is_good() -> bool:
            return (await door.post(record())).status_code == 200

        await until(is_good)
        life.stopping.set()
        await watching

    assert (good.status_code, stale.status_code) == (200, 503)
    assert untold.status_code == 503, "a journal that answers is no news"
    assert "revoked was not heard for too long" in stale.json()["error"]["message"]
    assert (good_age_s, stale_age_s) == (pytest.approx(890, abs=1), pytest.approx(910, abs=1))


def news_age_s() -> float:
    return value_of("logweir_revocations_age_seconds", role="ingest")


def value_of(name: str, **labels: str) -> float:
    """A value of this process's metrics; 0 when it was never counted."""
    samples = [
        one
        for family in parser.text_string_to_metric_families(metrics.text().decode())
        for one in family.samples
    ]
    found = [one.value for one in samples if (one.name, one.labels) == (name, labels)]
    return found[0] if found else 0.0


async def test_refused_keys_are_counted_by_their_reason_and_name_no_tenant(tenant):
    key = await ingest_key(tenant)
    known = keys.decode(key).key
    forged = keys.encode(known, bytes(32))
    expired = tenant.key_text(msgspec.structs.replace(known, expires_at_s=1))
    elsewhere = tenant.key_text(msgspec.structs.replace(known, pipeline=PipelineId(999_999)))
    reader = tenant.key_text(msgspec.structs.replace(known, scopes=keys.SCOPE_QUERY))
    revoked = tenant.key_text(msgspec.structs.replace(known, key_id=5))
    rolled = tenant.key_text(msgspec.structs.replace(known, key_id=6))
    await provision.publish_revocations(tenant.redis, tenant.id, [5], {6: int(time.time()) - 1})
    wanted = [
        ("missing", ""),
        ("mistyped", key[:-1]),
        ("unsigned", forged),
        ("unsigned", reader),
        ("expired", expired),
        ("elsewhere", elsewhere),
        ("revoked", revoked),
        ("revoked", rolled),
    ]
    async with ingest_door.ingest(tenant, Ingest()) as door:
        before = [refusals(reason) for reason, _ in wanted]
        statuses = [(await door.post(record(), key=text)).status_code for _, text in wanted]
        after = [refusals(reason) for reason, _ in wanted]

    assert statuses == [401] * len(wanted)
    grown = {reason: y - x for (reason, _), x, y in zip(wanted, before, after, strict=True)}
    assert grown == {r: [one for one, _ in wanted].count(r) for r in grown}
    assert tenant.id.encode() not in b"".join(
        line for line in metrics.text().splitlines() if b"refused_keys" in line
    )


def refusals(reason: str) -> float:
    return value_of("logweir_refused_keys_total", reason=reason)


async def test_a_journal_that_is_away_is_503_until_it_is_back(role, make_tenant, start_journal):
    own = start_journal()
    tenant = await make_tenant(own)
    key = await ingest_key(tenant)
    role.bind(tenant.ingest_binding())
    await role.until_ready()
    assert (await role.post(key)).status_code == 200

    own.stop()
    got = await role.post(key)
    await until(lambda: says_of_journal(role, str(own.port)))

    assert got.status_code == 503
    assert int(got.headers["retry-after"]) >= 1
    assert got.json()["error"]["code"] == "unavailable"
    assert str(own.port) not in got.text, "senders need not know where the journal is"
    own.start(own.folder.parent / "log")
    await role.until_ready()
    assert (await role.post(key)).status_code == 200
    assert len(await ingest_door.entries(tenant)) == 2


async def says_of_journal(role: Role, text: str) -> bool:
    """Whether the readiness page has this text about the journal, which is not well."""
    status, problems = await role.readiness()
    return status == 503 and text in problems.get("journal", "")


async def test_a_journal_that_hangs_is_503_and_the_retry_stores_once(
    role, make_tenant, start_journal
):
    own = start_journal()
    tenant = await make_tenant(own)
    key = await ingest_key(tenant)
    role.bind(tenant.ingest_binding())
    await role.until_ready()
    await role.post(key, record("before"))

    os.kill(own.process.pid, signal.SIGSTOP)
    hung = await asyncio.gather(
        *(role.post(key, record(f"m{n}"), **{"Idempotency-Key": f"k{n}"}) for n in range(20))
    )
    os.kill(own.process.pid, signal.SIGCONT)
    again = await asyncio.gather(
        *(role.post(key, record(f"m{n}"), **{"Idempotency-Key": f"k{n}"}) for n in range(20))
    )

    assert {one.status_code for one in hung} == {503}
    assert {one.status_code for one in again} == {200}
    found = [one["message"] for one in await ingest_door.stored(tenant)]
    named = [one for entry in await ingest_door.entries(tenant) for one in entry.repeats]
    assert len(found) - len(named) == 21
    assert set(found) == {"before", *(f"m{n}" for n in range(20))}


@pytest.mark.parametrize("missing", ["m", "q"])
async def test_a_pipeline_that_is_not_set_up_is_503(role, tenant, missing):
    key = await ingest_key(tenant)
    role.bind(tenant.ingest_binding())
    await role.until_ready()
    await tenant.redis.unlink(journal_pipeline(tenant.id, tenant.pipeline) + missing)

    got = await role.post(key)

    assert got.status_code == 503
    assert "not set up" in got.json()["error"]["message"]


async def test_a_wrong_password_of_the_journal_is_503_and_not_shown_to_senders(role, tenant):
    whole = tenant.ingest_binding()
    wrong = msgspec.structs.replace(whole.login, password="wrong")
    role.bind(msgspec.structs.replace(whole, login=wrong))
    key = await ingest_key(tenant)

    await until(lambda: has_status(role, key, 503))

    got = await role.post(key)
    assert "username" not in got.text
    await until(lambda: says_of_journal(role, "invalid username-password pair"))


async def test_replicas_that_do_not_confirm_are_503_also_for_the_retry(role, tenant, monkeypatch):
    monkeypatch.setattr(journal, "APPEND_TIMEOUT_S", 5)
    whole = tenant.ingest_binding()
    strict = msgspec.structs.replace(whole.journal, replicas=1)
    role.bind(msgspec.structs.replace(whole, journal=strict))
    key = await ingest_key(tenant)
    await role.until_ready()

    got = [await role.post(key, **{"Idempotency-Key": "k"}) for _ in range(2)]

    assert [one.status_code for one in got] == [503, 503]
    assert "0 of 1 replicas" in got[0].json()["error"]["message"]
    assert len(await ingest_door.entries(tenant)) == 1


async def metric_values(role: Role, tenant) -> dict[str, float]:
    """All values of a tenant, and those of no tenant, by name and labels."""
    text = (await role.ops.get("/metrics")).text
    found = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("tenant", "pipeline")}
            if sample.labels.get("tenant", tenant.id) == tenant.id:
                found[" ".join([sample.name, *labels.values()])] = sample.value
    return found


async def test_metrics_count_requests_records_and_bytes(role, tenant):
    key = await ingest_key(tenant)
    role.bind(tenant.ingest_binding())
    await role.until_ready()
    body = [*records(3), {}, record(timestamp=5)]

    for _ in range(2):
        got = await role.post(key, body, **{"Idempotency-Key": "k"})
    await role.post(key, [{}])

    values = await metric_values(role, tenant)
    assert {
        name: value for name, value in values.items() if name.startswith("logweir_ingest_r")
    } == {
        "logweir_ingest_requests_total 200": 2,
        "logweir_ingest_requests_total 400": 1,
        "logweir_ingest_records_total accepted": 4,
        "logweir_ingest_records_total rejected": 1,
        "logweir_ingest_records_total expired": 1,
        "logweir_ingest_records_total repeated": 4,
    }
    assert values["logweir_ingest_decoded_bytes_total"] == len(got.request.content)
    assert values["logweir_ingest_bodies_held_bytes"] == 0
    assert values["logweir_journal_append_seconds_count"] >= 1


async def test_metrics_count_senders_without_a_good_key_apart(role, tenant):
    role.bind(tenant.ingest_binding())
    await role.until_ready()
    before = await unauthorized(role)

    await role.post("wrong")

    assert await unauthorized(role) == before + 1


async def unauthorized(role: Role) -> float:
    text = (await role.ops.get("/metrics")).text
    return sum(
        sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "logweir_ingest_requests_total"
        and sample.labels == {"tenant": "", "pipeline": "", "status": "401"}
    )


async def test_a_sender_who_goes_away_in_the_middle_is_counted_and_nothing_is_stored(role, tenant):
    key = await ingest_key(tenant)
    role.bind(tenant.ingest_binding())
    await role.until_ready()
    port = role.http.base_url.port
    head = f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Length: 99\r\n\r\n"

    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + b'{"message"')
    await writer.drain()
    writer.close()
    await writer.wait_closed()

    async def is_counted() -> bool:
        return "logweir_ingest_requests_total 499" in await metric_values(role, tenant)

    await until(is_counted)
    assert await ingest_door.entries(tenant) == []


async def test_refusals_are_counted_on_when_a_password_changes(tenant):
    app = Ingest()
    async with ingest_door.ingest(tenant, app) as door:
        refused = await door.post({"no": "message"})
        [own] = ingest_door.binding(tenant).tenants
        other = msgspec.structs.replace(own, login=Login(own.login.user, "another"))
        await app.bind(IngestBinding((other,)))
        await app.bind(IngestBinding((own,)))
        taken = await door.post(record())

    [entry] = await ingest_door.entries(tenant)
    header = block.header(entry.payload)
    assert (refused.status_code, taken.status_code) == (400, 200)
    assert header.refused == {"all_rejected": 1}
