"""What the native read API answers: parameters in, bytes out. HTTP itself is app.py's.

texts -> params.py, plan.py -> search.py / count.py -> render.py -> Answer
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from logweir.core import access, bounds, errors
from logweir.core.ids import Receipt
from logweir.core.names import PipelineId, TenantId
from logweir.core.record import Labels
from logweir.query import count, cursor, fields, params, plan, receipts, render, search
from logweir.query.engine import Budget, Run
from logweir.query.params import Buckets, Texts, Window
from logweir.query.tally import Tally
from logweir.query.tenants import Doors

QUERY_TIME_S: Final = 30.0
"""Time of one answer; what is left comes with the next page."""

SAMPLE_RECORDS: Final = 1000
MAX_LABEL_VALUES: Final = 10_000

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"

RANGE: Final = ("query", "start", "end")
QUERY: Final = (*RANGE, "limit", "direction", "cursor", "format")
HISTOGRAM: Final = (*RANGE, "step", "buckets", "offset", "by")
LABELS: Final = RANGE
FIELDS: Final = (*RANGE, "limit")

_encode = msgspec.json.Encoder().encode


class Answer(msgspec.Struct, frozen=True):
    """The body of a 200."""

    body: bytes
    content_type: str = JSON


class Asked(msgspec.Struct, frozen=True, eq=False):
    """One request: who asks for what, and the doors to read through."""

    grant: access.Grant
    texts: Texts
    doors: Doors
    run: Run
    now_ns: int

    @property
    def query(self) -> str:
        """The LogQL text; everything when there is none."""
        return self.texts.get("query") or "{}"

    def plan(self, window: Window, **options: object) -> plan.Plan:
        """Return the plan of the request's query over a range."""
        return plan.plan(
            self.query,
            window,
            self.grant.pipelines,
            self.now_ns,
            **options,  # type: ignore[arg-type]  # of plan.plan
        )


def new_run(tenant: access.Tenant) -> Run:
    """Return a run with the tenant's budget."""
    return Run(Budget(QUERY_TIME_S, tenant.scan_bytes))


def now_ns() -> int:
    """Return the time."""
    return time.time_ns()


async def query(asked: Asked) -> Answer:
    """Answer `/api/v1/query`: records in order, and a cursor when there are more.

    Raises:
        BadRequestError: a parameter is wrong.
        UnavailableError: the store does not answer.
    """
    texts, tenant = asked.texts, asked.grant.tenant.id
    limit = params.count(texts, "limit", params.DEFAULT_LIMIT, params.MAX_LIMIT)
    form = params.choice(texts, "format", ("json", "ndjson"))
    direction = params.choice(texts, "direction", ("backward", "forward"))
    if texts.get("cursor"):
        at = cursor.decode(texts["cursor"], tenant, asked.query)
        if texts.get("direction") and (direction == "backward") != at.bound.is_backward:
            raise errors.BadRequestError(
                f"The cursor does not go {direction}.", hint="Send it without a `direction`."
            )
        window = at.window
        planned = asked.plan(window, bound=at.bound)
    else:
        window = params.window(texts, asked.now_ns)
        planned = asked.plan(window, is_backward=direction == "backward")
    page = await search.search(asked.doors.reader, planned, limit, asked.run)
    end = {
        "cursor": _next(page, window, tenant, asked.query),
        "stopped": page.stopped or ("limit" if page.next else None),
        "stats": asked.run.finish(),
    }
    if form == "ndjson":
        return Answer(render.ndjson(page.records, end), NDJSON)
    return Answer(render.page(page.records, end))


def _next(page: search.Page, window: Window, tenant: TenantId, text: str) -> str | None:
    if page.next is None:
        return None
    return cursor.encode(cursor.Cursor(page.next, window), tenant, text)


async def histogram(asked: Asked) -> Answer:
    """Answer `/api/v1/histogram`: how many records each bucket has, by labels (default: level).

    Raises:
        BadRequestError, UnavailableError: as `query`.
    """
    window = params.window(asked.texts, asked.now_ns)
    buckets = params.buckets(asked.texts, window)
    by = tuple(name.strip() for name in asked.texts.get("by", "level").split(",") if name.strip())
    planned = asked.plan(window)

    def group(pipeline: int, labels: Labels) -> Labels:
        shown = dict(planned.shown(PipelineId(pipeline), labels))
        return tuple((name, shown.get(name, "")) for name in by)

    tally = Tally(buckets, group)
    counted = await count.count(asked.doors.reader, planned, tally, asked.run)
    series = [
        {"labels": {name: value for name, value in labels if value}, "counts": counts.tolist()}
        for labels, counts in sorted(tally.series().items())
    ]
    return Answer(
        _encode(
            {
                "buckets": [str(start_ns) for start_ns in buckets.starts_ns()],
                "step": str(buckets.step_ns),
                "series": series,
                **_ended(counted, asked.run),
            }
        )
    )


