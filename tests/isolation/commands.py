"""All commands of a Redis or Valkey, by its own word, and ways to call each with certain keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import world
from intruding import User

from logweir.core.binding import Login

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
