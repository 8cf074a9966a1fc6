"""Level 4: the API server of the tests is a real one: it answers, refuses, and keeps."""

from __future__ import annotations

import os
import subprocess
import sys

import machine
import pytest
from controlplane import build
from controlplane.api import Api, ApiError, until


def config_map(name: str, namespace: str, **data: str):
    named = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "data": data}


def may_list(api: Api, namespace: str) -> bool:
    try:
        api.list("ConfigMap", namespace)
    except ApiError as error:
        if error.code != 403:
            raise
        return False
    return True


def test_an_api_server_of_the_pinned_version_answers(plane):
    version = plane.api.request("GET", "/version")

    if not os.environ.get("KUBEBUILDER_ASSETS"):
        assert version["gitVersion"] == f"v{build.version()}"
    assert plane.kubectl("get", "namespace", "default", "-o", "name") == "namespace/default\n"


@pytest.mark.parametrize("kind", ["LogTenant", "LogPipeline"])
def test_our_kinds_are_accepted_and_served(plane, kind):
    crd = plane.api.get("CustomResourceDefinition", f"{kind.lower()}s.logweir.dev")
    conditions = {one["type"]: one["status"] for one in crd["status"]["conditions"]}

    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"
    assert plane.api.serves(kind)


def test_an_object_is_applied_changed_listed_and_deleted(plane, namespace):
    plane.api.apply(config_map("one", namespace, a="1"))
    plane.api.patch("ConfigMap", "one", namespace, {"data": {"b": "2"}})

    assert plane.api.get("ConfigMap", "one", namespace)["data"] == {"a": "1", "b": "2"}
    assert [one["metadata"]["name"] for one in plane.api.list("ConfigMap", namespace)] == ["one"]

    plane.api.delete("ConfigMap", "one", namespace)

    assert plane.api.find("ConfigMap", "one", namespace) is None


def test_two_owners_of_a_field_are_in_conflict_unless_one_insists(plane, namespace):
    plane.api.apply(config_map("one", namespace, a="1"), manager="first")

    with pytest.raises(ApiError) as refused:
        plane.api.apply(config_map("one", namespace, a="2"), manager="second", force=False)

    assert (refused.value.code, refused.value.causes[0][0]) == (409, ".data.a")


def test_a_dry_run_changes_nothing(plane, namespace):
    plane.api.apply(config_map("one", namespace), dry_run=True)

    assert plane.api.list("ConfigMap", namespace) == []


def test_an_account_may_do_what_a_role_grants_and_no_more(plane, namespace):
    api = plane.api_of(namespace, "reader")

    with pytest.raises(ApiError, match="cannot list resource") as refused:
        api.list("ConfigMap", namespace)
    assert refused.value.code == 403

    plane.api.apply_yaml(
        """
        apiVersion: rbac.authorization.k8s.io/v1
        kind: Role
        metadata: {name: reader}
        rules: [{apiGroups: [""], resources: [configmaps], verbs: [list]}]
        ---
        apiVersion: rbac.authorization.k8s.io/v1
        kind: RoleBinding
        metadata: {name: reader}
        roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
        subjects: [{kind: ServiceAccount, name: reader}]
        """,
        namespace,
    )

    until(lambda: may_list(api, namespace))
    with pytest.raises(ApiError, match="cannot create resource"):
        api.create(config_map("one", namespace))


def test_a_pod_that_is_not_restricted_is_refused(plane, namespace):
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "one", "namespace": namespace},
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
    }

    with pytest.raises(ApiError, match="violates PodSecurity"):
        plane.api.apply(pod)


def test_a_killed_api_server_comes_back_with_its_data_and_its_identities(plane, namespace):
    plane.api.apply(config_map("one", namespace, a="1"))
    reader = plane.api_of(namespace, "reader")

    plane.restart_api_server()

    assert plane.api.get("ConfigMap", "one", namespace)["data"] == {"a": "1"}
    with pytest.raises(ApiError) as refused:
        reader.list("ConfigMap", namespace)
    assert refused.value.code == 403


STARTING = """
import sys, time
from pathlib import Path
from controlplane import build, plane
started = plane.Plane(Path(sys.argv[1]), build.find(*build.API), controllers=False)
started._etcd.run()
print(started._etcd.process.pid, flush=True)
time.sleep(600)
"""


def test_the_programs_of_a_plane_die_with_who_started_it(plane, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", STARTING, str(tmp_path / "plane")],
        env=environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert machine.is_running(pid)

    process.kill()
    process.wait()
    process.stdout.close()

    machine.until(lambda: not machine.is_running(pid))
