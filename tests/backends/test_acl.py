"""Redis users of a tenant: each can do its own work on its own keys, and nothing else."""

from __future__ import annotations

import msgspec
import pytest
import world
from intruding import KINDS, User, append, contents, is_denied, key, tenant_key
from redis import exceptions

from logweir.backends import journal, provision, redis_client
from logweir.core import names
from logweir.standalone import servers


@pytest.fixture
async def tenant(make_journal_tenant, each_journal):
    return await make_journal_tenant(each_journal)


@pytest.fixture
async def other(make_journal_tenant, each_journal):
    """Another tenant of the same server, with something of each kind to steal or break."""
    made = await make_journal_tenant(each_journal)
    await append(made, made.appender())
    await made.redis.set(key(made, "t"), "1", ex=300)
    await provision.publish_revocations(made.redis, made.id, [1])
    return made


@pytest.fixture
async def user(tenant):
    """Makes the connections of the tenant's users: `user("in")`."""
    made: list[User] = []

    def of(kind: str) -> User:
        made.append(User(tenant.journal_server, tenant.journal_login(kind)))
        return made[-1]

    yield of
    for one in made:
        await one.close()


# --- each user's work -----------------------------------------------------------------------------


async def test_ordinary_work_of_all_users_is_never_denied(tenant):
    login = tenant.journal_login("tail")
    tail = redis_client.client(tenant.journal_server, login)
    door, reader = tenant.appender(), tenant.journal_reader()
    await journal.command(tenant.redis, "ACL", "LOG", "RESET")

    await door.revocations()
    await append(tenant, door)
    await append(tenant, door)
    (entry,) = (await reader.read([tenant.pipeline], 10, 0.01))[tenant.pipeline]
    await reader.own_pending(tenant.pipeline, "0", 10)
    await reader.claim(tenant.pipeline, 60, 10)
    await reader.oldest_pending_ms(tenant.pipeline)
    await tail.set(key(tenant, "t"), "1", ex=30)
    await tail.xrange(key(tenant, "q"))
    await journal.counters(tail, tenant.id, tenant.pipeline)
    await append(tenant, door)
    await reader.ack(tenant.pipeline, [entry])
    await reader.backlog(tenant.pipeline)

    assert await journal.command(tenant.redis, "ACL", "LOG") == []
    await tail.aclose()


async def test_a_password_of_before_the_rotation_is_not_good_any_more(tenant):
    old = tenant.journal_login("in")
    row = msgspec.structs.replace(tenant.row, redis_revision=2)
    await provision.provision_journal(
        tenant.redis, row, list(tenant.pipelines.values()), tenant.roots, tenant.limits
    )

    door = journal.Appender(tenant.journal_server, old, tenant.id)
    with pytest.raises(journal.UnreachableError):
        await door.revocations()
    await door.close()


# --- what ingest may not --------------------------------------------------------------------------

