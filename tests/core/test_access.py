"""Who may do what, from a directory of the control schema: keys, scopes, pipelines, tenants."""

from __future__ import annotations

import base64

import msgspec
import pytest

from logweir.core import access, errors, keys
from logweir.core.names import PipelineId, TenantId

ROOT = bytes(range(32))
OTHER_ROOT = bytes(reversed(range(32)))
ROOTS = {1: ROOT}
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
    return access.grant(directory, ROOTS, headers_of(text), NOW_S, **options)


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

    grant = access.grant(DIRECTORY, ROOTS, {name: form % value}, NOW_S)

    assert grant.key_id == 7


def changed(**fields) -> keys.ApiKey:
    return msgspec.structs.replace(KEY, **fields)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="none"),
        pytest.param("a" * 100, id="no key at all"),
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


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("lwa_", id="only a prefix"),
        pytest.param(text_of(KEY)[:-1], id="cut"),
        pytest.param(text_of(KEY)[:20] + "x" + text_of(KEY)[21:], id="a wrong letter"),
    ],
)
def test_a_typo_is_called_one(text):
    with pytest.raises(errors.UnauthorizedError, match="mistyped"):
        check(text)


def test_a_key_that_was_made_since_the_last_look_is_good():
    assert check(text_of(changed(key_id=8))).key_id == 8


def test_a_known_key_of_an_older_revision_is_good_until_it_is_revoked():
    assert check(text_of(changed(revision=2))).key_id == 7


ADMIN = changed(scopes=keys.SCOPE_ADMIN)


def administer(key: keys.ApiKey) -> access.Grant:
    return access.administer(DIRECTORY, ROOTS, headers_of(text_of(key)), NOW_S)


@pytest.mark.parametrize("scopes", [keys.SCOPE_ADMIN, keys.SCOPE_ADMIN | keys.SCOPE_QUERY])
def test_an_admin_key_administers_its_tenant(scopes):
    found = administer(msgspec.structs.replace(ADMIN, scopes=scopes))

    assert (found.tenant, found.key_id) == (TENANT, 7)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"scopes": keys.SCOPE_QUERY}, id="without the scope"),
        pytest.param({"scopes": keys.SCOPE_INGEST, "revision": 3}, id="of the other class"),
        pytest.param({"pipeline": PipelineId(1)}, id="of one pipeline"),
    ],
)
def test_no_lesser_key_administers(fields):
    with pytest.raises(errors.ForbiddenError) as found:
        administer(msgspec.structs.replace(ADMIN, **fields))

    assert found.value.reason == "scope"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "missing", id="none"),
        pytest.param("a" * 100, "missing", id="no key at all"),
        pytest.param(text_of(KEY)[:-1], "mistyped", id="cut"),
        pytest.param(text_of(KEY, OTHER_ROOT), "unsigned", id="forged"),
        pytest.param(text_of(changed(tenant=TenantId("nobody"))), "unsigned", id="of no tenant"),
        pytest.param(text_of(changed(expires_at_s=int(NOW_S))), "expired", id="expired"),
        pytest.param(text_of(changed(key_id=8, revision=3)), "revoked", id="of an old revision"),
        pytest.param(text_of(changed(pipeline=PipelineId(9))), "elsewhere", id="of no pipeline"),
    ],
)
def test_metrics_are_told_why_and_the_sender_is_not(text, reason):
    with pytest.raises(errors.UnauthorizedError) as found:
        check(text)

    assert found.value.reason == reason
    assert reason == "mistyped" or reason not in found.value.hint


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


RECEIPT = keys.SCOPE_QUERY | keys.SCOPE_INGEST
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
    assert check(text_of(INGEST), scopes=RECEIPT).tenant == TENANT


def test_an_ingest_key_that_the_access_secret_signed_is_refused():
    forged = keys.encode(INGEST, keys.access_secret(ROOT, 3))

    with pytest.raises(errors.UnauthorizedError):
        check(forged, scopes=RECEIPT)


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
        assert access.grant(DIRECTORY, ROOTS, headers, NOW_S).tenant == TENANT
    else:
        with pytest.raises(error):
            access.grant(DIRECTORY, ROOTS, headers, NOW_S)


@pytest.mark.parametrize(
    ("age_s", "is_good"),
    [pytest.param(900.0, True, id="old"), pytest.param(900.1, False, id="stale")],
)
def test_nobody_is_let_in_when_nothing_was_heard_of_revocations_for_a_quarter_of_an_hour(
    age_s, is_good
):
    headers = headers_of(text_of(KEY))

    if is_good:
        assert access.grant(DIRECTORY, ROOTS, headers, NOW_S + age_s).key_id == 7
    else:
        with pytest.raises(errors.UnavailableError):
            access.grant(DIRECTORY, ROOTS, headers, NOW_S + age_s)


def test_nobody_is_let_in_before_the_control_schema_was_read():
    with pytest.raises(errors.UnavailableError):
        check(text_of(KEY), access.Directory())


# ---- rotations -------------------------------------------------------------------------------


YOUNG = msgspec.structs.replace(KEY, key_id=99)
"""A key that the directory does not know yet."""


@pytest.mark.parametrize(
    ("revision", "is_spreading", "is_good"),
    [(4, False, True), (5, False, False), (5, True, True), (6, True, False), (3, True, False)],
)
def test_a_young_key_is_of_the_revision_of_now_or_in_a_rotation_of_the_next(
    revision, is_spreading, is_good
):
    tenant = msgspec.structs.replace(TENANT, is_spreading=is_spreading)
    directory = msgspec.structs.replace(DIRECTORY, tenants={TENANT.id: tenant})
    text = text_of(msgspec.structs.replace(YOUNG, revision=revision))

    if is_good:
        assert check(text, directory).key_id == 99
    else:
        with pytest.raises(errors.UnauthorizedError):
            check(text, directory)


@pytest.mark.parametrize(
    ("revision", "root", "is_good"),
    [(3, ROOT, True), (3, OTHER_ROOT, False), (4, OTHER_ROOT, True), (4, ROOT, False)],
)
def test_a_key_is_checked_by_the_root_of_its_revision_alone(revision, root, is_good):
    tenant = msgspec.structs.replace(TENANT, signed_since=(1, 4))
    directory = msgspec.structs.replace(DIRECTORY, tenants={TENANT.id: tenant})
    headers = headers_of(text_of(msgspec.structs.replace(KEY, revision=revision), root))
    roots = {1: ROOT, 2: OTHER_ROOT}

    if is_good:
        assert access.grant(directory, roots, headers, NOW_S).key_id == 7
        del roots[1 if root is ROOT else 2]
    with pytest.raises(errors.UnauthorizedError):
        access.grant(directory, roots, headers, NOW_S)
