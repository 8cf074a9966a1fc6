"""What producers tried and were told: an append-only file of lines, the measure of what is stored.

    Intent -> (Retry ...) -> Answer ... or GaveUp          and the faults, in the same order of time

An intent is on file before its first byte is sent, an answer before the next request goes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec


class Intent(msgspec.Struct, tag="intent", frozen=True):
    """A request that will be sent. Its records are numbered `first`, `first` + 1, ...

    `expired` and `bad` are indexes of records that must not be stored: older than the retention,
    and none at all. `reuses` names the request whose key it has, with another body.
    """

    request: str
    at_s: float
    producer: int
    first: int
    digests: list[str]
    key: str = ""
    expired: list[int] = []
    bad: list[int] = []
    reuses: str = ""

    @property
    def good(self) -> list[int]:
        """Indexes of the records that belong into the store."""
        without = {*self.expired, *self.bad}
        return [index for index in range(len(self.digests)) if index not in without]

    @property
    def is_numbered(self) -> bool:
        """Whether the key is a producer's number, of which no fingerprint is remembered."""
        return self.key.startswith("p1.")


class Retry(msgspec.Struct, tag="retry", frozen=True):
    """An attempt without a final answer, so the request is sent again: a status, or what broke."""

    request: str
    at_s: float
    why: str


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """A final answer: a 2xx, or a refusal (4xx but 429). `sent_s` is when this attempt began."""

    request: str
    at_s: float
    sent_s: float
    status: int
    receipt: str = ""
    repeated: bool = False
    accepted: int = 0
    rejected: list[int] = []
    expired: list[int] = []


class GaveUp(msgspec.Struct, tag="gave_up", frozen=True):
    """The producer stopped trying; whether the request was taken is unknown."""

    request: str
    at_s: float
    was_planned: bool


class Fault(msgspec.Struct, tag="fault", frozen=True):
    """Something was done to the system: `kill ingest`, `forget markers`."""

    at_s: float
    what: str


FORGET = "forget markers"
"""The fault after which the journal knows no request any more, and the ledger alone does."""

Line = Intent | Retry | Answer | GaveUp | Fault

_decoder = msgspec.json.Decoder(Line)


class Log:
    """The file; each line is with the operating system before `write` returns.

    `acked` counts records that were acknowledged for the first time, for who watches.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acked = 0
        self._file = path.open("ab", buffering=0)

    def write(self, line: Line) -> None:
        if isinstance(line, Answer) and not line.repeated:
            self.acked += line.accepted
        self._file.write(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Line]:
    return [_decoder.decode(line) for line in path.read_bytes().splitlines()]


class Request(msgspec.Struct):
    """One request with all that became known of it."""

    intent: Intent
    answers: list[Answer] = []
    retries: list[Retry] = []
    retries_before_answer: int = 0
    gave_up: GaveUp | None = None

    @property
    def acks(self) -> list[Answer]:
        return [one for one in self.answers if one.status < 300]

    @property
    def outcome(self) -> str:
        """`acked`, `refused`, or `unknown`."""
        if self.acks:
            return "acked"
        return "refused" if self.answers else "unknown"

    @property
    def sent(self) -> int:
        """How often it was sent: each attempt but one that was given up at once has a line."""
        return len(self.retries) + len(self.answers) or 1

    @property
    def end_s(self) -> float:
        """When the last thing was heard of it."""
        return self.answers[-1].at_s if self.answers else self.intent.at_s


class History(msgspec.Struct):
    """All requests by name, and the faults in order."""

    requests: dict[str, Request]
    faults: list[Fault]

    def has_forgotten(self, from_s: float, to_s: float) -> bool:
        """Whether the journal's markers were removed in between."""
        return any(one.what == FORGET and from_s <= one.at_s <= to_s for one in self.faults)

    def faults_around(self, from_s: float, to_s: float, reach_s: float = 3.0) -> list[Fault]:
        return [f for f in self.faults if from_s - reach_s <= f.at_s <= to_s + reach_s]


def fold(lines: Iterable[Line]) -> History:
    """Bring the lines of each request together."""
    found = History({}, [])
    for line in lines:
        if isinstance(line, Fault):
            found.faults.append(line)
        elif isinstance(line, Intent):
            found.requests[line.request] = Request(line, [], [])
        else:
            _add(found.requests[line.request], line)
    return found


def _add(request: Request, line: Retry | Answer | GaveUp) -> None:
    if isinstance(line, Answer):
        request.answers.append(line)
    elif isinstance(line, GaveUp):
        request.gave_up = line
    else:
        request.retries.append(line)
        request.retries_before_answer += not request.answers


def digest(
    time_ns: int,
    labels: Mapping[str, str],
    message: str,
    trace: str,
    span: str,
    attributes: bytes,
) -> str:
    """Return what tells a record's whole content from any other's."""
    text = msgspec.json.encode(
        [time_ns, sorted(labels.items()), message, trace, span, attributes.decode()]
    )
    return hashlib.blake2b(text, digest_size=6).hexdigest()
