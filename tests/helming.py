"""The chart of this tree, and Helm to render or install it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Final

import yaml
from controlplane import build

ROOT: Final = Path(__file__).parents[1]
CHART: Final = ROOT / "charts" / "logweir"
SHAPES: Final = tuple(sorted(path.name for path in (CHART / "ci").glob("*-values.yaml")))

Object = dict[str, Any]


def helm(*words: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Helm; the error of one that fails is in `stderr`."""
    program = build.find("helm")["helm"]
    ran = subprocess.run(
        [program, *map(str, words)], capture_output=True, text=True, check=False, **options
    )
    assert not check or ran.returncode == 0, ran.stderr
    return ran


def render(*words: object, namespace: str = "logs", release: str = "lw") -> str:
    return helm("template", release, CHART, "--namespace", namespace, *words).stdout


def objects(text: str) -> list[Object]:
    return [one for one in yaml.safe_load_all(text) if one]


def shape(name: str) -> list[Object]:
    """All objects of one of the supported shapes."""
    return objects(render("--values", CHART / "ci" / name))


def find(found: list[Object], kind: str, name: str) -> Object:
    (one,) = [x for x in found if x["kind"] == kind and x["metadata"]["name"] == name]
    return one


def pod_of(one: Object) -> Object | None:
    """The pod that an object is or makes."""
    if one["kind"] == "Pod":
        return one
    found: Object | None = one.get("spec", {}).get("template") if one["kind"] in _PODDED else None
    return found


_PODDED: Final = ("Deployment", "StatefulSet", "Job")
