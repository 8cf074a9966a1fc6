"""Writes docs/reference/logtenant.md and logpipeline.md, of what the operator is made of.

    python docs/generate.py          writes both
    python docs/generate.py --check  fails when one of them is not what it would be

Fields, defaults and bounds are the CRDs', rules the model's, conditions and events those of the
operator; a table is made of each part with more than a few fields, once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from logweir_operator import crdgen, events, model, rules, status
from logweir_operator.apply import ADOPT
from logweir_operator.reporting import ABANDON
from logweir_operator.turns import RECONCILE_AT, ROTATE_AT

FOLDER: Final = Path(__file__).parent / "reference"
HEAD: Final = (
    "<!-- Made by `make gen` of operator/logweir_operator/model.py; never edited by hand. -->"
)
FEW: Final = 3
"""A part with more fields than so many has a table of its own."""

CONDITIONS: Final[Mapping[str, Sequence[str]]] = {
    "LogTenant": ("DatabaseReady", "RedisReady", "CredentialsReady"),
    "LogPipeline": (
        "IngestAvailable",
        "CollectorAvailable",
        "Exposed",
        "ScalingActive",
        "Fresh",
    ),
}
"""Those of one kind alone."""

MEANINGS: Final[Mapping[str, str]] = {
    "Ready": "all that is needed is so, for this generation; else it has the first reason why not",
    "Reconciling": "work is under way or is tried again; there only while it is True",
    "Stalled": "nothing goes on until a person acts; there only while it is True",
    "DatabaseReady": "the tenant's place in PostgreSQL is as planned",
    "RedisReady": "the tenant's place in Redis is as planned",
    "CredentialsReady": "the credentials that are in use are good",
    "IngestAvailable": "records can be sent",
    "CollectorAvailable": "records are stored, or nothing waits",
    "Exposed": "it can be reached from outside; there only with `spec.exposure`",
    "ScalingActive": "somebody decides how many collectors run; Ready does not need it",
    "Fresh": "records can be found as soon as promised; Ready does not need it",
}
NEVER: Final[Mapping[str, Sequence[str]]] = {
    "LogTenant": ("TenantNotFound", "QuotaExceeded"),
    "LogPipeline": ("IdentityClaimed",),
}
"""Reasons that a kind does not have."""

EVENTS: Final[Mapping[str, Sequence[events.Reason]]] = {
    "LogTenant": (
        "Provisioned",
        "CredentialsRotated",
        "DriftCorrected",
        "Stalled",
        "CleanupBlocked",
    ),
    "LogPipeline": (
        "Provisioned",
        "ScaledUp",
        "ScaledDown",
        "DriftCorrected",
        "Stalled",
        "CleanupBlocked",
    ),
}
_RECONCILE: Final = (
    f"{RECONCILE_AT}: <any new value>",
    "Everything of it is looked at and applied again; `status.lastHandledReconcileAt` is the value"
    " when that is done.",
)
_ABANDON: Final = (
    f'{ABANDON}: "true"',
    "On a resource that is being deleted, for servers that are lost: it goes at once. A deletion"
    " that had begun in PostgreSQL goes on should it come back; else data and keys are there as"
    " they were, and the next LogTenant of its name and namespace gets them.",
)
_ADOPT: Final = (
    f'{ADOPT}: "true"',
    "On an object of a child's name that is somebody else's (`ForeignObject`): it is taken over.",
)
_ROTATE: Final = (
    f"{ROTATE_AT}: <any new value>",
    "The tenant's passwords change now; `status.lastHandledRotateAt` is the value when that has"
    " begun, `status.credentials` says how far it is.",
)
ANNOTATIONS: Final = {
    "LogTenant": (_RECONCILE, _ROTATE, _ABANDON, _ADOPT),
    "LogPipeline": (_RECONCILE, _ABANDON, _ADOPT),
}
EXAMPLES: Final = {
    "LogTenant": """\
apiVersion: logweir.dev/v1alpha1
kind: LogTenant
metadata: {name: acme, namespace: shop}
spec:
  retention: {days: 14}
  apiKeys:
    - {name: in, scopes: [ingest]}
    - {name: out, scopes: [query]}
""",
    "LogPipeline": """\
apiVersion: logweir.dev/v1alpha1
kind: LogPipeline
metadata: {name: web, namespace: shop}
spec:
  tenantRef: {name: acme}
