"""The checker names each way in which records can be lost, doubled, changed or miscounted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import msgspec
import pytest
from chaos import checker, history, numbered
from chaos.checker import Books, Outcome, Stored, Truth
from chaos.history import FORGET, Answer, Fault, GaveUp, Intent, Retry


def digests(producer: int, first: int, count: int) -> list[str]:
    return [f"content {producer}/{seq}" for seq in range(first, first + count)]


def intent(request: str, first: int, key: str, count: int = 4, **fields: object) -> Intent:
    return Intent(request, 10.0, 1, first, digests(1, first, count), key, **fields)


def ack(request: str, index: int, at_s: float = 11.0, accepted: int = 4, **fields: object):
    return Answer(request, at_s, at_s - 0.1, 200, f"block.{index}", accepted=accepted, **fields)


def lines() -> list[history.Line]:
    """A producer's day in which everything went as promised."""
    return [
        Fault(9.0, "kill ingest"),
        intent("acked", 0, "key a", count=6, expired=[4], bad=[5]),
        Retry("acked", 10.5, "503"),
        ack("acked", 0, accepted=5, repeated=True, expired=[4], rejected=[5]),
        intent("refused", 10, "key b", bad=[0, 1, 2, 3]),
        Answer("refused", 11.0, 10.9, 400),
        intent("gave up", 20, "key c"),
        GaveUp("gave up", 10.1, was_planned=True),
        intent("keyless", 30, ""),
        Retry("keyless", 10.5, "ReadError"),
        ack("keyless", 1),
        intent("repeated", 40, "p1.x.1.7"),
        ack("repeated", 2),
        ack("repeated", 2, at_s=13.0, repeated=True),
        intent("other body", 50, "key a", reuses="acked"),
        Answer("other body", 12.0, 11.9, 422),
    ]


def stored(first: int, count: int = 4, block: str = "000000000000000a") -> list[Stored]:
    return [
        Stored(1, seq, f"{10**9 + seq}-{block}-{seq}", f"content 1/{seq}")
        for seq in range(first, first + count)
    ]


def truth(*parts: Sequence[Stored]) -> Truth:
    """What is there after that day; books and query API agree with the segments."""
    records = list(itertools.chain(*(parts or (stored(0), stored(30), stored(40)))))
    whole = Outcome(stored=len(records), expired=1)
    return Truth(
        stored=records,
        queried=[(one.id, one.digest) for one in records],
        quarantined=[],
        stuck=[],
        outcomes={
            "block.0": Outcome(stored=4, expired=1),
            "block.1": Outcome(stored=4),
            "block.2": Outcome(stored=4),
        },
        receipts={"block.0": "stored"},
        books=Books(
            accepted=whole.total,
            in_flight=0,
            buffered_bytes=0,
            tenant_bytes=0,
            entries=0,
            pending=0,
            usage=whole,
            ledger=whole,
            segments=len(records),
        ),
    )


def judged(there: Truth, of: Sequence[history.Line] | None = None) -> checker.Verdict:
    return checker.judge(history.fold(of or lines()), there)


def kinds(there: Truth, of: Sequence[history.Line] | None = None) -> dict[str, int]:
    return dict(judged(there, of).kinds)


def without(request: str) -> list[history.Line]:
    """The day, without the answers to a request."""
    return [one for one in lines() if not (isinstance(one, Answer) and one.request == request)]


