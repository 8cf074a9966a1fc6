"""Names in PostgreSQL and Redis: no two tenants or roles share one, and all fit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from logweir.core import errors, names
from logweir.core.names import PipelineId, TenantId

TENANT = st.from_regex(r"[a-z][a-z0-9-]{1,30}[a-z0-9]", fullmatch=True).filter(
    lambda text: text != names.PLATFORM
)


def roles(tenant: TenantId) -> list[str]:
    """All that a tenant has in the one name space of PostgreSQL's roles."""
    kinds = itertools.product("wrk", "ab")
    return [names.owner(tenant), *(names.login(tenant, kind, slot) for kind, slot in kinds)]


@given(TENANT)
def test_an_id_of_the_form_is_a_tenants(text):
    assert names.tenant_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("ab", id="too short"),
        pytest.param("a" * 33, id="too long"),
        pytest.param("1abc", id="a digit first"),
        pytest.param("-abc", id="a dash first"),
        pytest.param("abc-", id="a dash last"),
        pytest.param("Abc", id="a capital"),
        pytest.param("a_b", id="an underscore"),
        pytest.param("a|b", id="two tenants"),
        pytest.param("abc\n", id="a line break behind"),
        pytest.param("äbc", id="a letter that is not ASCII"),
        pytest.param("platform", id="the platform's own"),
    ],
)
def test_what_is_no_tenants_id_is_refused(text):
    with pytest.raises(errors.BadRequestError):
        names.tenant_id(text)


@given(TENANT, TENANT)
def test_two_tenants_share_no_name(one, other):
    assume(one != other)

    assert names.schema(one) != names.schema(other)
    assert not set(roles(one)) & set(roles(other))
    assert names.redis_user(one, "in") != names.redis_user(other, "in")
    assert not names.journal_tenant(one).startswith(names.journal_tenant(other))


@given(TENANT)
def test_names_fit_into_postgres(tenant):
    assert len(set(roles(tenant))) == 7
    assert all(len(name.encode()) <= 63 for name in [names.schema(tenant), *roles(tenant)])
    assert names.schema(tenant) != names.CONTROL_SCHEMA


@given(TENANT, st.integers(0, 2**31), st.integers(0, 2**31))
def test_all_keys_of_a_tenant_lie_in_one_slot_under_its_prefix(tenant, one, other):
    first = names.journal_pipeline(tenant, PipelineId(one))
    second = names.journal_pipeline(tenant, PipelineId(other))

    tag = first[first.index("{") : first.index("}") + 1]
    assert first.startswith(names.journal_tenant(tenant))
    assert second.startswith(tag)
    assert (first == second) == (one == other)
    assert tag in {f"{{s{shard:02}}}" for shard in range(names.SHARDS)}
