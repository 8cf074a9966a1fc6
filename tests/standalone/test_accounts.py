"""Which user servers run as, what it can reach, and files that are handed to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine import as_plain_user, root_only

from logweir.core import errors
from logweir.standalone import accounts
from logweir.standalone.accounts import Account

STRANGER = Account("stranger", 64_001, 64_002)
"""Owns nothing here and is in no group."""


@pytest.fixture(autouse=True)
def _open_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def like(folder: Path, *, uid: bool = False, gid: bool = False) -> Account:
    """An account that has the folder's owner or group."""
    found = folder.stat()
    return Account("one", found.st_uid if uid else 64_001, found.st_gid if gid else 64_002)


def test_a_plain_user_stays_who_it_is():
    said = as_plain_user("from logweir.standalone import accounts; print(accounts.choose())")

    assert said == "None\n"


@root_only
def test_root_chooses_the_first_unprivileged_user_that_there_is():
    found = accounts.choose(["no-such-user", "root", "nobody", "daemon"])

    assert found is not None
    assert (found.name, found.uid != 0) == ("nobody", True)


@root_only
def test_root_without_an_unprivileged_user_is_told_to_make_one():
    with pytest.raises(errors.SetupError, match="no unprivileged user") as told:
        accounts.choose(["no-such-user", "root"])

    assert "useradd" in told.value.hint


@pytest.mark.parametrize(
    ("mode", "who", "may_enter"),
    [
        pytest.param(0o700, {"uid": True}, True, id="its owner"),
        pytest.param(0o077, {"uid": True}, False, id="its owner, who is shut out"),
        pytest.param(0o710, {"gid": True}, True, id="its group"),
        pytest.param(0o701, {"gid": True}, False, id="its group, which is shut out"),
        pytest.param(0o701, {}, True, id="others"),
        pytest.param(0o770, {}, False, id="others, who are shut out"),
        pytest.param(0o706, {}, False, id="others, who may read but not enter"),
    ],
)
def test_who_may_enter_a_folder_is_decided_by_its_mode(place, mode, who, may_enter):
    folder = place / "folder"
    folder.mkdir()
    folder.chmod(mode)

    wall = accounts.blocked_at(folder, like(folder, **who))
    folder.chmod(0o700)

    assert (wall is None) == may_enter


def test_the_first_wall_on_the_way_is_named(place):
    (place / "a" / "b" / "c").mkdir(parents=True)
    (place / "a" / "b").chmod(0o700)
    (place / "a").chmod(0o700)

    assert accounts.blocked_at(place / "a" / "b" / "c", STRANGER) == place / "a"


def test_a_link_is_as_open_as_what_it_stands_for(place):
    (place / "private" / "data").mkdir(parents=True)
    (place / "private").chmod(0o700)
    (place / "link").symlink_to(place / "private" / "data")

    assert accounts.blocked_at(place / "link", STRANGER) == place / "private"


def test_who_does_not_change_users_is_blocked_nowhere(place):
    place.chmod(0o700)

    assert accounts.blocked_at(place, None) is None


@pytest.mark.parametrize("is_link", [False, True], ids=["a folder", "a link to a folder"])
def test_a_data_folder_behind_a_wall_is_refused_with_the_fix(place, is_link):
    wall = place / "home"
    wall.mkdir(mode=0o700)
    folder = wall / "data"
    if is_link:
        folder.mkdir()
        (place / "link").symlink_to(folder)

    with pytest.raises(errors.SetupError) as told:
        accounts.check_reach(place / "link" if is_link else folder, STRANGER)

    assert f"user 'stranger', who cannot enter {wall}" in told.value.message
    assert f"chmod o+x {wall}" in told.value.hint


def test_a_data_folder_that_is_private_itself_is_fine(place):
    (place / "data").mkdir(mode=0o700)

    accounts.check_reach(place / "data", STRANGER)


def test_a_data_folder_without_a_parent_is_refused_with_the_fix(place):
    with pytest.raises(errors.SetupError, match="No such file or directory") as told:
        accounts.check_reach(place / "missing" / "data", STRANGER)

    assert "--data" in told.value.hint


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_folder_gets_its_mode_whatever_the_umask(place, umask):
    before = os.umask(umask)
    accounts.make_folder(place / "new", None, 0o711)
    os.umask(before)

    assert (place / "new").stat().st_mode & 0o7777 == 0o711


