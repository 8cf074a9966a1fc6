"""The gateway's configuration: what stands between clients and the roles, as text for NGINX.

    client -- one NGINX --+-- /t/TENANT/PIPELINE/..., /ingest --> ingest
                          +-- /api/v1/auth/, ... ---------------> auth
                          +-- everything else ------------------> query

A slow sender costs NGINX a buffer, not a role a worker: a request goes to a role when it is whole.
Nothing is sent to a role twice that it could have taken. Each error has our one shape. Neither log
holds a secret: no headers, no query strings. `routes.py` and `failures.py` are the tables,
`rules.py` is what holds without NGINX too, `guards.py` keeps one client from taking all.

Directives are those of NGINX 1.18, the oldest that is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from logweir.gateway import guards, rules
from logweir.gateway.failures import FAILURES, MALFORMED, NOT_FOUND, Failure, failure
from logweir.gateway.guards import Limits
from logweir.gateway.routes import BODY_BYTES, HIDDEN, OWN, PROBE, Role, Route, served
from logweir.runtime import web
from logweir.runtime.settings import Tls

BODY_BUFFER_BYTES: Final = 256 << 10
"""Of a body this much is in memory, the rest in a file; a usual batch of records fits."""

HEADER_TIMEOUT_S: Final = 15
CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUTS_S: Final[Mapping[Role, int]] = {"ingest": 60, "query": 130, "auth": 30}
"""How long a role may be silent: an append is quick, a query may run for two minutes."""

BODY_TIMEOUT_S: Final = 15
"""How long a sender may be silent within a body. NGINX knows no bound for the whole of it."""

SEND_TIMEOUT_S: Final = 30
"""How long a reader may take nothing of an answer."""

ANSWER_FILE_MIB: Final = 20
"""So much of an answer to a slow reader is in a file, so that the role is done with it: a page of
records, which has at most 16 MiB of texts."""

STREAM_TIMEOUT_S: Final = 3600
"""The same for a WebSocket. The role pings far more often, so only a dead one is silent."""

SHUTDOWN_TIMEOUT_S: Final = 24 * 3600
"""For so long after a reload the old workers keep the WebSockets that they have."""

KEEPALIVE_GRACE_MS: Final = 500
"""A reload leaves a connection open that was used so recently: its next request is on the way."""

_KEEPALIVE_GRACE_SINCE: Final = (1, 27, 4)
_HTTP2_DIRECTIVE_SINCE: Final = (1, 25, 1)
_TLS_1_2_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

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
    *((name, f'"{text}"') for name, text in rules.HEADERS),
    ("X-Request-Id", "$safe_request_id"),
    (rules.TRANSPORT_SECURITY[0], "$transport_security"),
)
"""Of every answer, in place of what a role would say; one without a text is not sent."""

_NOT_SENT: Final = '""'

_ROLE_HEADERS: Final = (
    ("Host", "$host_of_request"),
    ("X-Request-Id", "$safe_request_id"),
    ("X-Forwarded-For", "$remote_addr"),
    ("X-Forwarded-Proto", "$client_scheme"),
    *((name, _NOT_SENT) for name in rules.NOT_FORWARDED),
)
"""What roles are told."""

_CONNECTION: Final = (("Connection", _NOT_SENT), ("Upgrade", _NOT_SENT))
_NO_BODY: Final = (("Content-Length", _NOT_SENT),)
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
    roles: Mapping[Role, tuple[str, ...]]
    """Addresses of each role that there is, `HOST:PORT` each; requests are spread over them."""

    folder: Path
    """Where bodies and answers that do not fit into memory are, and the file with the pid."""

    host: str = "127.0.0.1"
    tls: Tls | None = None
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose X-Forwarded-For and X-Forwarded-Proto are believed."""

    workers: int = 2
    worker_connections: int = 4096
    """Of one worker, to clients and to roles; each may need a file of its own besides."""

    run_as: tuple[str, str] | None = None
    """User and group that the workers drop to; only for who starts NGINX as root."""

    version: tuple[int, ...] = (1, 18)
    without: frozenset[str] = frozenset()
    """Modules for HTTP that this NGINX was built without, such as `gzip`."""

    added: frozenset[str] = frozenset()
    """Modules for HTTP that are in it though they need not be: `ssl`, `v2`, `auth_request`."""

    limits: Limits = Limits()
    header_timeout_s: int = HEADER_TIMEOUT_S
    body_timeout_s: int = BODY_TIMEOUT_S
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
    yield from _client(gateway)
    yield from _maps()
    yield from guards.maps()
    yield from guards.zones(gateway.limits)
    yield from _logs(gateway)
    yield from _limits(gateway)
    yield from _answers(gateway)
    yield from _to_roles()
    for role, addresses in gateway.roles.items():
        yield from _upstream(role, addresses)
    yield from _block("server", *_server(gateway))


