"""The tree keeps its shape: no package hides the standard library, versions agree."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

import logweir

ROOT = Path(__file__).parent.parent


def test_folders_of_the_top_are_no_packages():
    assert [
        str(path)
        for folder in ("operator", "services", "tests", "crds", "charts", "sdk")
        for path in (ROOT / folder).glob("__init__.py")
    ] == []


def test_no_module_is_named_like_one_of_the_standard_library():
    ours = [*(ROOT / "services").rglob("*.py"), *(ROOT / "operator").rglob("*.py")]
    names = {path.stem for path in ours} - {"__init__"}

    assert names & sys.stdlib_module_names <= {"select"}


def test_the_package_and_the_project_have_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert logweir.__version__ == project["version"]


@pytest.mark.parametrize(
    ("lock", "packages"),
    [
        ("requirements", 40),
        ("requirements-fuzz", 1),
        ("image/requirements", 40),
        ("image/build", 2),
    ],
)
def test_a_lock_names_no_index_and_pins_every_package_by_hash(lock, packages):
    lines = (ROOT / f"{lock}.lock").read_text().splitlines()
    pins = [line for line in lines if "==" in line and not line.startswith((" ", "#"))]
    hashes = [line for line in lines if "--hash=sha256:" in line]

    assert len(pins) >= packages
    assert len(hashes) >= len(pins)
    assert not [line for line in lines if "://" in line]


def test_the_image_has_the_versions_that_the_tests_ran_with():
    def pins(lock):
        lines = (ROOT / lock).read_text().splitlines()
        return {line.split(" ")[0] for line in lines if "==" in line and line[0] not in " #"}

    assert len(pins("image/requirements.lock")) >= 40
    assert pins("image/requirements.lock") <= pins("requirements.lock")


def test_the_image_is_built_by_the_build_system_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert project["dependency-groups"]["build"] == project["build-system"]["requires"]
