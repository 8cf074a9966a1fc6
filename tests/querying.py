"""A plain model of what queries find, and ways to fill and rearrange a store for it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import draining
import httpx2
import msgspec
import psycopg
import world
from builders import delivery, record
from serving import until

from logweir.core import ids, segment
from logweir.core.names import PipelineId

MINUTE_NS = 60 * 10**9
HOUR_NS = 60 * MINUTE_NS

WORDS = [
    *("error", "ERR", "user=42", "id", "a.b", "x|y", "ünï", "end", "7f3a-9c1e-b204", "GET"),
    *("", "line\nbreak", 'say "hi"', "back\\slash", "`tick`", "req-000123", "0123456789abcdef" * 2),
]
LITERALS = [
    *("error", "ERR", "err", "user=4", "42", "id", "a.b", "|", "nï", "e\nb", '"hi"', "\\", "`"),
    *("", "absent", "req-000123", " req-000123 ", "7f3a-9c1e-b204", "0123456789abcdef" * 2, " "),
]
PATTERNS = [
    *("err", "(?i)err", "^error", "end$", r"user=\d+", "k$", "^$", ".", "a.b", r"x\|y", "[^ ]b"),
    *(r"\bid\b", "^line.break$", "r.*r", r"\AGET", r"(?:a|e)nd\z", "[0-9a-f]{32}", "e{2,}", "^.*$"),
]
LABEL_VALUES = {
    "service": ["shop", "cart", "shop-2"],
    "level": ["info", "error", "warn"],
    "host": ["", "h1", "h2"],
    "team": ["", "a/b"],
}
LABEL_PATTERNS = ["sh.*", "cart|shop", ".*", ".+", "", "h[12]", "[^a]+", "(?i)ERROR"]


class Row(msgspec.Struct, frozen=True, order=True):
    """A record of the model; its id comes first, so rows sort as queries do."""

    time_ns: int
    block: int
    index: int
    message: str
    labels: dict[str, str]

    @property
    def id(self) -> str:
        return f"{self.time_ns}-{self.block:016x}-{self.index}"


class Query(msgspec.Struct, frozen=True):
    """A query as data: (name, operator, value) and (operator, values)."""

    matchers: tuple[tuple[str, str, str], ...] = ()
    filters: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def text(self) -> str:
        """The query as LogQL."""
        selector = ", ".join(f"{n}{op}{_quoted(v)}" for n, op, v in self.matchers)
        lines = (f"{op} {' or '.join(map(_quoted, values))}" for op, values in self.filters)
        return " ".join([f"{{{selector}}}", *lines])

    def keeps(self, row: Row) -> bool:
        """Whether the query finds a record, said as plainly as can be."""
        return all(_label_matches(row.labels, *one) for one in self.matchers) and all(
            _line_matches(row.message.encode(), *one) for one in self.filters
        )


def _quoted(text: str) -> str:
    return f"`{text}`" if "`" not in text else msgspec.json.encode(text).decode()


def _label_matches(labels: dict[str, str], name: str, operator: str, value: str) -> bool:
    found = labels.get(name, "")
    if operator in ("=", "!="):
        return (found == value) == (operator == "=")
    return bool(re.fullmatch(value, found)) == (operator == "=~")


def _line_matches(message: bytes, operator: str, values: tuple[str, ...]) -> bool:
    if operator in ("|=", "!="):
        is_in = any(value.encode() in message for value in values)
    else:
        is_in = any(_pattern(value).search(message) for value in values)
    return is_in == (operator in ("|=", "|~"))


def _pattern(text: str) -> re.Pattern[bytes]:
    """RE2's expression as one of Python's: `$` and `\\z` are only the end of the text."""
    return re.compile(re.sub(r"\$$|\\z$", r"\\Z", text).encode(), re.DOTALL)


def random_query(rng: random.Random) -> Query:
    """Any selector with any line filters."""
    matchers = []
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        name = rng.choice([*LABEL_VALUES, "pipeline", "absent"])
        operator = rng.choice(["=", "!=", "=~", "!~"])
        values = LABEL_VALUES.get(name, ["default", "other", ""])
        value = rng.choice(LABEL_PATTERNS if "~" in operator else values)
        matchers.append((name, operator, value))
    filters = []
    for _ in range(rng.choice([0, 1, 1, 2])):
        operator = rng.choice(["|=", "|=", "!=", "|~", "!~"])
        values = PATTERNS if "~" in operator else LITERALS
        filters.append((operator, tuple(rng.choices(values, k=rng.choice([1, 1, 2, 3])))))
    return Query(tuple(matchers), tuple(filters))


def random_record(rng: random.Random, times_ns: Sequence[int]) -> dict[str, Any]:
    labels = {name: rng.choice(values) for name, values in LABEL_VALUES.items()}
    team = labels.pop("team")
    made = record(
        " ".join(rng.choices(WORDS, k=rng.choice([0, 1, 2, 4]))),
        timestamp=rng.choice(times_ns),
        **{name: value for name, value in labels.items() if value},
    )
    return made | ({"labels": {"team": team}} if team else {})


async def store_rows(
    tenant: world.Tenant, of: Sequence[dict[str, Any]], pipeline: str = "default"
) -> list[Row]:
    """Store records with timestamps as one block, which makes a segment; return the model's."""
    return await store_blocks(tenant, [of], pipeline)