def _ended(counted: count.Counted, run: Run) -> dict[str, object]:
    exact = counted.exact_from_ns
    return {
        "stopped": counted.stopped,
        "exact_from": None if exact is None else str(exact),
        "stats": run.finish(),
    }


async def _groups(
    asked: Asked, group: Callable[[plan.Plan, PipelineId, Labels], Labels]
) -> tuple[Mapping[Labels, int], dict[str, object]]:
    """Count the records of the whole range by a group of their labels."""
    window = params.window(asked.texts, asked.now_ns)
    planned = asked.plan(window)
    one = Buckets(window.start_ns, window.end_ns - window.start_ns, 1)
    tally = Tally(one, lambda pipeline, labels: group(planned, PipelineId(pipeline), labels))
    counted = await count.count(asked.doors.reader, planned, tally, asked.run)
    counts = {labels: int(values[0]) for labels, values in tally.series().items()}
    return {labels: n for labels, n in counts.items() if n}, _ended(counted, asked.run)


async def labels(asked: Asked) -> Answer:
    """Answer `/api/v1/labels`: the names of labels that matching records have.

    Raises:
        BadRequestError, UnavailableError: as `query`.
    """
    found, ended = await _groups(
        asked,
        lambda planned, pipeline, given: tuple(
            (name, "") for name, _ in planned.shown(pipeline, given)
        ),
    )
    names = sorted({name for group in found for name, _ in group})
    return Answer(_encode({"labels": names, **ended}))


async def label_values(asked: Asked, name: str) -> Answer:
    """Answer `/api/v1/labels/<name>/values`: each value with its number of records.

    Raises:
        BadRequestError, UnavailableError: as `query`.
    """
    check_label_name(name)
    found, ended = await _groups(
        asked,
        lambda planned, pipeline, given: (
            (name, dict(planned.shown(pipeline, given)).get(name, "")),
        ),
    )
    values = sorted(((value, n) for ((_, value),), n in found.items() if value), key=_commonest)
    return Answer(
        _encode(
            {
                "values": [{"value": value, "count": n} for value, n in values[:MAX_LABEL_VALUES]],
                "distinct": len(values),
                **ended,
            }
        )
    )


def _commonest(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]


async def fields_of(asked: Asked) -> Answer:
    """Answer `/api/v1/fields`: attribute paths of a sample of the newest matching records.

    Raises:
        BadRequestError, UnavailableError: as `query`.
    """
    sample = params.count(asked.texts, "limit", SAMPLE_RECORDS, params.MAX_LIMIT)
    planned = asked.plan(params.window(asked.texts, asked.now_ns))
    page = await search.search(asked.doors.reader, planned, sample, asked.run)
    return Answer(
        _encode(
            {
                "fields": fields.fields(one.attributes for one in page.records),
                "sampled": len(page.records),
                "stopped": page.stopped or ("limit" if page.next else None),
                "stats": asked.run.finish(),
            }
        )
    )


async def receipt(asked: Asked, text: str) -> Answer:
    """Answer `/api/v1/receipts/<id>`: where a request's records are.

    Raises:
        BadRequestError: the text is no receipt id.
        UnavailableError: the store or the journal does not answer.
    """
    wanted = Receipt.parse(text)

    async def is_buffered() -> bool:
        for pipeline in asked.grant.pipelines:
            if await asked.doors.source.holds(pipeline, wanted):
                return True
        return False

    state = await receipts.look_up(asked.doors.reader, is_buffered, asked.grant.only, wanted)
    return Answer(_encode(state))


def check_label_name(name: str) -> None:
    """Check a label's name out of a path.

    Raises:
        BadRequestError: no label can have it.
    """
    if not name or len(name.encode("utf-8", "replace")) > bounds.MAX_LABEL_NAME_BYTES:
        raise errors.BadRequestError(
            f"{name[:80]!r} is not a label's name.",
            hint=f"It has 1 to {bounds.MAX_LABEL_NAME_BYTES} bytes.",
        )
