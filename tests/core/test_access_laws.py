"""Laws of who is let in, for any key, any facts and any address; and that nobody else decides."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from logweir.core import access, errors, keys
from logweir.core.names import PipelineId, TenantId

NOW_S = 1_770_000_000.0
SECRETS = [letter * keys.ROOT_BYTES for letter in (b"a", b"b")]
TENANTS = [TenantId(name) for name in ("acme", "acm", "bird")]
PIPELINES = [PipelineId(n) for n in (1, 2, 3)]
REFUSALS = (errors.UnauthorizedError, errors.BadRequestError, errors.ForbiddenError)

some_key = st.builds(
    keys.ApiKey,
    tenant=st.sampled_from(TENANTS),
    key_id=st.integers(1, 4),
    pipeline=st.sampled_from([PipelineId(0), PipelineId(0), *PIPELINES]),
    scopes=st.sampled_from([7, 1, 2, 4, 6, 0]),
    expires_at_s=st.sampled_from([0, int(NOW_S) + 1, int(NOW_S)]),
    revision=st.integers(1, 2),
)
some_facts = st.builds(
    access.Facts,
    secret=st.sampled_from([SECRETS[0], SECRETS[0], SECRETS[1], b""]),
    pipelines=st.sampled_from([PIPELINES, PIPELINES, PIPELINES[:1], []]),
    is_revoked=st.sampled_from([False] * 5 + [True]),
    heard_s=st.sampled_from([NOW_S, NOW_S, NOW_S - 900, NOW_S - 901, float("-inf")]),
    is_leaving=st.sampled_from([False] * 5 + [True]),
)
some_organisation = st.sampled_from(
    [b"", b"", b"", b"", b"acme", b"bird", b"acme|bird", b"acme, a"]
)
some_wanted = st.builds(
    access.Wanted,
    scopes=st.sampled_from([7, 3, 1, 2, 4]),
    tenant=st.sampled_from(["", "", "", *TENANTS]),
    pipeline=st.sampled_from([PipelineId(0), PipelineId(0), *PIPELINES, None]),
    organisation=some_organisation,
)


def signed(key: keys.ApiKey, secret: bytes) -> keys.SignedKey:
    found = keys.decode(keys.encode(key, secret))
    assert found is not None
    return found


def laws(
    key: keys.ApiKey, signer: bytes, facts: access.Facts, wanted: access.Wanted
) -> dict[str, bool]:
    """What must hold of a request that is let in, each said for itself."""
    return {
        "signed by the tenant's secret": facts.secret == signer,
        "not revoked": not facts.is_revoked,
        "not expired": key.expires_at_s == 0 or key.expires_at_s > NOW_S,
        "its own tenant": wanted.tenant in ("", key.tenant),
        "a pipeline that is there": wanted.pipeline is not None,
        "its pipeline is there": key.pipeline == 0 or key.pipeline in facts.pipelines,
        "its own pipeline": 0 in (key.pipeline, wanted.pipeline) or key.pipeline == wanted.pipeline,
        "its own organisation": wanted.organisation in (b"", key.tenant.encode()),
        "one of its scopes": bool(key.scopes & wanted.scopes),
        "fresh news": NOW_S - facts.heard_s <= access.STALE_AFTER_S,
        "a tenant that stays": not facts.is_leaving,
    }


@settings(max_examples=1000)
@given(some_key, st.sampled_from([*SECRETS[:1] * 4, SECRETS[1]]), some_facts, some_wanted)
def test_a_key_is_let_in_when_every_law_holds_and_only_then(key, signer, facts, wanted):
    broken = [name for name, holds in laws(key, signer, facts, wanted).items() if not holds]
    event(broken[0] if len(broken) == 1 else f"{min(len(broken), 2)} broken")

    try:
        found = access.decide(signed(key, signer), facts, wanted, NOW_S)
    except (*REFUSALS, errors.UnavailableError):
        assert broken
    else:
        assert not broken
        assert found == key


BREAKING = {
    "signed by the tenant's secret": ({}, {"secret": SECRETS[1]}, {}),
    "not revoked": ({}, {"is_revoked": True}, {}),
    "not expired": ({"expires_at_s": int(NOW_S)}, {}, {}),
    "its own tenant": ({}, {}, {"tenant": "bird"}),
    "a pipeline that is there": ({}, {}, {"pipeline": None}),
    "its pipeline is there": ({"pipeline": PipelineId(1)}, {"pipelines": []}, {}),
    "its own pipeline": ({"pipeline": PipelineId(1)}, {}, {"pipeline": PipelineId(2)}),
    "its own organisation": ({}, {}, {"organisation": b"bird"}),
    "one of its scopes": ({}, {}, {"scopes": keys.SCOPE_ADMIN}),
    "fresh news": ({}, {"heard_s": NOW_S - 901}, {}),
    "a tenant that stays": ({}, {"is_leaving": True}, {}),
}


@pytest.mark.parametrize("law", BREAKING)
def test_each_law_alone_keeps_a_good_key_out(law):
    good = keys.ApiKey(TENANTS[0], 1, PipelineId(0), keys.SCOPE_QUERY, 0, 1)
    facts = access.Facts(SECRETS[0], PIPELINES, heard_s=NOW_S)
    wanted = access.Wanted(keys.SCOPE_QUERY)
    of_key, of_facts, of_wanted = BREAKING[law]
    replace = msgspec.structs.replace

    changed = replace(good, **of_key), replace(facts, **of_facts), replace(wanted, **of_wanted)
    broken = laws(changed[0], SECRETS[0], *changed[1:])

    assert [name for name, holds in broken.items() if not holds] == [law]
    assert access.decide(signed(good, SECRETS[0]), facts, wanted, NOW_S) == good
    with pytest.raises((*REFUSALS, errors.UnavailableError)):
        access.decide(signed(changed[0], SECRETS[0]), *changed[1:], NOW_S)


@given(some_key, st.data())
def test_a_text_with_any_byte_changed_lets_nobody_in(key, data):
    text = keys.encode(key, SECRETS[0])
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567_= \0A|"))
    assume(text[at] != letter)
    facts = access.Facts(SECRETS[0], PIPELINES, heard_s=NOW_S)

    with pytest.raises((*REFUSALS, errors.UnavailableError)):
        access.decide(access.read(text[:at] + letter + text[at + 1 :]), facts, ANY, NOW_S)


@given(some_key, some_key)
def test_the_signature_of_one_key_is_good_for_no_other(key, other):
    assume(key != other)
    mixed = msgspec.structs.replace(signed(other, SECRETS[0]), mac=signed(key, SECRETS[0]).mac)
    facts = access.Facts(SECRETS[0], PIPELINES, heard_s=NOW_S)

    with pytest.raises(errors.UnauthorizedError):
        access.decide(mixed, facts, ANY, NOW_S)


ANY = access.Wanted(7)


# ---- with a directory ------------------------------------------------------------------------

ROOT, OTHER_ROOT = SECRETS

some_tenant = st.builds(
    access.Tenant,
    id=st.just(TenantId("")),
    is_deleting=st.sampled_from([False] * 5 + [True]),
    reader_slot=st.just("a"),
    reader_revision=st.just(1),
    redis_revision=st.just(1),
    ingest_revision=st.integers(1, 2),
    access_revision=st.integers(1, 2),
    concurrency=st.just(8),
    scan_bytes=st.just(1),
    pipelines=st.sets(st.sampled_from(PIPELINES)).map(
        lambda found: {one: access.Pipeline(one, f"p{one}", 30) for one in found}
    ),
)
some_known = st.builds(access.KnownKey, st.sampled_from(TENANTS), st.sampled_from([False, True]))
some_directory = st.builds(
    lambda as_of_s, tenants, known: access.Directory(
        as_of_s,
        {name: msgspec.structs.replace(one, id=name) for name, one in tenants.items()},
        known,
    ),
    st.sampled_from([NOW_S] * 5 + [NOW_S - 901]),
    st.fixed_dictionaries(
        dict.fromkeys(TENANTS[:2], some_tenant), optional={TENANTS[2]: some_tenant}
    ),
    st.dictionaries(st.integers(1, 4), some_known, max_size=2),
)


def text_of(key: keys.ApiKey, root: bytes) -> str:
    if key.is_ingest:
        return keys.encode(key, keys.ingest_secret(root, key.tenant, key.revision))
    return keys.encode(key, keys.access_secret(root, key.revision))


@settings(max_examples=1000)
@given(
    some_directory,
    some_key,
    st.sampled_from([ROOT] * 5 + [OTHER_ROOT]),
    some_organisation,
    st.sampled_from([7, 3, 1, 2, 4]),
)
def test_what_is_granted_is_of_the_key_s_tenant_and_no_more(
    directory, key, root, organisation, scopes
):
    headers = {b"x-api-key": text_of(key, root).encode(), b"x-scope-orgid": organisation}
    try:
        found = access.grant(directory, {1: ROOT}, headers, NOW_S, scopes=scopes)
    except (*REFUSALS, errors.UnavailableError):
        event("refused")
        return

    event("granted")
    tenant, known = directory.tenants[key.tenant], directory.keys.get(key.key_id)
    current = tenant.ingest_revision if key.is_ingest else tenant.access_revision
    assert root == ROOT
    assert found.tenant == tenant
    assert found.pipelines.items() <= tenant.pipelines.items()
    assert set(found.pipelines) == ({key.pipeline} if key.pipeline else set(tenant.pipelines))
    assert found.only == (key.pipeline or None)
    assert key.scopes & scopes
    assert known == access.KnownKey(key.tenant, False) or (
        known is None and key.revision == current
    )
    assert organisation in (b"", key.tenant.encode())
    assert key.expires_at_s == 0 or key.expires_at_s > NOW_S
    assert directory.as_of_s == NOW_S
    assert not tenant.is_deleting


@settings(max_examples=300)
@given(some_directory, some_key, some_organisation)
def test_who_administers_may_do_so_with_all_of_its_tenant_and_no_other(
    directory, key, organisation
):
    headers = {b"x-api-key": text_of(key, ROOT).encode(), b"x-scope-orgid": organisation}
    try:
        found = access.administer(directory, {1: ROOT}, headers, NOW_S)
    except (*REFUSALS, errors.UnavailableError):
        return

    assert key.scopes & keys.SCOPE_ADMIN
    assert key.pipeline == 0
    assert (found.tenant.id, found.only) == (key.tenant, None)


# ---- one place -------------------------------------------------------------------------------

SERVICES = Path(access.__file__).parent.parent
BELOW = {"core", "backends", "client", "standalone", "__init__.py", "cli.py"}
"""What is no role: the rest is, or is what roles share."""

DECIDING = {"is_signed", "permits", "mac", "compare_digest"}
COMPARED = {"scopes", "expires_at_s", "expires_at", "is_revoked", "revoked_at", "is_deleting"}
SHOWING = {"auth/forms.py"}
"""Says of each key in a list what it is good for, and lets nobody in."""

KNOWN_RAISES = {"ingest/app.py"}
"""A pipeline that was closed while the body came: access was decided when it was open."""


def decisions(tree: ast.AST) -> Iterator[int]:
    """Lines that look into a key to decide on it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in DECIDING:
            yield node.lineno
        is_test = isinstance(node, ast.If | ast.IfExp | ast.BoolOp | ast.UnaryOp)
        if is_test or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd)):
            parts = [getattr(node, name, None) for name in ("test", "left", "operand")]
            parts += getattr(node, "values", [])
            yield from (
                one.lineno
                for part in parts
                if part is not None
                for one in ast.walk(part)
                if isinstance(one, ast.Attribute) and one.attr in COMPARED
            )


def test_no_role_decides_on_access_but_by_the_core():
    found = {
        f"{path.relative_to(SERVICES)}:{line}"
        for path in SERVICES.rglob("*.py")
        if path.relative_to(SERVICES).parts[0] not in BELOW
        and path.relative_to(SERVICES).as_posix() not in SHOWING
        for line in decisions(ast.parse(path.read_text()))
    }

    assert found == set()


def test_the_ways_to_see_a_decision_elsewhere_see_those_of_the_core():
    assert len(list(decisions(ast.parse(Path(access.__file__).read_text())))) >= 6


def test_nobody_else_says_who_is_unauthorized():
    found = {
        path.relative_to(SERVICES).as_posix()
        for path in SERVICES.rglob("*.py")
        if "raise errors.UnauthorizedError" in path.read_text()
    }

    assert found == KNOWN_RAISES | {"core/access.py"}
