"""Every command that the server knows, as each Redis user of tenant A, on the keys of tenant B.

The arguments are built from what the server says of each command: how many there are, and where
its keys stand. A command that is refused for any other reason than the user's rights hides nothing:
it is refused for those in another shape, or stands in one of the lists below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
import world
from intruding import KINDS, User, append, contents, is_denied, key, rules
from redis import exceptions

from logweir.backends import provision
from logweir.core import names
from logweir.core.binding import Login

CANARY = b"canary-5e1f"

UNCHECKED = {"auth", "hello", "quit", "reset", "unsubscribe"}
"""Everybody may run these (the last one tails): they reach no key, and answer otherwise than by one
reply. RESET has a test in tests/backends/test_acl.py."""

KEYLESS = {"ping", "time", "wait", "client|setname"}
"""What these users are granted and what names no key; none of it says anything of a tenant."""

REFUSED_BEFORE = {"debug", "module", "module|load", "module|loadex", "module|unload", "exec"}
"""Refused to all before rights are looked at: switched off, or in want of a MULTI (refused)."""

SYNTAX = {"xreadgroup": ("GROUP", "g", "c", "STREAMS", "{}", ">")}
"""Commands whose keys are found only in a call that is whole."""

Words = tuple[object, ...]


class Command(msgspec.Struct, frozen=True):
    """A command or a subcommand (`xgroup|create`), and where its keys are."""

    name: str
    arity: int
    specs: list[Mapping[str, Any]]
    is_container: bool

    @property
    def words(self) -> list[str]:
        return self.name.split("|")

    def shapes(self, foreign: str, own: str) -> Iterator[Words]:
        """Ways to call it: B's key in each key's place, own keys before it, everywhere, nowhere."""
        yield self._filled([foreign], "1")
        yield self._filled([own, foreign], "1")
        yield (*self.words, *[foreign] * self._missing)
        yield (*self.words, *["*"] * self._missing)
        yield (*self.words, *["1", foreign, foreign, foreign])
        yield (*self.words, *[foreign, own, "0", "0"])
        if self.name in SYNTAX:
            yield (*self.words, *(word.format(foreign) for word in SYNTAX[self.name]))

    @property
    def _missing(self) -> int:
        """How many words it needs beside its name, one at least where it may have more."""
        return max(abs(self.arity) - len(self.words), 1 if self.arity < 0 else 0)

    def _filled(self, keys: list[str], filler: str) -> Words:
        words: list[object] = [*self.words, *[filler] * self._missing]
        left = list(keys)
        for spec in self.specs:
            begin, find = spec["begin_search"], spec["find_keys"]
            if begin["type"] == "keyword":
                words += [begin["spec"]["keyword"], left[0]]
                continue
            at = begin["spec"].get("index", 1)
            if find["type"] == "keynum":
                at += find["spec"]["firstkey"]
            count = len(left) if find["type"] == "range" and find["spec"]["lastkey"] != 0 else 1
            words += [filler] * (at + count - len(words))
            words[at : at + count] = left[-count:]
        return tuple(words)


def _plain(found: Any) -> Any:
    """A server's answer with text for bytes."""
    if isinstance(found, dict):
        return {_plain(name): _plain(value) for name, value in found.items()}
    return found.decode() if isinstance(found, bytes) else found


async def all_commands(tenant: world.Tenant) -> list[Command]:
    """All that the server knows, subcommands too."""
    admin = User(tenant.journal_server, Login("lw_operator", "operator"))
    found = []
    for entry in await admin.tries("COMMAND"):
        for one in (entry, *entry[9]):
            specs = [_plain(spec) for spec in one[8]]
            found.append(Command(one[0].decode(), one[1], specs, bool(one[9])))
    await admin.close()
    return found


@pytest.fixture
async def two(make_journal_tenant, each_journal) -> Any:
    """Tenant A, and B with something of each kind to steal or break."""
    a, b = await make_journal_tenant(each_journal), await make_journal_tenant(each_journal)
    await append(b, b.appender(), CANARY)
    await b.redis.set(key(b, "t"), CANARY, ex=300)
    await provision.publish_revocations(b.redis, b.id, [1])
    return a, b


@pytest.mark.parametrize("kind", KINDS)
async def test_no_command_of_the_server_does_anything_to_another_tenant(two, kind, capsys):
    a, b = two
    before, settings = await contents(b), await rules(a)
    intruder = User(a.journal_server, a.journal_login(kind))
    tried, hidden, shown, passed = 0, set(), set(), set()
    commands = [one for one in await all_commands(a) if one.name not in UNCHECKED]
    for command in commands:
        answers = []
        for words in dict.fromkeys(command.shapes(key(b, "q"), key(a, "q"))):
            answers.append(await intruder.tries(*words))
            if not isinstance(answers[-1], exceptions.ResponseError):
                passed.add(command.name)
                await intruder.renew()
        tried += len(answers)
        if CANARY.decode() in str(answers):
            shown.add(command.name)
        if not any(map(is_denied, answers)):
            hidden.add(command.name)
    await intruder.close()

    with capsys.disabled():
        print(f"\n{kind}: {len(commands)} commands, {tried} calls", end=" ")
    containers = {one.name for one in commands if one.is_container}
    assert len(commands) > 300
    assert shown == set()
    assert hidden <= KEYLESS | REFUSED_BEFORE | containers
    assert passed <= KEYLESS
    assert await contents(b) == before
    assert await rules(a) == settings


OPEN = ("q", "c", "m", "t", "l", "i:1:1")
"""Endings of a tenant's keys and channels, each with other rights for each user."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", OPEN)
async def test_what_a_user_may_do_it_may_do_to_no_key_of_another(two, kind, ending):
    a, b = two
    granted = {
        word.removeprefix("+") for word in provision.acl_rules(a.id)[kind] if word.startswith("+")
    }
    intruder = User(a.journal_server, a.journal_login(kind))
    for command in await all_commands(a):
        if command.name not in granted - KEYLESS - UNCHECKED:
            continue
        foreign = key(b, ending)
        answers = [await intruder.tries(*words) for words in command.shapes(foreign, foreign)]
        assert any(map(is_denied, answers)), (command.name, answers)
        assert all(isinstance(one, exceptions.ResponseError) for one in answers), command.name
    await intruder.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_name_of_another_tenant_is_shown_by_no_answer_to_a_question_for_all(two, kind):
    a, b = two
    intruder = User(a.journal_server, a.journal_login(kind))
    shapes = [(), ("*",), ("0",), ("all",), ("GET", "*"), ("0", "MATCH", "*"), ("LIST",)]
    for command in await all_commands(a):
        if command.name in UNCHECKED:
            continue
        for rest in shapes:
            answer = str(await intruder.tries(*command.words, *rest))
            assert b.id not in answer, (command.name, rest)
            assert names.journal_tenant(b.id) not in answer, (command.name, rest)
        if command.name in KEYLESS:
            await intruder.renew()
    await intruder.close()
