"""A wheel built from the tree works in an empty environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UV = Path(sys.executable).with_name("uv")


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="logweir-wheel-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def run(*words: object, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=280, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_wheel_installs_in_an_empty_venv_and_starts_everything(folder):
    run(UV, "build", "--wheel", "--quiet", "--out-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    run(UV, "venv", "--quiet", "--python", sys.executable, folder / "venv")
    python = folder / "venv/bin/python"
    run(
        *(UV, "pip", "install", "--quiet", "--python", python, "--no-config"),
        *("--constraints", ROOT / "requirements.lock", wheel),
    )
    logweir = folder / "venv/bin/logweir"
    data = folder / "data"
    try:
        run(logweir, "up", "--data", data, "--port", "0", "--detach", cwd="/")
        status = json.loads(run(logweir, "status", "--data", data, "--json", cwd="/").stdout)
        run(logweir, "send", "--data", data, ROOT / "LICENSE", cwd="/")
    finally:
        run(logweir, "down", "--data", data, cwd="/")

    assert status["ready"]
    assert {one["state"] for one in status["processes"]} == {"ready"}
