"""What `/api/v1/usage` answers: what a tenant's pipelines used, as JSON or CSV.

texts -> span() -> Snapshot.usage() -> rows() -> JSON or CSV

Usage counts at the commit of what is stored, by the store's clock, and is kept to the hour.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from logweir.backends.segments_reader import UsageStep, Used
from logweir.core import errors, moments
from logweir.core.names import PipelineId
from logweir.query import params
from logweir.query.api import Answer, Asked
from logweir.query.params import Texts

PARAMETERS: Final = ("start", "end", "step", "by", "format")
CSV: Final = "text/csv"

MAX_ROWS: Final = 20_000
"""Rows of an answer: two years of a pipeline's hours."""

STEPS: Final[tuple[UsageStep, ...]] = ("hour", "day", "total")
_HOUR_S: Final = 3600
_WIDTH_S: Final[Mapping[UsageStep, int]] = {"hour": _HOUR_S, "day": 24 * _HOUR_S, "total": _HOUR_S}
_DEFAULT_S: Final[Mapping[UsageStep, int]] = {
    "hour": 24 * _HOUR_S,
    "day": 30 * 24 * _HOUR_S,
    "total": 30 * 24 * _HOUR_S,
}


class Row(msgspec.Struct):
    """One row of the answer. `stored_bytes` is by how much the store has grown: it falls when
    segments are merged and when their time is over, and adds up to what is stored."""

    start: str
    pipeline: str
    requests: int = 0
    accepted: int = 0
    stored: int = 0
    quarantined: int = 0
    expired: int = 0
    repeated: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    refused: dict[str, int] = {}

    def add(self, used: Used) -> None:
        """Add what one pipeline used."""
        self.requests += used.requests
        self.accepted += used.stored + used.quarantined + used.expired + used.repeated
        self.stored += used.stored
        self.quarantined += used.quarantined
        self.expired += used.expired
        self.repeated += used.repeated
        self.raw_bytes += used.raw_bytes
        self.stored_bytes += used.stored_bytes
        for reason, number in used.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + number


async def usage(asked: Asked, *, is_csv: bool) -> Answer:
    """Answer `/api/v1/usage`.

    Args:
        asked: the request.
        is_csv: whether it asks for CSV where its parameters do not say.

    Raises:
        BadRequestError: a parameter is wrong, or these are too many rows.
        UnavailableError: the store does not answer.
    """
    texts = asked.texts
    [step] = [one for one in STEPS if one == params.choice(texts, "step", STEPS)]
    is_by_pipeline = params.choice(texts, "by", ("pipeline", "tenant")) == "pipeline"
    form = params.choice(texts, "format", ("csv", "json") if is_csv else ("json", "csv"))
    span_s = span(texts, step, asked.now_ns)
    pipelines = asked.grant.pipelines
    async with asked.doors.reader.snapshot() as snapshot:
        found = await snapshot.usage(list(pipelines), span_s, step, MAX_ROWS + 1)
    if len(found) > MAX_ROWS:
        raise errors.BadRequestError(
            f"These are more than {MAX_ROWS:,} rows.",
            hint="Choose step=day or step=total, or a shorter range.",
        )
    names = {one: pipelines[one].name if is_by_pipeline else "" for one in pipelines}
    rows = rows_of(found, names)
    if form == "csv":
        return Answer(as_csv(rows), CSV)
    start, end = (str(moment_s * moments.NS_PER_S) for moment_s in span_s)
    return Answer(msgspec.json.encode({"step": step, "start": start, "end": end, "usage": rows}))


def span(texts: Texts, step: UsageStep, now_ns: int) -> tuple[int, int]:
    """Return the first second that is asked for and the one after the last: whole hours, of days
    whole days, in UTC.

    Raises:
        BadRequestError: a parameter is no moment, or the range is empty.
    """
    shown = dict(texts)
    shown["start"] = texts.get("start") or f"-{_DEFAULT_S[step]}s"
    window = params.window(shown, now_ns)
    width_ns = _WIDTH_S[step] * moments.NS_PER_S
    first, last = window.start_ns // width_ns, -(-window.end_ns // width_ns)
    return first * _WIDTH_S[step], last * _WIDTH_S[step]


def rows_of(found: Sequence[Used], names: Mapping[PipelineId, str]) -> list[Row]:
    """Return rows by time and name: pipelines that had one name, one after the other, are one."""
    rows: dict[tuple[int, str], Row] = {}
    for used in found:
        name = names[used.pipeline]
        at = (used.start_ns, name)
        if at not in rows:
            rows[at] = Row(str(used.start_ns), name, refused={})
        rows[at].add(used)
    return [rows[at] for at in sorted(rows)]


def as_csv(rows: Sequence[Row]) -> bytes:
    """Return rows as CSV with a head; times are RFC 3339, refusals their sum and each reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Row.__struct_fields__, "refused_by_reason"])
    for row in rows:
        values = msgspec.structs.asdict(row)
        values["start"] = moments.to_text(int(row.start))[:19] + "Z"
        values["refused"] = sum(row.refused.values())
        reasons = " ".join(f"{reason}={number}" for reason, number in sorted(row.refused.items()))
        writer.writerow([*values.values(), reasons])
    return text.getvalue().encode()