""",
}
HOWTOS: Final[Mapping[str, Sequence[str]]] = {
    "LogTenant": (),
    "LogPipeline": ("How many collectors run, and why: [scaling](../howto/scaling.md).",),
}

Schema = Mapping[str, Any]


def page(resource: crdgen.Resource) -> str:
    """Return the reference page of a kind."""
    kind = resource.kind
    schema = crdgen.definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    names = ", ".join(f"`{one}`" for one in (resource.plural, *resource.short_names))
    return (
        "\n".join(
            [
                HEAD,
                f"# {kind}",
                "",
                schema["description"],
                f"`{model.API_VERSION}`, namespaced; kubectl knows it as {names}.",
                "`kubectl explain` says the same; `logweir up` reads the same manifests, with the"
                " same refusals.",
                *HOWTOS[kind],
                "",
                f"```yaml\n{EXAMPLES[kind]}```",
                "",
                *_parts("spec", schema["properties"]["spec"]),
                *_rules(kind),
                *_parts("status", schema["properties"]["status"]),
                *_conditions(kind),
                *_events(kind),
                *_annotations(kind),
            ]
        ).rstrip()
        + "\n"
    )


# ---- fields --------------------------------------------------------------------------------------


def _parts(path: str, schema: Schema) -> Iterator[str]:
    """Yield a table of a part, and then those of the greater ones in it."""
    waiting, known = [(path, schema)], {}
    while waiting:
        at, part = waiting.pop(0)
        known[json.dumps(part)] = at
        yield from (f"{'#' * min(at.count('.') + 2, 3)} {at}", "", part["description"], "")
        greater: list[tuple[str, Schema]] = []
        rows = list(_rows("", part, at, greater, known))
        if path == "status":
            yield from _table(("field", "type", "what it says"), [(a, b, d) for a, b, _, d in rows])
        else:
            yield from _table(("field", "type", "default", "what it does"), rows)
        waiting = greater + waiting


def _rows(
    inside: str, part: Schema, at: str, greater: list[tuple[str, Schema]], known: dict[str, str]
) -> Iterator[tuple[str, ...]]:
    for name, field in part["properties"].items():
        path = f"{inside}{name}"
        element = field.get("items", field)
        fields = element.get("properties", {})
        default = "required" if name in part.get("required", ()) else _default(field)
        text = field["description"]
        if path == "conditions":
            text += " [Below](#conditions)."
        elif element is field and len(fields) > FEW:
            where = known.setdefault(json.dumps(field), f"{at}.{path}")
            if where == f"{at}.{path}":
                greater.append((where, field))
            text += f" [{where}](#{where.replace('.', '').lower()})."
        yield f"`{path}`", _type(field), default, text
        if path != "conditions" and (element is not field or len(fields) <= FEW) and fields:
            end = "[]." if element is not field else "."
            yield from _rows(f"{path}{end}", element, at, greater, known)


def _type(field: Schema) -> str:
    if "enum" in field:
        return " or ".join(f"`{one}`" for one in field["enum"])
    if "items" in field:
        return f"list{_bounds(field, 'Items')}: {_type(field['items'])}"
    if isinstance(field.get("additionalProperties"), dict):
        return f"map{_bounds(field, 'Properties')}: {_type(field['additionalProperties'])}"
    pattern = f", `{field['pattern']}`" if "pattern" in field else ""
    if "x-kubernetes-int-or-string" in field:
        return f"integer or string{pattern}"
    if field.get("format") == "date-time":
        return "time"
    if field["type"] == "string":
        return f"string{_bounds(field, 'Length')}{pattern}"
    return f"{field['type']}{_range(field)}"


def _range(field: Schema) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if low is None or high is None:
        return "" if low is None else f" from {low}"
    if field.get("exclusiveMinimum"):
        return f" over {low}, up to {high:g}"
    return f" {low} to {_number(high)}"


def _bounds(field: Schema, of: str) -> str:
    low, high = field.get(f"min{of}"), field.get(f"max{of}")
    if high is None or (of == "Length" and high == crdgen.STRING_BYTES):
        return ""
    return f" of {low} to {high}" if low else f" of up to {high}"


def _number(value: float) -> str:
    """A bound that a person knows by its power of two is said as that."""
    power = int(value).bit_length() - 1
    return f"2^{power}" if value == 1 << power and power > 30 else str(value)


def _default(field: Schema) -> str:
    value = field.get("default")
    if value in (None, "", [], {}) or "properties" in field:
        return ""
    return f"`{json.dumps(value)}`".replace('"', "")


# ---- all else ------------------------------------------------------------------------------------


def _rules(kind: str) -> Iterator[str]:
    yield from ("## Rules", "", "What breaks one is refused, with the field and these words.", "")
    rows = [(f"`{rule.field}`", rule.message) for rule in rules.RULES[kind]]
    rows += [(f"`{field}`", rules.IMMUTABLE) for field in rules.immutable_fields(kind)]
    rows.append(("`metadata.name`", crdgen.NAME_RULES[kind]["message"].partition(": ")[2]))
    yield from _table(("field", "rule"), rows)


def _conditions(kind: str) -> Iterator[str]:
    common = [one for one in status.REASONS if not any(one in own for own in CONDITIONS.values())]
    yield from ("## Conditions", "")
    for name in (*common, *CONDITIONS[kind]):
        yield from (f"**{name}**: {MEANINGS[name]}.", "")
        yield from _table(("reason", "meaning"), [*_reasons(kind, name)])


def _reasons(kind: str, condition: str) -> Iterator[tuple[str, str]]:
    """Yield the reasons of a condition, but for those that only the other kind has."""
    mine, others = (
        {reason for one in conditions for reason in status.REASONS[one]}
        for conditions in (
            CONDITIONS[kind],
            *(CONDITIONS[one] for one in CONDITIONS if one != kind),
        )
    )
    for reason, text in status.REASONS[condition].items():
        is_others = reason in others - mine and reason not in status.VERDICTS
        if reason not in NEVER[kind] and not is_others:
            yield f"`{reason}`", text


def _events(kind: str) -> Iterator[str]:
    yield from ("## Events", "")
    yield from _table(
        ("reason", "when"), [(f"`{one}`", events.REASONS[one]) for one in EVENTS[kind]]
    )


def _annotations(kind: str) -> Iterator[str]:
    yield from ("## Annotations", "")
    yield from _table(("annotation", "what it does"), [(f"`{a}`", b) for a, b in ANNOTATIONS[kind]])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(one.replace('|', chr(92) + '|') for one in row)} |"
    yield ""


def files() -> dict[Path, str]:
    """Return the text of each page by its path."""
    return {FOLDER / f"{one.kind.lower()}.md": page(one) for one in crdgen.RESOURCES}


if __name__ == "__main__":
    crdgen.write_or_check(files(), "the operator")
