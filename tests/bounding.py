"""Manifests at each bound of the CRDs' schemas and beyond it, made by walking the schemas.

    schema -> walk: path, part of the schema -> cases: keyword, what is within, what is beyond

A new bound is a new case. A new pattern needs a line in PATTERNS; a new list or map, an element in
WHOLE; a rule over several fields that an edge would break, a line in BESIDE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from logweir_operator import crdgen, model

Schema = dict[str, Any]
Object = dict[str, Any]

SCHEMAS: Final[dict[str, Schema]] = {
    one.kind: crdgen.definition(one)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for one in crdgen.RESOURCES
}

_POD: Final = {
    "labels": {"a": "b"},
    "annotations": {"a": "b"},
    "nodeSelector": {"a": "b"},
    "imagePullSecrets": [{"name": "a"}],
    "tolerations": [{}],
    "topologySpreadConstraints": [{}],
}
_RESOURCES: Final = {"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}
_CONDITIONS: Final = [
    {
        "type": "Ready",
        "status": "True",
        "reason": "Reconciled",
        "message": "",
        "lastTransitionTime": "2030-01-01T00:00:00Z",
    }
]
WHOLE: Final[dict[str, Object]] = {
    "LogTenant": {
        "spec": {
            "quotas": {"namespaceQuota": {"hard": {"pods": 1}}},
            "apiKeys": [{"name": "one", "scopes": ["query"]}],
            "credentials": {"rotation": {"intervalSeconds": 3000000, "overlapSeconds": 60}},
        },
        "status": {"apiKeys": [{"name": "one"}], "conditions": _CONDITIONS},
    },
    "LogPipeline": {
        "spec": {
            "tenantRef": {"name": "acme"},
            "labels": ["a"],
            "ingest": {
                "pod": _POD,
                "resources": _RESOURCES,
                "disruptionBudget": {"minAvailable": 1},
            },
            "collector": {
                "pod": _POD,
                "resources": _RESOURCES,
                "autoscaling": {"maxReplicas": 1000},
            },
            "exposure": {"host": "a.b", "annotations": {"a": "b"}, "parentRefs": [{"name": "g"}]},
            "networkPolicy": {"ingressNamespaces": ["a"]},
        },
        "status": {"conditions": _CONDITIONS},
    },
}
"""A good resource of each kind, with an element in each list and map."""

BESIDE: Final[dict[str, Object]] = {
    "spec.collector.replicas": {"spec.collector.autoscaling.driver": "None"},
    "spec.collector.autoscaling.driver='None'": {"spec.collector.replicas": 1},
    "spec.collector.autoscaling.fallbackReplicas": {"spec.collector.autoscaling.minReplicas": 0},
    "spec.ingest.disruptionBudget.maxUnavailable": {
        "spec.ingest.disruptionBudget.minAvailable": None
    },
}
"""What must be so with a field, or with a value of it, so that no rule is broken; None: nothing."""


class Pattern(NamedTuple):
    """Texts that match a pattern and texts that do not, and one of any length that does."""

    within: tuple[Any, ...]
    beyond: tuple[Any, ...]
    of_length: Callable[[int], str] = lambda length: "a" * length


PATTERNS: Final[dict[str, Pattern]] = {
    model._NAME: Pattern(("a", "a-b", "0"), ("A", "-a", "a-", "a.b", "a\n")),
    model._TENANT_ID: Pattern(("abc", "a-1"), ("Abc", "1bc", "ab-", "a_b", "abc\n")),
    model._HOST: Pattern(("a", "a.b-c.d", "*.a.b"), ("A.b", "a..b", "a.", "*", "http://a", "a/b")),
    model._QUANTITY: Pattern(
        ("1", "0.5", "500m", "1Gi", 0), ("", "-1", "1 Gi", "1GB", ".5"), lambda n: "1" * n
    ),
    "^(100|[0-9]{1,2})%\\Z": Pattern(
        ("0%", "100%", 0), ("101%", "50", "%", "-1%"), lambda n: "100%".rjust(n, "1")
    ),
    "^[A-Za-z0-9_./-]+\\Z": Pattern(("http.status", "k8s/pod", "a_B-1"), ("a b", "ä", "a\n")),
}


class Case(NamedTuple):
    """One bound of one field: `field` and `says` are the API server's words for it."""

    kind: str
    path: str
    keyword: str
    field: str
    says: str
    within: list[Object]
    beyond: list[Object]

    def __str__(self) -> str:
        return f"{self.kind} {self.path} {self.keyword}"


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Each field of a schema by its path; `[]` is an element of a list, `*` a value of a map."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from walk(inner, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}.*")


def cases() -> Iterator[Case]:
    """Yield a case for each keyword of each field of both kinds."""
    for kind, schema in SCHEMAS.items():
        for path, part in walk(schema):
            if not path.startswith(("spec", "status")):
                continue
            for keyword, (within, beyond) in _values(part).items():
                yield Case(
                    kind,
                    path,
                    keyword,
                    _field(kind, path),
                    _WORDS[keyword],
                    [made(kind, path, value) for value in within],
                    [made(kind, path, value) for value in beyond],
                )


def _field(kind: str, path: str) -> str:
    """A path as the API server says it of what is made of WHOLE."""
    here, found = WHOLE[kind], ""
    for step in _steps(path):
        if step == "[]":
            here, found = here[0], f"{found}[0]"
        else:
            name = next(iter(here)) if step == "*" else step
            here, found = here.get(name, {}), f"{found}.{name}"
    return found.removeprefix(".")


