"""Credentials are rotated by the reconciler of `up`, step by step, and from any cut to the end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from reconciling import Place, pipeline, reconciling, tenant
from redis import exceptions

from logweir.backends import control, journal, provision, redis_client, rotations, store
from logweir.backends.rotations import Rotations
from logweir.core import errors, keys, names
from logweir.core.binding import KeeperBinding, Login, QueryBinding
from logweir.standalone import accounts, admin, servers
from logweir.standalone.folder import RootSet, Secrets, read_json
from logweir.standalone.postgres import Postgres
from logweir_operator.roots import site_of

KINDS = ("w", "r", "k")
USERS = ("in", "col", "tail")


def store_logins(place: Place, row: control.Tenant) -> list[Login]:
    """The logins that a row names."""
    roots = place.cluster._tenancy.site.of(row.root_version)
    return [Login(*provision.tenant_password(roots, row, kind)) for kind in KINDS]


def journal_logins(place: Place, row: control.Tenant) -> list[Login]:
    return [
        place.cluster._tenancy.site.journal_login(row, names.redis_user(row.id, o)) for o in USERS
    ]


def may_enter_store(place: Place, login: Login) -> bool:
    try:
        with psycopg.connect(store.conninfo(place.site.store, login, "test")):
            return True
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error) or "not permitted" in str(error):
            return False
        raise


async def may_enter_journal(place: Place, login: Login) -> bool:
    client = redis_client.client(place.site.journal, login)
    try:
        return bool(await client.ping())
    except exceptions.AuthenticationError:
        return False
    finally:
        await client.aclose()


async def doors(place: Place, row: control.Tenant) -> set[bool]:
    """Whether the credentials of a row are good: all, none, or some of them."""
    found = {may_enter_store(place, one) for one in store_logins(place, row)}
    return found | {await may_enter_journal(place, one) for one in journal_logins(place, row)}


async def made(place: Place, **spec: Any) -> control.Tenant:
    await place.apply(tenant(**spec), pipeline())
    await place.passes()
    return await row_of(place)


async def row_of(place: Place) -> control.Tenant:
    row = await place.row("acme")
    assert row is not None
    return row


async def begun(place: Place, overlap_s: int = 60, **spec: Any) -> tuple[Any, Any]:
    """Begin a rotation; return the row before and after."""
    before = await made(place, **spec)
    await place.control.ask(before.id, overlap_s)
    await place.passes()
    return before, await row_of(place)


async def to_the_end(place: Place) -> control.Tenant:
    """Let the overlap be over, and all that follows be done."""
    place.sql("update logweir.tenants set overlap_until = now() where overlap_until is not null")
    for _ in range(12):
        await place.passes()
        row = await row_of(place)
        if row.rotation == "steady" and not await place.control.requests():
            return row
    raise AssertionError(f"the rotation does not end: {row}")


# ---- one tenant -----------------------------------------------------------------------------


async def test_old_and_new_credentials_are_good_until_the_overlap_ends_and_then_the_new_alone(
    up_place,
):
    before, after = await begun(up_place)

    assert (after.rotation, after.writer_slot, after.redis_revision) == ("spreading", "b", 2)
    assert await doors(up_place, before) == {True}
    assert await doors(up_place, after) == {True}

    await up_place.passes(3)
    assert (await row_of(up_place)).rotation == "overlapping"
    assert await doors(up_place, before) == {True}

    await to_the_end(up_place)
    assert await doors(up_place, before) == {False}
    assert await doors(up_place, after) == {True}


async def test_the_sessions_of_old_logins_end_with_the_overlap(up_place):
    before, _ = await begun(up_place)
    with psycopg.connect(
        store.conninfo(up_place.site.store, store_logins(up_place, before)[1], "test")
    ) as session:
        await to_the_end(up_place)

        with pytest.raises(psycopg.OperationalError, match=r"terminat|closed"):
            session.execute("select 1")


async def test_connections_of_redis_users_outlive_each_step_but_not_the_old_ones_the_end(up_place):
    before = await made(up_place)
    old = named_client(up_place, before, "old")
    assert await old.ping()
    ids = {"old": (await connections(up_place))["old"]}
    await asyncio.sleep(2.1)  # ages of connections are whole seconds
    await up_place.control.ask(before.id, 60)
    await up_place.passes()
    fresh = named_client(up_place, await row_of(up_place), "new")
    assert await fresh.ping()
    ids["new"] = (await connections(up_place))["new"]

    await up_place.passes(2)
    assert await old.ping()
    assert await connections(up_place) == ids
    await to_the_end(up_place)

    assert await fresh.ping()
    assert await connections(up_place) == {"new": ids["new"]}
    await old.aclose()
    await fresh.aclose()


def named_client(place: Place, row: control.Tenant, name: str) -> Any:
    """A client of the tenant's ingest user, with one connection of this name."""
    login = journal_logins(place, row)[0]
    return redis_client.client(place.site.journal, login, connections=1, name=name)


