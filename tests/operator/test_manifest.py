"""Manifests that are taken as they are meant, and refused in words that name the field."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from logweir_operator import manifest, model

API = "logweir.dev/v1alpha1"


def tenant(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": API, "kind": "LogTenant", "metadata": {"name": "acme"}, "spec": spec}


def pipeline(**spec: Any) -> dict[str, Any]:
    whole = {"tenantRef": {"name": "acme"}} | spec
    return {"apiVersion": API, "kind": "LogPipeline", "metadata": {"name": "web"}, "spec": whole}


def key(**fields: Any) -> dict[str, Any]:
    return tenant(apiKeys=[{"name": "one", "scopes": ["ingest"]} | fields])


def scaling(**fields: Any) -> dict[str, Any]:
    return pipeline(collector={"autoscaling": fields})


def read(*documents: object) -> list[model.Resource]:
    return manifest.read(yaml.safe_dump_all(documents), "f.yaml")


def refusal(*documents: object) -> str:
    with pytest.raises(manifest.ManifestError) as refused:
        read(*documents)
    return refused.value.message


def test_a_tenant_needs_no_more_than_a_name():
    [found] = read({"apiVersion": API, "kind": "LogTenant", "metadata": {"name": "acme"}})

    assert found.metadata.namespace == "default"
    assert found.spec == model.LogTenantSpec()


def test_defaults_are_those_of_the_design():
    [acme, web] = read(tenant(), pipeline())

    assert (acme.spec.retention.days, acme.spec.quotas.buffer_bytes) == (30, 1 << 30)
    assert (acme.spec.deletion_policy, acme.spec.quotas.records_per_second) == ("Retain", None)
    assert web.spec.slo.queryable_within_seconds == 2.0
    assert web.spec.collector.autoscaling.target_backlog_bytes == 16 << 20


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(tenant(tenantId="abc"), id="the shortest tenant id"),
        pytest.param(tenant(tenantId="a" + "-" * 30 + "1"), id="the longest tenant id"),
        pytest.param(tenant(deletionPolicy="Delete"), id="a policy"),
        pytest.param(tenant(retention={"days": 1}), id="a day"),
        pytest.param(tenant(retention={"days": 3650, "bytes": 1}), id="ten years"),
        pytest.param(tenant(quotas={"bufferBytes": 1 << 20}), id="the smallest buffer"),
        pytest.param(tenant(quotas={"maxPipelines": 0}), id="no pipelines"),
        pytest.param(tenant(quotas={"namespaceQuota": {"hard": {"pods": 3}}}), id="a quota"),
        pytest.param(tenant(quotas={"namespaceQuota": {"hard": {"cpu": "500m"}}}), id="a quantity"),
        pytest.param(key(scopes=["query", "admin"]), id="two scopes of one class"),
        pytest.param(key(pipeline="web", enabled=False, generation=7), id="a rolled key"),
        pytest.param(key(expiresAt="2027-01-01T00:00:00+02:00"), id="an expiry with a zone"),
        pytest.param(pipeline(labels=["http.status", "k8s/pod"]), id="label paths"),
        pytest.param(pipeline(slo={"queryableWithinSeconds": 0.5}), id="half a second"),
        pytest.param(scaling(minReplicas=0, idleCooldownSeconds=30), id="scale to zero"),
        pytest.param(scaling(minReplicas=2, fallbackReplicas=2, maxReplicas=2), id="all the same"),
        pytest.param(
            pipeline(collector={"replicas": 0, "autoscaling": {"driver": "None"}}), id="by hand"
        ),
        pytest.param(
            pipeline(ingest={"disruptionBudget": {"maxUnavailable": "25%"}}), id="a budget"
        ),
        pytest.param(
            pipeline(exposure={"type": "HTTPRoute", "host": "a.b", "parentRefs": [{"name": "g"}]}),
            id="a route",
        ),
    ],
)
def test_what_is_within_the_bounds_is_taken(document):
    [found] = read(document)

    assert found.metadata.name in ("acme", "web")


@pytest.mark.parametrize(
    ("document", "field", "reason"),
    [
        pytest.param(tenant(tenantId="ab"), "tenantId", "at least 3 chars", id="a short tenant id"),
        pytest.param(tenant(tenantId="a" * 33), "tenantId", "more than 32", id="a long tenant id"),
        pytest.param(tenant(tenantId="abc\n"), "tenantId", "should match", id="a line break"),
        pytest.param(tenant(tenantId="a_b"), "tenantId", "[a-z0-9]$'", id="a _"),
        pytest.param(tenant(tenantId="platform"), "tenantId", "is reserved", id="the platform"),
        pytest.param(
            tenant(deletionPolicy="Keep"),
            "deletionPolicy",
            'Unsupported value: "Keep": supported values: "Delete", "Retain"',
            id="an enum",
        ),
        pytest.param(
            tenant(displayName="x" * 129), "displayName", "may not be more than 128", id="a text"
        ),
        pytest.param(tenant(suspend="yes"), "suspend", 'of type boolean: "string"', id="a type"),
        pytest.param(
            tenant(retention={"days": 0}), "retention.days", "greater than or equal to 1", id="0"
        ),
        pytest.param(
            tenant(retention={"days": 3651}),
            "retention.days",
            "less than or equal to 3650",
            id="3651",
        ),
        pytest.param(
            tenant(retention={"days": 1.5}), "retention.days", "of type integer", id="1.5"
        ),
        pytest.param(tenant(retention=None), "retention", 'of type object: "null"', id="a null"),
        pytest.param(
            tenant(quotas={"bufferBytes": (1 << 20) - 1}),
            "quotas.bufferBytes",
            "1048576",
            id="small",
        ),
        pytest.param(
            tenant(quotas={"namespaceQuota": {"hard": {}}}),
            "hard",
            "at least 1 properties",
            id="{}",
        ),
        pytest.param(
            tenant(retention={"days": 1 << 99}), "retention.days", "equal to 3650", id="2^99"
        ),
        pytest.param(
            tenant(quotas={"namespaceQuota": {"hard": {"pods": 1, "requests.cpu": "x"}}}),
            "quotas.namespaceQuota.hard.requests.cpu",
            "should match",
            id="one of a map",
        ),
        pytest.param(key(name="A"), "apiKeys[0].name", "should match", id="a key's name"),
        pytest.param(
            key(scopes=["write"]),
            "apiKeys[0].scopes[0]",
            'Unsupported value: "write": supported values: "admin", "ingest", "query"',
            id="a scope",
        ),
        pytest.param(key(scopes=[]), "apiKeys[0].scopes", "at least 1 items", id="no scope"),
        pytest.param(
            key(scopes=["ingest", "query"]), "spec.apiKeys", "ingest alone", id="mixed scopes"
        ),
        pytest.param(
            tenant(apiKeys=[{"name": "a", "scopes": ["query"]}] * 2),
            "spec.apiKeys",
            "two keys have the same name",
            id="a name twice",
        ),
        pytest.param(
            tenant(apiKeys=[{"name": f"k{n}", "scopes": ["query"]} for n in range(33)]),
            "apiKeys",
            "at most 32 items",
            id="too many keys",
        ),
        pytest.param(
            key(expiresAt="2027-01-01T00:00:00"),
            "expiresAt",
            "of type date-time",
            id="no time zone",
        ),
        pytest.param(key(expiresAt="soon"), "expiresAt", "of type date-time", id="no date"),
        pytest.param(
            tenant(credentials={"rotation": {"intervalSeconds": 3600, "overlapSeconds": 3600}}),
            "credentials.rotation.overlapSeconds",
            "must be shorter than intervalSeconds",
            id="overlap",
        ),
        pytest.param(pipeline(tenantRef={}), "tenantRef.name", "Required value", id="no name"),
        pytest.param(pipeline(labels=["a b"]), "labels[0]", "should match", id="a label path"),
        pytest.param(
            pipeline(slo={"queryableWithinSeconds": 0}), "slo", "greater than 0", id="no time"
        ),
        pytest.param(
            scaling(minReplicas=11), "minReplicas", "must not be greater than maxReplicas", id="min"
        ),
        pytest.param(
            scaling(fallbackReplicas=0), "fallbackReplicas", "must lie between", id="fallback"
        ),
        pytest.param(
            scaling(minReplicas=0, idleCooldownSeconds=29), "idleCooldownSeconds", "30", id="zero"
        ),
        pytest.param(
            pipeline(collector={"replicas": 2}), "collector.replicas", "only then", id="replicas"
        ),
        pytest.param(
            scaling(driver="None"), "collector.replicas", "only then", id="driver without replicas"
        ),
        pytest.param(
            pipeline(ingest={"disruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}}),
            "ingest.disruptionBudget",
            "exactly one",
            id="both of a budget",
        ),
        pytest.param(
            pipeline(ingest={"disruptionBudget": {}}), "disruptionBudget", "exactly one", id="none"
        ),
        pytest.param(
            pipeline(collector={"pod": {"labels": {"app.kubernetes.io/name": "x"}}}),
            "pod.labels",
            "reserved",
            id="reserved labels",
        ),
        pytest.param(
            pipeline(exposure={"type": "Ingress"}), "exposure.host", "is required", id="no host"
        ),
        pytest.param(
            pipeline(exposure={"type": "HTTPRoute", "host": "a.b"}),
            "exposure.parentRefs",
            "is required",
            id="no parents",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_field_and_the_reason(document, field, reason):
    message = refusal(document)

    assert message.startswith(f'f.yaml: {document["kind"]} "{document["metadata"]["name"]}": spec')
    assert field in message
    assert reason in message


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        pytest.param({}, "metadata.name: Required value", id="no name"),
        pytest.param({"name": "Acme"}, "should match", id="a capital"),
        pytest.param({"name": "acme\n"}, "should match", id="a line break"),
        pytest.param({"name": "a" * 41}, "may not be more than 40", id="too long for its children"),
        pytest.param({"name": 7}, 'of type string: "integer"', id="a number"),
        pytest.param({"name": "a", "namespace": "x.y"}, "metadata.namespace", id="a namespace"),
    ],
)
def test_a_bad_name_is_refused(metadata, reason):
    assert reason in refusal(tenant() | {"metadata": metadata})


def test_nothing_is_said_of_what_the_model_leaves_to_kubernetes():
    free = {"conditions": [1, 1], "labels": ["a", "a"], "scopes": [{}, {}]}

    assert read(pipeline(ingest={"pod": {"affinity": free, "tolerations": [free]}}))


def test_other_metadata_is_read_over():
    [found] = read(tenant() | {"metadata": {"name": "acme", "uid": "1", "managedFields": []}})

    assert found.metadata.name == "acme"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param(
            tenant(retension={"days": 3}),
            "spec.retension: unknown field; did you mean retention?",
            id="a slip of the pen",
        ),
        pytest.param(
            tenant(days=3),
            "spec.days: unknown field; did you mean spec.retention.days?",
            id="in the wrong place",
        ),
        pytest.param(
            tenant() | {"speck": {}}, "speck: unknown field; did you mean spec?", id="at the top"
        ),
        pytest.param(
            key(scope=["ingest"]),
            "spec.apiKeys[0].scope: unknown field; did you mean scopes?",
            id="in a list",
        ),
        pytest.param(tenant(zzz=1), "spec.zzz: unknown field", id="like nothing"),
    ],
)
def test_an_unknown_field_is_refused_with_the_one_that_may_be_meant(document, message):
    assert refusal(document) == f'f.yaml: LogTenant "acme": {message}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("a: b: c", "not YAML: mapping values are not allowed", id="no YAML"),
        pytest.param("a: *nowhere", "not YAML: found undefined alias", id="an unknown alias"),
        pytest.param("a: 1\nb: 2\na: 3", "the key 'a' stands here twice", id="a key twice"),
        pytest.param("a: 2027-13-01", "not YAML: month must be in 1..12", id="a date that is none"),
        pytest.param("[" * 900 + "]" * 900, "nested too deeply", id="too deep"),
        pytest.param("!!python/object/new:os.system [x]", "not YAML", id="an object of Python"),
        pytest.param("\0", "not YAML", id="a NUL"),
        pytest.param("- a", "document 1: it is not a mapping", id="a list"),
        pytest.param("hello", "document 1: it is not a mapping", id="a text"),
        pytest.param("apiVersion: v1\nkind: Pod", "v1 Pod is not known", id="another kind"),
        pytest.param("kind: LogTenant", "None LogTenant is not known; known are", id="no version"),
        pytest.param("#" + "x" * manifest.MAX_BYTES, "larger than 1048576 bytes", id="huge"),
        pytest.param("a: 1\n---\n" * 1001, "more than 1000 documents", id="too many"),
    ],
)
def test_what_is_no_manifest_is_refused_with_the_reason(text, reason):
    with pytest.raises(manifest.ManifestError) as refused:
        manifest.read(text, "f.yaml")

    assert refused.value.message.startswith("f.yaml: ")
    assert reason in refused.value.message


def test_a_small_text_that_means_a_huge_value_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]

    with pytest.raises(manifest.ManifestError, match="more than 100000 values"):
        manifest.read("\n".join(lines), "f.yaml")


def test_a_value_that_holds_itself_is_refused():
    with pytest.raises(manifest.ManifestError, match="nested too deeply"):
        manifest.read("a: &a [*a]", "f.yaml")


def test_all_that_is_wrong_in_a_file_is_named_at_once():
    message = refusal(tenant(), tenant(suspend=1), pipeline(labels=3))

    assert [line.partition(": spec.")[2].partition(":")[0] for line in message.splitlines()] == [
        "suspend",
        "labels",
    ]


def test_all_rules_that_a_resource_breaks_are_named_at_once():
    message = refusal(scaling(driver="None", minReplicas=11))

    assert "minReplicas" in message
    assert "collector.replicas" in message


def test_several_documents_keep_their_order_and_empty_ones_are_passed_over():
    found = manifest.read(
        "---\n" + yaml.safe_dump(tenant()) + "---\n---\n" + yaml.safe_dump(pipeline()), "f"
    )

    assert [one.kind for one in found] == ["LogTenant", "LogPipeline"]


def test_a_list_as_kubectl_prints_it_can_be_applied_again():
    listed = [one | {"status": {"conditions": []}} for one in (tenant(), pipeline())]
    found = read({"apiVersion": "v1", "kind": "List", "items": listed})

    assert [one.kind for one in found] == ["LogTenant", "LogPipeline"]


def test_anchors_and_merges_of_yaml_are_understood():
    text = yaml.safe_dump(tenant()) + "  apiKeys:\n  - &k {name: a, scopes: [query]}\n"
    [found] = manifest.read(text.replace("spec: {}\n", "spec:\n") + "  - {<<: *k, name: b}\n", "f")

    assert [(one.name, one.scopes) for one in found.spec.api_keys] == [
        ("a", ["query"]),
        ("b", ["query"]),
    ]


def test_a_file_that_is_no_text_is_refused():
    with pytest.raises(manifest.ManifestError, match=r"f\.yaml: not UTF-8: .* at byte 1"):
        manifest.decode(b"a\xff", "f.yaml")


def test_a_byte_order_mark_is_read_over():
    assert manifest.decode(b"\xef\xbb\xbfa: 1", "f.yaml") == "a: 1"


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        found = manifest.read(text, "f.yaml")
    except manifest.ManifestError:
        return

    assert found == []


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=10,
)


@given(value=plain, name=st.sampled_from(model.LogTenantSpec.__struct_encode_fields__))
def test_any_value_of_a_field_is_taken_or_refused_with_its_name(value, name):
    try:
        manifest.resource(tenant(**{name: value}))
        said = ""
    except manifest.ManifestError as error:
        said = error.message

    assert not said or f"spec.{name}" in said
