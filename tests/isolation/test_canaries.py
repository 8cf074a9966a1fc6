"""Strings of tenant B, one for each class of data, in a running `logweir up` with its errors: none
shows in what tenant A is answered, none but names in metrics, and none but names in any log.

Metrics and logs are the operator's, not a tenant's; what may stand in them is said here once, in
`ALLOWED`, and in docs/isolation.md.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec
import pytest
from isolation import asking
from reconciling import pipeline, tenant, text
from upping import Up, upping

from logweir.backends import journal
from logweir.core.binding import IngestBinding

A, B = "acme", "bird"

KEYS_OF_A = [{"name": "in", "scopes": ["ingest"]}, {"name": "out", "scopes": ["query"]}]

MARK = secrets.token_hex(6)
ID = f"{MARK:0<32}"
PIPELINE = f"pipeline-{MARK}"
KEY_NAME = f"key-name-{MARK}"

CANARIES = {
    "message": f"message-{MARK}",
    "service": f"service-{MARK}",
    "host": f"host-{MARK}",
    "label name": f"label_{MARK}",
    "label value": f"value-{MARK}",
    "attribute": f"attribute-{MARK}",
    "attribute value": f"content-{MARK}",
    "trace id": ID,
    "idempotency key": f"request-{MARK}",
    "producer": str(uuid.UUID(f"{MARK}-7000-8000-".replace("-", "") + "0" * 8 + MARK[:4])),
    "query": f"asked-{MARK}",
    "bad record": f"bad-{MARK}",
    "no JSON": f"torn-{MARK}",
    "address": f"nowhere-{MARK}",
    "quarantined payload": f"damaged-{MARK}",
    "key name": KEY_NAME,
    "display name": f"Bird and {MARK}",
    "pipeline": PIPELINE,
    "tenant": B,
}
"""What B has, by its class."""

ALLOWED = {
    "metrics": {"tenant", "pipeline"},
    "logs": {"tenant", "pipeline", "address"},
}
"""Ids and names tell the operator whose pipeline is late. An address is what somebody asked for at
the gateway, without its query string."""


class Place(msgspec.Struct):
    """The running `up`, and the keys of both tenants, by their scope."""

    up: Up
    url: str
    a: dict[str, str]
    b: dict[str, str]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with upping() as up:
        up.start()
        apply = text(
            tenant(A, tenantId=A, apiKeys=[*KEYS_OF_A, {"name": "boss", "scopes": ["admin"]}]),
            pipeline("web", of=A),
            tenant(
                B,
                tenantId=B,
                displayName=CANARIES["display name"],
                apiKeys=[
                    {"name": KEY_NAME, "scopes": ["ingest"]},
                    {"name": f"{KEY_NAME}-out", "scopes": ["query"]},
                ],
                quotas={"recordsPerSecond": 2000},
            ),
            pipeline(PIPELINE, of=B),
        )
        up.ok("apply", "-f", "-", given=apply)
        a, b = up.until(lambda: _keys(up, A)), up.until(lambda: _keys(up, B))
        made = Place(up, up.shown()["url"], a, b)
        _busy(made)
        yield made


def _keys(up: Up, name: str) -> dict[str, str]:
    """The texts of a tenant's keys by their prefix, once both are good."""
    ran = up.run("get", "keys", name)
    found = json.loads(ran.stdout) if ran.returncode == 0 else {}
    if not found.get("pipelines"):
        return {}
    admin = found["keys"].pop("boss", None)
    texts = {one[:4]: one for one in found["keys"].values()}
    path = f"{up.shown()['url']}/api/v1/query"
    is_read = httpx2.get(path, headers={"x-api-key": texts["lwa_"]}).status_code == 200
    posted = up.post(
        url=f"{up.shown()['url']}/t/{name}/{found['pipelines'][0]}/ingest", key=texts["lwi_"]
    )
    texts |= {"admin": admin} if admin else {}
    return texts if is_read and posted.status_code in (200, 400) else {}


# ---- what B does -----------------------------------------------------------------------------


def _record(**changes: Any) -> dict[str, Any]:
    c = CANARIES
    return {
        "message": c["message"],
        "level": "info",
        "service": c["service"],
        "host": c["host"],
        "labels": {c["label name"]: c["label value"]},
        "metadata": {c["attribute"]: c["attribute value"]},
        "trace_id": c["trace id"],
    } | changes