async def connections(place: Place) -> dict[str, int]:
    """Connections that have a name, with their numbers."""
    found = await place.cluster._journal.client_list()
    return {one["name"]: int(one["id"]) for one in found if one["name"]}


async def test_a_subscription_outlives_a_change_of_its_users_passwords(up_place):
    before = await made(up_place)
    login = journal_logins(up_place, before)[2]
    client = redis_client.client(up_place.site.journal, login, connections=1)
    listening = client.pubsub()
    channel = names.journal_pipeline(before.id, (await up_place.control.pipelines())[-1].id) + "l"
    await listening.subscribe(channel)
    await up_place.control.ask(before.id, 60)
    await up_place.passes(2)

    await up_place.cluster._journal.publish(channel, "heard")
    kinds = [(await listening.get_message(timeout=5))["type"] for _ in range(2)]
    assert kinds == ["subscribe", "message"]
    await listening.aclose()
    await client.aclose()


async def test_the_reconcilers_restart_in_any_phase_closes_nothing_too_early(up_place):
    before, after = await begun(up_place)
    for phase in ("spreading", "overlapping"):
        up_place.sql("update logweir.tenants set rotation = %s where id = %s", phase, before.id)
        await up_place.restart()
        await up_place.passes()  # makes all of the tenant again

        assert await doors(up_place, before) == {True}
        assert await doors(up_place, after) == {True}


async def test_a_restart_after_a_rotation_opens_nothing_again(up_place):
    before, _ = await begun(up_place)
    await to_the_end(up_place)
    await up_place.restart()
    await up_place.passes()

    assert await doors(up_place, before) == {False}


async def test_keys_are_good_through_rotations_and_new_ones_get_the_new_revision(up_place):
    before, _ = await begun(up_place)
    texts = up_place.keys().keys
    await to_the_end(up_place)

    assert up_place.keys().keys == texts
    [binding] = [o for o in up_place.ingest_binding().tenants if o.tenant == before.id]
    assert set(binding.secrets) == {"1", "2"}
    new = [{"name": "in", "scopes": ["ingest"], "generation": 2}]
    await up_place.apply(tenant(apiKeys=new))
    await up_place.passes()

    found = keys.decode(up_place.keys().keys["in"])
    assert found is not None
    assert found.key.revision == 2
    [binding] = [o for o in up_place.ingest_binding().tenants if o.tenant == before.id]
    assert set(binding.secrets) == {"2"}


async def test_the_next_signing_secret_is_in_bindings_before_any_key_is_signed_with_it(up_place):
    _, after = await begun(up_place)

    [binding] = [o for o in up_place.ingest_binding().tenants if o.tenant == after.id]
    assert (after.ingest_revision, set(binding.secrets)) == (1, {"1", "2"})


async def test_a_rotation_comes_by_itself_when_its_interval_is_over(up_place):
    rotating = {"enabled": True, "intervalSeconds": 3600, "overlapSeconds": 60}
    before = await made(up_place, credentials={"rotation": rotating})
    await up_place.passes(2)
    assert (await row_of(up_place)).writer_revision == 1
    up_place.sql(
        "update logweir.tenants set rotated_at = now() - interval '1 hour' where id = %s", before.id
    )
    await up_place.passes()

    assert (await row_of(up_place)).writer_revision == 2


