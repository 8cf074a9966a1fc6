"""The load of many pipelines is made as it says, and what it costs is counted right."""

from __future__ import annotations

import os
import threading
from collections import Counter

import pytest
from controlplane import scale


@pytest.fixture
def writer(plane, namespace):
    """A stand-in for the operator: it says of each resource that it was seen."""
    plane.api.apply_yaml(
        f"""
        apiVersion: rbac.authorization.k8s.io/v1
        kind: ClusterRoleBinding
        metadata: {{name: {namespace}-writer}}
        roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}
        subjects: [{{kind: ServiceAccount, name: writer, namespace: {namespace}}}]
        """
    )
    api, ended = plane.api_of(namespace, "writer"), threading.Event()

    def write():
        while not ended.wait(0.02):
            for one in (*plane.api.list("LogTenant"), *plane.api.list("LogPipeline")):
                named = one["metadata"]
                if named["namespace"].startswith(scale.PREFIX) and not scale.is_reconciled(one):
                    status = {"status": {"observedGeneration": named["generation"]}}
                    api.patch(one["kind"], named["name"], named["namespace"], status, "status")

    thread = threading.Thread(target=write)
    thread.start()
    yield (namespace, "writer")
    ended.set()
    thread.join()


def test_each_resource_is_made_and_each_request_is_counted(plane, writer):
    report = scale.run(plane, os.getpid(), writer, tenants=2, pipelines=5, idle_s=0.2)

    made = Counter(one["metadata"]["namespace"] for one in plane.api.list("LogPipeline"))
    assert {name: made[name] for name in ("scale-0", "scale-1")} == {"scale-0": 3, "scale-1": 2}
    assert report.asked == {("patch", "logtenants/status"): 2, ("patch", "logpipelines/status"): 6}
    assert report.served["patch", "logpipelines/status"] == 6
    assert report.idle_asked == {}
    assert report.busy.cpu_s.keys() == {"operator", "kube-apiserver", "etcd"}
    assert "2 tenants, 5 pipelines" in str(report)
