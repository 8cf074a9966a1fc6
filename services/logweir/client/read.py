"""`logweir query` and `logweir tail`: records of the read API, as an endless or bounded stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from logweir.client import api
from logweir.client.api import AnswerError, Target

PAGE_RECORDS: Final = 1000
RECONNECT_S: Final = (0.5, 5.0)

Record = dict[str, Any]


class Asked(msgspec.Struct, frozen=True):
    """A query and its range, as the API takes them; empty texts are left out."""

    query: str
    start: str = ""
    end: str = ""
    direction: str = "backward"


def query(target: Target, asked: Asked, limit: int) -> Iterator[Record]:
    """Yield up to `limit` records, page by page.

    Raises:
        AnswerError: the server refuses.
        UnavailableError: it cannot be reached.
    """
    params = {name: value for name, value in msgspec.structs.asdict(asked).items() if value}
    left = limit
    with api.client(target) as http:
        while left > 0:
            params["limit"] = str(min(left, PAGE_RECORDS))
            page = api.get(http, target, "/api/v1/query", params)
            yield from page["records"]
            left -= len(page["records"])
            if page["cursor"] is None:
                return
            params["cursor"] = page["cursor"]


def tail(
    target: Target, asked: Asked, last: int, notice: Callable[[str], None]
) -> Iterator[Record]:
    """Yield the last records and then live ones, for ever; connects again when it is cut.

    Args:
        target: where to read.
        asked: the query, and from when on the last records may be.
        last: how many of them.
        notice: gets a line for a person: records that were missed, a lost connection.

    Raises:
        AnswerError: the server refuses.
        UnavailableError: it cannot be reached at the start.
    """
    params = {"query": asked.query, "limit": str(max(last, 1))}
    if asked.start:
        params["start"] = asked.start
    shown: dict[str, None] = {}
    wait_s, is_first = RECONNECT_S[0], True
    while True:
        try:
            for frame in _frames(target, params):
                is_first, wait_s = False, RECONNECT_S[0]
                if "gap" in frame:
                    notice(f"{frame['gap']['records']} records were left out: reading is too slow")
                for record in frame.get("records", ()):
                    if record["id"] not in shown:
                        _remember(shown, record["id"])
                        yield record
        except (OSError, ConnectionClosed) as cause:
            if is_first:
                raise api.no_answer(target, cause) from cause
            notice(f"connection lost ({cause}); connecting again")
        # What was appended meanwhile comes as history; what was shown already is left out.
        params["limit"] = "5000"
        time.sleep(wait_s)
        wait_s = min(RECONNECT_S[1], wait_s * 2)


def _remember(shown: dict[str, None], record_id: str) -> None:
    shown[record_id] = None
    if len(shown) > 20_000:
        del shown[next(iter(shown))]


def _frames(target: Target, params: dict[str, str]) -> Iterator[dict[str, Any]]:
    url = "ws" + target.platform_url.removeprefix("http") + "/api/v1/tail?" + urlencode(params)
    try:
        with connect(
            url, additional_headers=target.headers, max_size=None, open_timeout=30, proxy=None
        ) as socket:
            for frame in socket:
                found = msgspec.json.decode(frame, type=dict[str, Any])
                if "error" in found:
                    error = found["error"]
                    raise ConnectionError(error["message"])
                yield found
    except InvalidStatus as cause:
        raise _refused(cause) from cause


def _refused(cause: InvalidStatus) -> Exception:
    status = cause.response.status_code
    try:
        error = msgspec.json.decode(cause.response.body or b"", type=dict[str, Any])["error"]
    except (msgspec.MsgspecError, KeyError):
        error = {"message": f"HTTP status {status}", "hint": ""}
    if status >= 500:
        return ConnectionError(error["message"])
    return AnswerError(status, error["message"], error.get("hint", ""), None)