async def test_the_status_says_when_credentials_were_rotated_and_will_be(up_place):
    rotating = {"enabled": True, "intervalSeconds": 3600, "overlapSeconds": 60}
    _, after = await begun(up_place, credentials={"rotation": rotating})
    found = await up_place.object("LogTenant", "acme")

    assert found is not None
    shown = found.status["credentials"]
    assert shown["phase"] == "spreading"
    assert (shown["revision"], shown["rootVersion"]) == (2, 1)
    at_s = after.rotated_at.timestamp()
    times = [_seconds(shown[name]) for name in ("lastRotationTime", "overlapUntil")]
    assert times == pytest.approx([at_s, at_s + 60], abs=1)
    assert _seconds(shown["nextRotationTime"]) == pytest.approx(at_s + 3600, abs=1)
    assert yaml.safe_dump(shown)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def test_a_suspended_tenant_is_not_rotated(up_place):
    before = await made(up_place, suspend=False)
    await up_place.apply(tenant(suspend=True))
    await up_place.control.ask(before.id, 60)
    await up_place.passes(2)

    assert (await row_of(up_place)).writer_revision == 1
    assert await up_place.control.requests()
    place_requests = await up_place.control.requests()
    await up_place.control.answer(place_requests[before.id])


async def test_a_tenant_that_is_kept_and_taken_again_goes_on_with_no_old_credentials(up_place):
    before, _ = await begun(up_place, overlap_s=3600)
    for kind, name in (("LogPipeline", "web"), ("LogTenant", "acme")):
        await up_place.delete(kind, name)
        await up_place.passes(8)
    assert await up_place.object("LogTenant", "acme") is None

    after = await made(up_place)
    assert (after.id, after.rotation) == (before.id, "steady")
    assert await doors(up_place, after) == {True}
    assert await doors(up_place, before) == {False}


async def test_two_operators_do_not_rotate_the_same_tenant_twice(up_place):
    before, after = await begun(up_place)

    with pytest.raises(errors.UnavailableError):
        await up_place.control.write(before, after)


# ---- cut off ---------------------------------------------------------------------------------


class CutError(psycopg.OperationalError):
    """The connection is gone, as the test wants it."""


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A counter of steps outside that are let through; at zero all of them fail."""
    left = [-1]

    def count() -> None:
        if left[0] == 0:
            raise CutError("the test cut the connection")
        left[0] -= 1

    execute, command, write = psycopg.Cursor.execute, journal.command, Rotations.write

    def executed(self: Any, *args: Any, **options: Any) -> Any:
        count()
        return execute(self, *args, **options)

    async def commanded(*args: Any, **options: Any) -> Any:
        count()
        return await command(*args, **options)

    async def written(*args: Any, **options: Any) -> Any:
        count()
        return await write(*args, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", executed)
    monkeypatch.setattr(journal, "command", commanded)
    monkeypatch.setattr(Rotations, "write", written)
    return left


async def test_a_rotation_that_is_cut_off_after_any_step_comes_to_the_same_end(up_place, cut):
    before = await made(up_place)
    cuts = 0
    for number in itertools.count():
        row = await row_of(up_place)
        await up_place.control.ask(row.id, 0)
        cut[0] = number
        await up_place.passes(4)
        is_whole, cut[0] = cut[0] > 0, -1
        after = await to_the_end(up_place)

        assert after.writer_revision == row.writer_revision + 1
        assert (after.ingest_revision, after.redis_revision) == (after.writer_revision,) * 2
        assert open_logins(up_place, row.id) == sorted(
            one.user for one in store_logins(up_place, after)
        )
        assert await passwords(up_place, row.id) == 3 * [1], f"cut after {number} steps"
        assert own_members(up_place, row.id) == [], f"cut after {number} steps"
        cuts += 1
        if is_whole:
            break
    assert cuts > 30
    assert await doors(up_place, await row_of(up_place)) == {True}
    assert await doors(up_place, before) == {False}


async def test_a_rotation_that_fails_says_so_in_the_status_and_goes_on(up_place, cut):
    before = await made(up_place)
    await up_place.control.ask(before.id, 60)
    cut[0] = 3
    await up_place.passes()
    found = await up_place.object("LogTenant", "acme")

    assert found is not None
    assert found.status["credentials"]["problem"] == "the test cut the connection"
    cut[0] = -1
    await up_place.passes(2)
    await to_the_end(up_place)
    found = await up_place.object("LogTenant", "acme")
    assert found is not None
    assert "problem" not in found.status["credentials"]


def open_logins(place: Place, of: str) -> list[str]:
    pattern = names.schema(names.TenantId(of)).replace("_", r"\_") + r"\__\__"
    found = place.sql(
        "select rolname from pg_roles where rolcanlogin and rolname like %s order by 1", pattern
    )
    return [row[0] for row in found]


def own_members(place: Place, of: str) -> list[str]:
    """The tenant's logins whose privileges the operator has given itself."""
    found = place.sql(
        "select roleid::regrole::text from pg_auth_members where roleid::regrole::text like %s"
        " and grantor = 'logweir_operator'::regrole",
        names.schema(names.TenantId(of)).replace("_", r"\_") + r"\__\__",
    )
    return [row[0] for row in found]


