"""Writes the CustomResourceDefinitions, of the model alone: `make gen`.

    model.py, model_status.py -> schema + rules as CEL -> crds/*.yaml, templates of the chart

What a Python type bounds, the schema bounds; a field is described by the text below it, else by
its type's docstring; a rule over several fields stands at the object that it names. The default of
an object has those of all that is in it: the API server judges a default before it looks into it.
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Mapping
from inspect import getsource
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import msgspec
import yaml
from msgspec import inspect

from logweir_operator import model, model_status, rules
from logweir_operator.model import GROUP, VERSION
from logweir_operator.rules import RULES, Rule

Schema = dict[str, Any]

HEAD: Final = "# Made of operator/logweir_operator/model.py by `make gen`; never edited by hand.\n"

INT_OR_STRING: Final[Schema] = {
    "x-kubernetes-int-or-string": True,
    "anyOf": [{"type": "integer"}, {"type": "string"}],
}
NAME_RULES: Final = {
    "LogTenant": {
        "rule": "self.metadata.name.size() <= 40 && !self.metadata.name.contains('.')",
        "message": "metadata.name: at most 40 characters of a-z, 0-9 and '-', as names of children"
        " begin with it",
    },
    # That of a Service begins with a letter.
    "LogPipeline": {
        "rule": "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z][^.]*$')",
        "message": "metadata.name: at most 40 characters of a-z, 0-9 and '-', a letter first, as"
        " names of children begin with it",
    },
}
NOT_SEEN: Final = {"observedGeneration": -1}
"""Status of what the operator has not looked at: with none at all, kstatus (Flux, Helm) would take
it for ready."""

STRING_BYTES: Final = 1024
"""Most bytes of a text that the model does not bound: rules must have a cost."""

_CONDITION: Final = '.status.conditions[?(@.type=="{}")].{}'


class Resource(msgspec.Struct, frozen=True):
    """One kind: its names, columns of `kubectl get`, and what else the server may do with it."""

    kind: str
    plural: str
    short_names: tuple[str, ...]
    spec: type[Any]
    status: type[Any]
    columns: tuple[Mapping[str, Any], ...]
    subresources: Mapping[str, Any]
    selectable: tuple[str, ...] = ()


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> Mapping[str, Any]:
    found: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    return found | ({"priority": priority} if priority else {})


RESOURCES: Final = (
    Resource(
        "LogTenant",
        "logtenants",
        ("lt", "ltenant"),
        model.LogTenantSpec,
        model_status.LogTenantStatus,
        (
            _column("Ready", _CONDITION.format("Ready", "status")),
            _column("Tenant-Id", ".status.tenantId"),
            _column("Pipelines", ".status.pipelines", "integer"),
            _column("Policy", ".spec.deletionPolicy", priority=1),
            _column("Reason", _CONDITION.format("Ready", "reason"), priority=1),
            _column("Message", _CONDITION.format("Ready", "message"), priority=1),
            _column("Age", ".metadata.creationTimestamp", "date"),
        ),
        {"status": {}},
    ),
    Resource(
        "LogPipeline",
        "logpipelines",
        ("lp", "lpipe"),
        model.LogPipelineSpec,
        model_status.LogPipelineStatus,
        (
            _column("Ready", _CONDITION.format("Ready", "status")),
            _column("Tenant", ".spec.tenantRef.name"),
            _column("Ingest", ".status.ingest.ready"),
            _column("Collectors", ".status.collector.readyReplicas", "integer"),
            _column("Desired", ".status.collector.desiredReplicas", "integer"),
            _column("Lag-Bytes", ".status.lag.backlogBytes", "integer"),
            _column("Oldest", ".status.lag.oldestSeconds", "integer"),
            _column("Fresh", _CONDITION.format("Fresh", "status")),
            _column("Scaler", ".spec.collector.autoscaling.driver", priority=1),
            _column("Drain", ".status.lag.drain", priority=1),
            _column("URL", ".status.url", priority=1),
            _column("Reason", _CONDITION.format("Ready", "reason"), priority=1),
            _column("Age", ".metadata.creationTimestamp", "date"),
        ),
        {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.collector.replicas",
                "statusReplicasPath": ".status.collector.replicas",
                "labelSelectorPath": ".status.collector.selector",
            },
        },
        (".spec.tenantRef.name",),
    ),
)


def definition(resource: Resource) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind."""
    spec = _struct(resource.spec)
    for rule in RULES[resource.kind]:
        _at(spec, rule.at).setdefault("x-kubernetes-validations", []).append(_cel(rule))
    spec.setdefault("x-kubernetes-validations", []).extend(_immutable(resource.kind))
    required = ["spec"] if spec.get("required") else []
    schema: Schema = {
        "type": "object",
        "description": _text(getattr(model, resource.kind).__doc__),
        "x-kubernetes-validations": [dict(NAME_RULES[resource.kind])],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"{resource.kind}."},
            "metadata": {"type": "object"},  # the API server describes it
            "spec": spec | ({} if required else {"default": default_of(spec)}),
            "status": _struct(resource.status, has_defaults=False) | {"default": dict(NOT_SEEN)},
        },
    }
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": dict(resource.subresources),
        "additionalPrinterColumns": [dict(one) for one in resource.columns],
        "schema": {"openAPIV3Schema": schema | ({"required": required} if required else {})},
    }
    if resource.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in resource.selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": list(resource.short_names),
                "categories": ["logs"],
            },
            "versions": [version],
        },
    }


