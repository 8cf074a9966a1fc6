"""The gateway's configuration: what stands between clients and the roles, as text for NGINX.

    client -- one NGINX --+-- /t/TENANT/PIPELINE/..., /ingest --> ingest
                          +-- /api/v1/keys ---------------------> auth
                          +-- everything else ------------------> query

A slow sender costs NGINX a buffer, not a role a worker: a request goes to a role when it is whole.
Nothing is sent to a role twice that it could have taken. Each error has our one shape. Neither log
holds a secret: no headers, no query strings. `routes.py` and `failures.py` are the tables.

Directives are those of NGINX 1.18, the oldest that is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from logweir.core import bounds, keys
from logweir.gateway.failures import FAILURES, MALFORMED, Failure
from logweir.gateway.routes import HIDDEN, PROBE, ROUTES, Role, Route
from logweir.runtime import web

BODY_SLACK_BYTES: Final = 64 << 10
"""So much over the bound still reaches the role, which can say what is too large about it."""

BODY_BUFFER_BYTES: Final = 256 << 10
"""Of a body this much is in memory, the rest in a file; a usual batch of records fits."""

HEADER_TIMEOUT_S: Final = 15
CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUTS_S: Final = {"ingest": 60, "query": 130, "auth": 30}
"""How long a role may be silent: an append is quick, a query may run for two minutes."""

STREAM_TIMEOUT_S: Final = 3600
"""The same for a WebSocket. The role pings far more often, so only a dead one is silent."""

SHUTDOWN_TIMEOUT_S: Final = 2
"""After it a gateway that was told to stop cuts what is still open, such as WebSockets."""

ROLE_IDLE_S: Final = 30
"""How long a connection to a role is kept; less than the role keeps it (`runtime.web`), so that no
request meets a connection that is just being closed."""

_LOG_FORMAT: Final = (
    '{"timestamp":"$time_iso8601","role":"gateway","message":"request",',
    '"request_id":"$safe_request_id","remote":"$remote_addr","method":"$request_method",',
    '"path":"$safe_path","status":$number_of_status,"request_bytes":$request_length,',
    '"answer_bytes":$bytes_sent,"seconds":$request_time,"upstream":"$upstream_addr",',
    '"upstream_seconds":"$upstream_response_time"}',
)

_HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Request-Id", "$safe_request_id"),
)
"""Of every answer, in place of what a role would say."""

_NOT_SENT: Final = '""'

_ROLE_HEADERS: Final = (
    ("Host", "$host_of_request"),
    ("X-Request-Id", "$safe_request_id"),
    ("X-Forwarded-For", "$remote_addr"),
    ("X-Forwarded-Proto", "$scheme"),
    *((name, _NOT_SENT) for name in ("Forwarded", "X-Forwarded-Host", "X-Forwarded-Port")),
    *((name, _NOT_SENT) for name in ("X-Forwarded-Prefix", "X-Real-IP")),
)
"""What roles are told. What a client claims to have forwarded is not believed."""

_CONNECTION: Final = (("Connection", _NOT_SENT), ("Upgrade", _NOT_SENT))
_STREAM_CONNECTION: Final = (("Connection", "$wanted_connection"), ("Upgrade", "$wanted_upgrade"))

_TEMP_PATHS: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
"""Modules with a folder for what does not fit into memory; used or not, NGINX makes each."""

_ZIPPED: Final = (
    *("application/json", "application/x-ndjson", "application/javascript", "text/javascript"),
    *("text/css", "text/plain", "image/svg+xml"),
)


class Gateway(msgspec.Struct, frozen=True):
    """What the configuration depends on."""

    port: int
    ingest: tuple[str, ...]
    """Addresses of the role, `HOST:PORT` each; requests are spread over them."""

    query: tuple[str, ...]
    auth: tuple[str, ...]
    folder: Path
    """Where bodies and answers that do not fit into memory are, and the file with the pid."""

    host: str = "127.0.0.1"
    workers: int = 2
    worker_connections: int = 4096
    """Of one worker, to clients and to roles; each may need a file of its own besides."""

    run_as: tuple[str, str] | None = None
    """User and group that the workers drop to; only for who starts NGINX as root."""

    without: frozenset[str] = frozenset()
    """Modules for HTTP that this NGINX was built without, such as `gzip`."""

    max_body_bytes: int = bounds.MAX_BODY_BYTES + BODY_SLACK_BYTES
    access_log: str = "/dev/stdout"


def render(gateway: Gateway) -> str:
    """Return the text of nginx.conf."""
    user = [f"user {' '.join(map(_quoted, gateway.run_as))};"] if gateway.run_as else []
    lines = [
        "# Written at each start from logweir.gateway; changes belong there.",
        *user,
        f"worker_processes {gateway.workers};",
        f"worker_rlimit_nofile {2 * gateway.worker_connections};",
        f"worker_shutdown_timeout {SHUTDOWN_TIMEOUT_S}s;",
        f"pid {_quoted(str(gateway.folder / 'nginx.pid'))};",
        "# Lines of a lower level repeat the request with its query string.",
        "error_log stderr crit;",
        *_block("events", f"worker_connections {gateway.worker_connections};"),
        *_block("http", *_http(gateway)),
    ]
    return "\n".join([*lines, ""])


def _http(gateway: Gateway) -> Iterator[str]:
    yield from _maps()
    yield from _logs(gateway)
    yield from _limits(gateway)
    yield from _answers(gateway)
    yield from _to_roles()
    yield from _upstream("ingest", gateway.ingest)
    yield from _upstream("query", gateway.query)
    yield from _upstream("auth", gateway.auth)
    yield from _block("server", *_server(gateway))


def _maps() -> Iterator[str]:
    secret = f"(?:{keys.INGEST_PREFIX}|{keys.ACCESS_PREFIX})"
    yield "# A client's id is taken when it is short and plain, and no key by mistake."
    yield from _block(
        "map $http_x_request_id $safe_request_id",
        "default $request_id;",
        f'"~^(?!{secret})[0-9A-Za-z._:-]{{1,64}}$" $http_x_request_id;',
    )
    yield "# For the log: the path alone, shortened, and nothing of it when a key stands in it."
    yield from _block(
        "map $request_uri $safe_path",
        'default "";',
        f'"~{secret}" "(holds a key)";',
        r'"~^(?<plain_path>[^?#\x00-\x20\x7f-\xff]{1,300})" $plain_path;',
    )
    yield "# NGINX would resolve dot segments to choose the role, which gets them as they are."
    yield from _block(
        "map $request_uri $has_dot_segment",
        "default 0;",
        r'"~*^[^?#]*(?:/|%2f)(?:\.|%2e){1,2}(?:/|%2f|[?#]|$)" 1;',
    )
    yield "# Where no answer was begun NGINX writes 000, which is no number in JSON."
    yield from _block("map $status $number_of_status", "default $status;", '"~^0" 0;', '"" 0;')
    yield from _block("map $http_host $host_of_request", "default $http_host;", '"" localhost;')
    yield from _block(
        "map $http_upgrade $wanted_upgrade", 'default "";', '"~*^websocket$" websocket;'
    )
    yield from _block("map $wanted_upgrade $wanted_connection", 'default "";', "websocket upgrade;")


def _logs(gateway: Gateway) -> Iterator[str]:
    yield "log_format requests escape=json"
    yield from (f"    '{part}'" for part in _LOG_FORMAT[:-1])
    yield f"    '{_LOG_FORMAT[-1]}';"
    yield f"access_log {_quoted(gateway.access_log)} requests;"


def _limits(gateway: Gateway) -> Iterator[str]:
    yield "# Of a request: a URL or one header has at most 16 kB, all of them 64 kB."
    yield "client_header_buffer_size 2k;"
    yield "large_client_header_buffers 4 16k;"
    yield f"client_header_timeout {HEADER_TIMEOUT_S}s;"
    yield f"client_max_body_size {gateway.max_body_bytes};"
    yield f"client_body_buffer_size {BODY_BUFFER_BYTES};"
    yield f"client_body_timeout {bounds.BODY_TIMEOUT_S:.0f}s;"
    yield "send_timeout 30s;"
    yield "reset_timedout_connection on;"
    yield "keepalive_timeout 75s;"
    yield "keepalive_requests 10000;"
    for name in _TEMP_PATHS:
        if name not in gateway.without:
            yield f"{name}_temp_path {_quoted(str(gateway.folder / name))};"


def _answers(gateway: Gateway) -> Iterator[str]:
    yield "server_tokens off;"
    yield "default_type application/json;"
    yield "merge_slashes off;"
    yield from _added(_HEADERS)
    yield from (f"proxy_hide_header {name};" for name, _ in _HEADERS)
    if "gzip" not in gateway.without:
        yield "gzip on;"
        yield "gzip_min_length 1000;"
        yield "gzip_proxied any;"
        yield "gzip_vary on;"
        yield f"gzip_types {' '.join(_ZIPPED)};"
    for failure in FAILURES:
        statuses = " ".join(map(str, failure.found))
        yield f"error_page {statuses} ={failure.status} {_place(failure)};"


def _to_roles() -> Iterator[str]:
    yield "# To a role: whole requests over kept connections. Its answers stay in memory."
    yield "proxy_http_version 1.1;"
    yield "proxy_request_buffering on;"
    yield "proxy_buffer_size 16k;"
    yield "proxy_buffers 16 16k;"
    yield "proxy_max_temp_file_size 0;"
    yield "proxy_redirect off;"
    yield f"proxy_connect_timeout {CONNECT_TIMEOUT_S}s;"
    yield "proxy_send_timeout 30s;"
    yield from _told((*_ROLE_HEADERS, *_CONNECTION))


def _upstream(role: Role, addresses: Sequence[str]) -> list[str]:
    return _block(
        f"upstream {role}",
        *(f"server {address} max_fails=1 fail_timeout=1s;" for address in addresses),
        "keepalive 64;",
        "keepalive_requests 10000;",
        f"keepalive_timeout {ROLE_IDLE_S}s;",
    )


def _server(gateway: Gateway) -> Iterator[str]:
    host = f"[{gateway.host}]" if ":" in gateway.host else gateway.host
    yield f"listen {host}:{gateway.port} backlog=1024;"
    for route in ROUTES:
        yield from _routed(route)
    for path in HIDDEN:
        yield from _block(f"location = {path}", "return 404;")
    yield from _block(f"location = {PROBE}", "access_log off;", "return 204;")
    for failure in FAILURES:
        yield from _block(f"location = {_place(failure)}", *_failed(failure))


def _routed(route: Route) -> Iterator[str]:
    lines = list(_passed(route))
    if not route.path.endswith("/"):
        yield from _block(f"location = {route.path}", *lines)
        return
    if route.path != "/":
        # Without it NGINX would redirect there, with a page of its own.
        yield from _block(f"location = {route.path.rstrip('/')}", *lines)
    yield from _block(f"location {route.path}", *lines)


def _passed(route: Route) -> Iterator[str]:
    yield from _block("if ($has_dot_segment)", f"return {MALFORMED};")
    yield f"proxy_pass http://{route.role};"
    # Where records go in nothing is sent twice; elsewhere NGINX does not repeat a sent POST.
    yield f"proxy_next_upstream {'off' if route.role == 'ingest' else 'error'};"
    if route.is_stream:
        yield from _told((*_ROLE_HEADERS, *_STREAM_CONNECTION))
        yield "proxy_buffering off;"
        yield f"proxy_read_timeout {STREAM_TIMEOUT_S}s;"
    else:
        yield f"proxy_read_timeout {READ_TIMEOUTS_S[route.role]}s;"


def _failed(failure: Failure) -> Iterator[str]:
    yield "internal;"
    more = [(n.decode().title(), v.decode()) for n, v in web.error_headers(failure.error)]
    if more:
        yield from _added((*_HEADERS, *more))
    yield f"return {failure.status} {_quoted(web.error_body(failure.error).decode())};"


def _place(failure: Failure) -> str:
    return f"/-/failed/{failure.status}"


def _added(headers: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield from (f"add_header {name} {value} always;" for name, value in headers)


def _told(headers: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Tell the role so; with headers of its own a location loses those from outside of it."""
    yield from (f"proxy_set_header {name} {value};" for name, value in headers)


def _block(head: str, *lines: str) -> list[str]:
    return [f"{head} {{", *(f"    {line}" for line in lines), "}"]


def _quoted(text: str) -> str:
    """Return text as one argument; a `$` stays what it is only where variables are not known."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