def _busy(place: Place) -> None:
    """Send, ask and err as B; wait until all of it is stored."""
    asyncio.run(_damage(place.up))
    c, send = CANARIES, f"{place.url}/t/{B}/{PIPELINE}/ingest"
    headers = {"authorization": f"Bearer {place.b['lwi_']}"}
    with httpx2.Client(timeout=20) as client:

        def post(body: Any, url: str = send, **more: str) -> int:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = client.post(
                url,
                content=content,
                headers=headers | {k.replace("_", "-"): v for k, v in more.items()},
            )
            return answer.status_code

        assert post([_record() for _ in range(50)]) == 200
        assert post(_record(), idempotency_key=c["idempotency key"]) == 200
        assert post(_record(level="warn"), idempotency_key=c["idempotency key"]) == 422
        assert post(_record(), idempotency_key=f"p1.{c['producer']}.1.1") == 200
        assert post(_record(**{c["bad record"]: c["bad record"]})) == 400
        assert post(_record(timestamp=c["bad record"])) == 400
        assert post([_record(), {"message": c["bad record"]}]) == 200
        assert post(f"{{{c['no JSON']}".encode()) == 400
        assert post(_record(), url=f"{send}/{c['address']}") == 404
        assert post(_record(), url=f"{place.url}/t/{B}/{c['address']}/ingest") == 401
        assert post(_record(), content_encoding=c["bad record"]) == 415
        assert 429 in {post([_record()] * 2000) for _ in range(20)}
        for query in (f'{{service="{c["query"]}"}}', f"{{{c['query']}", f'{{}} |~ "{c["query"]}("'):
            for path in ("query", "histogram", "labels", "fields", f"labels/{c['address']}/values"):
                client.get(
                    f"{place.url}/api/v1/{path}",
                    params={"query": query},
                    headers={"x-api-key": place.b["lwa_"]},
                )
        client.get(f"{place.url}/{c['address']}?{c['query']}")
    place.up.until(lambda: _is_settled(place.up))


async def _damage(up: Up) -> None:
    """Append blocks that cannot be read, with the credentials of B's ingest."""
    file = up.data / "bindings" / "ingest.json"
    bound = msgspec.json.decode(file.read_bytes(), type=IngestBinding)
    own = next(one for one in bound.tenants if one.tenant == B)
    door = journal.Appender(own.journal, own.login, own.tenant)
    payload = CANARIES["quarantined payload"].encode()
    await door.append(
        own.pipelines[0].id,
        uuid.uuid4().bytes,
        payload,
        accepted=1,
        size_bytes=9,
        requests=1,
        keyed=[],
    )
    await door.close()


def _is_settled(up: Up) -> bool:
    """Whether all blocks of B are committed, the damaged one to its quarantine."""
    found = _metrics(up)["collector"]
    lines = [one for one in found.splitlines() if f'tenant="{B}"' in one]
    backlog = [one for one in lines if one.startswith("logweir_journal_backlog_entries")]
    damaged = [one for one in lines if 'outcome="quarantined"' in one and "records_total" in one]
    return bool(damaged) and all(one.endswith(" 0.0") for one in backlog)


def _metrics(up: Up) -> dict[str, str]:
    """Each process's metrics."""
    urls = {one["name"]: one["ops_url"] for one in up.shown()["processes"] if one["ops_url"]}
    return {name: httpx2.get(f"{url}/metrics").text for name, url in urls.items()}


# ---- what A is answered ----------------------------------------------------------------------


QUERIES = ["{}", '{pipeline="web"}', '{} |= "-"', "{", '{} |~ "("']
PATHS = [
    *("query", "histogram", "labels", "fields", "labels/service/values", "labels/pipeline/values"),
    *("labels/host/values", "receipts/0", "tail", "keys", "usage", "audit", "nothing"),
]

ADDRESSES = ["/", "/metrics", "/livez", "/readyz", "/t/", f"/t/{A}", "/api/v1", "/-/gateway"]


