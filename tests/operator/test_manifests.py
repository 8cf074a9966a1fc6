"""The objects of tenants and pipelines: what each of them must be, whatever a resource says."""

from __future__ import annotations

import base64
import json

import kubernetes_validate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from viewing import EVERY_KIND, EVERYTHING, KEY, SECRETS, UID, pipeline_view, tenant_view

from logweir_operator import kube, manifests
from logweir_operator.objects.quantities import canonical

QUOTA = {"quotas": {"namespaceQuota": {"hard": {"pods": 10, "requests.cpu": "2000m"}}}}
LONGEST = "a" * 40


def route_spec() -> dict:
    parents = [{"name": "edge", "namespace": "gateways", "sectionName": "https"}]
    return {"exposure": {"type": "HTTPRoute", "host": "a.example", "parentRefs": parents}}


VIEWS = {
    "tenant": lambda: manifests.tenant_objects(tenant_view()),
    "tenant with a quota": lambda: manifests.tenant_objects(tenant_view(spec=QUOTA)),
    "pipeline": lambda: manifests.pipeline_objects(pipeline_view()),
    "pipeline with everything": lambda: manifests.pipeline_objects(
        pipeline_view(spec=EVERYTHING, served_kinds=EVERY_KIND, redis_tls=True)
    ),
    "pipeline with a route": lambda: manifests.pipeline_objects(
        pipeline_view(spec=route_spec(), served_kinds=EVERY_KIND)
    ),
    "pipeline that goes": lambda: manifests.pipeline_objects(pipeline_view(is_open=False)),
    "pipeline without a place": lambda: manifests.pipeline_objects(
        pipeline_view(ingest_binding=b"", collector_binding=b"")
    ),
    "longest names": lambda: [
        *manifests.tenant_objects(tenant_view(LONGEST, {"apiKeys": []}, key_texts={"k" * 40: KEY})),
        *manifests.pipeline_objects(
            pipeline_view(LONGEST, EVERYTHING, served_kinds=EVERY_KIND, tenant_name=LONGEST)
        ),
    ],
}


@pytest.fixture(params=VIEWS)
def objects(request) -> list[dict]:
    return VIEWS[request.param]()


