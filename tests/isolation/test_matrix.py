"""The matrix: every address, with every credential, naming a tenant in every place there is.

Addresses come from the applications' own route tables (surface.py), what is allowed from one
written table (allowed.py), and real roles answer over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import ingest_door
import msgspec
import pytest
import world
from builders import record
from isolation import allowed, asking, credentials, surface
from serving import Role, serving

from logweir.backends import provision
from logweir.core import ids, keys

CLIENTS = 6
"""Requests that are under way at once; a tenant may run 8 queries."""


KEY_OF_A, KEY_OF_B = "key-of-a", "key-of-b"


class Case(msgspec.Struct, frozen=True):
    """One request, and the status that the table says."""

    route: surface.Route
    method: str
    who: str
    carrier: str
    place: str
    status: int

    def __str__(self) -> str:
        return (
            f"{self.route.application} {self.method} {self.route.path}, {self.who!r}"
            f" as {self.carrier}, {self.place}"
        )


def cases(names: list[str]) -> Iterator[Case]:
    """All cases for credentials of these names."""
    table, access = allowed.addresses(), allowed.access()
    for application in surface.APPLICATIONS:
        for route in application.routes():
            own = [one for one in table if (one.role, one.path) == (route.application, route.path)]
            assert own, f"{route} is in no line of allowed.ADDRESSES"
            for method in (*surface.METHODS, surface.SOCKET):
                fitting = [
                    one for one in table if one.fits(*msgspec.structs.astuple(route), method)
                ]
                yield from _cases_of(route, method, fitting[0], access[fitting[0].access], names)


def _cases_of(
    route: surface.Route,
    method: str,
    address: allowed.Address,
    access: dict[str, dict[str, str]],
    names: list[str],
) -> Iterator[Case]:
    for who in names:
        cells = access.get(who, access["*"])
        for place in _places(access["*"], route, method):
            cell = cells[place]
            is_let_in = cell == allowed.LET_IN
            is_owner = who.startswith("other's")
            status = address.status(place, is_owner) if is_let_in else int(cell)
            for carrier in _carriers(who, address):
                yield Case(route, method, who, carrier, place, status)


def _places(known: Any, route: surface.Route, method: str) -> Iterator[str]:
    """Places that the class of access has and this address can name a tenant in."""
    has = {
        "body": method not in ("GET", "HEAD", surface.SOCKET),
        "path": "{tenant}" in route.path,
        "pipeline": "{pipeline}" in route.path,
        "nobody": "{tenant}" in route.path,
        "receipt": "{receipt}" in route.path,
        "key": "{name}" in route.path,
    }
    return (place for place in known if has.get(place, True))


def _carriers(who: str, address: allowed.Address) -> list[str]:
    """Where a key makes a difference it is sent in each way; elsewhere in one."""
    matters = address.methods not in ("other", "every") and address.access != "closed"
    return list(credentials.CARRIERS) if matters and who != "none" else ["Bearer"]


class World(msgspec.Struct):
    """Tenant A, tenant B, and what is known of both."""

    a: world.Tenant
    b: world.Tenant
    credentials: dict[str, credentials.Credential]
    receipts: dict[str, str]
    cursor: str
    """Of B."""

    numbers: Iterator[int]
    """Of keys that are made."""

    canaries: dict[str, bytes]
    """By tenant: what stands in each of its texts, and nobody else may see."""


class Asker:
    """Makes the request of a case, and sends it."""

    def __init__(self, of: World, roles: dict[str, Role]) -> None:
        self._of = of
        self._numbers = of.numbers
        self._clients = {name: asking.Client(role.url) for name, role in roles.items()}

    async def ask(self, case: Case) -> asking.Answer:
        client = self._clients[case.route.application]
        target, headers = self._target(case), self._headers(case)
        if case.method == surface.SOCKET:
            return await client.open_socket(target, headers)
        return await client.ask(case.method, target, headers, self._body(case))

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    def _target(self, case: Case) -> str:
        a, b = self._of.a.id, self._of.b.id
        filled = case.route.path.replace("{name:path}", "service").format(
            tenant={"path": b, "nobody": "nobody-at-all"}.get(case.place, a),
            pipeline="hidden" if case.place == "pipeline" else "default",
            receipt=self._of.receipts[b if case.place == "receipt" else a],
            name=self._key_name(case),
        )
        asked = {
            "query": f"tenant={b}",
            "selector": "query=" + quote(f'{{tenant="{b}",pipeline="hidden"}}'),
            "cursor": f"cursor={self._of.cursor}",
        }.get(case.place)
        return f"{filled}?{asked}" if asked else filled

    def _key_name(self, case: Case) -> str:
        if case.place == "key" and (case.method == "GET" or case.who != "other's admin"):
            return KEY_OF_B
        return KEY_OF_A if case.method == "GET" else "nought"

    def _headers(self, case: Case) -> list[tuple[str, str]]:
        a, b = self._of.a.id, self._of.b.id
        named = {"own": [a], "other": [b], "several": [f"{a}|{b}"], "twice": [a, b]}
        found = [("x-scope-orgid", value) for value in named.get(case.place, [])]
        if case.who != "none":
            found.append(credentials.CARRIERS[case.carrier](self._of.credentials[case.who].text))
        if case.route.application == "query" and case.place == "body":
            found.append(("content-type", "application/x-www-form-urlencoded"))
        return found

    def _body(self, case: Case) -> bytes:
        if case.method in ("GET", "HEAD"):
            return b""
        if case.route.application == "query":
            return f"tenant={self._of.b.id}".encode() if case.place == "body" else b""
        if case.route.application == "auth":
            if case.place == "body":
                return json.dumps({"tenant": self._of.b.id}).encode()
            made = {"name": f"made-{next(self._numbers)}", "scopes": ["query"]}
            return b"" if "{name}" in case.route.path else json.dumps(made).encode()
        sent = record(f"by {self._of.credentials[case.who].owner}")
        return json.dumps(
            sent | ({"tenant": self._of.b.id} if case.place == "body" else {})
        ).encode()


def _canaries(tenant: world.Tenant) -> dict[str, Any]:
    """Fields of a record, each with a text that stands in no other tenant's."""
    name = tenant.id.encode().hex()
    return {
        "message": f"canary-message-{name}",
        "service": f"canary-service-{name}",
        "host": f"canary-host-{name}",
        "labels": {f"canary_label_{name}": f"canary-value-{name}"},
        "metadata": {f"canary-attribute-{name}": f"canary-attribute-value-{name}"},
        "trace_id": f"{name:0>32.32}",
    }


