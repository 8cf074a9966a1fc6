"""Output of processes on the disk: complete, rotated, and never in anybody's way."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from logweir.standalone import logfiles
from logweir.standalone.logfiles import LogFile


@pytest.fixture
def log(tmp_path) -> Iterator[LogFile]:
    made = LogFile(tmp_path / "role.log")
    yield made
    made.close()


def say(log: LogFile, text: bytes) -> None:
    """Write as the process would, and let the supervisor look."""
    while text:
        written = os.write(log.writer, text[:32768])
        text = text[written:]
        log.drain()


def test_what_a_process_says_is_in_its_file(log):
    say(log, b"one\ntwo\n")

    assert log.path.read_bytes() == b"one\ntwo\n"


def test_a_new_start_goes_on_in_the_same_file(log, tmp_path):
    say(log, b"first\n")
    again = LogFile(tmp_path / "role.log")
    say(again, b"second\n")
    again.close()

    assert log.path.read_bytes() == b"first\nsecond\n"


def test_what_was_said_last_is_there_when_it_is_closed(tmp_path):
    made = LogFile(tmp_path / "role.log")
    os.write(made.writer, b"last words")
    made.close()

    assert (tmp_path / "role.log").read_bytes() == b"last words"


def test_notes_stand_behind_what_was_said_before(log):
    os.write(log.writer, b"said\n")
    log.note("killed by SIGKILL")

    assert log.path.read_bytes() == b"said\n--- killed by SIGKILL\n"


def test_a_full_file_is_moved_on_and_the_oldest_is_dropped(log, tmp_path, monkeypatch):
    monkeypatch.setattr(logfiles, "MAX_BYTES", 1000)
    for number in range(8):
        say(log, b"%d" % number * 1000)

    names = {one.name: one.read_bytes()[:1] for one in tmp_path.iterdir()}
    assert names == {
        "role.log": b"",
        "role.log.1": b"7",
        "role.log.2": b"6",
        "role.log.3": b"5",
    }


def test_nothing_is_lost_when_files_are_moved_on(log, tmp_path, monkeypatch):
    monkeypatch.setattr(logfiles, "MAX_BYTES", 5000)
    lines = b"".join(b"line %d\n" % number for number in range(1500))
    for line in lines.splitlines(keepends=True):
        say(log, line)

    found = b"".join(tmp_path.joinpath(f"role.log{end}").read_bytes() for end in (".2", ".1", ""))
    assert found == lines


def test_a_process_that_writes_without_end_does_not_hold_up_the_supervisor(log, monkeypatch):
    monkeypatch.setattr(logfiles, "_READ_BYTES", 10)
    monkeypatch.setattr(logfiles, "_READS_AT_ONCE", 3)
    os.write(log.writer, b"x" * 100)
    log.drain()

    assert log.path.stat().st_size == 30


def test_a_full_disk_costs_words_but_neither_the_process_nor_the_supervisor(tmp_path):
    full = tmp_path / "role.log"
    full.symlink_to("/dev/full")
    log = LogFile(full)
    say(log, b"lost\n")
    full.unlink()
    log._file.close()
    log._file = full.open("ab", buffering=0)  # there is room again
    say(log, b"kept\n")
    log.close()

    assert full.read_bytes() == b"--- 5 bytes are missing here: the disk was full\nkept\n"


def test_the_last_words_are_of_this_start(log):
    say(log, b"old trouble\n")
    log.begin()
    say(log, b"\n".join(b"line %d" % number for number in range(9)) + b"\n")

    assert log.last_words() == "line 6 / line 7 / line 8"


def test_a_process_that_said_nothing_has_no_last_words(log):
    say(log, b"old trouble\n")
    log.begin()

    assert log.last_words() == ""
