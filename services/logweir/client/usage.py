"""`logweir usage`: what a tenant's pipelines used, as a table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx2
import msgspec

from logweir.client import api
from logweir.client.api import Target
from logweir.client.output import size
from logweir.core import moments

_HEADS: Final = (
    *("START", "PIPELINE", "REQUESTS", "ACCEPTED", "STORED", "EXPIRED", "REPEATED", "QUARANTINED"),
    *("RAW", "IN STORE", "REFUSED"),
)


class _Answer(msgspec.Struct, frozen=True):
    usage: list[dict[str, Any]]


def text(target: Target, asked: Mapping[str, str], form: str) -> str:
    """Return usage as it is printed.

    Args:
        target: where to ask.
        asked: start, end and step, as the API takes them; empty texts are left out.
        form: table, json or csv.

    Raises:
        AnswerError: the server refuses.
        UnavailableError: it cannot be reached.
    """
    params = {name: value for name, value in asked.items() if value}
    params["format"] = "csv" if form == "csv" else "json"
    with api.client(target) as http:
        answer = _get(http, target, params)
    if form == "csv":
        return answer.text.rstrip("\n")
    if form == "json":
        return msgspec.json.format(answer.content).decode()
    return table(api.decode(answer, _Answer).usage)


def _get(http: httpx2.Client, target: Target, params: Mapping[str, str]) -> httpx2.Response:
    try:
        answer = http.get(target.platform_url + "/api/v1/usage", params=params)
    except httpx2.TransportError as cause:
        raise api.no_answer(target, cause) from cause
    api.check(answer)
    return answer


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table, numbers to the right."""
    lines = [list(_HEADS), *(_line(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _line(row: Mapping[str, Any]) -> list[str]:
    counts = ("requests", "accepted", "stored", "expired", "repeated", "quarantined")
    return [
        moments.to_text(int(row["start"]))[:16] + "Z",
        row["pipeline"],
        *(f"{row[name]:,}" for name in counts),
        size(row["raw_bytes"]),
        size(row["stored_bytes"]),
        f"{sum(row['refused'].values()):,}",
    ]