async def _made(a: world.Tenant, b: world.Tenant) -> World:
    found = await credentials.all_kinds(a, b)
    await a.api_key(keys.SCOPE_QUERY, name=KEY_OF_A)
    await b.api_key(keys.SCOPE_QUERY, name=KEY_OF_B)
    await provision.bootstrap_auth_user(a.redis, a.roots)
    receipts, canaries = {}, {}
    for tenant in (a, b):
        fields = _canaries(tenant)
        for one in tenant.pipelines.values():
            for _ in range(2):
                [uuid] = await tenant.store_records([record(**fields)], pipeline=one.id)
        receipts[tenant.id] = str(ids.Receipt(uuid, 0))
        canaries[tenant.id] = tenant.id.encode().hex().encode()
    return World(a, b, found, receipts, "", itertools.count(1), canaries)


@contextlib.asynccontextmanager
async def _running(of: World, folder: Any) -> AsyncIterator[dict[str, Role]]:
    """All roles, each bound to both tenants."""
    async with contextlib.AsyncExitStack() as stack:
        yield {
            one.name: await stack.enter_async_context(
                serving(one.run, folder, one.binding(of.a, of.b), one.name)
            )
            for one in surface.APPLICATIONS
        }


async def _cursor(of: World, roles: dict[str, Role]) -> str:
    client = asking.Client(roles["query"].url)
    key = of.credentials["other's query"].text
    answer = await client.ask("GET", "/api/v1/query?limit=1", [("x-api-key", key)])
    await client.close()
    found: str = json.loads(answer.body)["cursor"]
    return found


@pytest.mark.timeout(240)
async def test_every_case_of_the_matrix_is_answered_as_the_table_says(
    make_tenant, tmp_path, capsys
):
    of = await _made(
        await make_tenant(pipelines=["default", "second"]),
        await make_tenant(pipelines=["default", "hidden"]),
    )
    todo = list(cases(list(of.credentials)))
    wrong: list[str] = []
    async with _running(of, tmp_path) as roles:
        of.cursor = await _cursor(of, roles)
        queue = iter(todo)

        async def work() -> None:
            asker = Asker(of, roles)
            for case in queue:
                wrong.extend(_problems(of, case, await asker.ask(case)))
            await asker.close()

        await asyncio.gather(*(work() for _ in range(CLIENTS)))
    wrong += await _strangers(of)
    left = [one for one in await of.b.control.api_keys() if one.tenant == of.b.id]
    assert [one.name for one in left if one.revoked_at is not None] == []

    by_role = Counter(one.route.application for one in todo)
    with capsys.disabled():
        print(f"\nmatrix: {len(todo)} cases, {dict(by_role)}, {len(wrong)} wrong")
    assert wrong[:20] == []
    assert len(todo) > 4000


def _problems(of: World, case: Case, answer: asking.Answer) -> Iterator[str]:
    if answer.status != case.status:
        yield f"{case}: {answer.status}, not {case.status}: {answer.body[:200]!r}"
    owner = of.credentials[case.who].owner
    for tenant, canary in of.canaries.items():
        if tenant != owner and canary in answer.head + answer.body:
            yield f"{case}: shows data of {tenant}"


async def _strangers(of: World) -> list[str]:
    """What stands in a tenant's journal and was sent with another one's key."""
    return [
        f"{tenant.id} got a record {found['message']!r}"
        for tenant in (of.a, of.b)
        for one in tenant.pipelines.values()
        for found in await ingest_door.stored(tenant, one.id)
        if found["message"] != f"by {tenant.id}"
    ]
