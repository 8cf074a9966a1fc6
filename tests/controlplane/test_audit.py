"""What an account asked for is told from what it is granted."""

from __future__ import annotations

import pytest
from controlplane import audit
from controlplane.api import ApiError, until
from controlplane.audit import Right

ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: worker}
rules:
- {apiGroups: [""], resources: [configmaps], verbs: [create, patch, get]}
- {apiGroups: [""], resources: [secrets], verbs: [get], resourceNames: [mine]}
- {apiGroups: [apps], resources: [deployments/scale], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: worker}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: worker}
subjects: [{kind: ServiceAccount, name: worker, namespace: NAMESPACE}]
"""


@pytest.fixture
def worker(plane, namespace):
    """An account with a role, once the server knows what it may do."""
    plane.api.apply_yaml(ROLE.replace("NAMESPACE", namespace), namespace)
    api = plane.api_of(namespace, "worker")
    until(lambda: is_known(api, namespace))
    return api


def is_known(api, namespace):
    try:
        return api.find("ConfigMap", "none", namespace) is None
    except ApiError:
        return False


def test_grants_are_read_from_the_bindings_of_the_account(plane, namespace, worker):
    assert audit.grants(plane.api, namespace, "worker") == {
        Right("", "configmaps", "create", namespace),
        Right("", "configmaps", "patch", namespace),
        Right("", "configmaps", "get", namespace),
        Right("", "secrets", "get", namespace, "mine"),
        Right("apps", "deployments/scale", "patch", namespace),
    }
    assert audit.grants(plane.api, namespace, "another") == set()


def test_what_was_asked_for_is_held_against_what_is_granted(plane, namespace, worker):
    granted = audit.grants(plane.api, namespace, "worker")
    before = audit.mark(plane)
    one = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "one", "namespace": namespace},
    }

    worker.apply(one)
    worker.get("ConfigMap", "one", namespace)
    for name in ("mine", "another"):
        with pytest.raises(ApiError):
            worker.get("Secret", name, namespace)

    seen = until(lambda: at_least(audit.requests(plane, namespace, "worker", before), 5))
    assert [(one.right.verb, one.code) for one in seen] == [
        ("patch", 201),
        ("create", 201),
        ("get", 200),
        ("get", 404),
        ("get", 403),
    ]
    assert {one.agent for one in seen} == {"logweir-test"}
    assert audit.compare(seen, granted) == audit.Comparison(
        missing=(Right("", "secrets", "get", namespace, "another"),),
        unused=(Right("apps", "deployments/scale", "patch", namespace),),
    )


def at_least(seen, count):
    """Return them once all are there; a line may come after its answer."""
    return seen if len(seen) >= count else None


def test_rights_that_no_log_shows_can_be_added():
    finalizers = Right("logweir.dev", "logtenants/finalizers", "update")

    assert audit.compare([], {finalizers}) == audit.Comparison((), (finalizers,))
    assert audit.compare([], {finalizers}, implied={finalizers}) == audit.EQUAL


def test_a_grant_for_one_namespace_covers_no_other():
    asked = audit.Request(Right("", "pods", "list", "b"), 403, "")

    assert audit.compare(
        [asked],
        audit.granted_by([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}], "a"),
    ).missing == (asked.right,)
