"""Every command that the server knows, as each Redis user of tenant A, on the keys of tenant B.

The arguments are built from what the server says of each command: how many there are, and where
its keys stand. A command that is refused for any other reason than the user's rights hides nothing:
it is refused for those in another shape, or stands in one of the lists below.
"""

from __future__ import annotations

from typing import Any

import pytest
from intruding import KINDS, User, append, contents, is_denied, key, rules
from isolation.commands import KEYLESS, REFUSED_BEFORE, UNCHECKED, all_commands
from redis import exceptions

from logweir.backends import provision
from logweir.core import names

CANARY = b"canary-5e1f"


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
