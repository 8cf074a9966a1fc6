"""API keys: no typo passes, no forgery passes, and who checks ingest keys makes no access key."""

from __future__ import annotations

import base64
import string
import struct
import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logweir.core import errors, keys, names
from logweir.core.names import PipelineId, TenantId

ROOT = b"r" * 32
ACME = TenantId("acme")
INGEST_SECRET = keys.ingest_secret(ROOT, ACME, 1)
ACCESS_SECRET = keys.access_secret(ROOT, 1)
INGEST_KEY = keys.ApiKey(ACME, 42, PipelineId(7), keys.SCOPE_INGEST, 0, 1)
ACCESS_KEY = keys.ApiKey(ACME, 43, PipelineId(0), keys.SCOPE_QUERY, 1_900_000_000, 1)

KEY = st.builds(
    keys.ApiKey,
    tenant=st.from_regex(r"[a-z][a-z0-9-]{1,30}[a-z0-9]", fullmatch=True),
    key_id=st.integers(0, 2**64 - 1),
    pipeline=st.integers(0, 2**32 - 1),
    scopes=st.integers(1, 7),
    expires_at_s=st.integers(0, 2**32 - 1),
    revision=st.integers(0, 2**16 - 1),
)


def text_of(key: keys.ApiKey) -> str:
    return keys.encode(key, INGEST_SECRET if key.is_ingest else ACCESS_SECRET)


def sealed(prefix: str, data: bytes) -> str:
    """A key's text with a right CRC over any bytes."""
    crc = struct.pack(">I", zlib.crc32(prefix.encode() + data))
    return prefix + "".join(
        base64.b32encode(part).decode().rstrip("=").lower() for part in (data, crc)
    )


def opened(text: str) -> bytes:
    """The bytes of a key's text, without its CRC."""
    body = text[4:-7].upper()
    return base64.b32decode(body + "=" * (-len(body) % 8))


@given(KEY)
def test_decoding_undoes_encoding(key):
    text = text_of(key)

    found = keys.decode(text)

    assert found.key == key
    assert keys.is_signed(found, INGEST_SECRET if key.is_ingest else ACCESS_SECRET)
    assert text.startswith("lwi_" if key.scopes == keys.SCOPE_INGEST else "lwa_")


@pytest.mark.parametrize("key", [INGEST_KEY, ACCESS_KEY])
def test_no_typo_makes_a_key(key):
    text = text_of(key)
    letters = string.ascii_letters + string.digits + "_-= "

    for at in range(len(text)):
        for letter in letters:
            if letter != text[at]:
                assert keys.decode(text[:at] + letter + text[at + 1 :]) is None


@pytest.mark.parametrize("key", [INGEST_KEY, ACCESS_KEY])
def test_no_key_is_cut_lengthened_or_twisted(key):
    text = text_of(key)

    spoiled = [text[:end] for end in range(len(text))]
    spoiled += [text[:at] + text[at + 1 :] for at in range(len(text))]
    spoiled += [text[:at] + "a" + text[at:] for at in range(len(text))]
    spoiled += [
        text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        for at in range(len(text) - 1)
        if text[at] != text[at + 1]
    ]
    spoiled += [text + "=", text + "\n", " " + text, text.upper(), text + "a" * 200]
    assert not any(map(keys.decode, spoiled))


@settings(max_examples=300)
@given(st.text() | st.text().map("lwi_".__add__) | st.text(max_size=150).map("lwa_".__add__))
def test_no_text_breaks_the_reader(text):
    assert keys.decode(text) is None


@given(st.binary(max_size=60), st.sampled_from(["lwi_", "lwa_"]))
def test_a_right_crc_alone_makes_no_signed_key(data, prefix):
    found = keys.decode(sealed(prefix, data))

    assert found is None or not keys.is_signed(found, INGEST_SECRET)


def test_every_flipped_bit_of_a_key_is_a_forgery():
    data = opened(text_of(INGEST_KEY))

    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        found = keys.decode(sealed("lwi_", bytes(changed)))
        assert found is None or not keys.is_signed(found, INGEST_SECRET)


def test_a_key_of_another_version_is_no_key():
    data = bytearray(opened(text_of(INGEST_KEY)))
    data[0] = 2

    assert keys.decode(sealed("lwi_", bytes(data))) is None


