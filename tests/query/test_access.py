"""Who may read what: keys, scopes, pipelines, tenants."""

from __future__ import annotations

import base64
import time

import httpx2
import msgspec
import pytest
from builders import record
from querying import holding
from serving import until
from tailing import refusal

from logweir.core import errors, keys
from logweir.core.names import PipelineId, TenantId
from logweir.query import access

ROOT = bytes(range(32))
OTHER_ROOT = bytes(reversed(range(32)))
NOW_S = 1_770_000_000.0

TENANT = access.Tenant(
    id=TenantId("acme"),
    is_deleting=False,
    reader_slot="a",
    reader_revision=1,
    redis_revision=1,
    ingest_revision=3,
    access_revision=4,
    concurrency=8,
    scan_bytes=1 << 30,
    pipelines={
        PipelineId(n): access.Pipeline(PipelineId(n), name, 30)
        for n, name in ((1, "web"), (2, "jobs"))
    },
)
KEY = keys.ApiKey(TENANT.id, 7, PipelineId(0), keys.SCOPE_QUERY, 0, 4)
DIRECTORY = access.Directory(
    as_of_s=NOW_S, tenants={TENANT.id: TENANT}, keys={7: access.KnownKey(TENANT.id, False)}
)


def text_of(key: keys.ApiKey, root: bytes = ROOT) -> str:
    if key.is_ingest:
        return keys.encode(key, keys.ingest_secret(root, key.tenant, key.revision))
    return keys.encode(key, keys.access_secret(root, key.revision))


def headers_of(text: str, **more: str) -> dict[bytes, bytes]:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in more.items()}
    return {b"authorization": f"Bearer {text}".encode()} | named


def check(text: str, directory: access.Directory = DIRECTORY, **options) -> access.Grant:
    return access.check(directory, ROOT, headers_of(text), NOW_S, **options)


# ---- the rules -------------------------------------------------------------------------------


def test_a_key_for_all_pipelines_grants_all_of_its_tenant():
    grant = check(text_of(KEY))

    assert (grant.tenant, set(grant.pipelines), grant.only) == (TENANT, {1, 2}, None)


def test_a_key_for_one_pipeline_grants_that_one():
    grant = check(text_of(msgspec.structs.replace(KEY, pipeline=PipelineId(2))))

    assert (set(grant.pipelines), grant.only) == ({2}, 2)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({b"authorization": b"bearer %s"}, id="Bearer in any case"),
        pytest.param({b"x-api-key": b"%s"}, id="X-API-Key"),
        pytest.param({b"authorization": b"Basic %s"}, id="the password of Basic"),
    ],
)
def test_a_key_is_taken_from_every_place_that_is_documented(headers):
    text = text_of(KEY).encode()
    [(name, form)] = headers.items()
    value = base64.b64encode(b"any:" + text) if b"Basic" in form else text

    grant = access.check(DIRECTORY, ROOT, {name: form % value}, NOW_S)

    assert grant.key_id == 7


def changed(**fields) -> keys.ApiKey:
    return msgspec.structs.replace(KEY, **fields)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="none"),
        pytest.param("lwa_", id="only a prefix"),
        pytest.param(text_of(KEY)[:-1], id="cut"),
        pytest.param(text_of(KEY)[:20] + "x" + text_of(KEY)[21:], id="a typo"),
        pytest.param(text_of(KEY, OTHER_ROOT), id="forged"),
        pytest.param(text_of(changed(expires_at_s=int(NOW_S))), id="expired"),
        pytest.param(text_of(changed(tenant=TenantId("nobody"))), id="of no tenant"),
        pytest.param(text_of(changed(pipeline=PipelineId(9))), id="of a pipeline that is gone"),
        pytest.param(text_of(changed(key_id=8, revision=3)), id="unknown and of an old revision"),
    ],
)
def test_whatever_is_wrong_with_a_key_has_one_answer(text):
    with pytest.raises(errors.UnauthorizedError) as found:
        check(text)

    assert str(found.value) == str(errors.UnauthorizedError())


def test_a_key_that_was_made_since_the_last_look_is_good():
    assert check(text_of(changed(key_id=8))).key_id == 8


def test_a_known_key_of_an_older_revision_is_good_until_it_is_revoked():
    assert check(text_of(changed(revision=2))).key_id == 7


def test_a_revoked_key_is_refused():
    gone = msgspec.structs.replace(DIRECTORY, keys={7: access.KnownKey(TENANT.id, True)})

    with pytest.raises(errors.UnauthorizedError):
        check(text_of(KEY), gone)


def test_a_key_whose_id_belongs_to_another_tenant_is_refused():
    foreign = access.Directory(
        NOW_S, DIRECTORY.tenants, {7: access.KnownKey(TenantId("other"), False)}
    )

    with pytest.raises(errors.UnauthorizedError):
        check(text_of(KEY), foreign)


INGEST = changed(scopes=keys.SCOPE_INGEST, revision=3)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(INGEST, id="an ingest key"),
        pytest.param(changed(scopes=keys.SCOPE_ADMIN), id="an access key without the scope"),
    ],
)
def test_a_key_without_the_scope_is_forbidden(key):
    with pytest.raises(errors.ForbiddenError):
        check(text_of(key))


def test_an_ingest_key_is_good_for_receipts():
    assert check(text_of(INGEST), with_ingest=True).tenant == TENANT


def test_an_ingest_key_that_the_access_secret_signed_is_refused():
    forged = keys.encode(INGEST, keys.access_secret(ROOT, 3))

    with pytest.raises(errors.UnauthorizedError):
        check(forged, with_ingest=True)


