"""Whether the reconciler of `up` is ready: it is as soon as its last pass reached its end."""

from __future__ import annotations

import asyncio

from logweir.core import errors
from logweir.runtime.life import Life
from logweir.standalone import cluster


class Passes:
    """A cluster whose passes end as they are told to; when there are no more, the process stops."""

    is_between_roots = False

    def __init__(self, life: Life, *ends: Exception | None) -> None:
        self._life = life
        self._ends = list(ends)
        self.problems: list[dict[str, str]] = []

    async def bootstrap(self, _superuser: str) -> None:
        await self._end()

    async def reconcile(self) -> None:
        await self._end()

    async def _end(self) -> None:
        self.problems.append(self._life.problems())
        if not self._ends:
            self._life.stopping.set()
            return
        if (error := self._ends.pop(0)) is not None:
            raise error


async def ended(*ends: Exception | None) -> Passes:
    life = Life()
    life.expect("servers", "resources")
    passes = Passes(life, *ends)
    async with asyncio.timeout(20):
        await cluster._reconcile(passes, "superuser", life)
    return passes


async def test_a_first_pass_that_fails_after_the_servers_were_made_is_forgotten_when_one_succeeds(
    monkeypatch,
):
    monkeypatch.setattr(cluster, "PASS_S", 0.001)
    away = errors.UnavailableError("The control schema did not answer.")

    passes = await ended(None, away, None)

    assert passes.problems[-2] == {"resources": "The control schema did not answer."}
    assert passes.problems[-1] == {}


async def test_servers_that_are_not_made_are_named_until_they_are(monkeypatch):
    monkeypatch.setattr(cluster, "PASS_S", 0.001)

    passes = await ended(errors.SetupError("fsync is off."), None, None)

    assert passes.problems[1] == {"servers": "fsync is off.", "resources": "starting"}
    assert passes.problems[-1] == {}
