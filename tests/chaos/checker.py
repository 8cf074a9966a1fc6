"""The verdict: what producers were told, against what is stored and what the books say.

    History + Truth -> judge() -> Verdict (each miss with its request, block, faults) -> report()

Pure. A record is named by its producer and number. Acknowledged: exactly once (without a key: at
least once). Refused: never. Unknown: once or not at all, and a request as a whole. What still
stands in the journal is stuck, which is no loss and no success.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from chaos.history import Answer, Fault, History, Request

Name = tuple[int, int]
"""Producer and number of a record."""

MAY_RETRY = ("429", "503")
"""Statuses that send a client away for a while, both with a Retry-After."""

LISTED = 12
"""Misses of each kind that a report lists; all are counted."""


class Stored(msgspec.Struct, frozen=True):
    """A record as it was read: its name, its id (time, block, index), and its content's digest.

    `sent` is the digest of what was sent, where that differs by rule: a timestamp too far in the
    future (for a clock that is behind) is replaced by the arrival, and kept beside.
    """

    producer: int
    seq: int
    id: str
    digest: str
    sent: str = ""

    @property
    def name(self) -> Name:
        return self.producer, self.seq

    @property
    def block(self) -> str:
        return self.id.rsplit("-", 2)[1]


class Outcome(msgspec.Struct, frozen=True):
    """Records by what became of them, as the ledger and the usage count them."""

    stored: int = 0
    quarantined: int = 0
    expired: int = 0
    repeated: int = 0

    @property
    def total(self) -> int:
        return self.stored + self.quarantined + self.expired + self.repeated


class Books(msgspec.Struct, frozen=True):
    """The system's own counts. `accepted` and what follows are the journal's, to `pending`."""

    accepted: int
    in_flight: int
    buffered_bytes: int
    tenant_bytes: int
    entries: int
    pending: int
    usage: Outcome
    ledger: Outcome
    segments: int


class Truth(msgspec.Struct):
    """What is there after the drain.

    `stored` is decoded from the segments, `queried` are the ids that the query API pages through
    with their digests, `outcomes` the ledger's by receipt, `receipts` the API's words for some.
    """

    stored: list[Stored]
    queried: list[tuple[str, str]]
    quarantined: list[Name]
    stuck: list[Name]
    outcomes: Mapping[str, Outcome]
    receipts: Mapping[str, str]
    books: Books


class Miss(msgspec.Struct, frozen=True):
    """One thing that is not as promised."""

    kind: str
    detail: str
    producer: int | None = None
    seq: int | None = None
    request: str = ""
    key: str = ""
    block: str = ""
    faults: tuple[Fault, ...] = ()


class Verdict(msgspec.Struct):
    """All misses, and the numbers of the table."""

    misses: list[Miss]
    numbers: dict[str, int]

    @property
    def kinds(self) -> Counter[str]:
        return Counter(miss.kind for miss in self.misses)


def judge(history: History, truth: Truth) -> Verdict:
    """Compare what was promised with what is there."""
    return _Judge(history, truth).verdict()


class _Judge:
    def __init__(self, history: History, truth: Truth) -> None:
        self.history, self.truth = history, truth
        self.found: dict[Name, list[Stored]] = defaultdict(list)
        for record in truth.stored:
            self.found[record.name].append(record)
        self.quarantined = Counter(truth.quarantined)
        self.stuck = set(truth.stuck)
        self.others = {self.other_of(one) for one in history.requests.values()}
        self.misses: list[Miss] = []

    def verdict(self) -> Verdict:
        for request in self.history.requests.values():
            self.answers(request)
            self.request(request)
        self.strangers()
        self.views()
        self.misses += [Miss("accounting", text) for text in unbalanced(self.truth.books)]
        self.totals()
        return Verdict(self.misses, numbers(self.history, self.truth))

    def miss(self, kind: str, detail: str, request: Request, index: int | None = None) -> None:
        intent = request.intent
        seq = None if index is None else intent.first + index
        copies = self.found.get((intent.producer, seq), []) if seq is not None else []
        self.misses.append(
            Miss(
                kind=kind,
                detail=detail,
                producer=intent.producer,
                seq=seq,
                request=intent.request,
                key=intent.key,
                block=", ".join(one.block for one in copies)
                or ", ".join(sorted({one.receipt for one in request.acks})),
                faults=tuple(self.history.faults_around(intent.at_s, request.end_s)),
            )
        )

    def other_of(self, request: Request) -> str:
        """Of two bodies under one key, return the request whose body must not be stored.

        That is the second, unless the journal accepted both for its markers were gone between them:
        then the key belongs to the one that was settled first, and either may be it.
        """
        if not (original := self.history.requests.get(request.intent.reuses)):
            return ""
        both = request.acks and original.acks and self.has_forgotten(original, request.acks[0])
        is_swapped = both and self.is_stored(request) and not self.is_stored(original)
        return (original if is_swapped else request).intent.request

    def is_stored(self, request: Request) -> bool:
        intent = request.intent
        return any((intent.producer, intent.first + i) in self.found for i in intent.good)

    # ---- records -----------------------------------------------------------------------------

    def request(self, request: Request) -> None:
        intent = request.intent
        name = intent.producer
        copies = [len(self.found.get((name, intent.first + i), ())) for i in _all(intent.digests)]
        for index in [*intent.expired, *intent.bad]:
            if copies[index]:
                self.miss("refused but stored", "a record that must not be", request, index)
        good = intent.good
        for index in good:
            self.record(request, index, copies[index])
        if len({copies[index] for index in good}) > 1:
            counts = Counter(copies[index] for index in good)
            self.miss("half a request", f"records by copies: {dict(counts)}", request)

    def record(self, request: Request, index: int, copies: int) -> None:
        intent, outcome = request.intent, request.outcome
        name = (intent.producer, intent.first + index)
        kept = self.quarantined[name]
        sent = intent.digests[index]
        if any((one.sent or one.digest) != sent for one in self.found.get(name, ())):
            self.miss("wrong content", "the stored record is not the one sent", request, index)
        if intent.request in self.others:
            self.other(request, index, copies, kept)
        elif outcome == "refused" and copies + kept:
            self.miss("refused but stored", f"{copies} copies", request, index)
        elif outcome == "acked" and not copies + kept:
            kind = "stuck" if name in self.stuck else "lost"
            self.miss(kind, "acknowledged, and not stored", request, index)
        elif copies + kept > self.most(request):
            self.miss("doubled", f"{copies} copies, {kept} in quarantine", request, index)

    def most(self, request: Request) -> int:
        """How many copies there may be: one; without a key as many as the request was sent."""
        return 1 if request.intent.key else request.sent

    def other(self, request: Request, index: int, copies: int, kept: int) -> None:
        """A body under another one's key is never stored; accepted, it is in quarantine, where
        nothing tells a retry from the first. Of a producer's number no fingerprint is known: that
        counts as a repeat."""
        if copies:
            self.miss("refused but stored", "its key belongs to another body", request, index)
        if request.outcome != "acked" or request.intent.is_numbered:
            return
        name = (request.intent.producer, request.intent.first + index)
        if not kept and name not in self.stuck:
            self.miss("lost", "a key conflict, accepted and not in quarantine", request, index)
        if kept > request.sent:
            self.miss("doubled", f"a key conflict, {kept} in quarantine", request, index)

    def strangers(self) -> None:
        known = {
            (one.intent.producer, one.intent.first + index)
            for one in self.history.requests.values()
            for index in _all(one.intent.digests)
        }
        for name in self.found.keys() - known:
            block = self.found[name][0].block
            self.misses.append(Miss("stranger", "nobody sent it", *name, block=block))

    # ---- answers -----------------------------------------------------------------------------

    def answers(self, request: Request) -> None:
        """What the producer was told must fit what it sent, and what it was told before."""
        intent = request.intent
        for retry in request.retries:
            if retry.why[:1].isdigit() and retry.why not in MAY_RETRY:
                self.miss("wrong answer", retry.why, request)
        for answer in request.answers:
            if answer.status >= 300:
                if not intent.reuses and intent.good:
                    self.miss("wrong answer", f"a good request got {answer.status}", request)
                continue
            said = (answer.accepted, answer.rejected, answer.expired)
            if said != (len(intent.good) + len(intent.expired), intent.bad, intent.expired):
                self.miss("wrong answer", f"accepted, rejected, expired: {said}", request)
        if request.acks:
            self.repeats(request, request.acks)
            self.receipt(request, request.acks[0])

    def repeats(self, request: Request, acks: Sequence[Answer]) -> None:
        first, *later = acks
        if intent_reused := request.intent.reuses:
            original = self.history.requests[intent_reused]
            if not self.has_forgotten(original, first):
                self.miss("wrong answer", "another body under the same key was accepted", request)
        elif first.repeated and not request.retries_before_answer:
            self.miss("wrong answer", "a repeat, but it was sent once", request)
        for answer in later:
            is_same = answer.repeated and answer.receipt == first.receipt
            if not is_same and not self.has_forgotten(request, answer):
                self.miss("wrong answer", f"the repeat got {answer.receipt}", request)

    def has_forgotten(self, request: Request, answer: Answer) -> bool:
        return self.history.has_forgotten(request.intent.at_s, answer.at_s)

    def receipt(self, request: Request, ack: Answer) -> None:
        intent = request.intent
        if intent.request in self.others or self.stuck:
            return
        whole = Outcome(stored=len(intent.good), expired=len(intent.expired))
        allowed = [whole]
        if request.sent > 1:  # then another block may have been the first to be settled
            allowed.append(Outcome(repeated=whole.total))
        found = self.truth.outcomes.get(ack.receipt)
        if self.is_refused(ack.receipt):
            return
        if found not in allowed:
            self.miss("wrong receipt", f"{ack.receipt}: the ledger says {found}", request)
        right = "repeated" if found is not None and found.repeated else "stored"
        word = self.truth.receipts.get(ack.receipt, right)
        if word != right:
            self.miss("wrong receipt", f"{ack.receipt}: the API says {word}", request)

    def is_refused(self, receipt: str) -> bool:
        """Whether the receipt's block is in quarantine as a whole, with one outcome for all of it.
        Which of its records are there, `record` looks at."""
        block = receipt.rpartition(".")[0]
        first = self.truth.outcomes.get(f"{block}.0", Outcome())
        is_whole = f"{block}.1" not in self.truth.outcomes and first.quarantined > 0
        return is_whole and self.truth.receipts.get(receipt, "quarantined") == "quarantined"

    # ---- the whole ---------------------------------------------------------------------------

    def views(self) -> None:
        """Segments and query API must show the same records, each once."""
        by_sql = Counter((one.id, one.digest) for one in self.truth.stored)
        by_api = Counter(self.truth.queried)
        for what, extra in (("segments", by_sql - by_api), ("query", by_api - by_sql)):
            for (record_id, _), count in extra.items():
                self.misses.append(
                    Miss("views differ", f"{record_id} {count} times more in the {what}")
                )
        ids = Counter(one.id for one in self.truth.stored)
        self.misses += [
            Miss("doubled", f"id {one} {n} times", block=one) for one, n in ids.items() if n > 1
        ]

    def totals(self) -> None:
        """The books against what producers know."""
        books, stored = self.truth.books, len(self.truth.stored)
        if stored != books.segments:
            text = f"{stored} records decoded, segments say {books.segments}"
            self.misses.append(Miss("accounting", text))
        acked = sum(one.acks[0].accepted for one in self.history.requests.values() if one.acks)
        if books.accepted < acked:
            text = f"{acked} records acknowledged, the journal counts {books.accepted}"
            self.misses.append(Miss("accounting", text))
        if books.entries or books.pending:
            text = f"{books.entries} entries are left in the journal, {books.pending} pending"
            self.misses.append(Miss("stuck", text))


def _all(digests: Sequence[str]) -> range:
    return range(len(digests))


def unbalanced(books: Books) -> Iterator[str]:
    """Say which of the books' sums do not come out."""
    usage = books.usage
    if books.accepted != usage.total + books.in_flight:
        yield f"accepted {books.accepted} is not {usage} + in flight {books.in_flight}"
    if usage != books.ledger:
        yield f"usage says {usage}, the ledger {books.ledger}"
    if usage.stored != books.segments:
        yield f"usage says {usage.stored} stored, segments {books.segments}"
    left = (books.in_flight, books.buffered_bytes, books.tenant_bytes)
    if not books.entries and any(left):
        yield f"the journal is empty, and counts records, bytes, the tenant's bytes: {left}"


