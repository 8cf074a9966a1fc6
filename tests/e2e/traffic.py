"""Steps: lines go in and out; load makes collectors, quiet takes them, one line wakes them."""

from __future__ import annotations

import subprocess
import time
from typing import Final

from e2e.counting import Flood, Site
from e2e.scene import Scene
from e2e.target import Failed, until

WAKE_S: Final = 10.0
"""A line to a pipeline without collectors is found within this time."""


def first_line(scene: Scene) -> str:
    """A line goes in by curl, and out by query."""
    url = f"{scene.ingest_url('jobs')}/ingest"
    body = '{"service": "e2e", "level": "info", "message": "the first line"}'
    key = ["-H", f"Authorization: Bearer {scene.key('in')}"]

    def curl() -> str:
        argv = ["curl", "-sS", "--fail-with-body", "-m", "10", url, *key, "-d", body]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"curl: {done.stdout} {done.stderr}")
        return done.stdout.strip()

    answer = until("curl is answered", curl, wait_s=30)
    begin_s = time.monotonic()
    found_s = scene.find("the first line") - begin_s
    return f"{answer}; found {found_s:.1f} s after the answer"


def sleep(scene: Scene) -> str:
    """A pipeline that nothing comes to has no collectors."""
    begin_s = time.monotonic()
    _wait_for_none(scene)
    return f"web went to zero collectors, {time.monotonic() - begin_s:.0f} s after it was looked at"


def load(scene: Scene) -> str:
    """Load on a sleeping pipeline makes lag, lag makes collectors, collectors drain it."""
    begin_s = time.monotonic()
    site = Site(scene, "acme", "web")
    flood = Flood(scene, "web")
    flood.start()
    lag, most = 0, 0

    def is_grown() -> bool:
        nonlocal lag, most
        lag = max(lag, site.entries())
        most = max(most, scene.collectors("web")[1])
        return most >= 2

    try:
        until("the status tells of the lag", lambda: _lag(scene)["entries"] > 0, wait_s=60)
        until("two collectors are ready", is_grown, wait_s=90)
    finally:
        lines = flood.stop()
    grown_s = time.monotonic() - begin_s
    until("the lag is drained", lambda: site.entries() == 0, wait_s=120)
    until("all is found", lambda: scene.count('{service="flood"}') == lines, wait_s=30)
    until("the status tells that nothing waits", lambda: _lag(scene)["entries"] == 0, wait_s=60)
    return (
        f"{lines} lines, {lag} blocks waited at most, {most} collectors after {grown_s:.0f} s, "
        f"all found once, {time.monotonic() - begin_s:.0f} s after the first"
    )


def told(scene: Scene) -> str:
    """The status of a pipeline tells what its users want to know."""
    pipeline = scene.pipeline("web")
    status = pipeline["status"]
    wanted = ("pipelineId", "url", "ingest", "collector", "lag", "conditions")
    missing = [name for name in wanted if name not in status]
    if missing:
        raise Failed(f"the status of web has no {', '.join(missing)}")
    if status.get("observedGeneration") != pipeline["metadata"]["generation"]:
        raise Failed(f"the status is of another generation: {status}")
    if status["ingest"].get("ready") != "2/2":
        raise Failed(f"ingest is not told to be whole: {status['ingest']}")
    conditions = {one["type"]: one["status"] for one in status["conditions"]}
    if (conditions.get("Ready"), conditions.get("Fresh")) != ("True", "True"):
        raise Failed(f"conditions: {conditions}")
    listed = scene.cluster.kubectl("-n", "acme", "get", "lp", "web", "--no-headers")
    return " ".join(listed.split())


def scale(scene: Scene) -> str:
    """`kubectl scale` gives a pipeline without a scaler as many collectors as it says."""
    begin_s = time.monotonic()
    for number in (2, 1):
        scene.cluster.kubectl("-n", "acme", "scale", "lp", "jobs", f"--replicas={number}")
        until(
            f"there are {number} collectors",
            lambda number=number: scene.collectors("jobs") == (number, number),
        )
        told = "{.status.collector.readyReplicas}"
        scene.cluster.kubectl(
            "-n", "acme", "wait", "lp/jobs", f"--for=jsonpath={told}={number}", "--timeout=30s"
        )
    return f"jobs had two and then one again, within {time.monotonic() - begin_s:.0f} s"


def wake(scene: Scene) -> str:
    """It goes to zero again; one line wakes it, and is found within ten seconds."""
    begin_s = time.monotonic()
    _wait_for_none(scene)
    slept_s = time.monotonic() - begin_s
    sent_s = scene.send("wake up", "web")
    took_s = scene.find("wake up") - sent_s
    if took_s > WAKE_S:
        raise Failed(f"the line was found {took_s:.1f} s after it was taken")
    return f"zero collectors after {slept_s:.0f} s; found {took_s:.1f} s after it was taken"


def _wait_for_none(scene: Scene) -> None:
    """Wait until web has no collector, also none that is about to end: that would still take."""
    selector = "app.kubernetes.io/component=collector,app.kubernetes.io/instance=web"

    def is_none() -> bool:
        wanted, _ = scene.collectors("web")
        return wanted == 0 and not scene.cluster.list("pods", "acme", selector)

    until("web has no collectors", is_none, wait_s=150)


def _lag(scene: Scene) -> dict[str, int]:
    found: dict[str, int] = scene.pipeline("web")["status"]["lag"]
    return found