async def _answers_to_a(place: Place) -> list[asking.Answer]:
    """Everything that A's keys, no key and a forged one get, over all kinds of requests."""
    client = asking.Client(place.url)
    found = []
    for key in (*place.a.values(), "", place.a["lwa_"][:-1] + "a"):
        headers = [("x-api-key", key)] if key else []
        for path in PATHS:
            for query in QUERIES:
                for more in ("", "&start=-3h", "&limit=x", "&cursor=AAAA"):
                    target = f"/api/v1/{path}?query={quote(query)}{more}"
                    found.append(await client.ask("GET", target, headers))
        for address in (
            f"/t/{A}/web/ingest",
            f"/t/{A}/other/ingest",
            "/ingest",
            f"/t/{B}/x/ingest",
        ):
            for body in (b"", b"{", b"[]", b'{"message":"a","level":"info","service":"a"}'):
                found.append(await client.ask("POST", address, headers, body))
                found.append(
                    await client.ask("POST", address, [*headers, ("idempotency-key", "same")], body)
                )
        found += [await client.ask("GET", one, headers) for one in ADDRESSES]
        for method, path in (("GET", ""), ("GET", "/boss"), ("DELETE", "/boss"), ("GET", "/x")):
            found.append(await client.ask(method, f"/api/v1/keys{path}", headers))
    found.append(await client.open_socket("/api/v1/tail", [("x-api-key", place.a["lwa_"])]))
    await client.close()
    return found


def shown(where: str, allowed: set[str]) -> set[str]:
    """The classes of canaries that stand in a text, but for those that may."""
    return {name for name, one in CANARIES.items() if name not in allowed and one in where}


def test_nothing_of_another_tenant_is_in_any_answer(place):
    answers = asyncio.run(_answers_to_a(place))

    assert len(answers) > 500
    assert {one.status for one in answers} >= {200, 400, 401, 403, 404, 101}
    for one in answers:
        # "/t/bird/x" is what A itself wrote.
        assert not shown((one.head + one.body).decode(errors="replace"), {"tenant"}), one


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(f"/t/{{}}/{PIPELINE}/ingest", id="an address to send to"),
        pytest.param(f"/t/{{}}/{PIPELINE}/nothing", id="an address that nothing has"),
        pytest.param("/api/v1/labels", id="the header"),
    ],
)
def test_behind_the_gateway_another_tenant_looks_like_one_that_does_not_exist(place, target):
    async def answers() -> list[bytes]:
        client, found = asking.Client(place.url), []
        for name in (B, "nobo"):
            headers = [("x-api-key", place.a["lwi_"]), ("x-scope-orgid", name)]
            answer = await client.ask("POST", target.format(name), headers)
            assert answer.status == 401
            found.append(answer.without(b"date", b"x-request-id"))
        await client.close()
        return found

    foreign, nobody = asyncio.run(answers())

    assert foreign == nobody


def test_b_itself_sees_all_that_it_sent(place):
    """The canaries are there: else the tests above and below would say nothing."""
    answer = httpx2.get(
        f"{place.url}/api/v1/query",
        params={"query": "{}", "start": "-3h", "limit": 10},
        headers={"x-api-key": place.b["lwa_"]},
    )
    seen = {"message", "service", "host", "label name", "label value", "attribute", "pipeline"}

    assert shown(answer.text, set()) >= seen | {"attribute value", "trace id"}


def test_metrics_name_tenants_and_pipelines_and_nothing_else_of_theirs(place):
    found = _metrics(place.up)

    assert {"ingest", "collector", "query", "keeper", "operator"} <= set(found)
    assert B in found["ingest"]
    for name, one in found.items():
        assert not shown(one, ALLOWED["metrics"]), name


def test_no_log_has_a_word_of_what_a_tenant_sent_or_asked(place):
    logs = {
        one.relative_to(place.up.data).as_posix(): one.read_text(errors="replace")
        for one in place.up.data.rglob("*log*")
        if one.is_file()
    }
    logs["said"] = place.up.said()

    assert len([name for name in logs if name.startswith("logs/")]) >= 8
    assert any(B in one for one in logs.values())
    for name, one in logs.items():
        assert not shown(one, ALLOWED["logs"]), name
        for key in (*place.a.values(), *place.b.values()):
            assert key not in one, f"a key is in {name}"