async def passwords(place: Place, of: str) -> list[int]:
    """How many passwords each of the tenant's Redis users has."""
    found = []
    for kind in USERS:
        user = await place.cluster._journal.acl_getuser(names.redis_user(of, kind))
        found.append(len(user["passwords"]))
    return found


# ---- roots -----------------------------------------------------------------------------------


@pytest.fixture
async def own_place(place: Path, valkey: Any, roots: provision.Roots) -> AsyncIterator[Place]:
    """A reconciler with a PostgreSQL of its own, whose platform logins may change."""
    server = Postgres(place / "postgres", servers.free_port(), "super", accounts.choose())
    server.start(place / "postgres.log")
    provision.bootstrap_store(server.url(), roots)
    async with reconciling(place / "data", server, valkey, roots) as found:
        texts = (roots.write, roots.maintain, roots.read, roots.sign)
        first = RootSet(1, *(one.hex() for one in texts))
        found.folder.write_secrets(
            Secrets(roots=[first], postgres_password="super", valkey_password="operator")
        )
        yield found
    server.stop()


async def restarted(place: Place) -> None:
    """Begin again with what stands in the folder."""
    old = place.site
    place.site = site_of(old.store, old.journal, place.folder.read_secrets())
    await place.restart()


def versions(place: Place) -> list[tuple[int, bool]]:
    """The versions of the roots that are held, and whether logins may come from them."""
    return [(one.version, bool(one.read)) for one in place.folder.read_secrets().roots]


async def test_new_roots_come_into_use_everywhere_and_old_ones_are_forgotten(own_place):
    before = await made(own_place)
    await own_place.control.ask(rotations.ROOTS, 0)
    old = [own_place.site.login(one) for one in (provision.QUERY, provision.KEEPER)]

    await own_place.passes()
    assert versions(own_place) == [(1, True), (2, True)]
    assert not await own_place.control.requests()
    query = read_json(own_place.folder.bindings / "query.json", QueryBinding)
    assert (set(query.read_roots), query.control_login.user) == ({"1", "2"}, "logweir_query")

    await own_place.passes()
    query = read_json(own_place.folder.bindings / "query.json", QueryBinding)
    keeper = read_json(own_place.folder.bindings / "keeper.json", KeeperBinding)
    assert may_enter_store(own_place, query.control_login)
    assert may_enter_store(own_place, keeper.control_login)
    assert query.control_login.user == "logweir_query_b"

    row = await to_the_end(own_place)
    await own_place.passes(3)
    assert (row.root_version, row.signed_since) == (2, (1, 2))
    assert await doors(own_place, row) == {True}
    with pytest.raises(errors.SetupError):
        store_logins(own_place, before)
    assert [may_enter_store(own_place, one) for one in old] == [False, False]
    # The keys of the tenant are those of before: what signed them is still held, and that alone.
    assert versions(own_place) == [(1, False), (2, True)]
    assert own_place.folder.read_secrets().used == 2

    new = [{"name": "in", "scopes": ["ingest"], "generation": 2}]
    await own_place.apply(tenant(apiKeys=new))
    await own_place.passes(3)
    assert versions(own_place) == [(2, True)]


async def test_the_platforms_new_logins_may_do_what_the_old_ones_could(own_place):
    await made(own_place)
    await own_place.control.ask(rotations.ROOTS, 0)
    await own_place.passes(3)
    query = read_json(own_place.folder.bindings / "query.json", QueryBinding)
    door = control.Control(store.conninfo(query.store, query.control_login, "test"))

    assert len(await door.tenants()) == 1
    assert len(await door.api_keys()) == 2
    await door.close()
    keeper = read_json(own_place.folder.bindings / "keeper.json", KeeperBinding)
    door = control.Control(store.conninfo(keeper.store, keeper.control_login, "test"))
    assert await door.take_lease("x", "me", 1)
    with pytest.raises(errors.UnavailableError):
        await door.api_keys()
    await door.close()


