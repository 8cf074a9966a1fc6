"""Reads manifests: YAML in, resources out, or what is wrong in the words of an API server.

YAML -> documents -> msgspec: types and bounds -> repeats -> rules over several fields
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import inspect

from logweir.core import errors
from logweir_operator import model, rules
from logweir_operator.model import Resource
from logweir_operator.rules import FieldError

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
_LENGTH = re.compile(r"Expected `(?P<type>\w+)` of length (?P<how>[<>])= (?P<bound>\d+)")
_BOUND = re.compile(r"Expected `\w+` (?P<how>[<>]=?) (?P<bound>\S+)")
_TYPE = re.compile(r"Expected `(?P<wanted>[^`]+)`, got `(?P<got>\w+)`")
_MOMENT = re.compile("RFC3339|timezone")
_END = re.compile(r"\\+Z$")

_HOW: Final = {
    ">=": "greater than or equal to",
    ">": "greater than",
    "<=": "less than or equal to",
    "<": "less than",
}
_JSON_TYPES: Final = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_PARTS: Final = {"array": "items", "object": "properties"}


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
    broken = [
        *_repeats(plain, "", _fields(kind)),
        *(FieldError(one.field, _invalid(one.reason)) for one in rules.broken_rules(made)),
    ]
    if broken:
        raise ManifestError("; ".join(map(str, broken)))
    return made


def _repeats(part: object, path: str, known: Container[str]) -> Iterator[FieldError]:
    """Yield what stands twice in a list without repeats, of the fields that are known: all types
    are as they should be there."""
    if isinstance(part, list):
        for number, one in enumerate(part):
            yield from _repeats(one, f"{path}[{number}]", known)
    if not isinstance(part, dict):
        return
    for name, value in part.items():
        at = _join(path, name)
        if isinstance(value, list) and name in model.UNIQUE and _plain(at) in known:
            key = model.UNIQUE[name]
            told = [{key: one[key]} if key else one for one in value]
            for number, one in enumerate(told):
                if one in told[:number]:
                    yield FieldError(f"{at}[{number}]", f"Duplicate value: {_json(one)}")
        yield from _repeats(value, at, known)


# ---- words -------------------------------------------------------------------------------------


def _field_error(text: str, document: dict[str, Any], kind: type[msgspec.Struct]) -> FieldError:
    """Turn msgspec's message into the field's path and the API server's words."""
    found = _AT.match(text)
    reason = found["reason"] if found else text
    steps = _steps(found["path"] or "") if found else []
    steps = _with_keys(steps, text, document, kind)
    path = _path(steps)
    unknown = _UNKNOWN.search(text)
    if unknown:
        return FieldError(_join(path, unknown["name"]), _unknown(kind, path, unknown["name"]))
    missing = _MISSING.search(text)
    if missing:
        return FieldError(_join(path, missing["name"]), "Required value")
    value = _value_at(document, steps)
    return FieldError(path or "document", _words(reason, path, value, _fields(kind)))


def _words(reason: str, path: str, value: object, fields: Mapping[str, tuple[str, ...]]) -> str:
    """Say what an API server says of a value that is out of bounds, or of another type."""
    shown, body = _json(value), f"{path} in body"
    if _ENUM.search(reason):
        known = ", ".join(map(_json, sorted(fields.get(_plain(path), ()))))
        return f"Unsupported value: {shown}: supported values: {known}"
    if found := _PATTERN.search(reason):
        pattern = _END.sub("$", found["pattern"]).replace("\\\\", "\\")
        return _invalid(f"{shown}: {body} should match '{pattern}'")
    if found := _LENGTH.search(reason):
        return _of_length(found["type"], found["how"], found["bound"], value, body)
    if found := _BOUND.search(reason):
        bound = found["bound"].removesuffix(".0")
        return _invalid(f"{shown}: {body} should be {_HOW[found['how']]} {bound}")
    if _MOMENT.search(reason):
        return _invalid(f"{shown}: {body} must be of type date-time: {shown}")
    if found := _TYPE.search(reason):
        names = [one for one in found["wanted"].split(" | ") if one != "null"]
        wanted = ",".join(_JSON_TYPES.get(one, one) for one in names)
        got = _json(_JSON_TYPES.get(found["got"], found["got"]))
        return _invalid(f"{got}: {body} must be of type {wanted}: {got}")
    return reason[:1].lower() + reason[1:]


def _of_length(kind: str, how: str, bound: str, value: object, body: str) -> str:
    if kind == "str":
        if how == "<":
            return f"Too long: may not be more than {bound} bytes"
        return _invalid(f"{_json(value)}: {body} should be at least {bound} chars long")
    length = len(value) if isinstance(value, list | dict) else 0
    if how == "<":
        return f"Too many: {length}: must have at most {bound} items"
    return _invalid(f"{length}: {body} should have at least {bound} {_PARTS[kind]}")


def _invalid(what: str) -> str:
    return f"Invalid value: {what}"


def _json(value: object) -> str:
    """A value as JSON, whatever YAML has made of it: huge numbers and dates, too."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


# ---- paths -------------------------------------------------------------------------------------


def _steps(path: str) -> list[str | int]:
    """The steps of msgspec's path: fields, places in lists, and `...` for any key of a map."""
    found = re.findall(r"\[(\d+)\]|\[(\.\.\.)\]|([^.\[\]]+)", path)
    return [int(place) if place else key or field for place, key, field in found]


def _path(steps: Iterable[str | int]) -> str:
    text = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in steps)
    return text.removeprefix(".")


def _with_keys(
    steps: list[str | int], text: str, document: dict[str, Any], kind: type[msgspec.Struct]
) -> list[str | int]:
    """Name the key of a map that msgspec does not name: with it alone, the error is the same."""
    if "..." not in steps:
        return steps
    place = steps.index("...")
    inside = _value_at(document, steps[:place])
    keys = inside if isinstance(inside, dict) else {}
    key = next(
        (one for one in keys if _error(_with_one(document, steps[:place], one), kind) == text), "*"
    )
    return [*steps[:place], key, *steps[place + 1 :]]


def _error(document: object, kind: type[msgspec.Struct]) -> str:
    try:
        msgspec.convert(document, kind)
    except msgspec.ValidationError as cause:
        return str(cause)
    return ""


def _with_one(part: Any, steps: Sequence[str | int], key: str) -> Any:  # noqa: ANN401 - JSON
    """Return a document whose map at some place has one key alone."""
    if not steps:
        return {key: part[key]}
    changed = part.copy()
    changed[steps[0]] = _with_one(part[steps[0]], steps[1:], key)
    return changed


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


def _value_at(document: Any, steps: Iterable[str | int]) -> object:  # noqa: ANN401 - a JSON value
    try:
        for step in steps:
            document = document[step]
    except (KeyError, IndexError, TypeError):
        return None
    found: object = document
    return found
