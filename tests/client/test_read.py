"""Queries page by page, and a tail that goes on over cut connections."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from urllib.parse import parse_qs, urlsplit

import pytest
from answering import answering
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.server import ServerConnection, serve

from logweir.client import read
from logweir.client.api import AnswerError, Target, picture
from logweir.client.read import Asked, Seen
from logweir.core import errors


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch):
    monkeypatch.setattr(read, "RECONNECT_S", (0.01, 0.02))


def record(time_ns: int, index: int = 0) -> dict:
    return {"id": f"{time_ns}-00000000000000aa-{index}", "message": f"m{time_ns}"}


def asked_of(path: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}


# ---- query ----------------------------------------------------------------------------------


def test_pages_are_read_until_there_are_no_more(monkeypatch):
    monkeypatch.setattr(read, "PAGE_RECORDS", 2)
    pages = {None: ([3, 2], "c1"), "c1": ([], "c2"), "c2": ([1], None)}

    def answer(one):
        found, cursor = pages[asked_of(one.path).get("cursor")]
        return 200, {"records": [record(n) for n in found], "cursor": cursor}

    with answering(answer) as (url, asked):
        found = list(read.query(Target(url, "k"), Asked("{}", "-1h"), 100))

    assert [one["message"] for one in found] == ["m3", "m2", "m1"]
    assert [asked_of(one.path)["limit"] for one in asked] == ["2", "2", "2"]
    assert asked_of(asked[0].path) == {
        "query": "{}",
        "start": "-1h",
        "direction": "backward",
        "limit": "2",
    }


def test_no_more_is_read_than_is_wanted(monkeypatch):
    monkeypatch.setattr(read, "PAGE_RECORDS", 2)

    def answer(one):
        count = int(asked_of(one.path)["limit"])
        return 200, {"records": [record(n) for n in range(count)], "cursor": "more"}

    with answering(answer) as (url, asked):
        found = list(read.query(Target(url, "k"), Asked("{}"), 3))

    assert len(found) == 3
    assert [asked_of(one.path)["limit"] for one in asked] == ["2", "1"]


def test_the_prefix_of_a_pipeline_is_left_out_of_addresses_of_the_platform():
    with answering(lambda _: (200, {"records": [], "cursor": None})) as (url, asked):
        list(read.query(Target(f"{url}/t/acme/web", "k"), Asked("{}"), 3))

    assert asked[0].path.startswith("/api/v1/query?")


def test_a_server_that_is_away_is_an_error_with_the_fix():
    with answering(lambda _: (200, {})) as (url, _):
        pass

    with pytest.raises(errors.UnavailableError, match="No answer from") as refused:
        list(read.query(Target(url, "k"), Asked("{}"), 3))

    assert "logweir up" in refused.value.hint


@pytest.mark.parametrize(
    ("url", "key"),
    [
        pytest.param("localhost:7080", "k", id="no scheme"),
        pytest.param("ftp://host", "k", id="another scheme"),
        pytest.param("http://", "k", id="no host"),
        pytest.param("http://host", "ключ", id="a key of other letters"),
        pytest.param("http://host", "a\nb", id="a key with a line break"),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(url, key):
    with pytest.raises(errors.BadRequestError):
        Target(url, key)


def test_the_place_of_an_error_is_shown_under_the_query():
    shown = picture('{a="b"}\n|= oops', "Expected a string (line 2, column 4).")

    assert shown == "  |= oops\n     ^"


@pytest.mark.parametrize("message", ["no place", "(line 9, column 1)", "(line 0, column 1)"])
def test_an_error_without_a_place_shows_none(message):
    assert picture("{}", message) == ""


# ---- what was seen --------------------------------------------------------------------------


def history(seen: Seen, *times: int) -> list[str]:
    found = [one["message"] for one in seen.new([record(n) for n in times])]
    seen.is_cut_off()
    return found


def test_what_was_shown_is_not_shown_again():
    seen = Seen(10)

    assert history(seen, 1, 2) == ["m1", "m2"]
    assert history(seen, 1, 2, 3) == ["m3"]


def test_what_was_there_before_the_tail_began_is_not_new_after_a_cut():
    seen = Seen(2)

    assert history(seen, 8, 9) == ["m8", "m9"]
    assert history(seen, 5, 6, 7, 8, 9, 10) == ["m10"]


def test_all_is_new_when_nothing_was_there():
    seen = Seen(2)
    history(seen)

    assert history(seen, 1, 2, 3) == ["m1", "m2", "m3"]


def test_a_history_that_reaches_not_far_enough_back_is_known(monkeypatch):
    monkeypatch.setattr(read, "MISSED_RECORDS", 3)
    seen = Seen(1)
    history(seen, 1)
    list(seen.new([record(n) for n in (2, 3, 4)]))

    assert seen.is_cut_off()


def test_a_history_that_reaches_what_was_shown_is_whole(monkeypatch):
    monkeypatch.setattr(read, "MISSED_RECORDS", 3)
    seen = Seen(1)
    history(seen, 1)
    list(seen.new([record(n) for n in (1, 2, 3)]))

    assert not seen.is_cut_off()


@given(
    before=st.lists(st.integers(1, 50), unique=True, max_size=20),
    last=st.integers(1, 10),
    meanwhile=st.lists(st.lists(st.integers(51, 99), unique=True, max_size=8), max_size=4),
)
def test_over_any_cuts_each_new_record_is_shown_once(before, last, meanwhile):
    seen, there = Seen(last), sorted(before)
    shown = history(seen, *there[-last:])
    expected = [f"m{n}" for n in there[-last:]]
    for arrived in meanwhile:
        fresh = sorted(set(arrived) - set(there))
        there = sorted([*there, *fresh])
        shown += history(seen, *there)
        expected += [f"m{n}" for n in fresh]

    assert shown == expected


# ---- tail -----------------------------------------------------------------------------------


@contextlib.contextmanager
def tailing(
    *connections: Callable[[ServerConnection], None],
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server whose connections behave like this, one after the other; the last one again."""
    asked: list[dict[str, str]] = []
    behave = iter(connections)

    def handle(connection: ServerConnection) -> None:
        asked.append(asked_of(connection.request.path))
        next(behave, connections[-1])(connection)

    with serve(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def sends(*frames: dict) -> Callable[[ServerConnection], None]:
    def behave(connection: ServerConnection) -> None:
        for frame in frames:
            connection.send(json.dumps(frame))

    return behave


def shown(url: str, count: int, last: int = 10) -> tuple[list[str], list[str]]:
    """Messages that a tail yields, and what it says."""
    said: list[str] = []
    found = read.tail(Target(url, "k"), Asked("{}", "-1h"), last, said.append)
    return [one["message"] for one in islice(found, count)], said


def test_a_tail_yields_the_last_records_and_then_live_ones():
    behave = sends({"records": [record(1)]}, {"live": True}, {"records": [record(2)]})
    with tailing(behave) as (url, asked):
        found, said = shown(url, 2)

    assert (found, said) == (["m1", "m2"], [])
    assert asked[0] == {"query": "{}", "limit": "10", "start": "-1h"}


def test_a_cut_tail_goes_on_without_a_gap_or_a_repeat():
    first = sends({"records": [record(5)]}, {"live": True}, {"records": [record(6)]})
    again = sends({"records": [record(n) for n in (4, 5, 6, 7)]}, {"live": True})
    with tailing(first, again) as (url, asked):
        found, said = shown(url, 3, last=1)

    assert found == ["m5", "m6", "m7"]
    assert [one["limit"] for one in asked] == ["1", "5000"]
    assert "connection lost" in said[0]


def test_a_tail_that_nobody_wants_any_more_ends(monkeypatch):
    monkeypatch.setattr(read, "QUIET_S", 0.01)
    wanted = iter([True, True, True])

    def behave(connection: ServerConnection) -> None:
        connection.send(json.dumps({"records": [record(1)]}))
        connection.recv()  # until the client goes

    with tailing(behave) as (url, _):
        found = read.tail(
            Target(url, "k"), Asked("{}"), 1, lambda _: None, lambda: next(wanted, False)
        )
        messages = [one["message"] for one in found]

    assert messages == ["m1"]


def test_records_that_were_left_out_are_said():
    behave = sends({"live": True}, {"gap": {"records": 7}}, {"records": [record(1)]})
    with tailing(behave) as (url, _):
        _, said = shown(url, 1)

    assert said == ["7 records were left out: reading is too slow"]


def test_an_error_of_the_server_is_a_cut_and_its_words_are_said():
    first = sends({"live": True}, {"error": {"code": "x", "message": "The journal is away."}})
    again = sends({"records": [record(1)]}, {"live": True})
    with tailing(first, again) as (url, _):
        found, said = shown(url, 1)

    assert (found, said) == (["m1"], ["connection lost (The journal is away.); connecting again"])


def test_a_tail_that_is_refused_is_an_error_in_the_servers_words():
    words = {"error": {"code": "bad_query", "message": "No (line 1, column 2).", "hint": ""}}
    with answering(lambda _: (400, words)) as (url, _), pytest.raises(AnswerError, match="No"):
        shown(url, 1)


def test_a_tail_of_a_server_that_is_away_is_an_error():
    with answering(lambda _: (200, {})) as (url, _):
        pass

    with pytest.raises(errors.UnavailableError, match="No answer"):
        shown(url, 1)


def test_a_server_that_is_no_logweir_is_an_error():
    with answering(lambda _: (200, b"<html>")) as (url, _), pytest.raises(errors.LogweirError):
        shown(url, 1)