def test_a_day_as_promised_has_no_misses():
    verdict = judged(truth())

    assert verdict.misses == []
    assert verdict.numbers["records acked"] == 12
    assert verdict.numbers["retries"] == 2


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        pytest.param(
            [stored(1, 3), stored(30), stored(40)],
            {"lost": 1, "half a request": 1, "accounting": 1},
            id="a lost record",
        ),
        pytest.param([stored(30), stored(40)], {"lost": 4, "accounting": 1}, id="a lost request"),
        pytest.param(
            [stored(0), stored(30), stored(40), stored(40, block="000000000000000b")],
            {"doubled": 4},
            id="a doubled request",
        ),
        pytest.param(
            [stored(0), stored(30), stored(40), stored(41, 1, block="000000000000000b")],
            {"doubled": 1, "half a request": 1},
            id="a doubled record",
        ),
        pytest.param(
            [stored(0), stored(30), stored(40), stored(10)],
            {"refused but stored": 4},
            id="a refused request stored",
        ),
        pytest.param(
            [stored(0, 5), stored(30), stored(40)],
            {"refused but stored": 1},
            id="an expired record stored",
        ),
        pytest.param(
            [stored(0), stored(30), stored(40), stored(50)],
            {"refused but stored": 4},
            id="another body under a used key stored",
        ),
        pytest.param(
            [stored(0), stored(30), stored(40), stored(20, 2)],
            {"half a request": 1},
            id="half of a request of unknown outcome stored",
        ),
        pytest.param(
            [stored(0), stored(30), stored(40), stored(20)], {}, id="unknown outcome, stored"
        ),
        pytest.param(
            [stored(0), stored(30), stored(40), stored(20), stored(20, block="00000000000000bb")],
            {"doubled": 4},
            id="unknown outcome, stored twice",
        ),
        pytest.param(
            [stored(0), stored(30), stored(40), stored(30, block="000000000000000b")],
            {},
            id="without a key, stored as often as sent",
        ),
        pytest.param(
            [stored(0), stored(40), *(stored(30, block=f"{n:016x}") for n in range(3))],
            {"doubled": 4},
            id="without a key, stored more often than sent",
        ),
        pytest.param(
            [stored(0), stored(30), stored(40), stored(900, 1)],
            {"stranger": 1},
            id="a record that nobody sent",
        ),
    ],
)
def test_records_are_where_the_answers_say(parts, expected):
    assert kinds(truth(*parts)) == expected


def test_a_record_with_another_content_is_named():
    records = [*stored(0), *stored(30), *stored(40)]
    records[2] = msgspec.structs.replace(records[2], digest="something else")

    [miss] = judged(truth(records)).misses

    assert (miss.kind, miss.producer, miss.seq) == ("wrong content", 1, 2)


def test_a_miss_says_producer_number_key_block_and_faults():
    again = stored(41, 1, "00000000000000bb")
    misses = judged(truth(stored(0), stored(30), stored(40), again)).misses

    [said] = [checker.text(one) for one in misses if one.kind == "doubled"]

    assert "p=1 seq=41" in said
    assert "key p1.x.1.7" in said
    assert "block 000000000000000a, 00000000000000bb" in said
    assert "kill ingest at 9.00" in said


def test_what_stands_in_the_journal_is_stuck_and_not_lost():
    there = truth(stored(30), stored(40))
    there.stuck = [(1, seq) for seq in range(4)]
    there.books = msgspec.structs.replace(
        there.books, entries=1, pending=1, in_flight=5, accepted=there.books.accepted + 5
    )

    assert kinds(there) == {"stuck": 5}


def test_a_record_in_quarantine_is_not_lost():
    there = truth(stored(30), stored(40))
    there.quarantined = [(1, seq) for seq in range(4)]

    assert "lost" not in kinds(there)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"accepted": 14}, id="accepted and not accounted for"),
        pytest.param({"in_flight": 1}, id="in flight, though the journal is empty"),
        pytest.param({"buffered_bytes": 9}, id="bytes of the pipeline are left"),
        pytest.param({"tenant_bytes": -9}, id="bytes of the tenant are below none"),
        pytest.param({"ledger": Outcome(stored=11, expired=1)}, id="the ledger says otherwise"),
        pytest.param(
            {"usage": Outcome(stored=12, repeated=1)}, id="usage says otherwise, the sum is right"
        ),
        pytest.param({"segments": 11}, id="segments say otherwise"),
    ],
)
def test_books_that_do_not_balance_are_named(change):
    there = truth()
    there.books = msgspec.structs.replace(there.books, **change)

    assert set(kinds(there)) == {"accounting"}


def test_fewer_records_accepted_than_acknowledged_is_named():
    there = truth()
    of = [intent("more", 60, ""), ack("more", 2, accepted=4)]

    assert kinds(there, [*lines(), *of]) == {"accounting": 1, "lost": 4}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda there: there.queried.pop(), id="the query misses one"),
        pytest.param(lambda there: there.queried.append(there.queried[0]), id="it has one twice"),
        pytest.param(
            lambda there: there.queried.append((there.queried.pop()[0], "other")),
            id="it shows another content",
        ),
    ],
)
def test_a_query_that_shows_something_else_is_named(change: Callable[[Truth], None]):
    there = truth()
    change(there)

    assert set(kinds(there)) == {"views differ"}


