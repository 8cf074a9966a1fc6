"""The folder of an `up`: who holds it, what is secret in it, and files written whole or not."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from machine import as_plain_user, give_to_plain_user

from logweir.core import errors
from logweir.standalone import folder
from logweir.standalone.folder import Folder, Ports, RootSet

HOLD = """
import sys
from pathlib import Path
from logweir.standalone.folder import Folder
Folder(Path(sys.argv[1])).take()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(place) -> Folder:
    return Folder(place / "data")


def holding(place: Path) -> subprocess.Popen:
    """A process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    return process


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_holds_a_folder_that_is_not_there(home):
    assert home.holder() is None


def test_the_holder_is_known_to_others(home):
    with holding(home.path) as process:
        found = home.holder()
        process.communicate()

    assert found.pid == process.pid
    assert home.holder() is None


def test_a_second_one_is_told_who_holds_the_folder(home):
    with holding(home.path) as process:
        with pytest.raises(errors.SetupError) as refused:
            home.take()
        process.communicate()

    assert f"in use by another 'logweir up', process {process.pid}" in refused.value.message
    assert f"logweir down --data {home.path}" in refused.value.hint


def test_a_killed_holder_holds_nothing(home):
    with holding(home.path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        home.take()

        assert home.holder().pid == os.getpid()
        home.let_go()


def test_who_only_looks_does_not_keep_others_from_taking_it(home):
    home.make()
    (home.path / "lock").touch()
    looking = os.open(home.path / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)  # as `holder` does, for longer than it does
    timer = threading.Timer(0.05, os.close, [looking])
    timer.start()
    home.take()
    timer.join()

    assert home.holder().pid == os.getpid()
    home.let_go()


def test_a_child_that_lets_go_leaves_the_folder_to_its_parent(home):
    code = """
import os, sys
from pathlib import Path
from logweir.standalone.folder import Folder
home = Folder(Path(sys.argv[1]))
home.take()
child = os.fork()
if child == 0:
    home.let_go()
    os._exit(0)
os.waitpid(child, 0)
print(home.holder().pid == os.getpid())
home.let_go()
print(home.holder())
"""
    said = subprocess.run(
        [sys.executable, "-c", code, str(home.path)], capture_output=True, text=True, check=True
    )

    assert said.stdout.split() == ["True", "None"]


def test_what_a_cut_off_start_left_is_removed(home):
    home.make()
    for place in (home.path, home.keys, home.bindings):
        (place / "x.json.123.new").touch()
    home.take()
    home.let_go()

    assert list(home.path.rglob("*.new")) == []


def test_a_new_folder_can_be_entered_by_the_servers_user_and_its_secrets_cannot(home):
    before = os.umask(0o077)
    try:
        home.make()
        home.secrets()
    finally:
        os.umask(before)

    assert mode(home.path) == 0o755
    assert (mode(home.keys), mode(home.bindings)) == (0o700, 0o700)
    assert mode(home.path / "secrets.json") == 0o600


def test_the_rights_of_a_folder_that_is_there_stay(place):
    place.chmod(0o1777)
    Folder(place).make()

    assert mode(place) == 0o1777


def test_a_folder_that_cannot_be_written_is_refused_with_the_fix(place):
    (place / "inner").mkdir(mode=0o555)
    place.chmod(0o555)
    said = as_plain_user(
        "import sys; from pathlib import Path; from logweir.standalone import folder\n"
        "from logweir.core import errors\n"
        "for one in ('inner', 'new'):\n"
        "    try: folder.Folder(Path(sys.argv[1]) / one).take()\n"
        "    except errors.SetupError as error: print(error)\n",
        place,
    )

    assert said.count("Cannot write to the data folder") == 2
    assert said.count("Permission denied") == 2
    assert said.count("'--data DIR'") == 2


def test_a_file_in_place_of_the_folder_is_refused(place):
    (place / "data").touch()

    with pytest.raises(errors.SetupError, match="Cannot write to the data folder"):
        Folder(place / "data").make()


def test_secrets_are_made_once(home):
    home.make()

    assert home.secrets() == home.secrets()
    assert home.secrets().roots[0].write != home.secrets().roots[0].read


def test_secrets_of_the_first_version_are_the_first_version_of_the_roots(home):
    home.make()
    names = ("write_root", "maintain_root", "read_root", "sign_root")
    old = {name: name[0] * 64 for name in names}
    old |= {"postgres_password": "p", "valkey_password": "v", "version": 1}
    (home.path / "secrets.json").write_text(json.dumps(old))

    found = home.secrets()
    assert found.roots == [RootSet(1, "w" * 64, "m" * 64, "r" * 64, "s" * 64)]
    assert (found.postgres_password, found.valkey_password, found.used) == ("p", "v", 1)


def test_two_installations_share_no_secret(place):
    homes = [Folder(place / name) for name in "ab"]
    for one in homes:
        one.make()

    values = [one.secrets() for one in homes]
    assert values[0].roots[0].sign != values[1].roots[0].sign


def test_lost_secrets_are_not_made_anew_over_data_that_they_open(home):
    home.make()
    (home.path / "postgres" / "data").mkdir(parents=True)

    with pytest.raises(errors.SetupError, match=r"secrets\.json is gone"):
        home.secrets()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "There is no ports.json", id="not there"),
        pytest.param(b"{", "is damaged", id="cut off"),
        pytest.param(b'{"gateway": "x"}', "is damaged", id="of another form"),
    ],
)
def test_a_file_that_cannot_be_read_says_so(home, content, reason):
    home.make()
    if content is not None:
        (home.path / "ports.json").write_bytes(content)

    with pytest.raises(errors.SetupError, match=reason):
        home.ports()


def test_ports_are_remembered(home):
    home.make()
    home.write_ports(Ports(1, 2, 3))

    assert home.ports() == Ports(1, 2, 3)


def test_a_file_is_written_only_when_it_differs(place):
    first = folder.write_json(place / "a.json", {"a": 1})
    at = (place / "a.json").stat().st_mtime_ns
    again = folder.write_json(place / "a.json", {"a": 1})

    assert (first, again) == (True, False)
    assert (place / "a.json").stat().st_mtime_ns == at
    assert mode(place / "a.json") == 0o600


def test_a_file_that_cannot_be_replaced_stays_as_it_was(place):
    (place / "a.json").write_text("old")
    (place / f"a.json.{os.getpid()}.new").mkdir()

    with pytest.raises(errors.SetupError, match=r"Cannot write .*a\.json"):
        folder.write_json(place / "a.json", {"a": 1})

    assert (place / "a.json").read_text() == "old"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({"HOME": "/h"}, "/h/.local/share/logweir", id="a home"),
        pytest.param({"HOME": "/h", "XDG_DATA_HOME": "/x"}, "/x/logweir", id="XDG"),
    ],
)
def test_a_plain_users_folder_is_below_its_home(place, environment, expected):
    give_to_plain_user(place)
    said = as_plain_user(
        "import os, sys\n"
        f"os.environ.update({environment!r})\n"
        "from logweir.standalone import folder; print(folder.default_path())"
    )

    assert said.strip() == expected
