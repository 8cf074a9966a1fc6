"""The chart's whole life on a real API server with its controllers; pods do as the test says."""

from __future__ import annotations

import json
from pathlib import Path

import helming
import pytest
import yaml
from bootstrapping import Job
from controlplane import audit
from controlplane.api import until
from controlplane.kubelet import Behaviour
from controlplane.plane import Plane
from helming import CHART

from logweir.core import errors
from logweir_operator import config

COMPONENT = "app.kubernetes.io/component"
FIXED = ("--set", "crds.install=false", "--timeout", "60s")


class Release:
    """A release in a namespace of its own, that enforces `restricted`."""

    def __init__(self, plane: Plane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace
        self.name = f"lw-{namespace}"
        self.behave("migrate", Behaviour(exits=0))
        self.behave("test", Behaviour(exits=0))
        self.behave("uninstall-guard", Behaviour(exits=0))

    def behave(self, component: str, behaviour: Behaviour) -> None:
        self.plane.kubelet.behave(self.namespace, {COMPONENT: component}, behaviour)

    def helm(self, command: str, *words: object, check: bool = True):
        where = ("--kubeconfig", self.plane.kubeconfig, "--namespace", self.namespace)
        return helming.helm(command, self.name, *words, *where, check=check)

    def install(self, *words: object, command: str = "install", shape: str = "external") -> None:
        values = ("--values", CHART / "ci" / f"{shape}-values.yaml")
        self.helm(command, CHART, *values, *FIXED, *words)

    def names(self, kind: str) -> set[str]:
        found = self.plane.api.list(kind, self.namespace)
        return {one["metadata"]["name"].removeprefix(f"{self.name}-logweir-") for one in found}

    def revision(self) -> int:
        return int(json.loads(self.helm("status", "-o", "json").stdout)["version"])


@pytest.fixture
def release(cluster: Plane, cluster_namespace: str):
    found = Release(cluster, cluster_namespace)
    yield found
    found.helm("uninstall", "--no-hooks", "--ignore-not-found", check=False)


def test_it_is_installed_upgraded_rolled_back_tested_and_removed(release):
    release.install("--wait", "--wait-for-jobs")

    assert release.names("Deployment") == {"operator", "auth", "query", "keeper", "gateway"}
    assert release.names("Job") == {"migrate-1"}
    before = pods(release, "auth")

    release.install("--wait", "--wait-for-jobs", "--set", "query.replicas=3", command="upgrade")
    assert release.names("Job") == {"migrate-2"}
    assert len(pods(release, "query")) == 3
    assert pods(release, "auth") == before, "an upgrade restarts only what is different"

    release.helm("rollback", "1", "--wait", "--wait-for-jobs")
    assert release.names("Job") == {"migrate-1"}
    assert release.revision() == 3
    until(lambda: len(pods(release, "query")) == 2)

    release.helm("test")

    release.helm("uninstall", "--wait")
    assert release.names("Deployment") == set()
    assert release.names("Role") <= {"test", f"{release.name}-logweir-test"}


def pods(release: Release, component: str) -> set[str]:
    found = release.plane.api.list("Pod", release.namespace, {COMPONENT: component})
    return {one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"]}


def test_a_migration_that_fails_fails_the_installation(release):
    release.behave("migrate", Behaviour(exits=1))

    ran = release.helm(
        "install",
        CHART,
        *("--values", CHART / "ci" / "external-values.yaml"),
        *FIXED,
        *("--set", "migrate.waitSeconds=1", "--wait", "--wait-for-jobs", "--timeout", "6s"),
        check=False,
    )

    assert ran.returncode != 0


def test_an_uninstall_is_refused_while_there_are_resources(release):
    release.install()
    release.behave("uninstall-guard", Behaviour(exits=1))

    ran = release.helm("uninstall", "--timeout", "30s", check=False)

    assert ran.returncode != 0
    assert "operator" in release.names("Deployment")


def test_bundled_databases_pass_the_level_that_is_enforced_and_keep_volumes_that_notes_name(
    release,
):
    release.install(shape="evaluation")
    notes = release.helm("status").stdout

    until(lambda: len(pods(release, "postgres") | pods(release, "redis")) == 2)
    release.helm("uninstall")
    until(lambda: not pods(release, "postgres"))

    claims = release.names("PersistentVolumeClaim")
    assert len(claims) == 2
    assert all(name in notes for name in claims), notes


def test_nothing_may_be_done_that_is_not_needed(release):
    release.install()
    lease = f"{release.name}-logweir-operator"
    operator = f"system:serviceaccount:{release.namespace}:{release.name}-logweir-operator"
    migrate = operator.replace("-operator", "-migrate")
    auth = operator.replace("-operator", "-auth")

    def may(who: str, verb: str, resource: str, group: str = "", namespace: str = "", name=""):
        asked = {
            "verb": verb,
            "resource": resource.partition("/")[0],
            "subresource": resource.partition("/")[2],
            "group": group,
            "namespace": namespace,
            "name": name,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": {
                "user": who,
                "groups": ["system:serviceaccounts"],
                "resourceAttributes": asked,
            },
        }
        return release.plane.api.create(review)["status"]["allowed"]

    assert may(operator, "patch", "deployments/scale", "apps", "anywhere")
    assert may(
        operator,
        "update",
        "leases",
        "coordination.k8s.io",
        release.namespace,
        lease,
    )
    assert may(migrate, "get", "secrets", "", release.namespace, f"{release.name}-logweir-roots")
    for verb, resource, group in [
        *(("create", "pods/exec", ""), ("get", "nodes", ""), ("list", "pods", "")),
        *(("delete", "namespaces", ""), ("impersonate", "users", ""), ("get", "configmaps", "")),
        *(("delete", "logtenants", "logweir.dev"), ("create", "logpipelines", "logweir.dev")),
        ("escalate", "clusterroles", "rbac.authorization.k8s.io"),
        ("bind", "clusterroles", "rbac.authorization.k8s.io"),
        ("create", "rolebindings", "rbac.authorization.k8s.io"),
        ("update", "customresourcedefinitions", "apiextensions.k8s.io"),
        ("update", "leases", "coordination.k8s.io"),
    ]:
        assert not may(operator, verb, resource, group, "anywhere"), (verb, resource)
    for verb in ("list", "watch", "patch", "update", "delete"):
        assert not may(migrate, verb, "secrets", "", release.namespace), verb
    assert not may(migrate, "get", "secrets", "", release.namespace, "another")
    assert not may(auth, "get", "secrets", "", release.namespace)


async def test_the_job_has_the_rights_that_it_uses_and_no_other(
    release, tmp_path, fresh_postgres, fresh_valkey
):
    release.install(shape="evaluation")
    account = f"{release.name}-logweir-migrate"
    found = release.plane.api.get(
        "ConfigMap", f"{release.name}-logweir-operator", release.namespace
    )
    (tmp_path / "config.yaml").write_text(found["data"]["config.yaml"])
    read = config.read(tmp_path / "config.yaml")
    common = (release.plane, release.namespace)
    bundled = Job(
        tmp_path / "1",
        *common,
        release=read.release,
        evaluation=read.evaluation,
        bootstrap_wait_s=0.1,
    )
    job = Job(tmp_path / "2", *common, release=read.release).use(fresh_postgres, fresh_valkey)
    job.kubeconfig = bundled.kubeconfig = release.plane.kubeconfig_of(release.namespace, account)
    mark = audit.mark(release.plane)

    with pytest.raises(errors.UnavailableError):  # nobody runs the bundled databases
        await bundled.run()
    await job.run()

    seen = audit.requests(release.plane, release.namespace, account, mark)
    granted = audit.grants(release.plane.api, release.namespace, account)
    assert audit.compare(seen, granted) == audit.EQUAL


def test_the_namespaces_of_a_small_installation_are_all_that_it_sees(release, tmp_path: Path):
    other = release.plane.make_namespace()
    values = {
        "scope": {"mode": "Namespaced", "namespaces": [other]},
        "admissionPolicy": {"enabled": False},
        "rbac": {"aggregate": False},
    }
    (tmp_path / "v.yaml").write_text(yaml.safe_dump(values))
    release.install("--values", tmp_path / "v.yaml")

    account = f"{release.name}-logweir-operator"
    granted = audit.grants(release.plane.api, release.namespace, account)

    assert {one.namespace for one in granted} == {release.namespace, other}
    release.plane.api.delete("Namespace", other)
