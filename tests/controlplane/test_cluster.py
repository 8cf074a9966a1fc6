"""Level 5: the controllers act, and pods do what the test says of them."""

from __future__ import annotations

import time

from controlplane.api import until
from controlplane.kubelet import Behaviour


def deployment(name: str, namespace: str, replicas: int):
    labels = {"app": name}
    secure = {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod = {"containers": [{"name": "app", "image": "app:1", "securityContext": secure}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def ready(cluster, namespace, name="web") -> int:
    return cluster.api.get("Deployment", name, namespace)["status"].get("readyReplicas", 0)


def conditions(one) -> dict[str, str]:
    return {each["type"]: each["status"] for each in one.get("status", {}).get("conditions", [])}


def test_a_deployment_becomes_available(cluster, cluster_namespace):
    cluster.api.apply(deployment("web", cluster_namespace, 2))

    until(lambda: ready(cluster, cluster_namespace) == 2)

    found = cluster.api.get("Deployment", "web", cluster_namespace)
    assert conditions(found)["Available"] == "True"
    pods = cluster.api.list("Pod", cluster_namespace, {"app": "web"})
    assert len({one["status"]["podIP"] for one in pods}) == 2


def test_pods_are_ready_as_the_test_says(cluster, cluster_namespace):
    web = {"app": "web"}
    cluster.kubelet.behave(cluster_namespace, web, Behaviour(ready=False))
    cluster.api.apply(deployment("web", cluster_namespace, 1))
    until(
        lambda: [one["status"]["phase"] for one in pods(cluster, cluster_namespace)] == ["Running"]
    )

    assert ready(cluster, cluster_namespace) == 0

    cluster.kubelet.behave(cluster_namespace, web, Behaviour())
    until(lambda: ready(cluster, cluster_namespace) == 1)

    cluster.kubelet.behave(cluster_namespace, web, Behaviour(ready=False))
    until(lambda: ready(cluster, cluster_namespace) == 0)


def pods(cluster, namespace):
    return cluster.api.list("Pod", namespace, {"app": "web"})


def test_a_slow_start_and_a_slow_end_take_their_time(cluster, cluster_namespace):
    web = {"app": "web"}
    cluster.kubelet.behave(cluster_namespace, web, Behaviour(start_s=0.5, stop_s=60))
    began_s = time.monotonic()
    cluster.api.apply(deployment("web", cluster_namespace, 1))
    until(lambda: ready(cluster, cluster_namespace) == 1)

    assert time.monotonic() - began_s > 0.5

    cluster.api.patch("Deployment", "web", cluster_namespace, {"spec": {"replicas": 0}}, "scale")
    until(lambda: "deletionTimestamp" in pods(cluster, cluster_namespace)[0]["metadata"])
    cluster.kubelet.behave(cluster_namespace, web, Behaviour())

    until(lambda: not pods(cluster, cluster_namespace))


def test_a_job_succeeds_or_fails(cluster, cluster_namespace):
    for name, code in (("good", None), ("bad", 3)):
        if code:
            cluster.kubelet.behave(cluster_namespace, {"app": name}, Behaviour(exits=code))
        cluster.api.apply(job(name, cluster_namespace))

    until(lambda: ended(cluster, cluster_namespace, "good") == "Complete")
    until(lambda: ended(cluster, cluster_namespace, "bad") == "Failed")


def job(name: str, namespace: str):
    template = deployment(name, namespace, 1)["spec"]["template"]
    template["spec"]["restartPolicy"] = "Never"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": template, "backoffLimit": 0},
    }


def ended(cluster, namespace: str, name: str) -> str:
    found = conditions(cluster.api.get("Job", name, namespace))
    return next((one for one in ("Complete", "Failed") if found.get(one) == "True"), "")


def test_a_child_goes_with_its_owner(cluster, cluster_namespace):
    owner = cluster.api.apply(config_map("owner", cluster_namespace))
    child = config_map("child", cluster_namespace)
    child["metadata"]["ownerReferences"] = [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    ]
    cluster.api.apply(child)

    cluster.api.delete("ConfigMap", "owner", cluster_namespace)

    until(lambda: cluster.api.find("ConfigMap", "child", cluster_namespace) is None)


def config_map(name: str, namespace: str):
    named = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named}


def test_controllers_and_pods_go_on_after_the_api_server_was_killed(cluster, cluster_namespace):
    cluster.restart_api_server()

    cluster.api.apply(deployment("web", cluster_namespace, 1))

    until(lambda: ready(cluster, cluster_namespace) == 1, wait_s=60)
