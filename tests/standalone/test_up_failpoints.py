"""A start, or a deletion, that dies at any of its steps is completed by the next try."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import failing
import pytest
from upping import Up, upping

from logweir.backends import failpoint

OF_A_START = (
    "operator.before_migration",
    "operator.before_library",
    "operator.before_schema",
    "operator.mid_schema",
    "operator.before_journal",
)
OF_A_DELETION = ("operator.mid_pipeline_deletion", "operator.mid_tenant_deletion")

MANIFEST = """
kind: LogTenant
apiVersion: logweir.dev/v1alpha1
metadata: {name: leaving}
spec: {tenantId: leaving, deletionPolicy: Delete}
---
kind: LogPipeline
apiVersion: logweir.dev/v1alpha1
metadata: {name: web}
spec: {tenantRef: {name: leaving}}
"""


@pytest.fixture
def points(tmp_path) -> Path:
    """What each role that starts reads its failpoints from."""
    return tmp_path / "points"


@pytest.fixture
def up(points: Path) -> Iterator[Up]:
    with upping(env=failing.environment(f"@{points}")) as made:
        yield made


def until_dead_at(up: Up, point: str) -> None:
    log = up.data / "logs" / "operator.log"

    def is_dead() -> bool:
        assert up.foreground.poll() is None, up.said()
        return log.exists() and f'"point":"{point}"' in log.read_text()

    up.until(is_dead, wait_s=40)


def arm(file: Path, text: str) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


def test_every_point_of_the_operator_is_tested():
    assert {one for one in failpoint.POINTS if one.startswith("operator.")} == {
        *OF_A_START,
        *OF_A_DELETION,
    }


@pytest.mark.slow
def test_a_first_start_that_dies_at_each_step_is_ready_after_all(up, points):
    arm(points, f"{OF_A_START[0]}:crash:1")
    up.begin()
    for point, following in zip(OF_A_START, [*OF_A_START[1:], ""], strict=True):
        until_dead_at(up, point)
        arm(points, f"{following}:crash:1" if following else "")

    up.until(lambda: up.shown()["ready"], wait_s=60)

    assert up.process_of("operator")["restarts"] >= len(OF_A_START)
    assert up.post("after all").status_code == 200
    assert up.until_found('{} |= "after all"') == ["after all"]


@pytest.mark.slow
def test_a_deletion_that_dies_at_each_step_is_completed(up, points):
    up.start()
    up.ok("apply", "-f", "-", given=MANIFEST)
    pipelines = ("get", "logpipeline/web", "-o", "yaml")
    up.until(lambda: "pipelineId" in up.ok(*pipelines))
    arm(points, f"{OF_A_DELETION[0]}:crash:1")
    os.kill(up.process_of("operator")["pid"], signal.SIGKILL)

    deleting = up.popen("delete", "-f", str(_file(up, MANIFEST)))
    until_dead_at(up, OF_A_DELETION[0])
    arm(points, f"{OF_A_DELETION[1]}:crash:1")
    until_dead_at(up, OF_A_DELETION[1])
    arm(points, "")
    said, errors = deleting.communicate(timeout=60)

    assert deleting.returncode == 0, said + errors
    assert "leaving" not in up.ok("get", "all")


@pytest.mark.slow
def test_after_a_supervisor_that_died_between_servers_and_roles_the_next_one_starts():
    with upping(env=failing.environment("up.before_roles:crash:1")) as dying:
        ended = dying.begin().wait(60)
        dying.process = {}
        dying.start()

        assert ended == -signal.SIGKILL
        assert dying.post("afterwards").status_code == 200


def _file(up: Up, text: str) -> Path:
    path = up.home / "leaving.yaml"
    path.write_text(text)
    return path