async def store_blocks(
    tenant: world.Tenant,
    blocks: Sequence[Sequence[dict[str, Any]]],
    pipeline: str = "default",
    *,
    age_ms: int = 0,
) -> list[Row]:
    """Store blocks, made `age_ms` ago, in one transaction, so that they share a segment; return
    the model's rows."""
    own = tenant.pipelines[pipeline]
    deliveries = [
        delivery(tenant.id, own.id, of, uuid=world.new_uuid(int(time.time() * 1000) - age_ms))
        for of in blocks
    ]
    store = tenant.store()
    await store.commit(own.id, deliveries, now_ns=time.time_ns(), retention_days=3650)
    await store.close()
    return [
        Row(one["timestamp"], ids.short(made.uuid), index, one["message"], _labels(one, pipeline))
        for made, of in zip(deliveries, blocks, strict=True)
        for index, one in enumerate(of)
    ]


def _labels(one: dict[str, Any], pipeline: str) -> dict[str, str]:
    own = {name: one[name] for name in ("service", "level", "host") if one.get(name)}
    return own | one.get("labels", {}) | {"pipeline": pipeline}


async def fill(
    tenant: world.Tenant, rng: random.Random, now_ns: int, commits: int = 10
) -> list[Row]:
    """Store random records in overlapping segments, many of them at equal times."""
    times_ns = [now_ns - rng.randrange(90 * MINUTE_NS) for _ in range(40)]
    times_ns += [now_ns // MINUTE_NS * MINUTE_NS - rng.randrange(60) * MINUTE_NS for _ in range(10)]
    rows: list[Row] = []
    for _ in range(commits):
        blocks = [
            [random_record(rng, times_ns) for _ in range(rng.choice([1, 3, 20, 40]))]
            for _ in range(rng.choice([1, 2]))
        ]
        pipeline = rng.choice(sorted(tenant.pipelines))
        rows += await store_blocks(tenant, blocks, pipeline, age_ms=rng.randrange(60_000))
    return sorted(rows)


async def merge_some(tenant: world.Tenant, rng: random.Random) -> None:
    """Merge some segments of one pipeline, in one transaction as the keeper does."""
    names_of = ", ".join(segment.Segment.__struct_fields__)
    async with (
        await psycopg.AsyncConnection.connect(tenant.conninfo("k")) as connection,
        connection.transaction(),
    ):
        cursor = await connection.execute(
            f"select id, tableoid::int8, {names_of} from segments".encode()
        )
        found: dict[tuple[int, int], list[Any]] = {}
        for row in await cursor.fetchall():
            found.setdefault((row[2], row[1]), []).append(row)
        group = found[rng.choice(sorted(found))]
        chosen = rng.sample(group, k=min(len(group), rng.choice([1, 2, 4])))
        merged = segment.merge(
            PipelineId(chosen[0][2]), [segment.Segment(*one[2:]) for one in chosen]
        )
        await connection.execute(
            "delete from segments where id = any(%s)", [[one[0] for one in chosen]]
        )
        places = ", ".join(["%s"] * 6 + ["%b"] * 3 + ["%s", "%b", "%b"])
        await connection.execute(
            f"insert into segments ({names_of}, merged) values ({places}, 1)".encode(),
            msgspec.structs.astuple(merged),
        )


async def pages(
    client: httpx2.AsyncClient, limits: Sequence[int], rng: random.Random, **given: Any
) -> AsyncIterator[dict[str, Any]]:
    """Ask page after page until there is no cursor, each with one of the limits."""
    cursor: str | None = ""
    while cursor is not None:
        asked = given | ({"cursor": cursor} if cursor else {}) | {"limit": rng.choice(limits)}
        answer = await client.get("/api/v1/query", params=asked)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["records"]) <= asked["limit"]
        yield page
        assert page["cursor"] != cursor, "the page got no further"
        cursor = page["cursor"]


@contextlib.asynccontextmanager
async def holding(
    tenant: world.Tenant, client: httpx2.AsyncClient, queries: int = 1
) -> AsyncIterator[list[asyncio.Task[httpx2.Response]]]:
    """So many queries that wait for a lock on the tenant's segments, until this is left."""
    tasks: list[asyncio.Task[httpx2.Response]] = []
    try:
        with draining.connect(tenant) as connection, connection.transaction():
            connection.execute("lock table segments in access exclusive mode")
            tasks += [asyncio.create_task(client.get("/api/v1/query")) for _ in range(queries)]
            await until(lambda: waiting(tenant, queries))
            yield tasks
    finally:
        await asyncio.gather(*tasks, return_exceptions=True)


async def waiting(tenant: world.Tenant, count: int) -> bool:
    """Whether so many of the tenant's readers wait for a lock."""
    query = "select count(*) from pg_stat_activity where usename = %s and wait_event_type = 'Lock'"
    found: int = draining.value(tenant, query, [tenant.store_login("r").user])
    return found == count
