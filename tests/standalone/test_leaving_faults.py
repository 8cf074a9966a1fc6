"""A reconciler that dies after any change that it makes: the next one comes to the same end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import everything
import pytest
from cutting import Wire
from reconciling import Place, pipeline, tenant

from logweir.backends import provision
from logweir.standalone import accounts, servers
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey

MAX_PASSES = 8
CHANGES = 15
"""Every chapter makes more changes than that, else the test has cut nothing."""

_numbers = itertools.count(1)

Act = Callable[[Place, str], Awaitable[None]]


async def applied(place: Place, name: str, **spec: object) -> None:
    """Apply a tenant with a pipeline, and wait until both are made."""
    await place.apply(tenant(name, **spec), pipeline(f"{name}-web", name))


async def deleted(place: Place, name: str) -> None:
    await place.delete("LogPipeline", f"{name}-web")
    await place.delete("LogTenant", name)


def spec_of(**spec: object) -> Act:
    async def act(place: Place, name: str) -> None:
        await applied(place, name, **spec)

    return act


DELETE, KEEP = spec_of(deletionPolicy="Delete"), spec_of(deletionPolicy="Retain")
AGAIN = spec_of(retention={"days": 7}, displayName="again")

CHAPTERS: dict[str, tuple[list[Act], Act]] = {
    "made": ([], KEEP),
    "made read-only": ([KEEP], spec_of(readOnly=True)),
    "kept": ([KEEP], deleted),
    "adopted": ([KEEP, deleted], AGAIN),
    "dropped": ([DELETE], deleted),
}
"""What has happened to a tenant before, and what happens to it while the reconciler dies."""


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    monkeypatch.setenv("PGOPTIONS", "-c synchronous_commit=off")  # for speed alone
    return Wire(monkeypatch)


async def is_settled(place: Place, name: str) -> bool:
    """Whether nothing is left to do: everything is gone, or ready as of its generation."""
    found = [one for one in await place.control.objects() if name in (one.name, one.name[:-4])]
    return all(
        one.deleted_at is None
        and one.status.get("observedGeneration") == one.generation
        and one.status["conditions"][0]["status"] == "True"
        for one in found
    )


async def settle(place: Place, name: str) -> None:
    for _ in range(MAX_PASSES):
        await place.passes()
        if await is_settled(place, name):
            return
    raise AssertionError([one.status for one in await place.control.objects()])


async def die(place: Place, wire: Wire, name: str, changes: int) -> bool:
    """Let the reconciler go on until it is cut off; false when it has finished before."""
    wire.cut_after(changes)
    try:
        for _ in range(MAX_PASSES):
            try:
                await place.passes()
            except Exception:
                if not wire.is_cut:
                    raise
            if wire.is_cut:
                return True
        return False
    finally:
        wire.mend()


@pytest.fixture(scope="module")
def postgres(places: Path, roots: provision.Roots) -> Iterator[Postgres]:
    """Servers of their own: each story reads catalogs and users, which those of all tests fill."""
    server = Postgres(places / "faults", servers.free_port(), "super", accounts.choose())
    server.start(places / "faults.log")
    provision.bootstrap_store(server.url(), roots)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def valkey(places: Path) -> Iterator[Valkey]:
    server = Valkey(places / "faults-valkey", servers.free_port(), "operator", accounts.choose())
    server.start(places / "faults-valkey.log")
    yield server
    server.stop()


async def tell(place: Place, wire: Wire, chapter: str, changes: int | None) -> tuple[bool, dict]:
    """Bring a new tenant up to a chapter, and through it with a reconciler that dies in it."""
    name = f"t{next(_numbers)}"
    before, act = CHAPTERS[chapter]
    for one in before:
        await one(place, name)
        await settle(place, name)
    await act(place, name)
    is_cut = False
    if changes is not None:
        is_cut = await die(place, wire, name, changes)
        await place.cluster.close()
        place.new_cluster()
    await settle(place, name)
    found = await everything.of_tenant(place, name)
    place.forget()
    return is_cut, found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("chapter", CHAPTERS)
async def test_a_reconciler_that_dies_after_any_change_is_followed_by_one_that_ends_the_same(
    up_place, wire, chapter
):
    began_s = time.monotonic()
    _, expected = await tell(up_place, wire, chapter, None)
    for changes in itertools.count():
        is_cut, found = await tell(up_place, wire, chapter, changes)
        assert found == expected, f"cut after {changes} changes: {wire.last}"
        if not is_cut:
            break

    print(f"{chapter}: {changes} changes, {time.monotonic() - began_s:.0f} s")
    assert changes > CHANGES