def numbers(history: History, truth: Truth) -> dict[str, int]:
    """Count what happened, for the table."""
    requests = list(history.requests.values())
    acked = [one for one in requests if one.outcome == "acked"]
    return {
        "requests": len(requests),
        "requests acked": len(acked),
        "requests refused": sum(one.outcome == "refused" for one in requests),
        "requests of unknown outcome": sum(one.outcome == "unknown" for one in requests),
        "records acked": sum(len(one.intent.good) for one in acked if not one.intent.reuses),
        "records acked as expired": sum(len(one.intent.expired) for one in acked),
        "records stored": len(truth.stored),
        "records in quarantine": len(truth.quarantined),
        "retries": sum(len(one.retries) for one in requests),
        "repeats after an ack": sum(max(0, len(one.acks) - 1) for one in requests),
        "first acks that were repeats": sum(one.acks[0].repeated for one in acked),
        "keys used with another body": sum(bool(one.intent.reuses) for one in requests),
    }


def report(verdict: Verdict, seed: int) -> str:
    """Return the verdict as a table, and what there is to know of each miss."""
    kinds = verdict.kinds
    rows = {**verdict.numbers, "lost": kinds["lost"], "doubled": kinds["doubled"]}
    rows |= {"stuck": kinds["stuck"]}
    rows |= {kind: n for kind, n in kinds.items() if kind not in ("lost", "doubled", "stuck")}
    lines = [f"seed {seed}", *table(rows.items())]
    for kind in kinds:
        some = [miss for miss in verdict.misses if miss.kind == kind]
        lines += ["", f"{kind}: {len(some)}", *(f"  {text(miss)}" for miss in some[:LISTED])]
    return "\n".join(lines)


def table(rows: Iterable[tuple[str, object]]) -> list[str]:
    return [f"  {name:<30} {value:>10}" for name, value in rows]


def text(miss: Miss) -> str:
    """Say one miss in a line."""
    parts = []
    if miss.producer is not None:
        parts.append(f"p={miss.producer}" + (f" seq={miss.seq}" if miss.seq is not None else ""))
    parts += [f"{word} {value}" for word, value in _named(miss) if value]
    parts.append(miss.detail)
    if miss.faults:
        parts.append("faults: " + ", ".join(f"{f.what} at {f.at_s:.2f}" for f in miss.faults))
    return "; ".join(parts)


def _named(miss: Miss) -> list[tuple[str, str]]:
    return [("request", miss.request), ("key", miss.key), ("block", miss.block)]