def test_a_folder_that_is_there_keeps_what_is_in_it(place):
    accounts.make_folder(place / "data", None)
    (place / "data" / "file").write_text("kept")
    accounts.make_folder(place / "data", None)

    assert (place / "data" / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("file", "File exists", id="a file is in its place"),
        pytest.param("file/below", "Not a directory", id="a file is on the way"),
        pytest.param("missing/below", "No such file", id="its parent is not there"),
    ],
)
def test_a_folder_that_cannot_be_made_is_named_with_the_reason(place, name, reason):
    (place / "file").touch()

    with pytest.raises(errors.SetupError, match=reason) as told:
        accounts.make_folder(place / name, None)

    assert str(place / name) in told.value.message
    assert "--data" in told.value.hint


@root_only
def test_what_is_in_a_folder_is_handed_over_with_it(place):
    (place / "data" / "deep").mkdir(parents=True)
    (place / "data" / "deep" / "file").touch()
    accounts.make_folder(place / "data", STRANGER)

    for one in ("data", "data/deep", "data/deep/file"):
        found = (place / one).stat()
        assert (found.st_uid, found.st_gid) == (STRANGER.uid, STRANGER.gid)


@root_only
def test_handing_over_does_not_follow_links_out_of_the_folder(place):
    (place / "outside").mkdir()
    (place / "outside" / "file").touch()
    (place / "data").mkdir()
    (place / "data" / "link").symlink_to(place / "outside" / "file")
    (place / "data" / "folder-link").symlink_to(place / "outside")
    accounts.make_folder(place / "data", STRANGER)

    assert (place / "outside").stat().st_uid == 0
    assert (place / "outside" / "file").stat().st_uid == 0
    assert (place / "data" / "link").lstat().st_uid == STRANGER.uid


@root_only
def test_a_link_in_place_of_the_folder_hands_over_what_it_stands_for(place):
    (place / "disk").mkdir()
    (place / "data").symlink_to(place / "disk")
    accounts.make_folder(place / "data", STRANGER)

    assert (place / "disk").stat().st_uid == STRANGER.uid


@root_only
def test_a_folder_that_was_handed_over_is_not_walked_again(place):
    accounts.make_folder(place / "data", STRANGER)
    (place / "data" / "of-root").touch()
    accounts.make_folder(place / "data", STRANGER)

    assert (place / "data" / "of-root").stat().st_uid == 0


def test_a_written_file_is_private_whatever_the_umask(place):
    before = os.umask(0)
    accounts.write_file(place / "file", "text", None)
    os.umask(before)

    assert (place / "file").read_text() == "text"
    assert (place / "file").stat().st_mode & 0o7777 == 0o600


@root_only
def test_a_written_file_belongs_to_the_servers_user(place):
    accounts.write_file(place / "file", "text", STRANGER)

    found = (place / "file").stat()
    assert (found.st_uid, found.st_gid) == (STRANGER.uid, STRANGER.gid)


@pytest.mark.parametrize("name", ["file", "file.new"])
def test_a_link_in_place_of_a_file_is_not_followed(place, name):
    (place / "outside").write_text("untouched")
    (place / name).symlink_to(place / "outside")
    accounts.write_file(place / "file", "text", None)

    assert (place / "outside").read_text() == "untouched"
    assert not (place / "file").is_symlink()
    assert (place / "file").read_text() == "text"


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(place):
    (place / "file").write_text("old")
    (place / "file.new").mkdir()

    with pytest.raises(errors.SetupError, match=f"Cannot write {place / 'file'}") as told:
        accounts.write_file(place / "file", "text", None)

    assert told.value.hint
    assert (place / "file").read_text() == "old"


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_file_holds_what_was_written(place, text):
    accounts.write_file(place / "file", text, None)

    assert (place / "file").read_bytes().decode() == text


def test_a_renamed_thing_takes_the_place_of_the_old_one(place):
    (place / "fresh").write_text("new")
    (place / "file").write_text("old")
    accounts.rename(place / "fresh", place / "file")

    assert (place / "file").read_text() == "new"
    assert not (place / "fresh").exists()