def of_kind(found, kind, name=None):
    chosen = [o for o in found if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert chosen, f"no {kind} {name}"
    return chosen[0]


def everything(**rest):
    return manifests.pipeline_objects(
        pipeline_view(spec=EVERYTHING, served_kinds=EVERY_KIND, **rest)
    )


def test_each_object_is_owned_labelled_and_named_so_that_it_fits(objects):
    for one in objects:
        meta = one["metadata"]
        [owner] = meta["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (UID, True, True)
        assert meta["labels"]["app.kubernetes.io/managed-by"] == "logweir-operator"
        assert meta["labels"]["logweir.dev/tenant"]
        assert max(map(len, (meta["name"], *meta["labels"].values()))) <= 63
        assert kube.kind_of(one["kind"]).api_version == one["apiVersion"]
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_each_object_is_valid_for_the_oldest_and_the_newest_kubernetes(objects, version):
    for one in objects:
        if one["kind"] not in kube.OPTIONAL_KINDS:
            kubernetes_validate.validate(one, version, strict=True)


def restricted_problems(pod: dict) -> list[str]:
    """What the Pod Security level `restricted` would refuse of a pod's spec."""
    wrong = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    context = pod.get("securityContext") or {}
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
        wrong.append("root")
    if (context.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        wrong.append("seccomp")
    allowed = {"secret", "emptyDir", "configMap", "projected", "downwardAPI"}
    wrong += [one["name"] for one in pod["volumes"] if not (one.keys() - {"name"}) <= allowed]
    for one in [*pod["containers"], *pod.get("initContainers", ())]:
        own = one.get("securityContext") or {}
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            wrong.append("privileges")
        if (own.get("capabilities") or {}) != {"drop": ["ALL"]}:
            wrong.append("capabilities")
        wrong += ["hostPort" for port in one.get("ports", ()) if "hostPort" in port]
    return wrong


def test_pods_are_restricted_read_only_and_without_a_token(objects):
    for one in objects:
        if one["kind"] == "Deployment":
            template = one["spec"]["template"]
            pod = template["spec"]
            assert restricted_problems(pod) == []
            assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
            assert not pod["automountServiceAccountToken"]
            assert not pod["enableServiceLinks"]
            assert not any(
                "apparmor" in name for name in template["metadata"].get("annotations", ())
            )


def test_secrets_are_in_secrets_alone(objects):
    texts = [KEY, *(value.decode() for value in SECRETS.values()), "the redis password"]
    hidden = [*texts, *(base64.b64encode(text.encode()).decode() for text in texts)]
    for one in objects:
        if one["kind"] != "Secret":
            assert not any(text in json.dumps(one) for text in hidden)
        else:
            assert "stringData" not in one


def test_what_is_exposed_comes_after_the_pods_and_these_after_their_secrets():
    kinds = [one["kind"] for one in everything()]

    order = ["Secret", "ServiceAccount", "NetworkPolicy", "Deployment", "Service", "Ingress"]
    assert [kinds.index(one) for one in order] == sorted(kinds.index(one) for one in order)
    last_policy = len(kinds) - kinds[::-1].index("NetworkPolicy")
    assert last_policy <= kinds.index("Deployment")


def test_the_collectors_number_is_never_written_and_ingests_is():
    found = everything()

    assert "replicas" not in of_kind(found, "Deployment", "web-collector")["spec"]
    assert of_kind(found, "Deployment", "web-ingest")["spec"]["replicas"] == 3


def test_a_new_password_changes_secrets_alone():
    before = everything()
    after = everything(ingest_binding=b"another", collector_binding=b"yet another")

    changed = [new["kind"] for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["Secret", "Secret"]


def test_a_pipeline_that_goes_keeps_its_collectors_and_nothing_that_lets_records_in():
    found = manifests.pipeline_objects(
        pipeline_view(spec=EVERYTHING, served_kinds=EVERY_KIND, is_open=False)
    )

    assert not [one for one in found if one["metadata"]["name"].startswith("web-ingest")]
    assert {"Ingress", "Service"}.isdisjoint(one["kind"] for one in found)
    assert of_kind(found, "Deployment", "web-collector")


def test_without_a_place_in_the_servers_nothing_runs():
    kinds = {one["kind"] for one in VIEWS["pipeline without a place"]()}

    assert kinds == {"ServiceAccount", "NetworkPolicy"}


def test_optional_kinds_are_made_only_where_they_are_served():
    found = manifests.pipeline_objects(pipeline_view(spec=EVERYTHING))

    assert not [one for one in found if one["kind"] in kube.OPTIONAL_KINDS]
    assert "redis-password" not in of_kind(found, "Secret", "web-collector-binding")["data"]


def test_keda_counts_the_stream_itself_and_wakes_at_one_entry():
    trigger = of_kind(everything(), "ScaledObject")["spec"]["triggers"][0]

    assert trigger["metadata"]["stream"].endswith(":t_acme-co:7:q")
    assert trigger["metadata"]["streamLength"] == "16"
    # With a group KEDA counts pending entries; with an activation some versions never wake.
    assert not {"consumerGroup", "activationLagCount"} & trigger["metadata"].keys()


def test_alerts_ask_for_metrics_that_exist():
    from logweir.runtime import metrics

    rules = of_kind(everything(), "PrometheusRule")["spec"]["groups"][0]["rules"]
    known = metrics.text().decode()
    for rule in rules:
        for word in rule["expr"].replace("{", " ").replace("(", " ").split():
            if word.startswith("logweir_"):
                assert f"# TYPE {word} " in known


def test_senders_are_those_of_the_own_namespace_the_controllers_and_the_named_ones():
    policy = of_kind(everything(), "NetworkPolicy", "web-ingest")["spec"]
    [senders, monitoring] = policy["ingress"]

    own, *others = senders["from"]
    names = [one["namespaceSelector"]["matchLabels"].popitem()[1] for one in others]
    assert own == {"podSelector": {}}
    assert names == ["billing", "ingress", "logweir-system", "shop"]
    assert monitoring["ports"] == [{"protocol": "TCP", "port": 9090}]


def test_one_pod_has_no_budget_that_would_hold_up_a_drain():
    found = manifests.pipeline_objects(pipeline_view(spec={"ingest": {"replicas": 1}}))

    assert "PodDisruptionBudget" not in {one["kind"] for one in found}


def test_a_constraint_without_a_selector_is_meant_for_its_own_pods():
    pod = of_kind(everything(), "Deployment", "web-ingest")["spec"]["template"]["spec"]

    [one] = pod["topologySpreadConstraints"]
    assert one["labelSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "web"


def test_two_long_key_names_have_two_secrets():
    names = {manifests.key_secret_name(LONGEST, "k" * 39 + end) for end in "ab"}

    assert len(names) == 2


@pytest.mark.parametrize(
    ("given_as", "kept_as"),
    [
        ("1000m", "1"), ("0.5", "500m"), (2, "2"), ("1024Mi", "1Gi"), ("1.5Gi", "1536Mi"),
        ("1000M", "1G"), (0, "0"), ("0.5Ki", "512"), (1000000, "1M"), ("1500m", "1500m"),
    ],
)  # fmt: skip
def test_quantities_are_written_as_the_api_server_does(given_as, kept_as):
    assert canonical(given_as) == kept_as


@settings(max_examples=50)
@given(
    replicas=st.integers(1, 100),
    open_=st.booleans(),
    kinds=st.frozensets(st.sampled_from(sorted(EVERY_KIND))),
    driver=st.sampled_from(["Internal", "KEDA"]),
    labels=st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.just("x"), max_size=3),
)
def test_the_same_view_always_gives_the_same_and_selectors_never_change(
    replicas, open_, kinds, driver, labels
):
    spec = {
        "ingest": {"replicas": replicas, "pod": {"labels": labels}},
        "collector": {"autoscaling": {"driver": driver}},
    }
    view = pipeline_view(spec=spec, served_kinds=kinds, is_open=open_)
    found = manifests.pipeline_objects(view)

    assert found == manifests.pipeline_objects(view)
    for one in found:
        if one["kind"] == "Deployment":
            selected = one["spec"]["selector"]["matchLabels"]
            assert selected.keys() == {
                "app.kubernetes.io/name",
                "app.kubernetes.io/component",
                "app.kubernetes.io/instance",
            }
            assert selected.items() <= one["spec"]["template"]["metadata"]["labels"].items()


# ---- on a real API server ----------------------------------------------------------------------


def applied(plane, namespace, found):
    return [
        plane.api.apply(one, manager="logweir-operator", force=True)
        for one in found
        if one["kind"] not in kube.OPTIONAL_KINDS
    ]


def test_an_api_server_takes_all_objects_and_a_second_apply_changes_nothing(plane, namespace):
    enforced = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    plane.api.patch("Namespace", namespace, None, enforced)
    found = [
        *manifests.tenant_objects(tenant_view(spec=QUOTA, namespace=namespace)),
        *manifests.pipeline_objects(
            pipeline_view(spec=EVERYTHING, namespace=namespace, served_kinds=EVERY_KIND)
        ),
    ]

    first = applied(plane, namespace, found)
    again = applied(plane, namespace, found)

    def versions(answers):
        return [one["metadata"]["resourceVersion"] for one in answers]

    assert versions(first) == versions(again)
    changed = {**EVERYTHING, "ingest": {"replicas": 2, "resources": {"requests": {"cpu": 1}}}}
    applied(
        plane,
        namespace,
        manifests.pipeline_objects(pipeline_view(spec=changed, namespace=namespace)),
    )
    before = of_kind(first, "Deployment", "web-ingest")["metadata"]["generation"]
    now = plane.api.get("Deployment", "web-ingest", namespace)["metadata"]["generation"]
    assert now == before + 1