# ---- rules -----------------------------------------------------------------------------------


def _cel(rule: Rule) -> dict[str, str]:
    inside = rule.field.removeprefix(rule.at)
    return {"rule": rule.cel, "message": rule.message, "fieldPath": inside}


def _immutable(kind: str) -> list[dict[str, str]]:
    found = []
    for field in rules.immutable_fields(kind):
        path = field.removeprefix("spec")
        same = f"self{path} == oldSelf{path}"
        if field == "spec.tenantId":
            same = f"has(self{path}) == has(oldSelf{path}) && (!has(self{path}) || {same})"
        words = {"message": rules.IMMUTABLE, "reason": "FieldValueForbidden", "fieldPath": path}
        found.append({"rule": same, **words})
    return found


def _at(spec: Schema, path: str) -> Schema:
    for name in path.split(".")[1:]:
        spec = spec["properties"][name]
    return spec


# ---- schema ----------------------------------------------------------------------------------


def default_of(schema: Schema) -> Any:  # noqa: ANN401 - a JSON value
    """Return the default of an object with those of all that is in it."""
    return {
        name: one["default"]
        for name, one in schema.get("properties", {}).items()
        if "default" in one
    }


def _struct(kind: type[Any], *, has_defaults: bool = True) -> Schema:
    found = inspect.type_info(kind)
    assert isinstance(found, inspect.StructType)  # noqa: S101 - the model has nothing else
    properties: dict[str, Schema] = {}
    required: list[str] = []
    texts = _texts(kind)
    for field in found.fields:
        schema = _type(field.type, has_defaults=has_defaults)
        name = field.encode_name
        if field.name in texts:
            schema["description"] = texts[field.name]
        if schema.get("type") == "array":
            schema |= _list_kind(name)
        if field.required:
            required.append(name)
        elif has_defaults:
            schema |= _default(field, schema)
        properties[name] = schema
    made: Schema = {"type": "object", "description": _text(kind.__doc__), "properties": properties}
    return made | ({"required": required} if required else {})


def _default(field: inspect.Field, schema: Schema) -> Schema:
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else None
    if value is None:
        return {}
    if schema.get("type") == "object" and "properties" in schema:
        return {"default": default_of(schema)}
    return {"default": msgspec.to_builtins(value)}


