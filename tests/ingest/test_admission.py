"""Whom ingest lets in, from its binding alone."""

from __future__ import annotations

import msgspec
import pytest

from logweir.core import access, errors, keys
from logweir.core.binding import (
    IngestBinding,
    IngestPipeline,
    IngestTenant,
    JournalServer,
    Login,
)
from logweir.core.names import PipelineId, TenantId
from logweir.ingest import admission

NOW_S = 1_000_000.0
ACME = TenantId("acme")
SECRETS = {1: b"1" * 32, 2: b"2" * 32}
SHOP, AUDIT = (
    IngestPipeline(PipelineId(number), name, 30) for number, name in ((5, "shop"), (6, "audit"))
)


def tenant(*pipelines: IngestPipeline) -> IngestTenant:
    return IngestTenant(
        tenant=ACME,
        journal=JournalServer("127.0.0.1", 1),
        login=Login("user", "password"),
        secrets={str(revision): secret.hex() for revision, secret in SECRETS.items()},
        pipelines=pipelines,
    )


BETA = msgspec.structs.replace(
    tenant(IngestPipeline(PipelineId(7), "beta-shop", 30)), tenant=TenantId("beta")
)
KNOWN = admission.directory(IngestBinding((tenant(SHOP, AUDIT), BETA)))
NEWS = {ACME: admission.News(frozenset({77}), NOW_S - 1)}


def key(**fields) -> str:
    made = keys.ApiKey(ACME, 1, PipelineId(0), keys.SCOPE_INGEST, 0, 1)
    made = msgspec.structs.replace(made, **fields)
    return keys.encode(made, SECRETS[made.revision])


def admit(text: str | None, address=("", ""), known=KNOWN, news=NEWS, now_s=NOW_S):
    headers = {b"x-api-key": text.encode()} if text else {}
    return admission.admit(known, address, headers, now_s, news)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/ingest", ("", "", "/ingest")),
        ("/t/acme/shop/ingest", ("acme", "shop", "/ingest")),
        ("/t/acme/shop/v1/logs", ("acme", "shop", "/v1/logs")),
        ("/t/acme/shop/", ("acme", "shop", "/")),
        ("/t/acme/shop", ("", "?", "/")),
        ("/t/", ("", "?", "/")),
        ("/tea", ("", "", "/tea")),
        ("/t//shop/ingest", ("", "shop", "/ingest")),
    ],
)
def test_a_path_is_split_into_address_and_rest(path, expected):
    assert admission.split_path(path) == expected


@pytest.mark.parametrize("revision", SECRETS)
def test_keys_of_every_signing_revision_in_the_binding_are_good(revision):
    target = admit(key(revision=revision), ("acme", "shop"))

    assert target == admission.Target(ACME, SHOP)


def test_a_key_is_good_until_the_second_it_expires():
    text = key(expires_at_s=int(NOW_S), pipeline=SHOP.id)

    assert admit(text, now_s=NOW_S - 0.1).pipeline == SHOP
    with pytest.raises(errors.UnauthorizedError):
        admit(text, now_s=NOW_S)


@pytest.mark.parametrize("address", [("", "shop"), ("acme", ""), ("other", "shop"), ("", "?")])
def test_half_an_address_is_none(address):
    with pytest.raises(errors.UnauthorizedError):
        admit(key(), address)


def test_a_key_of_one_pipeline_does_not_open_another_by_its_path():
    assert admit(key(pipeline=AUDIT.id), ("acme", "audit")).pipeline == AUDIT
    with pytest.raises(errors.UnauthorizedError):
        admit(key(pipeline=AUDIT.id), ("acme", "shop"))


def test_a_key_for_all_pipelines_is_for_those_of_its_own_tenant():
    assert admit(key(), ("acme", "shop")).pipeline == SHOP
    with pytest.raises(errors.UnauthorizedError):
        admit(key(), ("beta", "beta-shop"))


def test_without_news_of_revoked_keys_nobody_is_let_in_but_told_to_come_back():
    with pytest.raises(errors.UnavailableError):
        admit(key(pipeline=SHOP.id), news={})


def test_news_older_than_a_quarter_of_an_hour_is_none():
    old = {ACME: admission.News(frozenset(), NOW_S - access.STALE_AFTER_S)}

    assert admit(key(pipeline=SHOP.id), news=old).pipeline == SHOP
    with pytest.raises(errors.UnavailableError):
        admit(key(pipeline=SHOP.id), news=old, now_s=NOW_S + 1)


def test_old_news_still_refuses_the_keys_that_it_names():
    with pytest.raises(errors.UnauthorizedError):
        admit(key(key_id=77, pipeline=SHOP.id), now_s=NOW_S + 5000)


def test_a_process_without_news_says_nothing_to_who_has_no_key():
    with pytest.raises(errors.UnauthorizedError):
        admit(key(pipeline=PipelineId(99)), news={})


@pytest.mark.parametrize("secrets", [{"1": "no hex"}, {"one": "00"}])
def test_a_binding_with_a_broken_secret_is_refused(secrets):
    broken = msgspec.structs.replace(tenant(SHOP), secrets=secrets)

    with pytest.raises(errors.SetupError):
        admission.directory(IngestBinding((broken,)))
