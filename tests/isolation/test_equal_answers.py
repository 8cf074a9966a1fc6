"""What is another tenant's is answered as what does not exist: byte for byte, and in equal time."""

from __future__ import annotations

import contextlib
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import world
from builders import record
from isolation import asking, credentials, surface
from serving import Role, serving

from logweir.backends import provision
from logweir.core import access, errors, ids, keys
from logweir.core.names import TenantId
from logweir.core.record import RecordId
from logweir.core.scan import Bound
from logweir.ingest import admission
from logweir.query import cursor
from logweir.query.params import Window
from logweir.runtime import watch

PAIRS = 300
"""Of requests whose times are compared, one of each kind right after the other."""

UNFAIR = 0.15
"""How much more often than half of the pairs one kind may be the slower one: five times the error
of chance. Both of a pair meet the same load of the machine."""

NOTICEABLE_S = 20e-6
NOTICEABLE_SHARE = 0.05
"""A difference of medians that is smaller is no news to anybody."""

PATH = "/ingest"


class Sent(msgspec.Struct, frozen=True):
    """A request."""

    role: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "GET"


class Pair(msgspec.Struct, frozen=True):
    """The same request, once for what is B's and once for what nobody has."""

    foreign: Sent
    nobody: Sent


class Place(msgspec.Struct):
    a: world.Tenant
    b: world.Tenant
    nobody: TenantId
    send: str
    read: str
    admin: str
    receipt: str


