"""The journal when its server is killed, frozen, full or set up wrong."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import socket

import pytest
import uvloop
import world

from logweir.backends import journal, provision
from logweir.core import errors, ids, names
from logweir.standalone import binaries, servers


@pytest.fixture(params=["valkey", "redis7"])
def own(request, start_journal):
    """A server of the test's own: Valkey, then the Redis of the system, where there is one."""
    if request.param == "valkey":
        return start_journal()
    program = binaries.redis()
    if program is None:
        pytest.skip("no redis-server of 7.0 or newer on this machine; .ci/run installs it")
    return start_journal(program=program)


def key(tenant, name: str) -> str:
    return names.journal_pipeline(tenant.id, tenant.pipeline) + name


def block_of(request_key: bytes, size_bytes: int) -> bytes:
    """A payload that says whose it is."""
    return request_key + secrets.token_bytes(size_bytes)


async def append(door, tenant, payload: bytes, uuid: bytes = b""):
    """Append a payload whose first 16 bytes are the request's key."""
    return await door.append(
        tenant.pipeline,
        uuid or world.new_uuid(),
        payload,
        accepted=3,
        size_bytes=len(payload),
        requests=1,
        keyed=[journal.KeyedRequest(0, payload[:16], len(payload))],
    )


async def entries(tenant) -> list[journal.Entry]:
    return journal.entries_of(
        await journal.command(tenant.redis, "XRANGE", key(tenant, "q"), "-", "+")
    )


def kill(server) -> None:
    server.process.kill()
    server.process.wait()


async def start_again(server, tenant) -> None:
    server.start(server.folder.parent / "log")
    await tenant.redis.connection_pool.disconnect()


class Load:
    """Senders who append until the server dies, and a collector who acknowledges meanwhile."""

    def __init__(self, tenant) -> None:
        self.tenant = tenant
        self.tried: dict[bytes, bytes] = {}  # payload by key
        self.receipts: dict[bytes, ids.Receipt] = {}  # of what was acknowledged, by key
        self.collected: dict[str, journal.Entry] = {}

    async def until_death(self) -> None:
        senders = [asyncio.create_task(self._send()) for _ in range(8)]
        await asyncio.gather(*senders, self._collect())

    async def _send(self) -> None:
        door = self.tenant.appender()
        while True:
            request_key, uuid = secrets.token_bytes(16), world.new_uuid()
            payload = self.tried[request_key] = block_of(request_key, random.randrange(3000))
            try:
                await append(door, self.tenant, payload, uuid)
            except errors.UnavailableError:
                return
            self.receipts[request_key] = ids.Receipt(uuid, 0)

    async def _collect(self) -> None:
        reader = self.tenant.journal_reader()
        try:
            while True:
                found = await reader.read([self.tenant.pipeline], 5, 0.01)
                for some in found.values():
                    self.collected |= {entry.id: entry for entry in some}
                    await reader.ack(self.tenant.pipeline, some)
        except errors.UnavailableError:
            return

    async def check(self) -> None:
        """What the server holds after its restart agrees with itself and with what was said."""
        left = await entries(self.tenant)
        present = {entry.payload[:16]: entry for entry in left}
        collected = {entry.payload[:16]: entry for entry in self.collected.values()}
        assert len(present) == len(left), "a key stands in two entries"
        assert self.receipts.keys() <= present.keys() | collected.keys()
        assert all(entry.payload == self.tried[name] for name, entry in present.items())
        counters = await journal.counters(self.tenant.redis, self.tenant.id, self.tenant.pipeline)
        assert counters.bytes == sum(len(entry.payload) for entry in left)
        assert counters.inflight == 3 * len(left)
        assert counters.accepted == 3 * len(present.keys() | collected.keys())

    async def send_all_again(self) -> None:
        """Every request again: each is a repeat exactly when its entry is (or was) there."""
        door = self.tenant.appender()
        before = {entry.payload[:16]: entry.uuid for entry in await entries(self.tenant)}
        before |= {entry.payload[:16]: entry.uuid for entry in self.collected.values()}
        for name, payload in self.tried.items():
            answer = await append(door, self.tenant, payload)
            if name in before:
                assert answer == journal.AllRepeated({0: ids.Receipt(before[name], 0)})
            else:
                assert answer == journal.Appended({})
            assert name in before or name not in self.receipts


async def test_kills_under_load_lose_nothing_acknowledged_and_markers_match_entries(
    make_journal_tenant, own
):
    tenant = await make_journal_tenant(own)
    load = Load(tenant)
    for round_ in range(5):
        sending = asyncio.create_task(load.until_death())
        target = 40 * (round_ + 1)
        async with asyncio.timeout(20):
            while len(load.receipts) < target:
                await asyncio.sleep(0.005)
        if round_ % 2:
            await tenant.redis.bgrewriteaof()
        kill(own)
        await sending
        await start_again(own, tenant)
        await load.check()

    await load.send_all_again()
    assert len(load.receipts) >= 200
    assert load.collected


async def test_functions_users_and_limits_are_there_after_a_kill(make_journal_tenant, own):
    tenant = await make_journal_tenant(own)

    kill(own)
    await start_again(own, tenant)

    answer = await append(tenant.appender(), tenant, block_of(b"k" * 16, 10))
    assert answer == journal.Appended({})
    assert await tenant.redis.fcall("lw_version", 0) == journal.LIBRARY_VERSION.encode()


async def until_refused(door, tenant) -> int:
    """Append until there is no memory left; return how many went in."""
    for count in range(1000):
        try:
            await append(door, tenant, block_of(secrets.token_bytes(16), 100_000))
        except journal.UnreachableError as refused:
            return count if "maxmemory" in refused.reason else -1
    return -1


