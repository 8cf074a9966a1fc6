"""What `logweir status` and the welcome say, whatever state the folder is in."""

from __future__ import annotations

import os

import msgspec
import pytest

from logweir.standalone import status
from logweir.standalone.cluster_files import Access
from logweir.standalone.folder import Folder, write_json
from logweir.standalone.supervisor import ProcessStatus, Status

READY = ProcessStatus("ingest", 7, "ready", 2, "killed by SIGKILL", "http://ops")


@pytest.fixture
def home(place) -> Folder:
    made = Folder(place / "data")
    made.make()
    return made


@pytest.fixture
def held(home):
    """A folder that this process holds, as a supervisor does."""
    home.take()
    yield home
    home.let_go()


def shown(**fields: object) -> status.Shown:
    whole = {
        "ready": True,
        "url": "http://up",
        "dashboard_url": None,
        "tenant": "demo",
        "pipeline": "default",
        "ingest_url": "http://up/t/demo/default/ingest",
        "ingest_key": "lwi_x",
        "query_key": "lwa_x",
        "processes": [READY],
        "problems": [],
        "data": "/data",
        "pid": 5,
    }
    return msgspec.convert(whole | fields, status.Shown)


def test_nothing_runs_where_nobody_holds_the_folder(home):
    write_json(home.status, Status(1, True, "http://old", [READY]))
    write_json(home.access, Access("demo"))
    found = status.show(home)

    assert (found.ready, found.url, found.processes, found.pid) == (False, "", [], None)
    assert found.tenant == ""


def test_what_an_earlier_start_left_is_not_shown(held):
    write_json(held.status, Status(1, True, "http://old", [READY]))
    found = status.show(held)

    assert (found.ready, found.processes, found.pid) == (False, [], os.getpid())


def test_what_the_supervisor_says_is_shown(held):
    write_json(held.status, Status(os.getpid(), True, "http://up", [READY]))
    write_json(held.access, Access("demo", "default", "http://in", "lwi_x", "lwa_x", ["f: bad"]))
    found = status.show(held)

    assert (found.ready, found.url, found.processes) == (True, "http://up", [READY])
    assert (found.tenant, found.ingest_key, found.problems) == ("demo", "lwi_x", ["f: bad"])


@pytest.mark.parametrize(
    ("fields", "first_line"),
    [
        pytest.param({}, "ready  http://up  /data", id="ready"),
        pytest.param({"ready": False}, "not ready  http://up  /data", id="not ready"),
        pytest.param({"processes": []}, "starting  /data", id="just begun"),
        pytest.param(
            {"processes": [], "pid": None},
            "Nothing runs in /data. Start it with: logweir up --data /data",
            id="nothing",
        ),
    ],
)
def test_the_first_line_says_how_it_is(fields, first_line):
    assert status.table(shown(**fields), "logweir").splitlines()[0] == first_line


def test_a_process_has_a_line_with_why_and_how_often():
    words = status.table(shown(problems=["f.yaml: bad"]), "logweir").splitlines()

    assert " ".join(words[1].split()) == "ingest ready 7 restarts 2 killed by SIGKILL"
    assert words[2] == "  not applied: f.yaml: bad"


def test_the_welcome_has_what_a_newcomer_copies():
    words = status.welcome(shown(), "logweir", " --data d", "Ctrl-C")

    assert "curl http://up/t/demo/default/ingest -H 'Authorization: Bearer lwi_x'" in words
    assert 'logweir query --data d \'{service="shop"} |= "hello"\'' in words
    assert "Ctrl-C stops it" in words


def test_the_welcome_without_a_tenant_has_no_empty_key():
    assert "curl" not in status.welcome(shown(ingest_key=""), "logweir", "", "Ctrl-C")