def test_a_tenant_that_is_being_deleted_is_forbidden():
    deleting = msgspec.structs.replace(TENANT, is_deleting=True)
    directory = msgspec.structs.replace(DIRECTORY, tenants={TENANT.id: deleting})

    with pytest.raises(errors.ForbiddenError, match="deleted"):
        check(text_of(KEY), directory)


@pytest.mark.parametrize(
    ("org", "error"),
    [
        pytest.param("acme", None, id="the own tenant"),
        pytest.param(" acme ", None, id="with spaces"),
        pytest.param("other", errors.UnauthorizedError, id="another tenant"),
        pytest.param("acme|other", errors.BadRequestError, id="several tenants"),
    ],
)
def test_the_named_organisation_must_be_the_keys_tenant(org, error):
    headers = headers_of(text_of(KEY), x_scope_orgid=org)

    if error is None:
        assert access.check(DIRECTORY, ROOT, headers, NOW_S).tenant == TENANT
    else:
        with pytest.raises(error):
            access.check(DIRECTORY, ROOT, headers, NOW_S)


@pytest.mark.parametrize(
    ("age_s", "is_good"),
    [pytest.param(900.0, True, id="old"), pytest.param(900.1, False, id="stale")],
)
def test_nobody_is_let_in_when_nothing_was_heard_of_revocations_for_a_quarter_of_an_hour(
    age_s, is_good
):
    headers = headers_of(text_of(KEY))

    if is_good:
        assert access.check(DIRECTORY, ROOT, headers, NOW_S + age_s).key_id == 7
    else:
        with pytest.raises(errors.UnavailableError):
            access.check(DIRECTORY, ROOT, headers, NOW_S + age_s)


def test_nobody_is_let_in_before_the_control_schema_was_read():
    with pytest.raises(errors.UnavailableError):
        check(text_of(KEY), access.Directory())


# ---- over HTTP -------------------------------------------------------------------------------

PATHS = ["query", "histogram", "labels", "labels/service/values", "fields"]


@pytest.mark.parametrize("path", [*PATHS, "receipts/00000000-0000-7000-8000-000000000000.0"])
async def test_every_endpoint_asks_for_a_key(role, path):
    async with httpx2.AsyncClient() as client:
        answer = await client.get(f"{role.url}/api/v1/{path}")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("path", PATHS)
async def test_no_endpoint_reads_for_an_ingest_key(role, empty_keys, path):
    headers = {"x-api-key": empty_keys.ingest}
    async with httpx2.AsyncClient(headers=headers) as client:
        answer = await client.get(f"{role.url}/api/v1/{path}")

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "forbidden"


@pytest.fixture
async def two(make_tenant):
    """A tenant with records in two pipelines."""
    tenant = await make_tenant(pipelines=["default", "other"])
    for name, one in tenant.pipelines.items():
        await tenant.store_records([record(f"of {name}", service=name)], pipeline=one.id)
    return tenant


async def test_a_key_of_a_pipeline_sees_the_records_of_that_pipeline(two, client_of):
    client = await client_of(await two.api_key(keys.SCOPE_QUERY, two.pipelines["other"].id))

    found = (await client.get("/api/v1/query")).json()["records"]
    asked = (await client.get("/api/v1/query", params={"query": '{pipeline="default"}'})).json()
    values = (await client.get("/api/v1/labels/pipeline/values")).json()["values"]
    services = (await client.get("/api/v1/labels/service/values")).json()["values"]

    assert [one["message"] for one in found] == ["of other"]
    assert asked["records"] == []
    assert values == [{"value": "other", "count": 1}]
    assert services == [{"value": "other", "count": 1}]


async def test_a_tenant_sees_nothing_of_another(two, make_tenant, client_of):
    other = await make_tenant()
    client = await client_of(await other.api_key(keys.SCOPE_QUERY))

    assert (await client.get("/api/v1/query")).json()["records"] == []
    assert (await client.get("/api/v1/labels")).json()["labels"] == []


async def test_a_revoked_key_is_refused_soon(tenant, client):
    began_s = time.monotonic()
    await tenant.control.revoke_api_keys(tenant.id, [])

    async def is_refused() -> bool:
        return (await client.get("/api/v1/query")).status_code == 401

    await until(is_refused)
    assert time.monotonic() - began_s < 5


async def test_a_tenant_that_is_being_deleted_is_forbidden_soon(tenant, client, role, query_key):
    await tenant.control.set_tenant(tenant.id, "draining", 30, {})

    async def is_forbidden() -> bool:
        return (await client.get("/api/v1/query")).status_code == 403

    await until(is_forbidden)
    assert (await refusal(role, query_key)).status_code == 403


async def test_a_tenant_over_its_concurrency_is_told_when_to_come_again(tenant, client_of):
    await tenant.control.set_tenant(tenant.id, "active", 30, {"quotas": {"queryConcurrency": 2}})
    client = await client_of(await tenant.api_key(keys.SCOPE_QUERY), tenant)
    async with holding(tenant, client, queries=2):
        answer = await client.get("/api/v1/query")

    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "queryConcurrency" in answer.json()["error"]["hint"]


async def test_a_quota_that_is_raised_is_given_at_once(tenant, query_key, client_of):
    await client_of(query_key)
    await tenant.control.set_tenant(tenant.id, "active", 30, {"quotas": {"queryConcurrency": 14}})
    client = await client_of(query_key, tenant)

    async with holding(tenant, client, queries=14) as tasks:
        pass

    assert {task.result().status_code for task in tasks} == {200}
