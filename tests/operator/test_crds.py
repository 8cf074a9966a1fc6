"""The CRDs on a real API server: each bound, rule and default, and what kubectl makes of them.

What the server refuses `up` refuses in the same words.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from bounding import SCHEMAS, Case, Object, cases, made, walk
from controlplane.api import ApiError, until

from logweir_operator import crdgen, manifest, model, rules

if TYPE_CHECKING:
    from controlplane.plane import Plane

SPEC_CASES = [one for one in cases() if one.path.startswith("spec")]
STATUS_CASES = [one for one in cases() if one.path.startswith("status")]
DEFAULTS = [
    (kind, path, schema["default"])
    for kind in SCHEMAS
    for path, schema in walk(SCHEMAS[kind])
    if "default" in schema
]
REQUIRED = [
    (kind, f"{path}.{name}")
    for kind in SCHEMAS
    for path, schema in walk(SCHEMAS[kind])
    for name in schema.get("required", ())
    if path.startswith("spec")
]


class Place:
    """A namespace with a resource of each kind, which is called `held`."""

    def __init__(self, plane: Plane) -> None:
        self.plane, self.api = plane, plane.api
        self.namespace = plane.make_namespace()
        for kind in SCHEMAS:
            self.create(made(kind, "spec.suspend", False), "held")

    def create(self, one: Object, name: str = "", *, dry_run: bool = False) -> Object:
        """Make a new resource without its status."""
        new = self._named(one, name or one["metadata"]["name"])
        return self.api.create(new, dry_run=dry_run)

    def try_spec(self, one: Object) -> Object:
        """Return what the server would make of a new resource."""
        return self.create(one, dry_run=True)

    def try_change(self, one: Object) -> Object:
        """Return what the server would make of the held resource with this spec."""
        return self._put("", self._named(one, "held"))

    def try_status(self, one: Object) -> Object:
        """Return what the server would make of the held resource with this status."""
        return self._put("status", self._named(one, "held") | {"status": one["status"]})

    def _named(self, one: Object, name: str) -> Object:
        named = {"metadata": {"name": name, "namespace": self.namespace}}
        return {part: value for part, value in one.items() if part != "status"} | named

    def _put(self, subresource: str, one: Object) -> Object:
        path = self.api.kind(one["kind"]).path(self.namespace, "held", subresource)
        now = self.api.request("GET", self.api.kind(one["kind"]).path(self.namespace, "held"))
        one["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"]
        return self.api.request("PUT", path, one, {"dryRun": "All"})


@pytest.fixture(scope="module")
def place(plane: Plane) -> Place:
    return Place(plane)


def said_by_up(one: Object) -> str:
    with pytest.raises(manifest.ManifestError) as refused:
        manifest.resource(one)
    return refused.value.message


def causes(refused: pytest.ExceptionInfo[ApiError]) -> list[str]:
    assert refused.value.code == 422, refused.value
    return [f"{field}: {message}" for field, message in refused.value.causes]


# ---- bounds, by walking the schemas --------------------------------------------------------------


@pytest.mark.parametrize("case", SPEC_CASES, ids=str)
def test_a_field_is_taken_at_its_bound_and_refused_beyond_it_in_the_same_words(place: Place, case):
    for one in case.within:
        place.try_spec(one)
        manifest.resource(one)
    for one in case.beyond:
        with pytest.raises(ApiError) as refused:
            place.try_spec(one)
        named = [cause for cause in causes(refused) if cause.startswith(case.field)]
        assert any(case.says in cause for cause in named), refused.value
        assert {*said_by_up(one).split("; ")} <= {*named}


@pytest.mark.parametrize("case", STATUS_CASES, ids=str)
def test_a_field_of_the_status_is_bounded_as_well(place: Place, case: Case):
    for one in case.within:
        place.try_status(one)
    for one in case.beyond:
        with pytest.raises(ApiError) as refused:
            place.try_status(one)
        assert any(cause.startswith(case.field) and case.says in cause for cause in causes(refused))


@pytest.mark.parametrize(("kind", "path"), REQUIRED)
def test_a_field_that_must_be_there_is_missed(place: Place, kind, path):
    without = made(kind, path, None)
    with pytest.raises(ApiError) as refused:
        place.try_spec(without)

    assert said_by_up(without) == f"{path.replace('[]', '[0]')}: Required value"
    assert said_by_up(without) in causes(refused)


@pytest.mark.parametrize(("kind", "path", "default"), DEFAULTS)
def test_a_field_that_is_left_out_has_its_default_on_the_server_and_in_the_model(
    place: Place, kind, path, default
):
    without = made(kind, path, None)
    answer = place.try_spec(without)

    found: Any = answer
    for step in path.replace("[]", ".0").split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    assert found == default
    assert manifest.resource(answer).spec == manifest.resource(without).spec


def test_what_only_has_a_name_has_all_defaults(place: Place):
    answer = place.try_spec(
        {"apiVersion": model.API_VERSION, "kind": "LogTenant", "metadata": {"name": "bare"}}
    )

    assert answer["spec"] == crdgen.default_of(SCHEMAS["LogTenant"]["properties"]["spec"])
    assert manifest.resource(answer).spec == model.LogTenantSpec()


@pytest.mark.parametrize("kind", SCHEMAS)
def test_what_the_operator_has_not_seen_is_of_no_generation_so_nobody_takes_it_for_ready(
    place: Place, kind
):
    assert place.api.get(kind, "held", place.namespace)["status"] == {"observedGeneration": -1}


# ---- rules over several fields -------------------------------------------------------------------

KEYS: Any = [{"name": "a", "scopes": ["query", "admin"]}, {"name": "b", "scopes": ["ingest"]}]
ROTATION = "spec.credentials.rotation"
SCALING = "spec.collector.autoscaling"
BUDGET = "spec.ingest.disruptionBudget"
RULE_CASES: list[tuple[str, str, str, list[tuple[str, Any]], list[tuple[str, Any]]]] = [
    (
        "LogTenant",
        "spec.apiKeys",
        "a key has the scope ingest alone, or scopes of query and admin",
        [("spec.apiKeys", KEYS)],
        [("spec.apiKeys", [{"name": "a", "scopes": ["ingest", "query"]}])],
    ),
    (
        "LogTenant",
        "spec.apiKeys",
        "two keys have the same name",
        [("spec.apiKeys", KEYS)],
        [("spec.apiKeys", [KEYS[0], KEYS[0]])],
    ),
    (
        "LogTenant",
        "spec.tenantId",
        "platform is reserved",
        [("spec.tenantId", "platforms")],
        [("spec.tenantId", "platform")],
    ),
    (
        "LogTenant",
        f"{ROTATION}.overlapSeconds",
        "must be shorter than intervalSeconds",
        [(ROTATION, {"overlapSeconds": 3599, "intervalSeconds": 3600})],
        [(ROTATION, {"overlapSeconds": 3600, "intervalSeconds": 3600})],
    ),
    (
        "LogPipeline",
        f"{SCALING}.minReplicas",
        "must not be greater than maxReplicas",
        [(SCALING, {"minReplicas": 10})],
        [(SCALING, {"minReplicas": 11})],
    ),
    (
        "LogPipeline",
        f"{SCALING}.fallbackReplicas",
        "must lie between minReplicas and maxReplicas",
        [(SCALING, {"fallbackReplicas": 1}), (SCALING, {"fallbackReplicas": 10})],
        [(SCALING, {"fallbackReplicas": 0}), (SCALING, {"fallbackReplicas": 11})],
    ),
    (
        "LogPipeline",
        f"{SCALING}.idleCooldownSeconds",
        "scaling to zero needs 30 or more",
        [
            (SCALING, {"minReplicas": 0, "idleCooldownSeconds": 30}),
            (SCALING, {"idleCooldownSeconds": 0}),
        ],
        [(SCALING, {"minReplicas": 0, "idleCooldownSeconds": 29})],
    ),
    (
        "LogPipeline",
        "spec.collector.replicas",
        "is set with autoscaling.driver None, and only then",
        [("spec.collector", {"replicas": 0, "autoscaling": {"driver": "None"}})],
        [
            ("spec.collector", {"replicas": 1}),
            ("spec.collector", {"autoscaling": {"driver": "None"}}),
        ],
    ),
    (
        "LogPipeline",
        BUDGET,
        "set exactly one of minAvailable and maxUnavailable",
        [(BUDGET, {"minAvailable": 0}), (BUDGET, {"maxUnavailable": "50%"})],
        [(BUDGET, {}), (BUDGET, {"minAvailable": 1, "maxUnavailable": 1})],
    ),
    *(
        (
            "LogPipeline",
            f"spec.{part}.pod.labels",
            "the prefixes logweir.dev/ and app.kubernetes.io/ are reserved",
            [(f"spec.{part}.pod.labels", {"logweir.de/v": "1", "app": "web"})],
            [
                (f"spec.{part}.pod.labels", {"a": "b", "logweir.dev/tenant": "x"}),
                (f"spec.{part}.pod.labels", {"app.kubernetes.io/name": "x"}),
            ],
        )
        for part in ("ingest", "collector")
    ),
    (
        "LogPipeline",
        "spec.exposure.host",
        "is required with type Ingress or HTTPRoute",
        [("spec.exposure", {"type": "None"}), ("spec.exposure", {"type": "Ingress", "host": "a"})],
        [
            ("spec.exposure", {"type": "Ingress"}),
            ("spec.exposure", {"type": "HTTPRoute", "parentRefs": [{"name": "g"}]}),
        ],
    ),
    (
        "LogPipeline",
        "spec.exposure.parentRefs",
        "is required with type HTTPRoute",
        [
            ("spec.exposure", {"type": "Ingress", "host": "a"}),
            ("spec.exposure", {"type": "HTTPRoute", "host": "a", "parentRefs": [{"name": "g"}]}),
        ],
        [("spec.exposure", {"type": "HTTPRoute", "host": "a"})],
    ),
]
"""Kind, field and message of a rule; values that it takes; values that it refuses."""


@pytest.mark.parametrize(
    ("kind", "field", "message", "within", "beyond"),
    [pytest.param(*one, id=f"{one[1]}: {one[2]}") for one in RULE_CASES],
)
def test_a_rule_takes_and_refuses_in_the_same_words(
    place: Place, kind, field, message, within, beyond
):
    for path, value in within:
        place.try_spec(made(kind, path, value))
        manifest.resource(made(kind, path, value))
    for path, value in beyond:
        with pytest.raises(ApiError) as refused:
            place.try_spec(made(kind, path, value))
        words = f"{field}: Invalid value: {message}"
        assert words in causes(refused)
        assert words in said_by_up(made(kind, path, value)).split("; ")


def test_each_rule_has_its_cases():
    known = [(kind, one.field, one.message) for kind in rules.RULES for one in rules.RULES[kind]]

    assert [one[:3] for one in RULE_CASES] == known


@pytest.mark.parametrize(
    ("kind", "name", "good"),
    [
        *((kind, "a" * 41, "a" * 40) for kind in SCHEMAS),
        *((kind, "a.b", "a-b") for kind in SCHEMAS),
        ("LogPipeline", "1a", "a1"),
    ],
)
def test_a_name_of_which_no_child_can_be_named_is_refused(place: Place, kind, name, good):
    one = made(kind, "spec.suspend", False)
    with pytest.raises(ApiError) as refused:
        place.create(one, name, dry_run=True)

    assert crdgen.NAME_RULES[kind]["message"] in str(refused.value)
    place.create(one, good, dry_run=True)


@pytest.mark.parametrize("name", ["a" * 41, "a.b"])
def test_up_refuses_such_a_name_too(name):
    one = made("LogPipeline", "spec.suspend", False) | {"metadata": {"name": name}}

    assert said_by_up(one).startswith("metadata.name: ")


# ---- what may not change -------------------------------------------------------------------------

CHANGES: list[tuple[str, str, str, Any]] = [
    ("LogTenant", "spec.tenantId", "spec.tenantId", "given"),
    ("LogTenant", "spec.postgres.profile", "spec.postgres.profile", "other"),
    ("LogTenant", "spec.redis.profile", "spec.redis.profile", "other"),
    ("LogPipeline", "spec.tenantRef", "spec.tenantRef.name", "other"),
]
"""Kind, immutable field, what is changed in it, and the new value."""


@pytest.mark.parametrize(("kind", "field", "path", "value"), CHANGES)
def test_what_names_places_of_data_cannot_be_changed(place: Place, kind, field, path, value):
    held, changed = made(kind, "spec.suspend", True), made(kind, path, value)
    place.try_change(held)
    with pytest.raises(ApiError) as refused:
        place.try_change(changed)

    assert causes(refused) == [f"{field}: Forbidden: {rules.IMMUTABLE}"]
    [said] = rules.changed_for_good(manifest.resource(held), manifest.resource(changed))
    assert str(said) == f"{field}: {rules.IMMUTABLE}"


def test_a_tenant_id_that_was_given_can_be_neither_changed_nor_taken_away(place: Place):
    place.create(made("LogTenant", "spec.tenantId", "given"), "given")
    path = place.api.kind("LogTenant").path(place.namespace, "given")
    for tenant_id in ("other", None):
        with pytest.raises(ApiError) as refused:
            place.api.patch(
                "LogTenant", "given", place.namespace, {"spec": {"tenantId": tenant_id}}
            )
        assert causes(refused) == [f"spec.tenantId: Forbidden: {rules.IMMUTABLE}"]
    assert place.api.request("GET", path)["spec"]["tenantId"] == "given"


@pytest.mark.parametrize("kind", SCHEMAS)
def test_each_immutable_field_has_its_case(kind):
    assert [one[1] for one in CHANGES if one[0] == kind] == rules.immutable_fields(kind)


# ---- dry runs ------------------------------------------------------------------------------------


def test_a_dry_run_takes_and_refuses_and_stores_nothing(place: Place):
    text = yaml.safe_dump(made("LogTenant", "spec.retention.days", 7) | {"status": {}})
    apply = ("apply", "--server-side", "--dry-run=server", "--namespace", place.namespace)

    assert "serverside-applied (server dry run)" in place.plane.kubectl(
        *apply, "--filename=-", stdin=text
    )
    with pytest.raises(subprocess.CalledProcessError) as refused:
        place.plane.kubectl(*apply, "--filename=-", stdin=text.replace("days: 7", "days: 0"))
    assert "spec.retention.days in body should be greater than or equal to 1" in (
        refused.value.stderr
    )
    assert place.api.find("LogTenant", "one", place.namespace) is None


def test_an_unknown_field_is_refused_by_kubectl_and_by_up(place: Place):
    one = made("LogTenant", "spec.retension", {"days": 7})
    with pytest.raises(subprocess.CalledProcessError) as refused:
        place.plane.kubectl(
            "create", "--namespace", place.namespace, "--filename=-", stdin=yaml.safe_dump(one)
        )

    assert 'unknown field "spec.retension"' in refused.value.stderr
    assert said_by_up(one) == "spec.retension: unknown field; did you mean retention?"


# ---- kubectl -------------------------------------------------------------------------------------


def published(plane: Plane) -> dict[str, Any]:
    """The schemas by kind that the API server tells kubectl, a moment after it has the CRDs."""
    path = f"apis/{model.API_VERSION}"

    def look() -> dict[str, Any]:
        if path not in plane.api.request("GET", "/openapi/v3")["paths"]:
            return {}
        found = plane.api.request("GET", f"/openapi/v3/{path}")["components"]["schemas"]
        kinds = {kind: found.get(f"dev.logweir.{model.VERSION}.{kind}") for kind in SCHEMAS}
        return kinds if all(kinds.values()) else {}

    return until(look)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_each_field_is_described_by_sentences(kind):
    for path, schema in walk(SCHEMAS[kind]):
        if path == "metadata" or path.endswith(("[]", ".*")):
            continue  # the API server's, or described by the list or map that they are of
        assert schema.get("description", "").endswith("."), path


@pytest.mark.parametrize("kind", SCHEMAS)
def test_kubectl_explains_each_field(plane: Plane, kind):
    for path, inner in walk(published(plane)[kind]):  # what kubectl explain reads
        assert inner.get("description") or path.endswith(("[]", ".*")), path


def test_kubectl_explain_says_what_a_field_does_and_its_values(plane: Plane):
    published(plane)
    said = " ".join(plane.kubectl("explain", "lt.spec.deletionPolicy").split())

    assert "FIELD: deletionPolicy <string>" in said
    assert "ENUM: Delete Retain" in said
    assert "What becomes of the logs when the LogTenant is deleted." in said
    assert "<no description>" not in plane.kubectl("explain", "lp.spec.collector.autoscaling")


def test_kubectl_scale_sets_the_collectors_that_a_person_chooses_and_no_others(place: Place):
    place.create(made("LogPipeline", "spec.collector.autoscaling.driver", "None"), "manual")
    scale = ("scale", "lp", "--namespace", place.namespace, "--replicas=3")

    assert "logpipeline.logweir.dev/manual scaled" in place.plane.kubectl(*scale, "manual")
    found = place.api.get("LogPipeline", "manual", place.namespace)
    assert found["spec"]["collector"]["replicas"] == 3
    with pytest.raises(subprocess.CalledProcessError) as refused:
        place.plane.kubectl(*scale, "held")
    assert (
        "spec.collector.replicas: Invalid value: is set with autoscaling.driver None, and only then"
    ) in refused.value.stderr


def ready(**more: Any) -> Object:
    return {
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Reconciled",
                "message": "Everything is as the resource says.",
                "lastTransitionTime": "2030-01-01T00:00:00Z",
                "observedGeneration": 1,
            },
            *more.pop("conditions", ()),
        ],
        **more,
    }


def fresh(status: str) -> Object:
    return {
        "type": "Fresh",
        "status": status,
        "reason": "Behind",
        "message": "",
        "lastTransitionTime": "2030-01-01T00:00:00Z",
    }


def columns(table: str) -> list[dict[str, str]]:
    """The rows of each table that kubectl prints, by the names of their columns."""
    rows = []
    for part in table.strip().split("\n\n"):
        head, *lines = part.splitlines()
        places = [(found.start(), found.group()) for found in re.finditer(r"\S+", head)]
        ends = [start for start, _ in places[1:]] + [None]
        rows += [
            {name: line[start:end].strip() for (start, name), end in zip(places, ends, strict=True)}
            for line in lines
        ]
    return rows


def test_kubectl_get_shows_what_one_looks_for_first(plane: Plane):
    place = Place(plane)
    collector = {"replicas": 2, "readyReplicas": 1, "desiredReplicas": 3, "selector": "a=b"}
    lag = {"entries": 7, "backlogBytes": 1234, "oldestSeconds": 9, "drain": "in 40 s"}
    for kind, status in (
        ("LogTenant", ready(tenantId="abc", pipelines=4)),
        (
            "LogPipeline",
            ready(
                conditions=[fresh("False")],
                url="http://held.svc/t/abc/held",
                ingest={"replicas": 2, "readyReplicas": 2, "ready": "2/2"},
                collector=collector,
                lag=lag,
            ),
        ),
    ):
        plane.api.patch(kind, "held", place.namespace, {"status": status}, "status")

    get = ("get", "lt,lp", "--namespace", place.namespace)
    [tenant, pipeline] = columns(plane.kubectl(*get, "--output=wide"))
    age = tenant.pop("AGE")
    assert re.fullmatch(r"\d+s", age)
    assert tenant == {
        "NAME": "logtenant.logweir.dev/held",
        "READY": "True",
        "TENANT-ID": "abc",
        "PIPELINES": "4",
        "POLICY": "Retain",
        "REASON": "Reconciled",
        "MESSAGE": "Everything is as the resource says.",
    }
    assert re.fullmatch(r"\d+s", pipeline.pop("AGE"))
    assert pipeline == {
        "NAME": "logpipeline.logweir.dev/held",
        "READY": "True",
        "TENANT": "acme",
        "INGEST": "2/2",
        "COLLECTORS": "1",
        "DESIRED": "3",
        "LAG-BYTES": "1234",
        "OLDEST": "9",
        "FRESH": "False",
        "SCALER": "Internal",
        "DRAIN": "in 40 s",
        "URL": "http://held.svc/t/abc/held",
        "REASON": "Reconciled",
    }
    [tenant, pipeline] = columns(plane.kubectl(*get))
    assert tenant.keys() == {"NAME", "READY", "TENANT-ID", "PIPELINES", "AGE"}
    assert "URL" not in pipeline
    assert "LAG-BYTES" in pipeline
