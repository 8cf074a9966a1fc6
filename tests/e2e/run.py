"""Logweir on a real Kubernetes, from the chart and the image of this tree, step by step.

python -m e2e.run              on a node in a box (root, Linux): `make e2e-node`
python -m e2e.run kind         on kind, with Docker: `make e2e-kind`
... --only install,make_tenants --keep        some steps; the box's folder stays
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

from controlplane import build
from e2e import boxed, kind
from e2e.box import Unfit
from e2e.scene import HOME, TENANTS, Scene
from e2e.steps import STEPS, Step
from e2e.target import Cluster, Failed, tell


def main(words: Sequence[str]) -> None:
    """Run the steps; exit with 1 when one fails, with 2 when this machine cannot."""
    parser = argparse.ArgumentParser(prog="python -m e2e.run")
    parser.add_argument("on", nargs="?", choices=["box", "kind"], default="box")
    parser.add_argument("--only", default=",".join(step.__name__ for step in STEPS))
    parser.add_argument("--go-on", action="store_true", help="play on after a step that failed")
    parser.add_argument("--keep", action="store_true", help="keep logs and folders")
    asked = parser.parse_args(words)
    wanted = asked.only.split(",")
    steps = [step for step in STEPS if step.__name__ in wanted]
    begin_s = time.monotonic()
    try:
        with _started(asked.on, keep=asked.keep) as cluster:
            _say("cluster", f"{asked.on} is ready", time.monotonic() - begin_s)
            scene = Scene(cluster)
            with contextlib.closing(scene):
                failed = _play(scene, steps, go_on=asked.go_on)
    except (Unfit, build.Unavailable) as error:
        print(f"e2e: {error}", file=sys.stderr)
        sys.exit(2)
    for name, count in scene.tally.items():
        print(f"e2e: {name:<28} {count:>8}")
    if failed:
        sys.exit(f"e2e: failed: {', '.join(failed)}")
    print(f"e2e: all {len(steps)} steps passed in {time.monotonic() - begin_s:.0f} s")


@contextlib.contextmanager
def _started(on: str, *, keep: bool) -> Iterator[Cluster]:
    if on == "kind":
        with kind.started() as cluster:
            yield cluster
    else:
        with boxed.started({}, keep=keep) as boxed_cluster:
            yield boxed_cluster


def _play(scene: Scene, steps: Sequence[Step], *, go_on: bool) -> list[str]:
    """Play the steps, and return the names of those that failed; to the first one, or all."""
    failed = []
    for number, step in enumerate(steps, 1):
        print(f"e2e: {number:2}/{len(steps)} {step.__name__}: {step.__doc__}", flush=True)
        begin_s = time.monotonic()
        try:
            found = step(scene)
        except Exception as error:  # whatever it is, what there was then is of use
            if not isinstance(error, Failed):
                traceback.print_exc(file=sys.stdout)
            tell(scene.cluster, (HOME, *TENANTS))
            found = f"FAILED: {type(error).__name__}: {error}"
            failed.append(step.__name__)
        _say(step.__name__, found, time.monotonic() - begin_s)
        if failed and not go_on:
            break
    return failed


def _say(name: str, found: str, took_s: float) -> None:
    print(f"e2e:       {name} ({took_s:.1f} s): {found}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
