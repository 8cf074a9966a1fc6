"""Reads manifests: YAML in, resources out, or what is wrong in the words of kubectl."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import inspect

from logweir.core import errors
from logweir_operator import model
from logweir_operator.model import FieldError, Resource

MAX_BYTES: Final = 1 << 20
TOO_LARGE: Final = f"larger than {MAX_BYTES} bytes"
MAX_DOCUMENTS: Final = 1000
MAX_NODES: Final = 100_000
"""Values of a file, those that YAML's aliases repeat among them."""

MAX_DEPTH: Final = 100

_AT = re.compile(r"^(?P<reason>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]+)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
_ENUM = re.compile(r"Invalid enum value '(?P<value>.*)'")
_PATTERN = re.compile(r"Expected `str` matching regex '(?P<pattern>.*)'")

_END = re.compile(r"\\+Z$")


class ManifestError(errors.BadRequestError):
    """A manifest that cannot be applied; nothing of its file was."""

    code = "bad_manifest"


def decode(content: bytes, source: str) -> str:
    """Return the text of a file.

    Raises:
        ManifestError: it is no UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise ManifestError(f"{source}: not UTF-8: {cause.reason} at byte {cause.start}") from cause


def read(text: str, source: str) -> list[Resource]:
    """Return the resources of a YAML file with one or more documents, or lists of them.

    Args:
        text: the file.
        source: what it is called in errors.

    Raises:
        ManifestError: it is no YAML, or a resource is wrong; each is named with its field.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise ManifestError(f"{source}: {TOO_LARGE}")
    documents = list(_documents(text, source))
    if len(documents) > MAX_DOCUMENTS:
        raise ManifestError(f"{source}: more than {MAX_DOCUMENTS} documents")
    resources, wrong = [], []
    for number, document in enumerate(documents, 1):
        try:
            resources.append(resource(document))
        except ManifestError as error:
            wrong.append(f"{source}: {_title(document, number)}{error.message}")
    if wrong:
        raise ManifestError("\n".join(wrong))
    return resources


def _documents(text: str, source: str) -> Iterator[object]:
    import yaml  # 30 ms that a command without a manifest need not wait for

    from logweir_operator.strict_yaml import Loader

    try:
        found = [one for one in yaml.load_all(text, Loader) if one is not None]
    except yaml.YAMLError as cause:
        raise ManifestError(f"{source}: not YAML: {cause}") from cause
    except (ValueError, RecursionError) as cause:  # such as a date that is none
        reason = "nested too deeply" if isinstance(cause, RecursionError) else str(cause)
        raise ManifestError(f"{source}: not YAML: {reason}") from cause
    _check_size(found, source)
    for one in found:
        if isinstance(one, dict) and one.get("kind") == "List" and one.get("apiVersion") == "v1":
            yield from one.get("items") or ()
        else:
            yield one


def _check_size(documents: object, source: str) -> None:
    """Refuse what is small as text and huge or endless as a value."""
    left, open_nodes = MAX_NODES, [(documents, 0)]
    while open_nodes:
        node, depth = open_nodes.pop()
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ManifestError(f"{source}: more than {MAX_NODES} values, or nested too deeply")
        if isinstance(node, dict):
            open_nodes += [(value, depth + 1) for value in node.values()]
        elif isinstance(node, list):
            open_nodes += [(value, depth + 1) for value in node]


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
        raise ManifestError(str(_field_error(str(cause), document, kind))) from cause
    broken = model.broken_rules(made)
    if broken:
        raise ManifestError("; ".join(map(str, broken)))
    return made


def _field_error(text: str, document: dict[str, Any], kind: type[msgspec.Struct]) -> FieldError:
    """Turn msgspec's message into the field's path and a reason."""
    found = _AT.match(text)
    path = (found["path"] or "") if found else ""
    reason = found["reason"] if found else text
    unknown = _UNKNOWN.search(text)
    if unknown:
        return FieldError(_join(path, unknown["name"]), _unknown(kind, path, unknown["name"]))
    missing = _MISSING.search(text)
    if missing:
        return FieldError(_join(path, missing["name"]), "is required")
    value = _value_at(document, path)
    shown = "" if value is None else f" (found {value!r})"
    return FieldError(path or "document", _reason(reason, kind, path) + shown)


def _reason(reason: str, kind: type[msgspec.Struct], path: str) -> str:
    if _ENUM.search(reason):
        known = _fields(kind).get(_plain(path), ())
        return f"must be one of {', '.join(known)}" if known else "is not one of the known values"
    pattern = _PATTERN.search(reason)
    if pattern:
        return f"must match {_END.sub('$', pattern['pattern'])}"
    return reason[:1].lower() + reason[1:]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _plain(path: str) -> str:
    """A path without the places in lists."""
    return re.sub(r"\[[^\]]*\]", "", path)


def _unknown(kind: type[msgspec.Struct], path: str, name: str) -> str:
    """Say that a field is unknown, and which one may be meant: beside it, or elsewhere."""
    known, at = _fields(kind), _plain(path)
    beside = [one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == at]
    near = difflib.get_close_matches(name, beside, 1)
    if near:
        return f"unknown field; did you mean {near[0]}?"
    elsewhere = [one for one in known if one.rpartition(".")[2] == name]
    if elsewhere:
        return f"unknown field; did you mean {' or '.join(elsewhere[:2])}?"
    return "unknown field"


def _fields(kind: type[msgspec.Struct]) -> dict[str, tuple[str, ...]]:
    """The paths of all fields of a kind, each with the values of its enum, if it has one."""
    found: dict[str, tuple[str, ...]] = {}
    _walk(inspect.type_info(kind), "", found)
    return found


def _walk(kind: inspect.Type, path: str, found: dict[str, tuple[str, ...]]) -> None:
    if isinstance(kind, inspect.Metadata):
        _walk(kind.type, path, found)
    elif isinstance(kind, inspect.UnionType):
        for one in kind.types:
            _walk(one, path, found)
    elif isinstance(kind, inspect.ListType):
        _walk(kind.item_type, path, found)
    elif isinstance(kind, inspect.LiteralType):
        found[path] = tuple(map(str, kind.values))
    elif isinstance(kind, inspect.StructType):
        for field in kind.fields:
            at = _join(path, field.encode_name)
            found.setdefault(at, ())
            _walk(field.type, at, found)


def _value_at(document: object, path: str) -> object:
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(document, dict):
            document = document.get(step)
        elif isinstance(document, list) and step.isdigit():
            document = document[int(step)]
        else:
            return None
    return document if isinstance(document, str | int | float | bool) else None
