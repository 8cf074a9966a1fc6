"""Reads manifests: YAML in, resources out, or what is wrong in the words of kubectl."""

from __future__ import annotations

import difflib
import re
from typing import Any, Final

import msgspec

from logweir.core import errors
from logweir_operator import model
from logweir_operator.model import FieldError, Resource

MAX_BYTES: Final = 1 << 20
MAX_DOCUMENTS: Final = 1000

_AT = re.compile(r"^(?P<reason>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]+)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")


class ManifestError(errors.BadRequestError):
    """A manifest that cannot be applied; nothing of its file was."""

    code = "bad_manifest"


def read(text: str, source: str) -> list[Resource]:
    """Return the resources of a YAML file with one or more documents.

    Args:
        text: the file.
        source: what it is called in errors.

    Raises:
        ManifestError: it is no YAML, or a resource is wrong; each is named with its field.
    """
    import yaml  # 30 ms that a command without a manifest need not wait for

    if len(text.encode()) > MAX_BYTES:
        raise ManifestError(f"{source}: larger than {MAX_BYTES} bytes.")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        documents = [found for found in yaml.load_all(text, loader) if found is not None]
    except yaml.YAMLError as cause:
        raise ManifestError(f"{source}: not YAML: {cause}") from cause
    if len(documents) > MAX_DOCUMENTS:
        raise ManifestError(f"{source}: more than {MAX_DOCUMENTS} documents.")
    resources, wrong = [], []
    for number, document in enumerate(documents, 1):
        try:
            resources.append(resource(document))
        except ManifestError as error:
            wrong.append(f"{source}: {_title(document, number)}{error.message}")
    if wrong:
        raise ManifestError("\n".join(wrong))
    return resources


def _title(document: object, number: int) -> str:
    if isinstance(document, dict) and isinstance(document.get("metadata"), dict):
        return f'{document.get("kind")} "{document["metadata"].get("name")}": '
    return f"document {number}: "


def resource(document: object) -> Resource:
    """Return the resource of one document.

    Raises:
        ManifestError: it is wrong; every broken rule over several fields is named.
    """
    if not isinstance(document, dict):
        raise ManifestError("it is not a mapping")
    found_version, found_kind = document.get("apiVersion"), document.get("kind")
    kind = model.KINDS.get(str(found_kind))
    if found_version != model.API_VERSION or kind is None:
        raise ManifestError(
            f"{found_version} {found_kind} is not known;"
            f" known are {', '.join(model.KINDS)} of {model.API_VERSION}"
        )
    plain = {name: value for name, value in document.items() if name != "status"}
    try:
        made = msgspec.convert(plain, kind)
    except msgspec.ValidationError as cause:
        raise ManifestError(str(_field_error(str(cause), document))) from cause
    broken = model.broken_rules(made)
    if broken:
        raise ManifestError("; ".join(map(str, broken)))
    return made


def _field_error(text: str, document: dict[str, Any]) -> FieldError:
    """Turn msgspec's message into the field's path and a reason."""
    found = _AT.match(text)
    path = (found["path"] or "") if found else ""
    reason = found["reason"] if found else text
    unknown = _UNKNOWN.search(text)
    if unknown:
        path = f"{path}.{unknown['name']}".lstrip(".")
        near = difflib.get_close_matches(unknown["name"], _known_fields(), 1)
        return FieldError(path, "unknown field" + (f"; did you mean {near[0]}?" if near else ""))
    missing = _MISSING.search(text)
    if missing:
        return FieldError(f"{path}.{missing['name']}".lstrip("."), "is required")
    value = _value_at(document, path)
    shown = "" if value is None else f" (found {value!r})"
    return FieldError(path or "document", reason[:1].lower() + reason[1:] + shown)


def _value_at(document: object, path: str) -> object:
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(document, dict):
            document = document.get(step)
        elif isinstance(document, list) and step.isdigit():
            document = document[int(step)]
        else:
            return None
    return document if isinstance(document, str | int | float | bool) else None


def _known_fields() -> list[str]:
    parts = [
        value
        for value in vars(model).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct)
    ]
    return sorted({name for part in parts for name in part.__struct_encode_fields__})