INGEST_MAY_NOT = {
    "read its stream": lambda t: ("XRANGE", key(t, "q"), "-", "+"),
    "read its stream backwards": lambda t: ("XREVRANGE", key(t, "q"), "+", "-"),
    "follow its stream": lambda t: ("XREAD", "STREAMS", key(t, "q"), "0"),
    "read as a collector": lambda t: (
        "XREADGROUP",
        *("GROUP", names.CONSUMER_GROUP, "c0", "STREAMS", key(t, "q"), ">"),
    ),
    "see how long its stream is": lambda t: ("XLEN", key(t, "q")),
    "acknowledge": lambda t: ("FCALL", "lw_ack", 1, key(t, "q"), names.CONSUMER_GROUP, 0),
    "delete entries": lambda t: ("XDEL", key(t, "q"), "1-1"),
    "trim its stream": lambda t: ("XTRIM", key(t, "q"), "MAXLEN", 0),
    "raise its limits": lambda t: ("HSET", tenant_key(t, "m"), "max_bytes", 1 << 50),
    "open a closed tenant": lambda t: ("HSET", tenant_key(t, "m"), "state", "active"),
    "change its pipeline": lambda t: ("HSET", key(t, "m"), "bw", 1),
    "count its limits up": lambda t: ("HINCRBY", tenant_key(t, "m"), "rps", 1),
    "take back a revocation": lambda t: ("HDEL", tenant_key(t, "cfg"), "r:1"),
    "forge a revocation": lambda t: ("HSET", tenant_key(t, "cfg"), "r:1", "1"),
    "let its limits expire": lambda t: ("EXPIRE", tenant_key(t, "m"), 1),
    "take the tails' lease": lambda t: ("HSET", key(t, "t"), "a", "b"),
    "drop its own counters": lambda t: ("DEL", tenant_key(t, "c")),
    "listen to the tail": lambda t: ("SUBSCRIBE", key(t, "l")),
    "run another function": lambda t: ("FCALL", "lw_version", 0),
    "run a function as one that reads": lambda t: ("FCALL_RO", "lw_append", 1, key(t, "q")),
    "load a function": lambda t: ("FUNCTION", "LOAD", "REPLACE", journal.library()),
    "delete the functions": lambda t: ("FUNCTION", "DELETE", "logweir"),
    "flush the functions": lambda t: ("FUNCTION", "FLUSH"),
    "list the functions": lambda t: ("FUNCTION", "LIST"),
    "run a script": lambda t: ("EVAL", "return 1", 0),
    "run a loaded script": lambda t: ("EVALSHA", "0" * 40, 0),
    "load a script": lambda t: ("SCRIPT", "LOAD", "return 1"),
    "flush the scripts": lambda t: ("SCRIPT", "FLUSH"),
    "read the settings": lambda t: ("CONFIG", "GET", "*"),
    "change a setting": lambda t: ("CONFIG", "SET", "appendfsync", "no"),
    "list all keys": lambda t: ("KEYS", "*"),
    "walk over all keys": lambda t: ("SCAN", 0),
    "empty the server": lambda t: ("FLUSHALL",),
    "empty the database": lambda t: ("FLUSHDB",),
    "see who is connected": lambda t: ("CLIENT", "LIST"),
    "see the channels": lambda t: ("PUBSUB", "CHANNELS"),
    "see the users": lambda t: ("ACL", "LIST"),
    "make a user": lambda t: ("ACL", "SETUSER", "mallory", "on", "nopass", "+@all", "~*"),
    "see every command": lambda t: ("MONITOR",),
    "stop the server": lambda t: ("SHUTDOWN", "NOSAVE"),
    "begin a transaction": lambda t: ("MULTI",),
    "use another database": lambda t: ("SELECT", 1),
}


@pytest.mark.parametrize("what", INGEST_MAY_NOT)
async def test_ingest_may_not(tenant, user, what):
    answer = await user("in").tries(*INGEST_MAY_NOT[what](tenant))

    assert is_denied(answer), answer


def call(stream: str) -> tuple:
    return ("FCALL", "lw_append", 1, stream, world.new_uuid(), 1, 1, b"x", 1)


async def test_ingest_may_not_append_to_another_tenant_by_the_function(tenant, other, user):
    before = await contents(other)

    ingest = user("in")
    foreign = [
        await ingest.tries(*call(key(other, "q"))),
        await ingest.tries(*call(tenant_key(other, "q"))),
        await ingest.tries("FCALL", "lw_append", 2, key(tenant, "q"), key(other, "q"), *"abcde"),
    ]
    undeclared = await ingest.tries("FCALL", "lw_append", 0, key(other, "q"), 1, 1, 1, 1)

    assert all(map(is_denied, foreign)), foreign
    assert isinstance(undeclared, exceptions.ResponseError)
    assert await contents(other) == before


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param("{p}q:q", id="a key below the stream's"),
        pytest.param("{t}x:q", id="a pipeline that is no number"),
        pytest.param("{t}:q", id="no pipeline"),
        pytest.param("{t}1:2:q", id="two numbers"),
    ],
)
async def test_ingest_gains_nothing_by_odd_keys_of_its_own(tenant, user, odd):
    stream = odd.format(
        p=names.journal_pipeline(tenant.id, tenant.pipeline), t=names.journal_tenant(tenant.id)
    )
    before = await contents(tenant)

    answer = await user("in").tries(*call(stream))

    assert isinstance(answer, exceptions.ResponseError) or answer == [b"NOMETA"], answer
    assert await contents(tenant) == before


# --- what collectors and tails may not ------------------------------------------------------------

