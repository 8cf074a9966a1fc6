"""What roles of `up` are told to serve, and how long collectors wait for company."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reconciling import pipeline, tenant

from logweir_operator import bindings, manifest


def linger_s(within_s: float) -> float:
    return bindings.linger_s(manifest.resource(pipeline(slo={"queryableWithinSeconds": within_s})))


@pytest.mark.parametrize(
    ("within_s", "expected_s"), [(2.0, 0.5), (0.1, 0.2), (8.0, 2.0), (3600.0, 10.0)]
)
def test_records_wait_for_a_quarter_of_the_time_that_is_promised(within_s, expected_s):
    assert linger_s(within_s) == expected_s


@given(within_s=st.floats(0.001, 3600))
def test_records_never_wait_for_longer_than_ten_seconds(within_s):
    assert bindings.MIN_LINGER_S <= linger_s(within_s) <= bindings.MAX_LINGER_S


async def test_each_tenant_has_logins_and_secrets_of_its_own(up_place):
    await up_place.apply(tenant("a"), pipeline("x", "a"), tenant("b"), pipeline("y", "b"))
    await up_place.passes()
    ingest, collector = up_place.ingest_binding().tenants, up_place.collector_binding().tenants

    assert len({one.login.password for one in ingest}) == 2
    assert len({one.store_login.password for one in collector}) == 2
    assert len({secret for one in ingest for secret in one.secrets.values()}) == 2
    assert not {one.login.user for one in ingest} & {one.journal_login.user for one in collector}


async def test_labels_and_retention_of_a_pipeline_reach_ingest(up_place):
    await up_place.apply(tenant(), pipeline(labels=["http.status"], retention={"days": 3}))
    await up_place.passes()
    [[mine]] = [one.pipelines for one in up_place.ingest_binding().tenants]

    assert (mine.labels, mine.retention_days) == (("http.status",), 3)


async def test_binding_files_are_for_their_owner_alone(up_place):
    await up_place.passes()

    for name in ("ingest", "collector", "query", "keeper", "auth"):
        found = (up_place.folder.bindings / f"{name}.json").stat()
        assert found.st_mode & 0o077 == 0
