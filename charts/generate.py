"""Writes what follows from charts/logweir/values.yaml: README.md's table, and values.schema.json.

    python charts/generate.py          writes both
    python charts/generate.py --check  fails when one of them is not what it would be

A value is described by the comment that begins with `# --` on the line before it. The schema takes
types from the defaults; `EXACT` has what those do not say. Unknown keys are refused, but in what is
handed on to Kubernetes as it is.
"""

from __future__ import annotations

import functools
import json
import operator
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from logweir_operator import crdgen

CHART: Final = Path(__file__).parent / "logweir"
BEGIN: Final = "<!-- values: made by `make gen` -->"
END: Final = "<!-- end of values -->"

_NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_PORT = {"type": ["integer", "null"], "minimum": 1, "maximum": 65535}
_FREE = {"type": "object"}
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_REPLICAS = {"type": ["integer", "null"], "minimum": 0}
_SECRET = {"type": "string", "maxLength": 253}
_SIZE = {"type": "string", "pattern": "^[1-9][0-9]*(Ki|Mi|Gi|Ti|M|G|T)$"}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
_NAMED = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": _SECRET},
        "additionalProperties": False,
    },
}

EXACT: Final[dict[str, dict[str, Any]]] = {
    r"fullnameOverride|nameOverride": {"type": "string", "maxLength": 40},
    r"image.tag|image.registry": {"type": "string"},
    r"image.repository": {"type": "string", "minLength": 1},
    r"image.digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    r"image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    r"imagePullSecrets": _NAMED,
    r"cluster": {**_NAME, "minLength": 1},
    r"scope.mode": {"enum": ["Cluster", "Namespaced"]},
    r"scope.namespaces": {"type": "array", "items": _NAME, "uniqueItems": True},
    r"(postgres|redis).existingSecret|.*caSecret.name": _SECRET,
    r"(postgres|redis).port": _PORT,
    r"postgres.sslmode": {
        "enum": ["", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
    },
    r"redis.tls": {"type": ["boolean", "null"]},
    r"redis.replicas": {"type": ["integer", "null"], "minimum": 0, "maximum": 5},
    r"evaluation.image": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "registry": {"type": "string"},
            "repository": {"type": "string"},
            "tag": {"type": "string"},
            "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
        },
    },
    r"evaluation.(postgres|redis).storage": _SIZE,
    r"evaluation.redis.maxMemoryBytes": {"type": "integer", "minimum": 16 << 20},
    r"operator.replicas": {"type": "integer", "minimum": 0, "maximum": 2},
    r"operator.workers": {"type": "integer", "minimum": 1, "maximum": 64},
    r"operator.(resync|.*lease.).*Seconds": {"type": "number", "exclusiveMinimum": 0},
    r"operator.spreadSeconds": {"type": "number", "minimum": 0, "maximum": 3600},
    r"migrate.waitSeconds": {"type": "number", "exclusiveMinimum": 0, "maximum": 3600},
    r"(auth|query|keeper|gateway).replicas": _REPLICAS,
    r".*(resources|affinity)": _FREE,
    r".*(podAnnotations|podLabels|nodeSelector|extraEnv|annotations|labels)": _STRINGS,
    r".*(tolerations|topologySpreadConstraints|ingress.tls)": _OBJECTS,
    r"gateway.service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    r"gateway.service.port": {**_PORT, "type": "integer"},
    r"gateway.httpRoute.parentRefs": _OBJECTS,
    r"gateway.(trustedProxies|ingress.hosts|httpRoute.hostnames)": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
    },
    r"networkPolicy.(dns|api)Ports": {
        "type": "array",
        "minItems": 1,
        "items": {**_PORT, "type": "integer"},
    },
    r"logFormat": {"enum": ["auto", "json", "text"]},
    r"monitoring.serviceMonitor.interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
    r"test.namespace|networkPolicy..*Namespace": {"type": "string", "maxLength": 63},
}


def described(text: str) -> Iterator[tuple[str, str, Any]]:
    """Yield path, description and default of each value that has a description.

    Raises:
        SystemExit: a value has none.
    """
    values = yaml.safe_load(text)
    path: list[tuple[int, str]] = []
    description, missing = "", []
    for line in text.splitlines():
        if found := re.match(r"\s*# -- (.*)", line):
            description = found[1]
            continue
        found = re.match(r"( *)([A-Za-z]+):(.*)", line)
        if not found:
            continue
        depth = len(found[1])
        path = [*(one for one in path if one[0] < depth), (depth, found[2])]
        names = [name for _, name in path]
        if description:
            yield ".".join(names), description, functools.reduce(operator.getitem, names, values)
        elif found[3].strip() and "resources" not in names:
            missing.append(".".join(names))
        description = ""
    if missing:
        sys.exit(f"values.yaml does not describe: {', '.join(missing)}")


def schema(text: str) -> dict[str, Any]:
    """Return the schema of the values."""
    documented = {path: (words, default) for path, words, default in described(text)}

    def of(value: object, path: str) -> dict[str, Any]:
        words = documented[path][0] if path in documented else ""
        more = {"description": words} if words else {}
        for pattern, exact in EXACT.items():
            if re.fullmatch(pattern, path):
                return {**more, **exact}
        if isinstance(value, dict):
            parts = {name: of(one, f"{path}.{name}") for name, one in value.items()}
            return {**more, "type": "object", "additionalProperties": False, "properties": parts}
        kinds = {bool: "boolean", int: "integer", str: "string", list: "array"}
        return {**more, "type": kinds[type(value)]}

    values = yaml.safe_load(text)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart logweir",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **{name: of(one, name) for name, one in values.items()},
            "global": {"type": "object"},
        },
    }


def table(text: str) -> str:
    """Return the table of the values as Markdown."""
    rows = [
        f"| `{path}` | {words.replace('|', chr(92) + '|')} | `{json.dumps(default)}` |"
        for path, words, default in described(text)
    ]
    return "\n".join(["| value | what | default |", "| --- | --- | --- |", *rows])


def main() -> None:
    """Write both files, or check them."""
    text = (CHART / "values.yaml").read_text()
    readme = (CHART / "README.md").read_text()
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = {
        CHART / "values.schema.json": json.dumps(schema(text), indent=2) + "\n",
        CHART / "README.md": f"{before}{BEGIN}\n{table(text)}\n{END}{after}",
    }
    crdgen.write_or_check(wanted, "values.yaml")


if __name__ == "__main__":
    main()