def test_who_holds_the_ingest_secret_makes_no_access_key():
    forged = keys.decode(keys.encode(ACCESS_KEY, INGEST_SECRET))

    assert not keys.is_signed(forged, ACCESS_SECRET)


def test_an_ingest_key_does_not_pass_as_an_access_key():
    data = opened(text_of(INGEST_KEY))

    assert keys.decode(sealed("lwa_", data)) is None


def test_an_ingest_keys_mac_does_not_sign_access():
    # Also when one secret were used for both: the prefix is part of what is signed.
    found = keys.decode(text_of(INGEST_KEY))
    raised = msgspec.structs.replace(
        found, key=msgspec.structs.replace(found.key, scopes=keys.SCOPE_QUERY)
    )

    assert not keys.is_signed(raised, INGEST_SECRET)


def test_every_tenant_and_revision_has_secrets_of_its_own():
    other = TenantId("acme2")

    made = {
        keys.ingest_secret(ROOT, ACME, 1),
        keys.ingest_secret(ROOT, ACME, 2),
        keys.ingest_secret(ROOT, other, 1),
        keys.ingest_secret(b"s" * 32, ACME, 1),
        keys.access_secret(ROOT, 1),
        keys.access_secret(ROOT, 2),
        bytes.fromhex(keys.password(ROOT, ACME, names.login(ACME, "w", "a"), 1)),
        bytes.fromhex(keys.password(ROOT, ACME, names.login(ACME, "w", "b"), 1)),
        bytes.fromhex(keys.password(ROOT, keys.PLATFORM, "lw_operator", 1)),
    }

    assert len(made) == 9


@pytest.mark.parametrize("root", [b"", b"r" * 31, b"r" * 33])
def test_a_root_of_another_length_is_refused(root):
    with pytest.raises(errors.SetupError, match="32 bytes"):
        keys.ingest_secret(root, ACME, 1)


@pytest.mark.parametrize("scopes", range(1, 8))
def test_a_key_permits_what_its_scopes_say(scopes):
    key = msgspec.structs.replace(ACCESS_KEY, scopes=scopes)

    assert sum(scope for scope in keys.SCOPE_NAMES.values() if key.permits(scope)) == scopes


# ---- headers ---------------------------------------------------------------------------------


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "found"),
    [
        pytest.param(b"Bearer lwi_a", b"", "lwi_a", id="bearer"),
        pytest.param(b"bearer  lwi_a ", b"", "lwi_a", id="bearer in small letters and spaces"),
        pytest.param(b"", b"lwi_a", "lwi_a", id="x-api-key"),
        pytest.param(b"", b" lwi_a ", "lwi_a", id="x-api-key in spaces"),
        pytest.param(basic("any:lwi_a"), b"", "lwi_a", id="basic"),
        pytest.param(basic(":lwi_a"), b"", "lwi_a", id="basic without a user"),
        pytest.param(basic("any:lwi_a:b"), b"", "lwi_a:b", id="basic with two colons"),
        pytest.param(b"BASIC" + basic("any:lwi_a")[5:], b"", "lwi_a", id="basic in capitals"),
        pytest.param(b"Bearer lwi_b", b"lwi_a", "lwi_a", id="both: the header of its own"),
        pytest.param(b"", b"", None, id="nothing"),
        pytest.param(basic("lwi_a"), b"", None, id="basic without a colon"),
        pytest.param(b"Basic !!!", b"", None, id="basic that is no base64"),
        pytest.param(b"Basic bHdpX2E", b"", None, id="basic cut short"),
        pytest.param(b"Digest lwi_a", b"", None, id="another scheme"),
        pytest.param(b"lwi_a", b"", None, id="no scheme"),
    ],
)
def test_a_key_is_taken_from_three_places(authorization, x_api_key, found):
    assert keys.from_headers(authorization, x_api_key) == found


@given(st.binary(max_size=40), st.binary(max_size=20))
def test_no_header_breaks_the_reader(value, x_api_key):
    for authorization in (value, b"Basic " + value, b"Bearer " + value, basic(value.hex())):
        found = keys.from_headers(authorization, x_api_key)
        assert found is None or keys.decode(found) is None
