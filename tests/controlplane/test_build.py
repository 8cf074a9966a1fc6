"""Where the control plane's programs come from, and that their lack is said aloud."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from controlplane import build, fixtures

ROOT = Path(__file__).parents[2]
NOTHING = "no control plane: there is no Go; install Go, or set KUBEBUILDER_ASSETS"
TESTS = "tests/controlplane/test_plane.py"


@pytest.fixture
def without_go(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    build._go_problem.cache_clear()
    yield
    build._go_problem.cache_clear()


@pytest.fixture
def assets(monkeypatch, tmp_path) -> Path:
    for name in build.API:
        (tmp_path / name).touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    return tmp_path


def test_a_persons_own_programs_are_taken_without_go(without_go, assets):
    assert build.find(*build.API) == {name: assets / name for name in build.API}


def test_what_a_persons_programs_lack_is_named(without_go, assets):
    with pytest.raises(build.Unavailable) as told:
        build.find(*build.CLUSTER)

    assert str(told.value) == (
        "no control plane: there is no Go, and KUBEBUILDER_ASSETS has no kube-controller-manager, "
        "kube-scheduler; install Go, or set KUBEBUILDER_ASSETS"
    )


def test_what_a_program_is_made_from_decides_where_it_lies(monkeypatch):
    monkeypatch.setattr(build, "_go_version", lambda: "go1.98")
    etcd = build._cached("etcd")

    assert build._cached("kubectl").parent == etcd.parent
    assert build._cached("helm").parent != etcd.parent
    monkeypatch.setattr(build, "_go_version", lambda: "go1.99")
    assert build._cached("etcd") != etcd


def test_without_any_of_them_tests_are_skipped_with_one_line():
    known = {"KUBEBUILDER_ASSETS", "CI"}
    environment = {name: value for name, value in os.environ.items() if name not in known}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", TESTS],
        cwd=ROOT,
        env={**environment, "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )

    skips = [line for line in ran.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(skips) == 1
    assert skips[0].endswith(f": {NOTHING}")
    assert " passed" not in ran.stdout


def test_without_any_of_them_ci_fails(without_go, monkeypatch):
    monkeypatch.setenv("CI", "true")

    with fixtures._planes() as start, pytest.raises(pytest.fail.Exception, match=NOTHING):
        start()


def test_helm_takes_charts_for_the_kubernetes_that_is_pinned(helm, tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: one\nversion: 1.0.0\n")
    template = "kind: ConfigMap\nversion: {{ .Capabilities.KubeVersion.Version }}\n"
    (tmp_path / "templates" / "one.yaml").write_text(template)

    made = subprocess.run(
        [helm, "template", tmp_path], capture_output=True, text=True, check=True
    ).stdout

    major, minor, _ = build.version().split(".")
    assert f"version: v{major}.{minor}.0" in made