def _list_kind(name: str) -> Schema:
    if name not in model.UNIQUE:
        return {"x-kubernetes-list-type": "atomic"}
    key = model.UNIQUE[name]
    if not key:
        return {"x-kubernetes-list-type": "set"}
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def _type(found: inspect.Type, *, has_defaults: bool) -> Schema:  # noqa: C901 - one case a type
    match found:
        case inspect.UnionType(types=types):
            return _union(types, has_defaults=has_defaults)
        case inspect.StructType(cls=kind):
            return _struct(kind, has_defaults=has_defaults)
        case inspect.LiteralType(values=words):
            return {"type": "string", "enum": list(words)}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType(ge=low, gt=above, le=high):
            least = low if low is not None else None if above is None else above + 1
            return {"type": "integer", "format": "int64"} | _given(minimum=least, maximum=high)
        case inspect.FloatType(ge=low, gt=above, le=high):
            schema: Schema = {"type": "number"} | _given(minimum=low, maximum=high)
            if above is not None:
                schema |= {"minimum": above, "exclusiveMinimum": True}
            return schema
        case inspect.StrType(min_length=low, max_length=high, pattern=pattern):
            text = pattern.replace("\\Z", "$") if pattern else None
            most = high if high is not None else STRING_BYTES
            return {"type": "string"} | _given(minLength=low, maxLength=most, pattern=text)
        case inspect.DateTimeType():
            return {"type": "string", "format": "date-time"}
        case inspect.ListType(item_type=item, min_length=low, max_length=high):
            items = _type(item, has_defaults=has_defaults)
            return {"type": "array", "items": items} | _given(minItems=low, maxItems=high)
        case inspect.DictType(value_type=value, min_length=low, max_length=high):
            if isinstance(value, inspect.AnyType):
                return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            values = _type(value, has_defaults=has_defaults)
            bounds = _given(minProperties=low, maxProperties=high)
            return {"type": "object", "additionalProperties": values} | bounds
        case _:
            raise TypeError(f"The schema has no form for {found}.")


def _union(types: tuple[inspect.Type, ...], *, has_defaults: bool) -> Schema:
    found = [one for one in types if not isinstance(one, inspect.NoneType)]
    if len(found) == 1:
        return _type(found[0], has_defaults=has_defaults)
    made: Schema = {}
    for one in found:
        made |= _type(one, has_defaults=has_defaults)
    del made["type"], made["format"]
    return made | INT_OR_STRING


def _given(**values: object) -> Schema:
    return {name: value for name, value in values.items() if value is not None}


def _text(doc: str | None) -> str:
    return " ".join((doc or "").split("\n\n", maxsplit=1)[0].split())


def _texts(kind: type[Any]) -> Mapping[str, str]:
    """Return the texts that stand below the fields of a class."""
    body = ast.parse(dedent(getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)  # noqa: S101 - it is the source of a class
    found = {}
    for field, below in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            found[ast.unparse(field.target)] = " ".join(text.split())
    return found


# ---- files -----------------------------------------------------------------------------------


def files() -> dict[str, str]:
    """Return what is made: text by path from the root of the repository."""
    found = {}
    for resource in RESOURCES:
        text = yaml.safe_dump(definition(resource), sort_keys=False, width=100)
        name = f"{resource.plural}.{GROUP}.yaml"
        found[f"crds/{name}"] = HEAD + text
        found[f"charts/logweir/templates/crds/{name}"] = _template(text)
    return found


def _template(text: str) -> str:
    keep = (
        "metadata:\n"
        "  {{- if .Values.crds.keep }}\n"
        "  annotations:\n"
        "    helm.sh/resource-policy: keep\n"
        "  {{- end }}\n"
    )
    escaped = text.replace("{{", "{{ `{{` }}").replace("metadata:\n", keep, 1)
    return "{{- if .Values.crds.install }}\n" + HEAD + escaped + "{{- end }}\n"


def write_or_check(wanted: Mapping[Path, str], source: str) -> None:
    """Write what follows from something else; with --check only compare, and end with what differs.

    Args:
        wanted: the text of each file.
        source: what they follow from.
    """
    stale = [one for one, text in wanted.items() if not one.exists() or one.read_text() != text]
    if stale and "--check" in sys.argv:
        sys.exit(f"{', '.join(map(str, stale))}: not what follows from {source}; run `make gen`")
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path])


def main() -> None:
    """Write all files below the folder given, or check them."""
    root = Path(sys.argv[1])
    write_or_check({root / name: text for name, text in files().items()}, "the model")


if __name__ == "__main__":
    main()
