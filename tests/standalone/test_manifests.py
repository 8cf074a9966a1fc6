"""The folder of YAML: what is applied, when, and what is said about what is not."""

from __future__ import annotations

import logging
import os

import pytest
from reconciling import pipeline, tenant, text

from logweir.standalone import manifests as taking
from logweir.standalone.manifests import Manifests
from logweir_operator import manifest


@pytest.fixture
def manifests(up_place) -> Manifests:
    return Manifests(up_place.folder, up_place.control)


async def names(up_place) -> list[str]:
    return sorted(one.name for one in await up_place.control.objects())


async def test_files_of_yaml_are_applied_and_others_are_not(up_place, manifests):
    up_place.write("a.yaml", text(tenant("a")))
    up_place.write("b.yml", text(tenant("b"), pipeline("web", "b")))
    up_place.write("c.txt", "no: yaml")
    (up_place.folder.manifests / "d.yaml").mkdir()
    await manifests.take()

    assert await names(up_place) == ["a", "b", "web"]
    assert manifests.problems == []


async def test_a_changed_file_is_applied_again(up_place, manifests):
    up_place.write("a.yaml", text(tenant(displayName="one")))
    await manifests.take()
    up_place.write("a.yaml", text(tenant(displayName="two")))
    await manifests.take()

    found = await up_place.object("LogTenant", "acme")
    assert (found.spec["displayName"], found.generation) == ("two", 2)


async def test_a_file_that_was_touched_is_not_applied_again(up_place, manifests):
    path = up_place.write("a.yaml", text(tenant(displayName="one")))
    await manifests.take()
    await up_place.apply(tenant(displayName="by hand"))
    path.write_bytes(path.read_bytes())
    await manifests.take()

    found = await up_place.object("LogTenant", "acme")
    assert found.spec["displayName"] == "by hand"


async def test_what_was_applied_by_hand_wins_until_the_file_changes(up_place, manifests):
    up_place.write("a.yaml", text(tenant(displayName="one")))
    await manifests.take()
    await up_place.apply(tenant(displayName="by hand"))
    up_place.write("a.yaml", text(tenant(displayName="three")))
    await manifests.take()

    found = await up_place.object("LogTenant", "acme")
    assert found.spec["displayName"] == "three"


async def test_what_was_deleted_stays_deleted_also_after_a_restart(up_place, manifests):
    up_place.write("a.yaml", text(tenant()))
    await manifests.take()
    await up_place.delete("LogTenant", "acme")
    await up_place.passes()
    await Manifests(up_place.folder, up_place.control).take()

    assert await names(up_place) == []


async def test_a_file_that_vanishes_deletes_nothing(up_place, manifests):
    path = up_place.write("a.yaml", text(tenant()))
    await manifests.take()
    path.unlink()
    await manifests.take()

    assert await names(up_place) == ["acme"]


async def test_a_folder_that_vanishes_stops_nothing(up_place, manifests):
    up_place.folder.manifests.rmdir()
    await manifests.take()

    assert manifests.problems == []


async def test_a_wrong_file_is_named_and_changes_nothing(up_place, manifests):
    up_place.write("a.yaml", text(tenant("good"), tenant("bad", retention={"days": 0})))
    await manifests.take()

    assert await names(up_place) == []
    assert manifests.problems == [
        'a.yaml: LogTenant "bad": spec.retention.days: Invalid value: 0:'
        " spec.retention.days in body should be greater than or equal to 1"
    ]


async def test_a_wrong_file_is_logged_once(up_place, manifests, caplog):
    caplog.set_level(logging.ERROR)
    up_place.write("a.yaml", "a: b: c")
    for _ in range(3):
        await manifests.take()

    assert [one.message for one in caplog.records] == ["manifest refused"]


async def test_a_wrong_file_is_named_again_after_a_restart(up_place, manifests):
    up_place.write("a.yaml", "a: b: c")
    await manifests.take()
    again = Manifests(up_place.folder, up_place.control)
    await again.take()

    assert again.problems == manifests.problems != []


@pytest.mark.parametrize("how", ["mended", "gone"])
async def test_a_wrong_file_is_forgotten_when_it_is(up_place, manifests, how):
    path = up_place.write("a.yaml", "a: b: c")
    await manifests.take()
    path.unlink() if how == "gone" else up_place.write("a.yaml", text(tenant()))
    await manifests.take()

    assert manifests.problems == []


async def test_a_file_that_is_put_back_as_it_was_applied_is_right_again(up_place, manifests):
    up_place.write("a.yaml", text(tenant()))
    await manifests.take()
    up_place.write("a.yaml", "a: b: c")
    await manifests.take()
    up_place.write("a.yaml", text(tenant()))
    await manifests.take()

    assert manifests.problems == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"\xff", "not UTF-8", id="no text"),
        pytest.param(b"#" * (manifest.MAX_BYTES + 1), "larger than 1048576 bytes", id="huge"),
    ],
)
async def test_a_file_that_is_no_manifest_is_named(up_place, manifests, content, reason):
    up_place.write("a.yaml", content)
    await manifests.take()

    assert reason in manifests.problems[0]


async def test_an_immutable_field_cannot_be_changed_by_a_file(up_place, manifests):
    await up_place.apply(tenant(), pipeline())
    up_place.write("a.yaml", text(tenant(displayName="new"), pipeline(of="other")))
    await manifests.take()

    assert manifests.problems == [
        'LogPipeline "web": spec.tenantRef: is immutable; make a new resource instead'
    ]
    assert (await up_place.object("LogTenant", "acme")).spec["displayName"] == ""


async def test_a_file_waits_for_what_is_being_deleted(up_place, manifests):
    up_place.write("a.yaml", text(tenant(displayName="one")))
    await manifests.take()
    await up_place.delete("LogTenant", "acme")
    up_place.write("a.yaml", text(tenant(displayName="two")))
    await manifests.take()
    waiting = manifests.problems
    await up_place.passes()
    await manifests.take()

    assert waiting == ['a.yaml: LogTenant "acme" is being deleted; apply it again when it is gone']
    assert manifests.problems == []
    assert (await up_place.object("LogTenant", "acme")).spec["displayName"] == "two"


async def test_lost_memory_means_that_all_is_applied_again(up_place, manifests):
    up_place.write("a.yaml", text(tenant()))
    await manifests.take()
    (up_place.folder.path / "applied.json").write_text("{ cut off")
    await Manifests(up_place.folder, up_place.control).take()

    assert (await up_place.object("LogTenant", "acme")).generation == 1


async def test_files_that_do_not_change_are_not_read(up_place, manifests, monkeypatch):
    monkeypatch.setattr(taking, "SETTLED_S", 0.0)
    up_place.write("a.yaml", text(tenant()))
    await manifests.take()
    looked = []
    monkeypatch.setattr(Manifests, "_content", lambda self, *arguments: looked.append(arguments))
    await manifests.take()

    assert looked == []


async def test_two_writes_within_one_tick_of_the_clock_are_both_seen(up_place, manifests):
    path = up_place.write("a.yaml", text(tenant(displayName="one")))
    await manifests.take()
    at = path.stat()
    up_place.write("a.yaml", text(tenant(displayName="two")))
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
    await manifests.take()

    assert (await up_place.object("LogTenant", "acme")).spec["displayName"] == "two"


async def test_the_reconciler_shows_what_is_wrong(up_place):
    up_place.write("a.yaml", "a: b: c")
    await up_place.passes()

    assert up_place.access().problems[0].startswith("a.yaml: not YAML")
