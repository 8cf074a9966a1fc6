"""Lines as records: what becomes of each, in which batches, and sent until they are taken."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from answering import answering
from hypothesis import given
from hypothesis import strategies as st

from logweir.client import lines, send
from logweir.client.api import AnswerError, Target
from logweir.client.send import Defaults
from logweir.core import bounds, errors

DEFAULTS = Defaults("cli", "info", "")
TAKEN = (200, {"receipt": "r.0", "accepted": 1, "rejected": []})


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch):
    monkeypatch.setattr(send, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(send, "_LONGEST_WAIT_S", 0.02)


def record(line: str, service: str = "cli", level: str = "info", host: str = "") -> dict:
    return json.loads(send.record_of(line.encode(), Defaults(service, level, host)))


def batches(*texts: str | None, **options) -> list[tuple[list[int], list[str]]]:
    refused: list[tuple[int, str]] = []
    encoded = [None if one is None else one.encode() for one in texts]
    made = send.batches(encoded, DEFAULTS, lambda n, why: refused.append((n, why)), **options)
    found = [(n, [json.loads(one)["message"] for one in body.split(b"\n")]) for n, body in made]
    assert not refused
    return found


# ---- a line ---------------------------------------------------------------------------------


def test_a_line_of_text_is_the_message_of_a_record():
    assert record("GET / 200") == {"service": "cli", "level": "info", "message": "GET / 200"}


def test_a_line_may_say_what_the_options_say():
    found = record("x", service="shop", level="warn", host="db1")

    assert found == {"service": "shop", "level": "warn", "host": "db1", "message": "x"}


def test_a_record_of_the_native_form_goes_as_it_is():
    native = {"message": "m", "level": "error", "service": "s", "host": "h", "metadata": {"a": 1}}

    assert record(json.dumps(native), host="other") == native


def test_other_json_is_kept_whole_and_named_fields_are_used():
    other = {"msg": "m", "level": "error", "service": "s", "timestamp": 1700000000, "user": 5}

    assert record(json.dumps(other)) == {
        "message": "m",
        "level": "error",
        "service": "s",
        "timestamp": 1700000000,
        "metadata": other,
    }


def test_fields_of_other_types_are_not_taken_for_ours():
    found = record('{"msg": "m", "level": 30, "service": null}')

    assert (found["level"], found["service"]) == ("info", "cli")
    assert found["metadata"] == {"msg": "m", "level": 30, "service": None}


def test_json_without_a_message_is_its_own_message():
    assert record('{"user": 5}')["message"] == '{"user": 5}'


@pytest.mark.parametrize("line", ["{", "{}", '{"a": 1', "[1, 2]", '"text"', "{" * 5000])
def test_what_only_looks_like_json_is_a_message(line):
    assert record(line)["message"] == line


def test_bytes_that_are_no_text_are_marked_and_sent():
    assert json.loads(send.record_of(b"a\xffb", DEFAULTS))["message"] == "a�b"


@given(line=st.binary(max_size=200))
def test_every_line_becomes_one_line_of_json(line):
    made = send.record_of(line, DEFAULTS)

    assert b"\n" not in made
    assert {"message", "service", "level"} <= json.loads(made).keys()


# ---- batches --------------------------------------------------------------------------------


def test_lines_are_counted_as_in_the_file_and_empty_ones_are_not_sent():
    assert batches("a", "", "  ", "b") == [([1, 4], ["a", "b"])]


def test_a_full_batch_is_sent_without_waiting_for_the_next_line():
    assert batches("a", "b", "c", max_records=2) == [([1, 2], ["a", "b"]), ([3], ["c"])]


def test_a_pause_sends_what_there_is():
    assert batches("a", None, None, "b") == [([1], ["a"]), ([2], ["b"])]


def test_large_lines_make_small_batches():
    many = batches(*["x" * (700 << 10)] * 3)

    assert [numbers for numbers, _ in many] == [[1, 2], [3]]


def test_a_line_larger_than_a_record_may_be_is_refused_by_its_number():
    refused = []
    huge = b"x" * (bounds.MAX_RECORD_BYTES + 1)
    made = list(send.batches([b"a", huge, b"b"], DEFAULTS, lambda *one: refused.append(one)))

    assert [numbers for numbers, _ in made] == [[1, 3]]
    assert refused == [(2, "larger than 1048576 bytes")]


# ---- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"a\nb\n", [b"a", b"b"], id="whole lines"),
        pytest.param(b"a\r\nb", [b"a", b"b"], id="a last line without an end"),
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"\n\n", [b"", b""], id="empty lines"),
    ],
)
def test_lines_of_a_file(tmp_path: Path, content, expected):
    (tmp_path / "f").write_bytes(content)
    with (tmp_path / "f").open("rb") as file:
        assert list(lines.read(file)) == expected


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path):
    (tmp_path / "f").write_bytes(b"x" * (5 << 20) + b"\nnext\n")
    with (tmp_path / "f").open("rb") as file:
        found = list(lines.read(file))

    assert bounds.MAX_RECORD_BYTES < len(found[0]) < 3 << 20
    assert found[1] == b"next"


def test_a_writer_that_pauses_is_noticed():
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        found = lines.read(file, pause_s=0.05)
        os.write(writer, b"one\ntw")
        first = [next(found), next(found)]
        os.write(writer, b"o\n")
        second = [next(found), next(found)]
        os.close(writer)

        assert (first, second, list(found)) == ([b"one", None], [b"two", None], [])


# ---- sending --------------------------------------------------------------------------------


def test_all_lines_are_sent_with_a_key_for_each_batch():
    with answering(lambda asked: TAKEN) as (url, asked):
        done = send.send(Target(url, "k"), [b"a", b"b", b"c"], DEFAULTS, max_records=2)

    keys = [one.headers["idempotency-key"] for one in asked]
    assert [[r["message"] for r in one.lines] for one in asked] == [["a", "b"], ["c"]]
    assert [key.rsplit(".", 1)[1] for key in keys] == ["0", "1"]
    assert len({key.rsplit(".", 1)[0] for key in keys}) == 1
    assert asked[0].headers["authorization"] == "Bearer k"
    assert (done.records, done.requests, done.receipt) == (2, 2, "r.0")


def test_two_sends_have_keys_of_their_own():
    with answering(lambda asked: TAKEN) as (url, asked):
        for _ in range(2):
            send.send(Target(url, "k"), [b"a"], DEFAULTS)

    assert len({one.headers["idempotency-key"] for one in asked}) == 2


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_batch_that_is_not_taken_now_is_sent_again_with_the_same_key(status):
    answers = iter([(status, b"", {"retry-after": "0"}), (status, b""), TAKEN])
    with answering(lambda asked: next(answers)) as (url, asked):
        done = send.send(Target(url, "k"), [b"a"], DEFAULTS)

    assert done.records == 1
    assert len({(one.headers["idempotency-key"], one.body) for one in asked}) == 1
    assert len(asked) == 3


def test_a_server_that_is_away_is_waited_for():
    with answering(lambda asked: TAKEN) as (url, _):
        pass  # it is gone now
    is_done = threading.Event()

    def come_back() -> None:
        with answering(lambda asked: TAKEN, port=int(url.rpartition(":")[2])):
            is_done.wait(20)

    timer = threading.Timer(0.1, come_back)
    timer.start()
    done = send.send(Target(url, "k"), [b"a"], DEFAULTS)
    is_done.set()
    timer.join()

    assert done.records == 1


def test_a_server_that_stays_away_is_given_up(monkeypatch):
    monkeypatch.setattr(send, "GIVE_UP_S", 0.1)
    with answering(lambda asked: TAKEN) as (url, _):
        pass

    with pytest.raises(errors.UnavailableError, match=f"No answer from {url}"):
        send.send(Target(url, "k"), [b"a"], DEFAULTS)


def test_bad_records_are_named_by_their_lines():
    answer = {"receipt": "r.0", "accepted": 1, "rejected": [{"index": 1, "reason": "bad time"}]}
    with answering(lambda asked: (200, answer)) as (url, _):
        done = send.send(Target(url, "k"), [b"a", b"", b"b"], DEFAULTS)

    assert done.rejected == [(3, "bad time")]


def test_a_batch_without_a_good_record_does_not_stop_the_next_one():
    refused = {"error": {}, "rejected": [{"index": 0, "reason": "bad"}]}
    answers = iter([(400, refused), TAKEN])
    with answering(lambda asked: next(answers)) as (url, asked):
        done = send.send(Target(url, "k"), [b"a", b"b"], DEFAULTS, max_records=1)

    assert (done.records, done.rejected, len(asked)) == (1, [(1, "bad")], 2)


def test_a_refusal_for_good_is_an_error_in_the_servers_words():
    words = {"error": {"code": "unauthorized", "message": "The key is bad.", "hint": "Another."}}
    said = pytest.raises(AnswerError, match=r"The key is bad\. Another\.")
    with answering(lambda asked: (401, words)) as (url, asked), said:
        send.send(Target(url, "k"), [b"a"], DEFAULTS)

    assert len(asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((200, b"<html>"), id="a web page"),
        pytest.param((200, {"hello": 1}), id="other JSON"),
        pytest.param((400, b"<html>"), id="a refusal of somebody else"),
        pytest.param((404, b""), id="no such page"),
    ],
)
def test_another_server_is_told_apart_from_a_logweir(answer):
    with answering(lambda asked: answer) as (url, _), pytest.raises(AnswerError):
        send.send(Target(url, "k"), [b"a"], DEFAULTS)


def test_how_far_it_is_is_told_after_each_batch():
    told = []
    with answering(lambda asked: TAKEN) as (url, _):
        send.send(
            Target(url, "k"),
            [b"a", b"b"],
            DEFAULTS,
            lambda sent: told.append(sent.requests),
            max_records=1,
        )

    assert told == [1, 2]
