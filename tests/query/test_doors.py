"""Doors of a tenant: closed ones stay closed."""

from __future__ import annotations

import time

import pytest
from tailing import append

from logweir.backends.journal_tail import TailReader
from logweir.core import access, errors, ids
from logweir.query import hub, params, tail
from logweir.query import plan as planning


@pytest.fixture
async def source(tenant):
    found = TailReader(tenant.journal_server, tenant.journal_login("tail"), tenant.id)
    yield found
    await found.close()


@pytest.fixture
def plan(tenant):
    now_ns = time.time_ns()
    known = {tenant.pipeline: access.Pipeline(tenant.pipeline, "default", 30)}
    return planning.plan("{}", params.Window(0, now_ns), known, now_ns)


async def test_a_closed_journal_is_not_asked_again(tenant, source):
    await append(tenant, ["x"])
    assert len(await source.before(tenant.pipeline)) == 1

    await source.close()

    receipt = ids.Receipt(bytes(16), 0)
    for ask in (
        lambda: source.before(tenant.pipeline),
        lambda: source.renew(tenant.pipeline),
        lambda: source.holds(tenant.pipeline, receipt),
    ):
        with pytest.raises(errors.UnavailableError):
            await ask()


async def test_a_closed_store_is_not_asked_again(tenant):
    reader = tenant.reader()
    await reader.close()

    with pytest.raises(errors.UnavailableError):
        async with reader.snapshot():
            raise AssertionError("the store was opened again")


async def test_no_tail_joins_a_closed_hub(tenant, source, plan):
    closed = hub.Hub(source, tenant.reader())
    await closed.close()

    with pytest.raises(errors.UnavailableError):
        await closed.attach(tail.Tail(plan))
    assert not closed.is_running


async def test_a_hub_whose_tails_are_gone_ends(tenant, source, plan, monkeypatch):
    monkeypatch.setattr(hub, "IDLE_S", 0.05)
    one, listening = tail.Tail(plan), hub.Hub(source, tenant.reader())
    await listening.attach(one)
    listening.detach(one)

    assert listening._task is not None
    await listening._task
    assert not listening.is_running
