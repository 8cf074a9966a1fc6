"""What the gateway holds to, whether NGINX does it (config.py) or this process (front.py).

Regular expressions are of the kind that Python and PCRE read alike.
"""

from __future__ import annotations

from typing import Final

from logweir.core import keys

HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
"""Of every answer, in place of what a role would say: an answer is data, for one reader only."""

TRANSPORT_SECURITY: Final = ("Strict-Transport-Security", "max-age=31536000")
"""Of every answer that travels by TLS: the next year a browser comes by TLS only."""

NOT_FORWARDED: Final = (
    *("Forwarded", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Real-IP"),
)
"""What a client claims to have forwarded is not believed, so a role does not hear of it."""

SECRET: Final = f"(?:{keys.INGEST_PREFIX}|{keys.ACCESS_PREFIX})"
"""Stands at the beginning of a key; what holds it is not logged."""

REQUEST_ID: Final = f"^(?!{SECRET})[0-9A-Za-z._:-]{{1,64}}$"
"""A client's id is taken when it is short and plain, and no key by mistake."""

DOT_SEGMENT: Final = r"^[^?#]*(?:/|%2f)(?:\.|%2e){1,2}(?:/|%2f|[?#]|$)"
"""Whatever the case. NGINX would resolve such a path to choose the role, which gets it as it is."""

PLAIN_PATH: Final = r"^(?P<plain_path>[^?#\x00-\x20\x7f-\xff]{1,300})"
"""As much of a path as is logged."""

_KEY: Final = f"{SECRET}[a-z2-7]*"

KEY_IN_HEADER: Final = f"(?P<own_key>{_KEY})"
"""In an `X-API-Key` that could be good, or nearly so: a role tells a mistyped key from a bad one.
The gateway looks for less than a role does, so it never refuses what a role would look at."""

KEY_IN_BEARER: Final = f"^(?i:bearer) .*(?P<bearer_key>{_KEY})"
KEY_IN_BASIC: Final = (
    r"^(?i:basic) .*?(?P<basic_key>[A-Za-z0-9+/]{2,64})[A-Za-z0-9+/]{2}[A-Za-z0-9+/=]{2}\s*$"
)
"""The same of an `Authorization`. Of a Basic password the gateway sees the length, and its end: 48
bytes of the key in one of three forms, by the length of the user's name before it. Not the last
four characters, which may be written in several ways."""