async def test_roots_may_be_rotated_again_and_again_over_restarts(own_place):
    await made(own_place)
    for version in (2, 3, 4):
        await own_place.control.ask(rotations.ROOTS, 0)
        for _ in range(4):
            await own_place.passes()
            await restarted(own_place)
        row = await to_the_end(own_place)

        assert row.root_version == version
        assert await doors(own_place, row) == {True}
    await own_place.passes(3)
    # Keys of the first day are good: their root is held, those between are not.
    assert versions(own_place) == [(1, False), (4, True)]
    found = keys.decode(own_place.keys().keys["in"])
    assert found is not None
    root = own_place.cluster._tenancy.site.sign_root(row, found.key.revision)
    assert keys.is_signed(found, keys.secret_of(found.key, root))


async def test_a_tenant_that_comes_after_a_rotation_begins_with_the_new_roots(own_place):
    await own_place.control.ask(rotations.ROOTS, 0)
    await own_place.passes(4)
    assert versions(own_place) == [(2, True)]

    row = await made(own_place)
    assert (row.root_version, row.rotation) == (2, "steady")
    assert await doors(own_place, row) == {True}


async def test_a_request_that_was_answered_before_the_cut_is_not_answered_twice(own_place):
    await own_place.control.ask(rotations.ROOTS, 0)
    secrets = own_place.folder.read_secrets()
    request = (await own_place.control.requests())[rotations.ROOTS]
    fresh = RootSet.fresh(2)
    assert fresh.made_at_s > request.asked_at.timestamp()
    own_place.folder.write_secrets(
        Secrets(
            roots=[*secrets.roots, fresh],
            postgres_password="super",
            valkey_password="operator",
            overlap_s=0,
        )
    )
    await restarted(own_place)
    await own_place.passes(5)

    assert not await own_place.control.requests()
    assert [version for version, _ in versions(own_place)] == [2]


# ---- mishaps ---------------------------------------------------------------------------------


async def with_new_roots(place: Place) -> None:
    """Rotate the roots to the end, and forget the old ones."""
    await place.control.ask(rotations.ROOTS, 0)
    await place.passes(2)
    await to_the_end(place)
    await place.passes(3)


async def gone(place: Place) -> None:
    """Delete the tenant, and wait until its object is gone."""
    for kind, name in (("LogPipeline", "web"), ("LogTenant", "acme")):
        await place.delete(kind, name)
        await place.passes(8)
    assert await place.object("LogTenant", "acme") is None


async def test_an_expired_key_whose_root_is_gone_holds_up_no_revocation(own_place):
    apis = [{"name": "old", "scopes": ["ingest"], "expiresAt": "2020-01-01T00:00:00Z"}]
    apis.append({"name": "leaked", "scopes": ["ingest"]})
    await made(own_place, apiKeys=apis)
    await with_new_roots(own_place)
    apis[1]["generation"] = 2
    await own_place.apply(tenant(apiKeys=apis))
    await own_place.passes(4)
    await restarted(own_place)
    apis[1]["enabled"] = False
    await own_place.apply(tenant(apiKeys=apis))
    await own_place.passes(3)

    assert versions(own_place) == [(2, True)]
    assert await own_place.ready("LogTenant", "acme") == ("True", "Reconciled")
    rows = await own_place.control.api_keys_of((await row_of(own_place)).id)
    assert {one.is_revoked for one in rows if one.name == "leaked"} == {True}


async def test_a_tenant_that_cannot_be_made_while_roots_rotate_is_made_later(
    own_place, monkeypatch
):
    with monkeypatch.context() as broken:

        def fail(*_: object) -> None:
            raise errors.UnavailableError("The store is away.")

        broken.setattr(provision, "provision_store", fail)
        await own_place.apply(tenant(), pipeline())
        await own_place.passes()
        await own_place.control.ask(rotations.ROOTS, 0)
        await own_place.passes(5)
        assert versions(own_place) == [(2, True)]
    await restarted(own_place)
    await own_place.passes(3)

    assert await own_place.ready("LogTenant", "acme") == ("True", "Reconciled")


