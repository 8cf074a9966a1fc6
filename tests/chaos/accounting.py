"""The accounts by metrics, against those by SQL.

A counter dies with its process, so under kills the sum over all lives may only be too small:
what metrics say was accepted is in the journal's counter, what they say was committed in `usage`.
After the faults the same sums must come out to the record: over a calm stretch, by differences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx2
import msgspec
import psycopg
from chaos import truth
from chaos.checker import Outcome
from chaos.standing import Up
from prometheus_client.parser import text_string_to_metric_families

EVERY_S = 1.0

ACCEPTED = "logweir_ingest_records_total"
COMMITTED = "logweir_collector_records_total"

Counts = Mapping[tuple[str, str], int]
"""By counter and outcome, of the tenant of the round."""


class Metrics:
    """Counters of a tenant, kept over the lives of the processes that count them."""

    def __init__(self, up: Up) -> None:
        self._up = up
        self._ended: dict[tuple[str, str], int] = {}
        self._now: dict[str, tuple[int, Counts]] = {}

    async def run(self) -> None:
        """Scrape until cancelled."""
        while True:
            await self.scrape()
            await asyncio.sleep(EVERY_S)

    async def scrape(self) -> Counts:
        """Return the sums over all lives so far, as far as they were seen."""
        async with httpx2.AsyncClient(trust_env=False, timeout=1) as client:
            for name in ("ingest", "collector"):
                process = self._up.process(name)
                if process.pid is None:
                    continue
                try:
                    text = (await client.get(f"{process.ops_url}/metrics")).text
                except httpx2.TransportError:
                    continue
                self._take(name, process.pid, _counts(text, self._up.place.tenant))
        return self._sum()

    def _take(self, name: str, pid: int, counts: Counts) -> None:
        before_pid, before = self._now.get(name, (pid, {}))
        # One that was scraped just when it was replaced is known by its smaller counts, too.
        is_new = before_pid != pid or any(counts.get(key, 0) < n for key, n in before.items())
        if is_new:
            _add(self._ended, before)
        self._now[name] = (pid, counts)

    def _sum(self) -> Counts:
        found = dict(self._ended)
        for _, counts in self._now.values():
            _add(found, counts)
        return found


def _add(into: dict[tuple[str, str], int], counts: Counts) -> None:
    for key, count in counts.items():
        into[key] = into.get(key, 0) + count


def _counts(text: str, tenant: str) -> Counts:
    return {
        (sample.name, sample.labels["outcome"]): int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in (ACCEPTED, COMMITTED) and sample.labels["tenant"] == tenant
    }


class Sums(msgspec.Struct, frozen=True):
    """What has come in and what was committed, by metrics or by the books."""

    accepted: int
    committed: Outcome


def by_metrics(counts: Counts) -> Sums:
    """Return the sums that metrics give."""
    outcomes = {name: counts.get((COMMITTED, name), 0) for name in Outcome.__struct_fields__}
    return Sums(counts.get((ACCEPTED, "accepted"), 0), Outcome(**outcomes))


async def by_books(up: Up) -> Sums:
    """Return the sums that the journal's counter and `usage` give."""
    journal = up.journal()
    try:
        accepted = int(await journal.hget(f"{up.prefix()}c", "accepted") or 0)
    finally:
        await journal.aclose()
    async with await psycopg.AsyncConnection.connect(up.superuser()) as connection:
        row = await (await connection.execute(truth.USAGE)).fetchone()
    return Sums(accepted, Outcome(*row) if row else Outcome())


def over(metrics: Sums, books: Sums) -> list[str]:
    """Say what metrics count that the books do not; over a time with kills they may count less."""
    found = []
    if metrics.accepted > books.accepted:
        found.append(f"metrics accepted {metrics.accepted}, the journal {books.accepted}")
    for name in Outcome.__struct_fields__:
        counted, stands = getattr(metrics.committed, name), getattr(books.committed, name)
        if counted > stands:
            found.append(f"metrics {name} {counted}, usage {stands}")
    return found


def differences(before: Sums, after: Sums) -> Sums:
    """Return what was added in between."""
    outcomes = {
        name: getattr(after.committed, name) - getattr(before.committed, name)
        for name in Outcome.__struct_fields__
    }
    return Sums(after.accepted - before.accepted, Outcome(**outcomes))


def unequal(metrics: Sums, books: Sums) -> list[str]:
    """Say what is not equal over a calm stretch, in which nothing was killed."""
    found = [] if metrics == books else [f"calm: metrics {metrics}, books {books}"]
    if metrics.accepted != metrics.committed.total:
        found.append(f"calm: accepted {metrics.accepted}, committed {metrics.committed.total}")
    return found
