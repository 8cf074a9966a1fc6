"""Which role a request reaches, whatever its path looks like."""

from __future__ import annotations

import json

import pytest
from fronting import KEY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logweir.gateway.routes import HIDDEN, ROUTES


def ask(front, path: str) -> tuple[int, dict]:
    """Send the path as it is written; returns the status and the answer's JSON."""
    sent = f"GET {path} HTTP/1.1\r\nHost: logs\r\nX-API-Key: {KEY}\r\nConnection: close\r\n\r\n"
    head, _, body = front.nginx.raw(sent.encode("latin-1")).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def owner(path: str) -> str:
    """Which role has the path, as a role reads it."""
    if path == "/api/v1/keys" or path.startswith("/api/v1/keys/"):
        return "auth"
    return "ingest" if path in ("/ingest", "/t") or path.startswith("/t/") else "query"


@pytest.mark.parametrize(
    ("path", "role"),
    [
        pytest.param("/ingest", "ingest", id="ingest without a base URL"),
        pytest.param("/ingest?x=/api", "ingest", id="ingest with parameters"),
        pytest.param("/t/acme/web/ingest", "ingest", id="a pipeline's base URL"),
        pytest.param("/t/acme/web/v1/logs", "ingest", id="another protocol of a pipeline"),
        pytest.param("/t/acme/web/metrics", "ingest", id="a hidden name below a pipeline"),
        pytest.param("/t/acme/web/%2e%2e.ingest", "ingest", id="dots that are no segment"),
        pytest.param("/t", "ingest", id="the prefix of base URLs, bare"),
        pytest.param("/t/", "ingest", id="the prefix of base URLs with its slash"),
        pytest.param("/%74/acme/web/ingest", "ingest", id="a percent sign in the prefix"),
        pytest.param("/t%2facme/web/ingest", "ingest", id="an encoded slash in the prefix"),
        pytest.param("/", "query", id="the dashboard"),
        pytest.param("/tenants", "query", id="a name that begins like the prefix"),
        pytest.param("/api/v1/keys", "auth", id="the keys of a tenant"),
        pytest.param("/api/v1/keys/web/roll", "auth", id="one key"),
        pytest.param("/api/v1/keyss", "query", id="a name that begins like the keys"),
        pytest.param("/ingest/", "query", id="ingest with a slash too many"),
        pytest.param("//t/acme/web/ingest", "query", id="two slashes in front"),
        pytest.param("/api/v1/query?query=/../t/x", "query", id="dot segments in parameters"),
        pytest.param("/api/v1/labels/app%2Fname/values", "query", id="an encoded slash"),
        pytest.param("/api/v1/tail", "query", id="the tail"),
        pytest.param("/loki/api/v1/labels", "query", id="Loki's read API"),
    ],
)
def test_a_path_reaches_its_role_unchanged(front, path, role):
    status, seen = ask(front, path)

    assert (status, seen["role"]) == (200, role)
    assert seen["raw_path"] == path.partition("?")[0]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/t/../api/v1/query", id="out of the base URLs"),
        pytest.param("/t/..%2fapi/v1/query", id="with an encoded slash"),
        pytest.param("/t/%2e%2E/api/v1/query", id="with encoded dots"),
        pytest.param("/t/.%2e%2Fapi/v1/query", id="half encoded"),
        pytest.param("/t/acme/web/..", id="at the end"),
        pytest.param("/t/acme/web/..?x=1", id="before the parameters"),
        pytest.param("/t/./acme/web/ingest", id="a single dot"),
        pytest.param("/api/../t/acme/web/ingest", id="into the base URLs"),
        pytest.param("/api/..%2ft/acme/web/ingest", id="into the base URLs, encoded"),
        pytest.param("/../../etc/passwd", id="above the root"),
        pytest.param("/api/../metrics/x", id="past a hidden page"),
    ],
)
def test_a_path_with_dot_segments_reaches_nobody(front, path):
    status, answer = ask(front, path)

    assert (status, answer["error"]["code"]) == (400, "bad_request")
    assert front.seen == []


@pytest.mark.parametrize("path", HIDDEN)
@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda path: path, id="plain"),
        pytest.param(lambda path: path + "?x=1", id="with parameters"),
        pytest.param(lambda path: "/%" + path[1:2].encode().hex() + path[2:], id="encoded"),
        pytest.param(lambda path: "/t/.." + path, id="behind dot segments"),
    ],
)
def test_pages_of_the_roles_own_ports_are_not_found_here(front, path, written):
    status, answer = ask(front, written(path))

    assert (status, answer["error"]["code"]) == (404, "not_found")
    assert front.seen == []


_PIECES = st.sampled_from(
    [
        *(
            "/",
            ".",
            "..",
            "/../",
            "//",
            "t",
            "t/",
            "ingest",
            "api",
            "api/v1/keys",
            "acme",
            "metrics",
            "readyz",
        ),
        *("%2f", "%2F", "%2e", "%74", "%25", "%5c", "%3f", "%00", "%c3%bc", "?", "#", ";", "%"),
        "\\",
    ]
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.lists(_PIECES, min_size=1, max_size=9).map(lambda pieces: "/" + "".join(pieces)))
def test_a_role_never_gets_a_path_that_it_reads_as_another_ones(front, path):
    front.forget()
    ask(front, path)

    for seen in front.seen:
        assert seen["role"] == owner(seen["path"])
        assert seen["path"] not in HIDDEN


def test_each_path_of_the_table_stands_there_once():
    paths = [route.path for route in ROUTES]

    assert len(paths) == len(set(paths))
    assert not set(paths) & set(HIDDEN)
