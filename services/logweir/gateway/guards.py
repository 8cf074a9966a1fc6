"""What keeps one client from taking the gateway from all others, as directives of NGINX.

NGINX cannot count failures alone, and need not: a key has 128 bits that nobody guesses. So limits
are of what a client can take up, strict only where passwords are taken; roles limit per tenant.

    in flight        of one address: its requests and WebSockets, each a connection and a buffer
    large bodies     of one key: each a file of up to 8 MiB; none of it before ingest knows the key
    answers          of one key, from query: each a file of up to 20 MiB while its reader is slow
    requests/second  of one address: to query; far fewer where passwords are taken

Bodies go to ingest only with a header that could be a key. One that would be more than a small
buffer is read only when ingest has said, to a HEAD without a body, that the key is good; a mistyped
key is not called so then, as the gateway has one 401.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from logweir.gateway import rules
from logweir.gateway.failures import OVER_LIMIT, UNKEYED
from logweir.gateway.routes import Route

_SMALL: Final = r"(?:\d{1,4}|[1-5]\d{4})"
"""Lengths of bodies, up to 59,999 bytes, that are read before the key is known to be good."""

KEY_CHECK: Final = "/-/key"
_KNOWN: Final = "@key_is_known"
_BAD: Final = "@key_is_bad"


class Limits(msgspec.Struct, frozen=True):
    """How much one client may take up; the rest gets 429.

    The defaults are beyond a fleet of senders behind one address, and a Grafana of many users.
    """

    in_flight: int = 1024
    """Requests and WebSockets of one address at a time."""

    large_bodies: int = 64
    """Bodies of more than 60 kB, with one key, at a time: at most 0.5 GiB on disk."""

    answers: int = 32
    """Requests to query with one key at a time: at most 640 MiB on disk. Live tails are apart."""

    requests_per_s: int = 1000
    """Of one address, to all but ingest."""

    passwords_per_s: int = 5
    """Of one address, where passwords are taken."""


def maps() -> Iterator[str]:
    """Yield what is known of a client: its network, its key, whether its body is large."""
    yield "# A client has one IPv4 address, but 2**64 of IPv6."
    yield "map $binary_remote_addr $client_network {"
    yield "    default $binary_remote_addr;"
    yield r'    "~(?s)^(?<first_half>.{8}).{8}$" $first_half;'
    yield "}"
    yield "# Where no header could be a key the role would say 401, and need not be asked."
    yield "map $http_authorization $authorization_key {"
    yield '    default "";'
    yield f'    "~{rules.KEY_IN_BEARER}" $bearer_key;'
    yield f'    "~{rules.KEY_IN_BASIC}" $basic_key;'
    yield "}"
    yield "map $http_x_api_key $sent_key {"
    yield '    default "";'
    yield '    "" $authorization_key;'
    yield f'    "~{rules.KEY_IN_HEADER}" $own_key;'
    yield "}"
    yield "# Without a length a body may become large; HTTP/1 has none that is not chunked."
    yield 'map "$content_length|$http_transfer_encoding|$server_protocol" $is_large {'
    yield "    default 1;"
    yield rf'    "~^{_SMALL}\|\|" 0;'
    yield r'    "~^\|\|HTTP/1" 0;'
    yield "}"
    yield 'map $is_large $large_of_key { default ""; 1 $sent_key; }'


def zones(limits: Limits) -> Iterator[str]:
    """Yield the tables that count; who is counted nowhere is not limited."""
    rate, slow = limits.requests_per_s, limits.passwords_per_s
    yield "limit_conn_zone $client_network zone=in_flight:4m;"
    yield "limit_conn_zone $large_of_key zone=large_bodies:4m;"
    yield "limit_conn_zone $sent_key zone=answers:16m;"
    yield f"limit_req_zone $client_network zone=requests:4m rate={rate}r/s;"
    yield f"limit_req_zone $client_network zone=passwords:4m rate={slow}r/s;"
    yield f"limit_conn_status {OVER_LIMIT};"
    yield f"limit_req_status {OVER_LIMIT};"


def of_route(route: Route, limits: Limits, *, can_check: bool) -> Iterator[str]:
    """Yield the guards of a route; `can_check`: NGINX can ask a role before it reads a body."""
    yield f"limit_conn in_flight {limits.in_flight};"
    if route.role == "ingest":
        yield f"limit_conn large_bodies {limits.large_bodies};"
        yield f'if ($sent_key = "") {{ return {UNKEYED}; }}'
        if can_check:
            yield "set $asks_for_key 1;"
            yield f"auth_request {KEY_CHECK};"
    elif route.takes_passwords:
        yield f"limit_req zone=passwords burst={4 * limits.passwords_per_s} nodelay;"
    else:
        if route.role == "query" and not route.is_stream:
            yield f"limit_conn answers {limits.answers};"
        yield f"limit_req zone=requests burst={2 * limits.requests_per_s} nodelay;"


def key_check() -> Iterator[str]:
    """Yield the directives of KEY_CHECK: 401 from ingest refuses, any other answer of its own lets
    pass, as it is for the request itself to meet; no answer refuses with 503."""
    yield "internal;"
    yield "if ($is_large = 0) { return 204; }"
    yield "proxy_pass http://ingest$request_uri;"
    yield "proxy_method HEAD;"
    yield "proxy_pass_request_body off;"
    yield "proxy_intercept_errors on;"
    yield f"error_page 400 403 404 405 413 415 429 = {_KNOWN};"
    yield f"error_page 401 = {_BAD};"


def key_verdicts(not_found: str) -> Iterator[tuple[str, ...]]:
    """Yield the heads of the locations that KEY_CHECK leads to, and what each does.

    Who asks for KEY_CHECK from outside gets what is at `not_found`. With 401 in place of 403 NGINX
    would repeat the role's WWW-Authenticate beside our own.
    """
    outside = f'if ($asks_for_key = "") {{ rewrite ^ {not_found} last; }}'
    yield f"location {_KNOWN}", outside, "return 204;"
    yield f"location {_BAD}", "return 403;"
