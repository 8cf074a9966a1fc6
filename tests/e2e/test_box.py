"""A box leaves nothing of itself on the machine, also when it is killed: root, Linux."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from controlplane.api import Api
from e2e import box, node
from e2e.box import Box
from e2e.scene import HOME
from e2e.target import until

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


@pytest.mark.timeout(600)
def test_what_a_run_that_is_killed_amid_an_installation_leaves_is_swept_by_the_next_box():
    before = machine()
    run = subprocess.Popen(
        [sys.executable, "-m", "e2e.run", "--only", "install"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        until("a pod of the release runs", runs_a_pod, wait_s=400)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()

    until("its node is gone", lambda: _of_a_node() == before["processes"], wait_s=10)
    after = machine()
    assert after.pop("cgroups") != before["cgroups"]
    assert after == {name: value for name, value in before.items() if name != "cgroups"}
    with Box.start() as started:
        node_is_ready(started)
        assert started.api.list("Pod") == []
    assert machine() == before
    assert not (box.cache() / "box").exists()


def runs_a_pod():
    api = Api.of_kubeconfig(box.cache() / "box/kubeconfig")
    try:
        pods = api.list("Pod")
    finally:
        api.close()
    return [
        one
        for one in pods
        if one["metadata"]["namespace"] == HOME and one["status"]["phase"] == "Running"
    ]


def node_is_ready(started):
    ready = {("Ready", "True")}
    until(
        "the node is ready",
        lambda: [
            node
            for node in started.api.list("Node")
            if ready & {(one["type"], one["status"]) for one in node["status"]["conditions"]}
        ],
    )