@pytest.mark.parametrize(
    ("receipt", "outcome"),
    [
        pytest.param("block.0", None, id="unknown to the ledger"),
        pytest.param("block.0", Outcome(stored=3, expired=1), id="fewer records"),
        pytest.param("block.2", Outcome(stored=2, repeated=2), id="half a repeat"),
    ],
)
def test_a_receipt_with_another_outcome_is_named(receipt, outcome):
    there = truth()
    there.outcomes = dict(there.outcomes) | {receipt: outcome}

    assert kinds(there) == {"wrong receipt": 1}


def test_a_receipt_that_the_api_does_not_call_stored_is_named():
    there = truth()
    there.receipts = {"block.1": "unknown"}

    assert kinds(there) == {"wrong receipt": 1}


@pytest.mark.parametrize(("word", "misses"), [("repeated", {}), ("stored", {"wrong receipt": 1})])
def test_the_api_calls_a_request_that_another_block_stored_first_a_repeat(word, misses):
    there = truth()
    there.outcomes = dict(there.outcomes) | {"block.2": Outcome(repeated=4)}
    there.receipts = {"block.2": word}

    assert kinds(there) == misses


def refused_block() -> tuple[Truth, list[history.Line]]:
    """A day in which the store refused a block: it is in quarantine, under one outcome."""
    answer = msgspec.structs.replace(ack("refused block", 1), receipt="bad.1")
    there = truth()
    there.quarantined = [(1, seq) for seq in range(60, 64)]
    there.outcomes = dict(there.outcomes) | {"bad.0": Outcome(quarantined=9)}
    there.receipts = {"bad.1": "quarantined"}
    whole = Outcome(stored=12, expired=1, quarantined=9)
    there.books = msgspec.structs.replace(there.books, accepted=22, usage=whole, ledger=whole)
    return there, [*lines(), intent("refused block", 60, "key r"), answer]


def test_a_request_of_a_block_in_quarantine_is_where_its_receipt_says():
    assert kinds(*refused_block()) == {}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"receipts": {"bad.1": "stored"}}, "wrong receipt"),
        ({"quarantined": [(1, seq) for seq in range(60, 63)]}, "lost"),
    ],
)
def test_a_block_in_quarantine_that_is_not_what_was_said_is_named(change, kind):
    there, of = refused_block()
    for name, value in change.items():
        setattr(there, name, value)

    assert kind in kinds(there, of)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([ack("repeated", 1, 14.0, repeated=True)], id="a repeat with another receipt"),
        pytest.param([ack("repeated", 2, 14.0)], id="a repeat that is not called one"),
        pytest.param([ack("acked", 0, 14.0, repeated=True)], id="other counts than were sent"),
        pytest.param([Answer("repeated", 14.0, 13.9, 401)], id="a good request refused"),
        pytest.param([Retry("repeated", 14.0, "500")], id="an error that is none of ours"),
        pytest.param([Retry("repeated", 14.0, "503 without Retry-After")], id="no Retry-After"),
    ],
)
def test_an_answer_that_does_not_fit_is_named(more):
    assert set(kinds(truth(), [*lines(), *more])) == {"wrong answer"}


def test_a_repeat_of_what_was_sent_once_is_named():
    of = [one for one in lines() if not (isinstance(one, Retry) and one.request == "acked")]

    assert kinds(truth(), of) == {"wrong answer": 1}


def test_another_body_under_a_remembered_key_may_not_be_accepted():
    of = [*without("other body"), ack("other body", 3, 12.0)]
    there = truth()
    there.quarantined = [(1, seq) for seq in range(50, 54)]

    assert "wrong answer" in kinds(there, of)


def forgotten_and_accepted() -> list[history.Line]:
    return [*without("other body"), Fault(11.5, FORGET), ack("other body", 3, 12.0)]


def test_another_body_under_a_forgotten_key_is_kept_in_quarantine():
    there = truth()
    there.quarantined = [(1, seq) for seq in range(50, 54)]
    whole = Outcome(stored=12, expired=1, quarantined=4)
    there.books = msgspec.structs.replace(there.books, accepted=17, usage=whole, ledger=whole)

    assert kinds(there, forgotten_and_accepted()) == {}


