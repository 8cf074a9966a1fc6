"""What each login of tenant A gets when it tries all of statements.toml."""

from __future__ import annotations

import asyncio
import contextlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import world
from builders import record

from logweir.backends import provision, store
from logweir.core import names
from logweir.core.binding import Login

CANARY = "canary-7f6b1c0e"
KINDS = [(kind, slot) for kind in ("w", "r", "k") for slot in ("a", "b")]


class Group(msgspec.Struct):
    """Statements with one outcome."""

    what: str
    outcome: str
    statements: list[str]
    codes: list[str] = []


class Said(msgspec.Struct):
    """What the server answered: everything that reached the client, and an error's code."""

    text: str = ""
    code: str = ""


class Place(msgspec.Struct):
    """Two tenants, and names that statements hold."""

    a: world.Tenant
    b: world.Tenant
    fillings: dict[str, Any]

    @property
    def marks(self) -> list[str]:
        """What stands in all that is B's."""
        return [CANARY, CANARY.encode().hex(), self.b.id, self.b.schema]


GROUPS = [
    msgspec.convert(one, Group)
    for one in tomllib.loads((Path(__file__).parent / "statements.toml").read_text())["group"]
]


@pytest.fixture
async def place(make_tenant, postgres) -> Any:
    a, b = await make_tenant(), await make_tenant()
    rotated = msgspec.structs.replace(
        a.row,
        **{f"{what}_slot": "b" for what in ("writer", "reader", "keeper")},
        **{f"{what}_revision": 2 for what in ("writer", "reader", "keeper")},
        rotation="overlapping",  # while it does, the logins of both slots are good
    )
    provision.provision_store(
        world.operator_conninfo(postgres, a.roots), rotated, a.roots, a.limits
    )
    await b.store_records([record(CANARY, service=CANARY, labels={"x": CANARY})])
    with _superuser(postgres) as connection:
        connection.execute(
            f"insert into {b.schema}.quarantine (reason, payload) values (%s, %s)".encode(),
            [CANARY, CANARY.encode()],
        )
        connection.execute(f"analyze {b.schema}.quarantine".encode())
        [(lo,)] = connection.execute("select lo_from_bytea(0, %s)", [CANARY.encode()]).fetchall()
    with psycopg.connect(b.conninfo("r"), autocommit=True) as session:
        pid = session.info.backend_pid
        yield Place(a, b, {"a": a.schema, "b": b.schema, "lo": lo, "b_pid": pid})
        assert session.execute("select 1").fetchall() == [(1,)]


@contextlib.contextmanager
def _superuser(postgres: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.url(database=provision.DATABASE), autocommit=True) as connection:
        yield connection


def _login(tenant: world.Tenant, kind: str, slot: str) -> str:
    """The connection string of one of six logins."""
    login = names.login(tenant.id, kind, slot)  # type: ignore[arg-type]
    what = {"w": "writer", "r": "reader", "k": "keeper"}[kind]
    row = msgspec.structs.replace(
        tenant.row, **{f"{what}_slot": slot, f"{what}_revision": 1 if slot == "a" else 2}
    )
    found = Login(*provision.tenant_password(tenant.roots, row, kind))  # type: ignore[arg-type]
    assert found.user == login
    return store.conninfo(tenant.store_server, found, "test")


async def tried(conninfo: str, statement: str) -> Said:
    """Try a statement with all that a hostile client may switch on before it."""
    said = Said()
    connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    connection.add_notice_handler(lambda notice: _add(said, _words(notice)))
    async with connection:
        try:
            await connection.execute("set default_transaction_read_only = off")
            if statement.startswith("copy") and "stdout" in statement:
                async with connection.cursor().copy(statement.encode()) as copy:
                    async for data in copy:
                        _add(said, bytes(data).decode())
            else:
                await _run(connection, statement, said)
        except psycopg.Error as error:
            said.code = error.sqlstate or "no code"
            _add(said, _words(error.diag))
    return said


async def _run(connection: psycopg.AsyncConnection[Any], statement: str, said: Said) -> None:
    cursor = await connection.execute(statement.encode())
    while True:
        if cursor.description:
            _add(said, str(await cursor.fetchall()))
        if not cursor.nextset():
            return


def _add(said: Said, text: str) -> None:
    said.text += text


def _words(of: psycopg.errors.Diagnostic) -> str:
    """What an error says that is not a mere echo of what was asked for."""
    return " ".join(filter(None, (of.message_detail, of.message_hint, of.context)))


def problem(group: Group, statement: str, said: Said, place: Place) -> str:
    """What is wrong with an answer; empty when it is as the file says."""
    is_refused = group.outcome == "refused"
    if is_refused and said.code not in group.codes:
        return f"answered {said.code or 'without an error'}: {said.text[:200]}"
    if not is_refused and said.code:
        return f"refused with {said.code}: {said.text[:200]}"
    marks = place.marks[:2] if group.outcome == "names" else place.marks
    shown = [mark for mark in marks if mark in said.text and mark not in statement]
    return f"shows {shown}: {said.text[:200]}" if shown else ""


@pytest.mark.parametrize(("kind", "slot"), KINDS)
async def test_no_statement_of_the_corpus_reaches_another_tenant(place, kind, slot):
    conninfo = _login(place.a, kind, slot)
    statements = [(group, one) for group in GROUPS for one in group.statements]

    found = await asyncio.gather(*(_attempts(conninfo, statements[n::4], place) for n in range(4)))

    assert len(statements) >= 80
    wrong = [one for some in found for one in some]
    assert not wrong, "\n".join(wrong)


async def _attempts(conninfo: str, statements: list[tuple[Group, str]], place: Place) -> list[str]:
    found = []
    for group, text in statements:
        statement = text
        for name, value in place.fillings.items():
            statement = statement.replace(f"{{{name}}}", str(value))
        wrong = problem(group, statement, await tried(conninfo, statement), place)
        found += [f"{text}: {wrong}"] if wrong else []
    return found