def _key(text: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {text}")


def _forged(place: Place, tenant: TenantId, scopes: int) -> tuple[str, str]:
    return _key(keys.encode(credentials.api_key(tenant, scopes), credentials.OTHER_ROOT))


def _cursor(tenant: TenantId) -> str:
    bound = Bound(RecordId(2, 3, 0), is_backward=True)
    return cursor.encode(cursor.Cursor(bound, Window(1, 3)), tenant, "{}")


PAIRS_OF: dict[str, Callable[[Place, TenantId, bool], Sent]] = {
    "sent to another's address": lambda p, other, _: Sent(
        "ingest", f"/t/{other}/default/ingest", (_key(p.send),), "POST"
    ),
    "sent to a pipeline that only another has": lambda p, _, is_foreign: Sent(
        "ingest",
        f"/t/{p.a.id}/{'hidden' if is_foreign else 'nought'}/ingest",
        (_key(p.send),),
        "POST",
    ),
    "sent with another's name in the header": lambda p, other, _: Sent(
        "ingest", PATH, (_key(p.send), ("x-scope-orgid", other)), "POST"
    ),
    "sent with a forged key that names another": lambda p, other, _: Sent(
        "ingest", f"/t/{other}/default/ingest", (_forged(p, other, keys.SCOPE_INGEST),), "POST"
    ),
    "asked with a forged key that names another": lambda p, other, _: Sent(
        "query", "/api/v1/query", (_forged(p, other, keys.SCOPE_QUERY),)
    ),
    "asked with another's name in the header": lambda p, other, _: Sent(
        "query", "/api/v1/query", (_key(p.read), ("x-scope-orgid", other))
    ),
    "another's cursor": lambda p, other, _: Sent(
        "query", f"/api/v1/query?cursor={_cursor(other)}", (_key(p.read),)
    ),
    "another's receipt": lambda p, _, is_foreign: Sent(
        "query",
        f"/api/v1/receipts/{p.receipt if is_foreign else _receipt()}",
        (_key(p.read),),
    ),
    "another's key by its name": lambda p, _, is_foreign: Sent(
        "auth", f"/api/v1/keys/{'key-of-b' if is_foreign else 'key-of-n'}", (_key(p.admin),)
    ),
    "keys asked for with a forged key that names another": lambda p, other, _: Sent(
        "auth", "/api/v1/keys", (_forged(p, other, keys.SCOPE_ADMIN),)
    ),
    "another's pipeline in a query": lambda p, _, is_foreign: Sent(
        "query",
        "/api/v1/labels?query=%7Bpipeline%3D%22"
        + ("hidden" if is_foreign else "nought")
        + "%22%7D",
        (_key(p.read),),
    ),
}


def _receipt() -> str:
    return str(ids.Receipt(world.new_uuid(), 0))


def pair(name: str, place: Place) -> Pair:
    make = PAIRS_OF[name]
    return Pair(make(place, place.b.id, True), make(place, place.nobody, False))


@pytest.fixture
async def place(make_tenant) -> Place:
    a = await make_tenant(pipelines=["default", "second"])
    b = await make_tenant(pipelines=["default", "hidden"])
    for one in (a, b):
        for pipeline in one.pipelines.values():
            [uuid] = await one.store_records([record("x")], pipeline=pipeline.id)
    nobody = TenantId("n" * len(b.id))
    send = await a.api_key(keys.SCOPE_INGEST, a.pipeline)
    read = await a.api_key(keys.SCOPE_QUERY)
    admin = await a.api_key(keys.SCOPE_ADMIN)
    await b.api_key(keys.SCOPE_QUERY, name="key-of-b")
    await provision.bootstrap_auth_user(a.redis, a.roots)
    return Place(a, b, nobody, send, read, admin, str(ids.Receipt(uuid, 0)))


@pytest.fixture
async def ask(place: Place, tmp_path) -> AsyncIterator[Callable[[Sent], Any]]:
    """Sends a request to its role, bound to both tenants."""
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for one in surface.APPLICATIONS:
            binding = one.binding(place.a, place.b)
            role: Role = await stack.enter_async_context(
                serving(one.run, tmp_path, binding, one.name)
            )
            clients[one.name] = asking.Client(role.url)
            stack.push_async_callback(clients[one.name].close)

        async def ask(sent: Sent) -> asking.Answer:
            body = b'{"message":"x","level":"info","service":"x"}'
            return await clients[sent.role].ask(sent.method, sent.target, sent.headers, body)

        yield ask


_CHANGING = re.compile(
    rb'"(elapsed_ms|receipt)":("[^"]*"|[0-9.]+)|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.0|key-of-.'
)


def comparable(answer: asking.Answer) -> bytes:
    """All of an answer but for what differs from one request to the next."""
    return _CHANGING.sub(b"", answer.without(b"content-length"))


@pytest.mark.parametrize("name", PAIRS_OF)
async def test_what_is_another_s_is_answered_as_what_is_nobody_s(place, ask, name):
    both = pair(name, place)
    foreign, nobody = await ask(both.foreign), await ask(both.nobody)

    assert comparable(foreign) == comparable(nobody)
    assert place.b.id.encode() not in foreign.body


@pytest.mark.parametrize("name", PAIRS_OF)
async def test_neither_takes_longer_than_the_other(place, ask, name):
    both = pair(name, place)
    rng, foreign_s, nobody_s = random.Random(name), [], []
    for _ in range(PAIRS):
        kinds = [(both.foreign, foreign_s), (both.nobody, nobody_s)]
        rng.shuffle(kinds)
        for sent, times_s in kinds:
            began_s = time.perf_counter()
            await ask(sent)
            times_s.append(time.perf_counter() - began_s)
    slower = sum(one > other for one, other in zip(foreign_s, nobody_s, strict=True)) / PAIRS
    middle_s = statistics.median(nobody_s)
    apart_s = abs(statistics.median(foreign_s) - middle_s)
    is_noise = apart_s <= max(NOTICEABLE_S, NOTICEABLE_SHARE * middle_s)
    assert abs(slower - 0.5) <= UNFAIR or is_noise, (slower, apart_s, middle_s)


# ---- the work of the decision ----------------------------------------------------------------


def calls_of(decide: Callable[[], object]) -> Counter[str]:
    """How often a decision calls each function that computes with a secret."""
    found: Counter[str] = Counter()

    def count(_: object, event: str, argument: Any) -> None:
        name = getattr(argument, "__name__", "")
        if event == "c_call" and ("digest" in name or "hmac" in name.lower()):
            found[name] += 1

    keys.is_signed.cache_clear()
    sys.setprofile(count)
    try:
        with contextlib.suppress(errors.UnauthorizedError):
            decide()
    finally:
        sys.setprofile(None)
    return found


async def test_ingest_computes_the_same_for_a_tenant_that_is_there_and_one_that_is_not(place):
    known = admission.directory(surface.APPLICATIONS[0].binding(place.a, place.b))

    def work(tenant: TenantId) -> Counter[str]:
        headers = {b"authorization": _forged(place, tenant, keys.SCOPE_INGEST)[1].encode()}
        return calls_of(
            lambda: admission.admit(known, (tenant, "default"), headers, time.time(), {})
        )

    assert work(place.b.id) == work(place.nobody)
    assert work(place.b.id).total() >= 2


@pytest.mark.parametrize("scopes", [keys.SCOPE_INGEST, keys.SCOPE_QUERY])
async def test_query_computes_the_same_for_a_tenant_that_is_there_and_one_that_is_not(
    place, scopes
):
    directory = watch.directory(
        await place.a.control.tenants(),
        await place.a.control.pipelines(),
        await place.a.control.api_keys(),
        time.time(),
    )

    def work(tenant: TenantId) -> Counter[str]:
        headers = {b"authorization": _forged(place, tenant, scopes)[1].encode()}
        root = place.a.roots.sign
        return calls_of(
            lambda: access.grant(directory, {1: root}, headers, time.time(), scopes=scopes)
        )

    assert work(place.b.id) == work(place.nobody)
    assert work(place.b.id).total() >= 3
