"""What the chart renders, without a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import helming
import kubernetes_validate
import pytest
import yaml
from helming import CHART, ROOT, SHAPES, find, pod_of, render, shape

from logweir_operator import config, kube

GOLDEN = Path(__file__).parent / "golden" / "evaluation.yaml"
FOREIGN = ("ServiceMonitor", "PrometheusRule", "HTTPRoute", "CustomResourceDefinition")
"""Kinds whose schemas Kubernetes does not bring, or is too lax about."""


@pytest.fixture(scope="module", autouse=True)
def _helm() -> None:
    from controlplane import build

    try:
        build.find("helm")
    except build.Unavailable as missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(missing))


@pytest.mark.parametrize("name", SHAPES)
def test_lint_finds_nothing(name):
    helming.helm("lint", "--strict", CHART, "--values", CHART / "ci" / name)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_every_object_is_one_that_kubernetes_takes(name, version):
    found = [one for one in shape(name) if one["kind"] not in FOREIGN]

    assert found
    for one in found:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("name", SHAPES)
def test_rendered_twice_it_is_the_same(name):
    values = ("--values", CHART / "ci" / name)

    assert render(*values) == render(*values)


def pods(found: list[helming.Object]) -> Iterator[tuple[str, helming.Object]]:
    for one in found:
        pod = pod_of(one)
        if pod is not None:
            yield f"{one['kind']}/{one['metadata']['name']}", pod


@pytest.mark.parametrize("name", SHAPES)
def test_pods_meet_the_level_restricted_and_more(name):
    for where, pod in pods(shape(name)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert spec["enableServiceLinks"] is False, where
        assert "hostNetwork" not in spec, where
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, where
            assert container["resources"]["limits"]["memory"], where
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], where


def test_only_who_asks_the_api_server_has_a_token():
    found = shape("evaluation-values.yaml")
    tokens = {
        one["metadata"]["name"]
        for one in found
        if one["kind"] == "ServiceAccount" and one.get("automountServiceAccountToken", True)
    }

    assert tokens == {"lw-logweir-operator", "lw-logweir-migrate", "lw-logweir-test"}
    for where, pod in pods(found):
        wanted = pod["spec"].get("automountServiceAccountToken", True)
        assert wanted == (pod["spec"]["serviceAccountName"] in tokens), where


def test_the_operator_never_sees_the_superuser():
    for name in ("evaluation-values.yaml", "external-values.yaml", "tls-values.yaml"):
        found = shape(name)
        volumes = find(found, "Deployment", "lw-logweir-operator")["spec"]["template"]["spec"][
            "volumes"
        ]
        (postgres,) = [one for one in volumes if one["name"] == "postgres"]
        keys = {
            item["path"]
            for source in postgres["projected"]["sources"]
            for item in next(iter(source.values()))["items"]
        }
        assert keys <= {"host", "port", "sslmode", "ca.crt"}
        assert "host" in keys


@pytest.mark.parametrize("name", [one for one in SHAPES if "cluster-objects" not in one])
def test_the_operator_understands_its_configuration(name, tmp_path):
    found = shape(name)
    release = "logs" if name.startswith("everything") else "lw-logweir"
    text = find(found, "ConfigMap", f"{release}-operator")["data"]["config.yaml"]
    (tmp_path / "config.yaml").write_text(text)

    read = config.read(tmp_path / "config.yaml")

    assert read.release == release
    assert read.namespace == "logs"
    assert (read.evaluation is not None) == name.startswith(("evaluation", "everything"))
    deployment = find(found, "Deployment", f"{release}-operator")
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert read.image.reference == image
    assert read.lease.name == f"{release}-operator"


def test_values_reach_the_configuration(tmp_path):
    values = {
        "cluster": "east",
        "features": {"keda": True, "httpRoutes": True, "monitoring": True, "namespaceQuota": False},
        "networkPolicy": {"dnsPorts": [53, 1053], "ingressNamespace": "in", "apiPorts": [6443]},
        "operator": {"workers": 3, "spreadSeconds": 5, "lease": {"durationSeconds": 30}},
        "migrate": {"waitSeconds": 7},
    }
    (tmp_path / "v.yaml").write_text(yaml.safe_dump(values))
    text = render("-f", CHART / "ci" / "tls-values.yaml", "-f", tmp_path / "v.yaml")
    found = find(helming.objects(text), "ConfigMap", "lw-logweir-operator")["data"]
    (tmp_path / "config.yaml").write_text(found["config.yaml"])

    read = config.read(tmp_path / "config.yaml")

    assert (read.cluster, read.workers, read.spread_s, read.bootstrap_wait_s) == ("east", 3, 5, 7)
    assert read.features == config.Features(http_routes=True, keda=True, monitoring=True)
    assert read.lease.duration_s == 30
    assert read.network.redis_port == 6380
    assert read.network.dns_ports == (53, 1053)
    assert found["postgres.host"] == "logs-db-rw.databases"
    assert found["redis.tls"] == "true"


def test_a_server_of_the_users_is_put_together_from_its_secret_and_the_values():
    spec = find(shape("tls-values.yaml"), "Job", "lw-logweir-migrate-1")["spec"]["template"]["spec"]
    (postgres,) = [one["projected"] for one in spec["volumes"] if one["name"] == "postgres"]

    assert postgres["sources"] == [
        {
            "secret": {
                "name": "logs-db-superuser",
                "items": [
                    {"key": "username", "path": "username"},
                    {"key": "password", "path": "password"},
                ],
            }
        },
        {
            "secret": {
                "name": "logs-db-superuser",
                "optional": True,
                "items": [{"key": "maintenanceDatabase", "path": "maintenanceDatabase"}],
            }
        },
        {
            "configMap": {
                "name": "lw-logweir-operator",
                "items": [
                    {"key": f"postgres.{one}", "path": one} for one in ("host", "port", "sslmode")
                ],
            }
        },
        {"secret": {"name": "logs-db-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    ]


def test_in_namespaces_alone_nothing_is_the_clusters():
    found = shape("namespaced-values.yaml")

    assert not [one for one in found if one["kind"].startswith(("Cluster", "Validating", "Custom"))]
    roles = {(one["metadata"].get("namespace", "logs")) for one in found if one["kind"] == "Role"}
    assert roles == {"logs", "team-a", "team-b"}


def test_without_the_operator_there_are_only_the_clusters_objects():
    kinds = {one["kind"] for one in shape("cluster-objects-values.yaml")}

    assert kinds <= {
        "ClusterRole",
        "CustomResourceDefinition",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }


def test_rules_are_those_of_the_kinds_that_the_operator_has():
    everything = find(shape("everything-values.yaml"), "ClusterRole", "logs-operator")["rules"]
    granted = {
        (group, resource)
        for rule in everything
        if "create" in rule["verbs"] and "delete" in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }

    assert granted == {(kind.group, kind.plural) for kind in kube.KINDS.values()}
    for rule in everything:
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


@pytest.mark.parametrize("feature", ["httpRoutes", "keda", "monitoring", "namespaceQuota"])
def test_a_feature_that_is_off_gives_no_right(feature):
    kinds = {
        "httpRoutes": kube.ROUTE_KINDS,
        "keda": kube.KEDA_KINDS,
        "monitoring": kube.MONITORING_KINDS,
        "namespaceQuota": kube.QUOTA_KINDS,
    }[feature]
    text = render(
        "--values", CHART / "ci" / "everything-values.yaml", "--set", f"features.{feature}=false"
    )
    rules = find(helming.objects(text), "ClusterRole", "logs-operator")["rules"]

    granted = {resource for rule in rules for resource in rule["resources"]}
    assert not granted & {kind.plural for kind in kinds.values()}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "postgres.existingSecret is needed"),
        ({"postgres": {"existingSecret": "p"}}, "redis.existingSecret is needed"),
        ({"evaluation": {"enabled": True}, "surprise": 1}, "surprise"),
        ({"evaluation": {"enabled": True, "surprise": 1}}, "surprise"),
        ({"image": {"tag": 2}}, "tag"),
        ({"image": {"digest": "sha256:00"}}, "digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"scope": {"mode": "Some"}}, "mode"),
        ({"evaluation": {"enabled": True}, "scope": {"mode": "Namespaced"}}, "scope.namespaces"),
        ({"evaluation": {"enabled": True}, "scope": {"namespaces": ["a"]}}, "Namespaced"),
        ({"scope": {"mode": "Namespaced", "namespaces": ["a*"]}}, "namespaces"),
        ({"postgres": {"port": 70000}}, "port"),
        ({"postgres": {"sslmode": "on"}}, "sslmode"),
        ({"redis": {"tls": "yes"}}, "tls"),
        ({"operator": {"replicas": 3}}, "replicas"),
        ({"operator": {"workers": 0}}, "workers"),
        ({"query": {"replicas": -1}}, "replicas"),
        ({"query": {"extraEnv": {"A": 1}}}, "extraEnv"),
        ({"evaluation": {"postgres": {"storage": "8"}}}, "storage"),
        ({"networkPolicy": {"dnsPorts": []}}, "dnsPorts"),
        ({"gateway": {"service": {"type": "External"}}}, "type"),
        ({"logFormat": "xml"}, "logFormat"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, words, tmp_path):
    (tmp_path / "v.yaml").write_text(yaml.safe_dump(values))

    ran = helming.helm("template", CHART, "-f", tmp_path / "v.yaml", check=False)

    assert ran.returncode != 0
    assert words in ran.stderr


def test_what_follows_from_the_values_is_up_to_date():
    subprocess.run(
        [sys.executable, ROOT / "charts" / "generate.py", "--check"], check=True, timeout=60
    )
    assert json.loads((CHART / "values.schema.json").read_text())["additionalProperties"] is False


def test_the_defaults_of_evaluation_render_as_before():
    """After a change that is meant: helm template ... > tests/chart/golden/evaluation.yaml."""
    text = render(
        "--values", CHART / "ci" / "evaluation-values.yaml", "--set", "crds.install=false"
    )

    assert text == GOLDEN.read_text()


@pytest.mark.parametrize("name", SHAPES)
def test_selectors_find_the_pods_they_are_meant_for(name):
    """No user's word is in a selector, and each Service and policy has its pods."""
    found = shape(name)
    labels = [pod["metadata"]["labels"] for _, pod in pods(found)]
    for one in found:
        if one["kind"] == "Service":
            selector = one["spec"]["selector"]
        elif one["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            which = "podSelector" if one["kind"] == "NetworkPolicy" else "selector"
            selector = one["spec"][which]["matchLabels"]
        else:
            continue
        assert set(selector) == {
            f"app.kubernetes.io/{k}" for k in ("name", "instance", "component")
        }
        assert any(selector.items() <= one.items() for one in labels), one["metadata"]["name"]


def test_bundled_databases_may_keep_an_image_of_their_own():
    found = shape("everything-values.yaml")

    def image(kind: str, name: str) -> str:
        return find(found, kind, name)["spec"]["template"]["spec"]["containers"][0]["image"]

    registry = "registry.example.com:5000/logweir/logweir"
    assert image("StatefulSet", "logs-postgres") == f"{registry}:1"
    assert image("Deployment", "logs-query") == f"{registry}@sha256:{'0' * 64}"