def _client(gateway: Gateway) -> Iterator[str]:
    """Yield who the client is: the other end, or who a trusted proxy says."""
    if gateway.trusted_proxies:
        yield from (f"set_real_ip_from {network};" for network in gateway.trusted_proxies)
        yield "real_ip_header X-Forwarded-For;"
        yield "real_ip_recursive on;"
        trusted = (f"{network} 1;" for network in gateway.trusted_proxies)
        yield from _block("geo $realip_remote_addr $is_proxy", "default 0;", *trusted)
        yield from _block(
            'map "$is_proxy:$http_x_forwarded_proto" $client_scheme',
            "default $scheme;",
            '"1:http" http;',
            '"1:https" https;',
        )
    else:
        yield from _block("map $scheme $client_scheme", "default $scheme;")
    yield from _block(
        "map $client_scheme $transport_security",
        'default "";',
        f'https "{rules.TRANSPORT_SECURITY[1]}";',
    )


def _maps() -> Iterator[str]:
    yield "# A client's id is taken when it is short and plain, and no key by mistake."
    yield from _block(
        "map $http_x_request_id $safe_request_id",
        "default $request_id;",
        f'"~{rules.REQUEST_ID}" $http_x_request_id;',
    )
    yield "# For the log: the path alone, shortened, and nothing of it when a key stands in it."
    yield from _block(
        "map $request_uri $safe_path",
        'default "";',
        f'"~{rules.SECRET}" "(holds a key)";',
        f'"~{rules.PLAIN_PATH}" $plain_path;',
    )
    yield "# NGINX would resolve dot segments to choose the role, which gets them as they are."
    yield from _block(
        "map $request_uri $has_dot_segment", "default 0;", f'"~*{rules.DOT_SEGMENT}" 1;'
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
    yield f"client_header_timeout {gateway.header_timeout_s}s;"
    yield "# Of each place; a smaller one for the pages of errors would refuse the refusal."
    yield f"client_max_body_size {max(BODY_BYTES.values())};"
    yield f"client_body_buffer_size {BODY_BUFFER_BYTES};"
    yield f"client_body_timeout {gateway.body_timeout_s}s;"
    yield "# What is left of a refused body is thrown away, for a moment."
    yield "lingering_time 5s;"
    yield "lingering_timeout 2s;"
    yield f"send_timeout {SEND_TIMEOUT_S}s;"
    yield "reset_timedout_connection on;"
    yield "keepalive_timeout 75s;"
    yield "keepalive_requests 10000;"
    if gateway.version >= _KEEPALIVE_GRACE_SINCE:
        yield f"keepalive_min_timeout {KEEPALIVE_GRACE_MS}ms;"
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
    for one in FAILURES:
        yield f"error_page {' '.join(map(str, one.found))} ={one.status} {_place(one)};"


def _to_roles() -> Iterator[str]:
    yield "# To a role: whole requests over kept connections. It need not wait for slow readers."
    yield "proxy_http_version 1.1;"
    yield "proxy_request_buffering on;"
    yield "proxy_buffer_size 16k;"
    yield "proxy_buffers 16 16k;"
    yield f"proxy_max_temp_file_size {ANSWER_FILE_MIB}m;"
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
    yield from _listen(gateway)
    for route in served(gateway.roles.keys()):
        yield from _routed(route, gateway)
    if "ingest" in gateway.roles and _can_check(gateway):
        check = (*guards.key_check(), *_told((*_ROLE_HEADERS, *_CONNECTION, *_NO_BODY)))
        yield from _block(f"location = {guards.KEY_CHECK}", *check)
        for head, *lines in guards.key_verdicts(_place(failure(NOT_FOUND))):
            yield from _block(head, *lines)
    yield from _block(f"location {OWN}", f"return {NOT_FOUND};")
    for path in HIDDEN:
        yield from _block(f"location = {path}", f"return {NOT_FOUND};")
    yield from _block(f"location = {PROBE}", "access_log off;", "return 204;")
    for one in FAILURES:
        yield from _block(f"location = {_place(one)}", *_failed(one))


def _listen(gateway: Gateway) -> Iterator[str]:
    host = f"[{gateway.host}]" if ":" in gateway.host else gateway.host
    address = f"listen {host}:{gateway.port} backlog=1024"
    if gateway.tls is None:
        yield f"{address};"
        return
    has_http2 = "v2" in gateway.added
    if has_http2 and gateway.version < _HTTP2_DIRECTIVE_SINCE:
        yield f"{address} ssl http2;"
    else:
        yield f"{address} ssl;"
        if has_http2:
            yield "http2 on;"
    yield f"ssl_certificate {_quoted(gateway.tls.certificate)};"
    yield f"ssl_certificate_key {_quoted(gateway.tls.key)};"
    yield "ssl_protocols TLSv1.2 TLSv1.3;"
    yield f"ssl_ciphers {_TLS_1_2_CIPHERS};"
    yield "ssl_prefer_server_ciphers off;"
    yield "ssl_session_cache shared:tls:4m;"
    yield "ssl_session_timeout 1h;"
    yield "ssl_session_tickets off;"


def _can_check(gateway: Gateway) -> bool:
    return "auth_request" in gateway.added


def _routed(route: Route, gateway: Gateway) -> Iterator[str]:
    lines = list(_passed(route, gateway))
    if not route.path.endswith("/"):
        yield from _block(f"location = {route.path}", *lines)
        return
    if route.path != "/":
        # Without it NGINX would redirect there, with a page of its own.
        yield from _block(f"location = {route.path.rstrip('/')}", *lines)
    yield from _block(f"location {route.path}", *lines)


def _passed(route: Route, gateway: Gateway) -> Iterator[str]:
    yield from _block("if ($has_dot_segment)", f"return {MALFORMED};")
    yield f"client_max_body_size {BODY_BYTES[route.role]};"
    yield from guards.of_route(route, gateway.limits, can_check=_can_check(gateway))
    yield f"proxy_pass http://{route.role};"
    # Where records go in nothing is sent twice; elsewhere NGINX does not repeat a sent POST.
    yield f"proxy_next_upstream {'off' if route.role == 'ingest' else 'error'};"
    if route.is_stream:
        yield from _told((*_ROLE_HEADERS, *_STREAM_CONNECTION))
        yield "proxy_buffering off;"
        yield f"proxy_read_timeout {STREAM_TIMEOUT_S}s;"
    else:
        yield f"proxy_read_timeout {READ_TIMEOUTS_S[route.role]}s;"


def _failed(told: Failure) -> Iterator[str]:
    yield "internal;"
    more = [(n.decode().title(), v.decode()) for n, v in web.error_headers(told.error)]
    if more:
        yield from _added((*_HEADERS, *more))
    yield f"return {told.status} {_quoted(web.error_body(told.error).decode())};"


def _place(told: Failure) -> str:
    return f"{OWN}failed/{told.found[0]}"


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