def test_of_two_bodies_under_a_forgotten_number_either_may_be_the_one_that_is_stored():
    of = [
        *lines()[:-2],
        Fault(11.5, FORGET),
        intent("other body", 50, "p1.x.1.7", reuses="repeated"),
        ack("other body", 3, 12.0),
    ]
    of = [one for one in of if not (isinstance(one, Answer) and one.at_s == 13.0)]
    there = truth(stored(0), stored(30), stored(50))
    there.outcomes = {**there.outcomes, "block.2": Outcome(repeated=4), "block.3": Outcome(4)}
    whole = Outcome(stored=12, expired=1, repeated=4)
    there.books = msgspec.structs.replace(there.books, accepted=17, usage=whole, ledger=whole)

    assert kinds(there, of) == {}
    assert kinds(there, [one for one in of if one != Fault(11.5, FORGET)])["lost"] == 4
    both = [*there.stored, *stored(40)]
    there.stored, there.queried = both, [(one.id, one.digest) for one in both]
    assert kinds(there, of)["refused but stored"] == 4


def test_a_body_that_lost_its_forgotten_key_to_another_is_in_quarantine():
    there = truth(stored(50), stored(30), stored(40))
    there.outcomes = {**there.outcomes, "block.3": Outcome(4)}
    there.quarantined = [(1, seq) for seq in range(4)]
    whole = Outcome(stored=12, expired=1, quarantined=4)
    there.books = msgspec.structs.replace(there.books, accepted=17, usage=whole, ledger=whole)

    assert kinds(there, forgotten_and_accepted()) == {}
    there.quarantined = []
    assert kinds(there, forgotten_and_accepted()) == {"lost": 4}


def test_another_body_that_was_accepted_and_is_nowhere_is_lost():
    there = truth()
    there.books = msgspec.structs.replace(there.books, accepted=17)

    assert kinds(there, forgotten_and_accepted()) == {"lost": 4, "accounting": 1}


def test_another_body_that_is_in_quarantine_more_often_than_sent_is_doubled():
    there = truth()
    there.quarantined = [(1, seq) for seq in range(50, 54)] * 2
    there.books = msgspec.structs.replace(there.books, accepted=17)

    assert kinds(there, forgotten_and_accepted()) == {"doubled": 4, "accounting": 1}


def test_what_was_sent_once_is_no_repeat_for_the_ledger():
    there = truth()
    there.outcomes = dict(there.outcomes) | {"block.3": Outcome(repeated=4)}
    there.stored += stored(60)
    there.queried += [(one.id, one.digest) for one in stored(60)]
    of = [*lines(), intent("once", 60, "key d"), ack("once", 3)]

    assert "wrong receipt" in kinds(there, of)


def test_a_repeat_after_the_markers_were_lost_may_have_a_receipt_of_its_own():
    of = [*lines(), Fault(13.5, FORGET), ack("repeated", 9, 14.0)]

    assert kinds(truth(), of) == {}


@pytest.mark.parametrize(("sent", "missed"), [("content 1/0", {}), ("", {"wrong content": 1})])
def test_a_timestamp_that_was_replaced_by_rule_is_compared_as_it_was_sent(sent, missed):
    there = truth()
    there.stored[0] = msgspec.structs.replace(there.stored[0], digest="at its arrival", sent=sent)
    there.queried[0] = (there.queried[0][0], "at its arrival")

    assert kinds(there) == missed


def test_the_report_lists_kinds_and_seed():
    said = checker.report(judged(truth(stored(30), stored(40))), seed=77)

    assert "seed 77" in said
    assert "lost: 4" in said


def test_a_log_is_read_as_it_was_written(tmp_path):
    log = history.Log(tmp_path / "history")
    for line in lines():
        log.write(line)
    log.close()

    assert history.read(log.path) == lines()


def test_a_maker_numbers_records_without_gaps_and_says_what_it_sends():
    maker = numbered.Maker(3, 1, "free", now_s=lambda: 1e9)
    made = [maker.request() for _ in range(20)]

    numbers = [one.intent.first + index for one in made for index in range(len(one.intent.digests))]
    assert numbers == list(range(len(numbers)))
    assert len({one.intent.key for one in made}) == 20


def test_the_same_seed_makes_the_same_requests():
    bodies = [
        [numbered.Maker(3, seed, "numbered", now_s=lambda: 1e9).request() for _ in range(5)]
        for seed in (1, 1, 2)
    ]

    assert bodies[0] == bodies[1]
    assert bodies[0] != bodies[2]