def made(kind: str, path: str, value: Any) -> Object:
    """Return a good resource of a kind, but for a value; None leaves the field out."""
    whole = {"apiVersion": model.API_VERSION, "kind": kind, "metadata": {"name": "one"}}
    whole |= json.loads(json.dumps(WHOLE[kind]))
    beside = {**BESIDE.get(path, {}), **BESIDE.get(f"{path}={value!r}", {})}
    for at, what in {**beside, path: value}.items():
        _put(whole, at, what)
    return whole


def _put(whole: Object, path: str, value: Any) -> None:
    *steps, last = _steps(path)
    here: Any = whole
    for step in steps:
        here = here.setdefault(step, {}) if isinstance(here, dict) and step != "*" else _first(here)
    if last == "[]":
        here[0] = value
    elif last == "*":
        here[next(iter(here))] = value
    elif value is None:
        here.pop(last, None)
    else:
        here[last] = value


def _steps(path: str) -> list[str]:
    return re.findall(r"[^.\[\]]+|\[\]", path)


def _first(here: Any) -> Any:
    return next(iter(here.values())) if isinstance(here, dict) else here[0]


def _values(part: Schema) -> dict[str, tuple[list[Any], list[Any]]]:
    """Return by keyword what is within and what is beyond a bound."""
    found = {"type": ([], [_of_another_type(part)])}
    if part.get("format") == "date-time":
        found = {"format": (["2030-01-01T00:00:00Z", "2030-01-01T00:00:00.5+02:00"], ["soon"])}
    for keyword in sorted(part.keys() - _NO_BOUNDS):
        within, beyond = _BOUNDS[keyword](part)
        if beyond:
            found[keyword] = within, beyond
    return found


def _of_another_type(part: Schema) -> Any:
    if "x-kubernetes-int-or-string" in part:
        return True
    return 7 if part["type"] == "string" else "x"


def _pattern(part: Schema) -> tuple[list[Any], list[Any]]:
    pattern = PATTERNS[re.sub(r"\$$", r"\\Z", part["pattern"])]
    return [*pattern.within], [*pattern.beyond]


def _text(part: Schema, length: int) -> str:
    pattern = part.get("pattern")
    return PATTERNS[re.sub(r"\$$", r"\\Z", pattern)].of_length(length) if pattern else "a" * length


def _elements(part: Schema, count: int) -> list[Any]:
    """Different elements of a list."""
    items = part["items"]
    if "enum" in items:
        return ["query", "admin", "ingest"][:count]
    if items["type"] == "string":
        return [f"a{number}" for number in range(count)]
    return [_element(part, number) for number in range(count)]


def _element(part: Schema, number: int) -> Object:
    examples = {"string": f"a{number}", "array": ["query"]}
    special = {"status": "True", "lastTransitionTime": "2030-01-01T00:00:00Z"}
    inner = part["items"].get("properties", {})
    needed = part["items"].get("required", [])
    return {name: special.get(name, examples[inner[name]["type"]]) for name in needed}


def _entries(part: Schema, count: int) -> Object:
    return {f"a{number}": "1" for number in range(count)}


def _minimum(part: Schema) -> tuple[list[Any], list[Any]]:
    least = part["minimum"]
    if part.get("exclusiveMinimum"):
        return [least + 0.001], [least]
    return [least], [least - 1]


def _unique(part: Schema) -> tuple[list[Any], list[Any]]:
    if part["x-kubernetes-list-type"] == "atomic":
        return [], []
    [one] = _elements(part, 1)
    return [[one]], [[one, one]]


_BOUNDS: Final[dict[str, Callable[[Schema], tuple[list[Any], list[Any]]]]] = {
    "minimum": _minimum,
    "maximum": lambda part: ([part["maximum"]], [part["maximum"] + 1]),
    "minLength": lambda part: (
        [_text(part, part["minLength"])],
        [_text(part, part["minLength"] - 1)],
    ),
    "maxLength": lambda part: (
        [_text(part, part["maxLength"])],
        [_text(part, part["maxLength"] + 1)],
    ),
    "minItems": lambda part: (
        [_elements(part, part["minItems"])],
        [_elements(part, part["minItems"] - 1)],
    ),
    "maxItems": lambda part: (
        [_elements(part, part["maxItems"])],
        [_elements(part, part["maxItems"] + 1)],
    ),
    "minProperties": lambda part: (
        [_entries(part, part["minProperties"])],
        [_entries(part, part["minProperties"] - 1)],
    ),
    "maxProperties": lambda part: (
        [_entries(part, part["maxProperties"])],
        [_entries(part, part["maxProperties"] + 1)],
    ),
    "pattern": _pattern,
    "enum": lambda part: (part["enum"], ["Other"]),
    "x-kubernetes-list-type": _unique,
}
_WORDS: Final = {
    "type": "must be of type",
    "format": "must be of type date-time",
    "minimum": "should be greater than",
    "maximum": "should be less than or equal to",
    "minLength": "should be at least",
    "maxLength": "Too long: may not be more than",
    "minItems": "should have at least",
    "maxItems": "Too many",
    "minProperties": "should have at least",
    "maxProperties": "Too many",
    "pattern": "should match",
    "enum": "Unsupported value",
    "x-kubernetes-list-type": "Duplicate value",
}
_NO_BOUNDS: Final = {
    "type",
    "format",
    "default",
    "description",
    "properties",
    "items",
    "required",
    "additionalProperties",
    "exclusiveMinimum",
    "anyOf",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
}
