"""A box leaves nothing of itself on the machine, also when it is killed: root, Linux."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e import box, node
from e2e.box import Box

pytestmark = pytest.mark.node


@pytest.fixture(autouse=True)
def swept():
    """Begin without what an earlier one left."""
    box.sweep(box.cache() / "box")


def machine():
    """Return what a node could change here."""
    run = subprocess.check_output
    kernel = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "vm/panic_on_oom")
    mounts = Path("/proc/self/mounts").read_text()
    return {
        "rules": run(["iptables-save"], text=True).partition("\n")[2].count("KUBE"),
        "links": run(["ip", "-brief", "link"], text=True).split("\n"),
        "routes": run(["ip", "route"], text=True),
        "settings": {name: Path("/proc/sys", name).read_text() for name in kernel},
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "mounts": mounts,
        "folders": [sorted(map(str, Path(one).iterdir())) for one in ("/run", "/var/lib", "/etc")],
        "cgroups": [str(one) for one in node.hierarchies() if (one / node.CGROUP).exists()],
        "processes": _of_a_node(),
    }


def _of_a_node():
    """Return the processes of nodes: those that run a kubelet or containerd."""
    found = []
    for one in Path("/proc").glob("[0-9]*/comm"):
        try:
            name = one.read_text().strip()
        except OSError:
            continue
        if name in ("kubelet", "containerd", "kube-proxy", "containerd-shim"):
            found.append(f"{one.parent.name} {name}")
    return found


@pytest.mark.timeout(300)
def test_a_box_that_ends_in_order_leaves_the_machine_as_it_was():
    before = machine()
    with Box.start() as started:
        node_is_ready(started)
        assert (node.hierarchies()[0] / node.CGROUP).exists()

    assert machine() == before


@pytest.mark.timeout(300)
def test_of_a_killed_box_only_empty_cgroups_and_a_folder_are_left_and_the_next_one_sweeps_them():
    before = machine()
    child = subprocess.Popen(
        [sys.executable, "-m", "e2e.box"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    with child.stdout:
        assert child.stdout.readline().startswith("export KUBECONFIG=")
    child.send_signal(signal.SIGKILL)
    child.wait()

    deadline_s = time.monotonic() + 10
    while _of_a_node() != before["processes"] and time.monotonic() < deadline_s:
        time.sleep(0.05)
    after = machine()
    assert after.pop("cgroups") != before["cgroups"]
    assert after == {name: value for name, value in before.items() if name != "cgroups"}
    box.sweep(box.cache() / "box")
    assert machine() == before
    assert not (box.cache() / "box").exists()


def node_is_ready(started):
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for one in started.api.list("Node"):
            conditions = {each["type"]: each["status"] for each in one["status"]["conditions"]}
            if conditions.get("Ready") == "True":
                return
        time.sleep(0.1)
    raise AssertionError("the node is not ready")