async def test_without_memory_appends_are_refused_and_acks_make_room(make_journal_tenant, own):
    tenant = await make_journal_tenant(own)
    await tenant.redis.config_set("maxmemory", 6 << 20)
    door, reader = tenant.appender(), tenant.journal_reader()
    count = await until_refused(door, tenant)
    found = (await reader.read([tenant.pipeline], 1000, 0.1))[tenant.pipeline]

    await reader.ack(tenant.pipeline, found)

    assert len(found) == count > 5
    assert await reader.backlog(tenant.pipeline) == 0
    counters = await journal.counters(tenant.redis, tenant.id, tenant.pipeline)
    assert counters == journal.Counters(bytes=0, accepted=3 * count, inflight=0)
    answer = await append(door, tenant, block_of(secrets.token_bytes(16), 100_000))
    assert answer == journal.Appended({})


async def test_after_a_freeze_answers_are_those_of_their_own_questions(
    make_journal_tenant, own, monkeypatch
):
    monkeypatch.setattr(journal, "APPEND_TIMEOUT_S", 0.2)
    monkeypatch.setattr(journal, "REVOKED_TIMEOUT_S", 0.2)
    tenant = await make_journal_tenant(own)
    await provision.publish_revocations(tenant.redis, tenant.id, [5])
    door = tenant.appender()
    payloads = [block_of(secrets.token_bytes(16), 100) for _ in range(20)]
    await append(door, tenant, payloads[0])

    os.kill(own.process.pid, signal.SIGSTOP)
    frozen = await asyncio.gather(
        *(append(door, tenant, one) for one in payloads),
        door.revocations(),
        return_exceptions=True,
    )
    os.kill(own.process.pid, signal.SIGCONT)
    thawed = await asyncio.gather(*(append(door, tenant, one) for one in payloads))

    assert {type(one) for one in frozen} == {journal.UnreachableError}
    assert all(isinstance(one, journal.Appended | journal.AllRepeated) for one in thawed)
    assert (await door.revocations()).revoked == {5}
    assert sorted(entry.payload for entry in await entries(tenant)) == sorted(payloads)


async def test_connections_that_the_server_closed_meanwhile_are_not_handed_out(
    make_journal_tenant, own
):
    tenant = await make_journal_tenant(own)
    door = tenant.appender()
    some = [block_of(secrets.token_bytes(16), 10) for _ in range(24)]
    await asyncio.gather(*(append(door, tenant, one) for one in some[:12]))
    user = tenant.journal_login("in").user
    open_before = [one for one in await tenant.redis.client_list() if one["user"] == user]

    await journal.command(tenant.redis, "CLIENT", "KILL", "USER", user)
    answers = await asyncio.gather(*(append(door, tenant, one) for one in some[12:]))

    assert len(open_before) > 1
    assert answers == [journal.Appended({})] * 12


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("appendfsync", "everysec", "always"),
        ("appendonly", "no", "yes"),
        ("no-appendfsync-on-rewrite", "yes", "no"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ("aof-load-truncated", "no", "yes"),
    ],
)
async def test_a_setting_that_breaks_the_promise_is_found_and_the_fix_is_in_the_sentence(
    make_journal_tenant, start_journal, name, wrong, right
):
    tenant = await make_journal_tenant(start_journal())
    assert await provision.journal_problems(tenant.redis) == []

    await tenant.redis.config_set(name, wrong)

    (problem,) = await provision.journal_problems(tenant.redis)
    assert f"{name} {wrong!r}" in problem
    with pytest.raises(errors.SetupError, match=f"CONFIG SET {name} {right}"):
        provision.check([problem])


async def test_a_default_user_that_may_not_replay_is_found_and_mended_while_it_is_off(
    make_journal_tenant, own
):
    tenant = await make_journal_tenant(own)
    await journal.command(tenant.redis, "ACL", "SETUSER", "default", "resetkeys", "-@all")

    (problem,) = await provision.journal_problems(tenant.redis)
    await provision.bootstrap_journal(tenant.redis)

    assert "ACL SETUSER default off" in problem
    assert await provision.journal_problems(tenant.redis) == []
    assert not (await tenant.redis.acl_getuser("default"))["enabled"]


async def test_a_default_user_that_is_on_is_not_given_any_right(make_journal_tenant, own):
    tenant = await make_journal_tenant(own)
    narrow = ("reset", "on", ">password", "+ping")
    await journal.command(tenant.redis, "ACL", "SETUSER", "default", *narrow)

    await provision.bootstrap_journal(tenant.redis)

    (problem,) = await provision.journal_problems(tenant.redis)
    assert "default" in problem
    assert (await tenant.redis.acl_getuser("default"))["commands"] == ["+ping"]


async def test_the_embedded_servers_have_no_problem(make_journal_tenant, each_journal):
    tenant = await make_journal_tenant(each_journal)

    problems = await provision.journal_problems(tenant.redis)

    provision.check(problems)
    assert problems == []


def test_a_connection_that_is_reset_while_it_is_made_is_a_journal_that_does_not_answer():
    async def write_to_a_closed_one(port: int) -> None:
        _, writer = await asyncio.open_connection(servers.LOOPBACK, port)
        writer.transport.abort()
        await asyncio.sleep(0.01)  # the loop closes it in its next turn
        async with journal.door("take the block", 1.0):
            writer.writelines([b"PING"])

    with (
        socket.create_server((servers.LOOPBACK, 0)) as listening,
        pytest.raises(journal.UnreachableError, match="the block: the connection was closed"),
    ):
        uvloop.run(write_to_a_closed_one(listening.getsockname()[1]))