COLLECTORS_MAY_NOT = {
    "append": lambda t: call(key(t, "q")),
    "add to the stream": lambda t: ("XADD", key(t, "q"), "*", "a", "b"),
    "forge a marker": lambda t: ("HSET", key(t, "i:1:1"), "k", "v"),
    "read markers": lambda t: ("HGET", key(t, "i:1:1"), "k"),
    "read limits": lambda t: ("HMGET", tenant_key(t, "m"), "rps"),
    "change limits": lambda t: ("HINCRBY", tenant_key(t, "m"), "rps", 1),
    "trim the stream": lambda t: ("XTRIM", key(t, "q"), "MAXLEN", 0),
    "drop the stream": lambda t: ("UNLINK", key(t, "q")),
    "drop the group": lambda t: ("XGROUP", "DESTROY", key(t, "q"), names.CONSUMER_GROUP),
    "drop a consumer": lambda t: (
        "XGROUP",
        *("DELCONSUMER", key(t, "q"), names.CONSUMER_GROUP, "c0"),
    ),
    "publish": lambda t: ("PUBLISH", key(t, "l"), "x"),
    "listen": lambda t: ("SUBSCRIBE", key(t, "l")),
}
TAILS_MAY_NOT = {
    "append": lambda t: call(key(t, "q")),
    "acknowledge": lambda t: ("FCALL", "lw_ack", 1, key(t, "q"), names.CONSUMER_GROUP, 0),
    "add to the stream": lambda t: ("XADD", key(t, "q"), "*", "a", "b"),
    "delete from the stream": lambda t: ("XDEL", key(t, "q"), "1-1"),
    "take entries as a collector": lambda t: (
        "XREADGROUP",
        *("GROUP", names.CONSUMER_GROUP, "c0", "STREAMS", key(t, "q"), ">"),
    ),
    "write over the stream": lambda t: ("SET", key(t, "q"), "x"),
    "write over the counters": lambda t: ("SET", key(t, "c"), "x"),
    "write over the limits": lambda t: ("SET", tenant_key(t, "m"), "x"),
    "count up": lambda t: ("HINCRBY", key(t, "c"), "bytes", 1),
    "publish": lambda t: ("PUBLISH", key(t, "l"), "x"),
    "listen to everything": lambda t: ("PSUBSCRIBE", "*"),
    "read limits": lambda t: ("HMGET", tenant_key(t, "m"), "rps"),
    "read markers": lambda t: ("HMGET", key(t, "i:1:1"), "k"),
    "read the lease by writing it": lambda t: ("SET", key(t, "t"), "1", "GET"),
}


@pytest.mark.parametrize("what", COLLECTORS_MAY_NOT)
async def test_collectors_may_not(tenant, user, what):
    answer = await user("col").tries(*COLLECTORS_MAY_NOT[what](tenant))

    assert is_denied(answer), answer


@pytest.mark.parametrize("what", TAILS_MAY_NOT)
async def test_tails_may_not(tenant, user, what):
    answer = await user("tail").tries(*TAILS_MAY_NOT[what](tenant))

    assert is_denied(answer), answer


# --- everything else ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["q", "c", "m", "t", "i:1:1", "l"])
async def test_what_a_user_is_granted_ends_at_its_own_prefix(tenant, other, user, kind, name):
    granted = {
        "in": [("HGET", "f"), ("HSET", "f", "v"), ("XADD", "*", "f", "v"), ("PUBLISH", "x")],
        "col": [("XLEN",), ("XDEL", "1-1"), ("XRANGE", "-", "+"), ("HINCRBY", "f", 1)],
        "tail": [("XRANGE", "-", "+"), ("HMGET", "f"), ("SET", "x"), ("SUBSCRIBE",)],
    }[kind]
    intruder = user(kind)

    for command, *rest in granted:
        assert is_denied(await intruder.tries(command, key(other, name), *rest)), command


@pytest.mark.parametrize("kind", KINDS)
async def test_a_tenant_whose_id_begins_with_another_is_not_that_other(tenant, kind):
    login = tenant.journal_login(kind)
    own = names.journal_tenant(tenant.id)
    command = {"in": "XADD", "col": "XLEN", "tail": "XRANGE"}[kind]
    rest = {"in": ("*", "f", "v"), "col": (), "tail": ("-", "+")}[kind]

    async def dry_run(prefix: str) -> bytes:
        words = ("ACL", "DRYRUN", login.user, command, f"{prefix}1:q", *rest)
        return await journal.command(tenant.redis, *words)

    assert await dry_run(own) == b"OK"
    for foreign in (own[:-1] + "1:", own[:-1] + "-b:", own[:-2] + ":", "x" + own):
        assert b"no permissions" in await dry_run(foreign)


async def test_the_default_user_is_off_also_after_a_reset(tenant, each_journal):
    login = tenant.journal_login("in")

    def talk(*lines: tuple[str, ...]) -> list[bytes]:
        sent = "".join(
            f"*{len(line)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in line)
            for line in lines
        )
        answer = servers.talk(
            each_journal.port, sent.encode(), lambda got: got.count(b"\r\n") >= len(lines)
        )
        return answer.split(b"\r\n")[:-1]

    stranger = talk(("PING",), ("AUTH", "default", ""), ("AUTH", "x"))
    after = talk(("AUTH", login.user, login.password), ("PING",), ("RESET",), ("PING",))

    assert [one.split()[0] for one in stranger] == [b"-NOAUTH", b"-WRONGPASS", b"-WRONGPASS"]
    assert after[:3] == [b"+OK", b"+PONG", b"+RESET"]
    assert after[3].startswith(b"-NOAUTH")
