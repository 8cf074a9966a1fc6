"""`logweir query` and `logweir tail`: records of the read API, as an endless or bounded stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect

from logweir.client import api
from logweir.client.api import AnswerError, Target

PAGE_RECORDS: Final = 1000
MISSED_RECORDS: Final = 5000
"""How many records the server shows again after a connection was lost, at most."""

QUIET_S: Final = 0.5
"""While nothing comes for so long, somebody may have stopped reading what is printed."""

REMEMBERED_IDS: Final = 20_000
RECONNECT_S: Final = (0.2, 5.0)

Record = dict[str, Any]


class Asked(msgspec.Struct, frozen=True):
    """A query and its range, as the API takes them; empty texts are left out."""

    query: str
    start: str = ""
    end: str = ""
    direction: str = "backward"


class _Page(msgspec.Struct, frozen=True):
    records: list[Record]
    cursor: str | None


class _Gap(msgspec.Struct, frozen=True):
    records: int


class _Error(msgspec.Struct, frozen=True):
    message: str


class _Frame(msgspec.Struct, frozen=True):
    """A frame of a tail; one of the members is there."""

    records: list[Record] = []
    live: bool = False
    gap: _Gap | None = None
    error: _Error | None = None


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
            page = api.get(http, target, "/api/v1/query", params, _Page)
            yield from page.records
            left -= len(page.records)
            if page.cursor is None:
                return
            params["cursor"] = page.cursor


def tail(
    target: Target,
    asked: Asked,
    last: int,
    notice: Callable[[str], None],
    is_wanted: Callable[[], bool] = lambda: True,
) -> Iterator[Record]:
    """Yield the last records and then live ones; connects again when it is cut.

    Args:
        target: where to read.
        asked: the query, and from when on the last records may be.
        last: how many of them.
        notice: gets a line for a person: records that were missed, a lost connection.
        is_wanted: asked now and then; the tail ends when it is not.

    Raises:
        AnswerError: the server refuses.
        UnavailableError: it cannot be reached at the start.
    """
    params = {"query": asked.query, "limit": str(last)}
    if asked.start:
        params["start"] = asked.start
    seen = Seen(last)
    wait_s, is_first = RECONNECT_S[0], True
    while is_wanted():
        try:
            for frame in _frames(target, params):
                if not is_wanted():
                    return
                is_first, wait_s = False, RECONNECT_S[0]
                if frame.gap is not None:
                    notice(f"{frame.gap.records} records were left out: reading is too slow")
                yield from seen.new(frame.records)
                if frame.live and seen.is_cut_off():
                    notice(
                        f"more than {MISSED_RECORDS} records came meanwhile: the older ones of"
                        " them are left out; 'logweir query' finds them"
                    )
        except (OSError, WebSocketException) as cause:
            if is_first:
                raise api.no_answer(target, cause) from cause
            notice(f"connection lost ({cause}); connecting again")
        # What was appended meanwhile comes as history; what was shown already is left out.
        params["limit"] = str(MISSED_RECORDS)
        time.sleep(wait_s)
        wait_s = min(RECONNECT_S[1], wait_s * 2)


class Seen:
    """Tells new records from those that were shown, over several connections.

    The first history is the newest `last` records. If there were as many, all that is older than
    the oldest of them was there before, though it was not shown; a later history may hold it.
    """

    def __init__(self, last: int) -> None:
        self._last = last
        self._shown: dict[str, None] = {}
        self._first: list[str] | None = []
        self._oldest: tuple[int, int, int] | None = None
        self._history = self._known = 0

    def new(self, records: list[Record]) -> Iterator[Record]:
        """Yield the records that are new."""
        for record in records:
            self._history += 1
            name = record["id"]
            if name in self._shown or (self._oldest and _order(name) < self._oldest):
                self._known += 1
                continue
            if self._first is not None:
                self._first.append(name)
            self._shown[name] = None
            if len(self._shown) > REMEMBERED_IDS:
                del self._shown[next(iter(self._shown))]
            yield record

    def is_cut_off(self) -> bool:
        """At the end of a history: whether it reaches not as far back as the one before."""
        if self._first is not None:
            if len(self._first) >= self._last:
                self._oldest = min(map(_order, self._first))
            self._first = None
            is_cut = False
        else:
            is_cut = self._history >= MISSED_RECORDS and not self._known
        self._history = self._known = 0
        return is_cut


def _order(record_id: str) -> tuple[int, int, int]:
    """The order of records is that of their ids: time, block, place in it."""
    time_ns, block, index = record_id.rsplit("-", 2)
    return int(time_ns), int(block, 16), int(index)


def _frames(target: Target, params: dict[str, str]) -> Iterator[_Frame]:
    """Yield frames, empty ones while nothing comes, until the connection is cut.

    That is an OSError or a WebSocketException.
    """
    url = "ws" + target.platform_url.removeprefix("http") + "/api/v1/tail?" + urlencode(params)
    try:
        with connect(
            url,
            additional_headers=target.headers,
            max_size=None,
            open_timeout=30,
            proxy=None,
            ssl=target.tls(),
        ) as socket:
            while True:
                try:
                    text = socket.recv(QUIET_S)
                except TimeoutError:
                    yield _Frame()
                    continue
                frame = msgspec.json.decode(text, type=_Frame)
                if frame.error is not None:
                    raise ConnectionError(frame.error.message)
                yield frame
    except InvalidStatus as cause:
        raise _refused(cause) from cause


def _refused(cause: InvalidStatus) -> Exception:
    status = cause.response.status_code
    message, hint = f"HTTP status {status}", ""
    try:
        error = msgspec.json.decode(cause.response.body or b"", type=dict[str, Any])["error"]
        message, hint = error["message"], error.get("hint", "")
    except (msgspec.MsgspecError, KeyError, TypeError):
        pass  # not from Logweir
    if status >= 500:
        return ConnectionError(message)
    return AnswerError(status, message, hint, None)