async def test_a_change_of_roots_that_is_cut_off_is_put_right_by_the_same_process(
    own_place, monkeypatch
):
    await made(own_place)
    await own_place.control.ask(rotations.ROOTS, 0)
    await own_place.passes()
    with monkeypatch.context() as broken:

        async def fail(*_: object) -> None:
            raise errors.UnavailableError("The journal is away.")

        broken.setattr(provision, "bootstrap_auth_user", fail)
        with pytest.raises(errors.UnavailableError):
            await own_place.passes()
    assert own_place.cluster.is_between_roots
    await own_place.cluster.bootstrap(own_place.postgres.url())
    await own_place.passes(5)

    assert not own_place.cluster.is_between_roots
    assert (await row_of(own_place)).root_version == 2


@pytest.mark.parametrize("is_suspended", [False, True])
async def test_new_roots_wait_neither_for_an_overlap_nor_for_who_does_not_rotate(
    own_place, is_suspended
):
    await made(own_place)
    if is_suspended:
        await own_place.apply(tenant(suspend=True))
    for overlap_s in (86_400, 0):
        await own_place.control.ask(rotations.ROOTS, overlap_s)
        await own_place.passes(8)

    assert own_place.folder.read_secrets().used == 3
    assert await own_place.control.requests() == {}


async def test_who_adopts_a_tenant_with_a_longer_retention_keeps_its_old_records(up_place):
    await made(up_place, retention={"days": 7})
    await gone(up_place)
    row = await made(up_place, retention={"days": 365})

    found = [o for o in await up_place.control.pipelines(with_deleted=True) if o.tenant == row.id]
    assert [(one.state, one.retention_days) for one in found] == [
        ("deleted", 365),
        ("active", 365),
    ]


async def test_no_secret_that_ingest_was_told_before_a_deletion_signs_keys_after_it(up_place):
    before, _ = await begun(up_place, overlap_s=3600)
    up_place.sql(
        "update logweir.tenants set rotation = 'spreading', ingest_revision = 1,"
        " access_revision = 1 where id = %s",
        before.id,
    )
    roots = up_place.cluster._tenancy.site.roots
    told = {keys.ingest_secret(roots.sign, before.id, one).hex() for one in (1, 2)}
    await gone(up_place)
    after = await made(up_place)
    [served] = [one for one in up_place.ingest_binding().tenants if one.tenant == after.id]

    assert after.id == before.id
    assert not told & set(served.secrets.values())


async def test_a_key_that_is_made_just_before_new_ones_are_signed_anew_is_good_at_once(
    up_place, monkeypatch
):
    before, _ = await begun(up_place, apiKeys=[{"name": "out", "scopes": ["query"]}])
    sign = Rotations.write

    async def write(self: Rotations, *rest: Any, **more: Any) -> None:
        up_place.sql(
            "insert into logweir.api_keys (id, tenant, name, scopes, revision, origin)"
            " values (77, %s, 'young', %s, %s, 'api') on conflict do nothing",
            *(before.id, keys.SCOPE_INGEST, before.ingest_revision),
        )
        await sign(self, *rest, **more)

    monkeypatch.setattr(Rotations, "write", write)
    await up_place.passes()
    [served] = [one for one in up_place.ingest_binding().tenants if one.tenant == before.id]

    assert (await row_of(up_place)).ingest_revision > before.ingest_revision
    assert str(before.ingest_revision) in served.secrets


async def test_the_folder_s_own_key_is_signed_with_the_root_of_its_revision(own_place, monkeypatch):
    await made(own_place)
    await own_place.apply(tenant(suspend=True))
    await own_place.control.ask(rotations.ROOTS, 0)
    await own_place.passes(4)
    stored = own_place.site
    monkeypatch.setattr(admin, "site_of", lambda s, _: site_of(stored.store, stored.journal, s))
    monkeypatch.setattr(own_place.folder, "ports", lambda: None)

    _, text = await admin.address(own_place.folder, "acme")
    found, row = keys.decode(text), await row_of(own_place)

    assert own_place.folder.read_secrets().used == 2
    root = own_place.cluster._tenancy.site.sign_root(row, found.key.revision)
    assert keys.is_signed(found, keys.secret_of(found.key, root))
