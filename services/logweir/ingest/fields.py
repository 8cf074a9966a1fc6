"""The fields of a record, checked and normalised: what all forms of ingest share.

Text is sanitised before it is parsed (`sanitise`); attributes stay raw JSON; labels come from the
record's source, from its own `labels` and from the pipeline's list of attribute paths.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
import numpy as np

from logweir.core import bounds, errors, record
from logweir.core.record import Labels

_RESERVED_LABELS: Final = frozenset({"pipeline", "service", "level"})
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.\-/]*")
HEX_DIGITS: Final = b"0123456789abcdef"
_HEX = re.compile(r"[0-9a-f]*")
_NUL_ESCAPE = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
_SURROGATE = re.compile(
    rb"(?<!\\)((?:\\\\)*)(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_PAIR: Final = 2
"""The group of `_SURROGATE` that is a pair: a character, and left as it is."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}".encode()
_ESCAPED: Final = rb"\ufffd"
REPLACEMENTS: Final = (_REPLACEMENT, _ESCAPED)
MAX_ID_BYTES: Final = 64

_keys_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_values_decoder = msgspec.json.Decoder(dict[str, object], float_hook=str)
"""Floats stay as they were written: a label's value is text, and 1e999 is no float of ours."""


def sanitise(piece: bytes) -> tuple[bytes, bool]:
    """Replace NUL, wrong UTF-8 and lone surrogates by U+FFFD; true when anything was replaced."""
    clean = piece
    if b"\0" in clean:
        clean = clean.replace(b"\0", _REPLACEMENT)
    if not _is_utf8(clean):
        clean = clean.decode("utf-8", "replace").encode()
    if b"\\u0000" in clean:
        clean = _replace(_NUL_ESCAPE, clean)
    if _has_surrogate(clean):
        clean = _replace(_SURROGATE, clean)
    return clean, clean != piece


def _replace(pattern: re.Pattern[bytes], data: bytes) -> bytes:
    # Six bytes for six: in place, as pieces between millions of them would take memory many times.
    # A match ends where the next may begin, whose look-behind then sees the escape before it.
    before, text = b"", bytearray(data)
    while before != text:
        before = bytes(text)
        for found in pattern.finditer(before):
            if found.lastindex != _PAIR:
                text[found.end() - len(_ESCAPED) : found.end()] = _ESCAPED
    return before


_BYTES_PER_BACKSLASH: Final = 256
"""With more backslashes than one in so many bytes, the escapes themselves are searched for."""


def has_bad_escape(body: bytes) -> bool:
    """Whether an escape stands for NUL or for a surrogate, alone or in a pair."""
    # Backslashes are rare: a search for them alone runs at the speed of memory.
    at, left = body.find(b"\\"), len(body) // _BYTES_PER_BACKSLASH
    while at >= 0 and body[at + 1 : at + 2] != b"u":
        at, left = body.find(b"\\", at + 2), left - 1
        if left < 0:
            break
    if at < 0:
        return False
    return b"\\u0000" in body or _has_surrogate(body)


def _has_surrogate(body: bytes) -> bool:
    return (b"\\ud" in body or b"\\uD" in body) and _SURROGATE.search(body) is not None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def attributes(raw: bytes) -> bytes:
    """Return the attributes, checked; bytes are changed only to drop line breaks.

    Raises:
        BadRequestError: no object, too many keys, nested too deep.
    """
    if not raw or raw == b"null":
        return b""
    if not raw.startswith(b"{"):
        raise errors.BadRequestError("metadata: it is no JSON object")
    if raw.count(b"{") + raw.count(b"[") >= bounds.MAX_JSON_DEPTH and _depth(raw) >= (
        bounds.MAX_JSON_DEPTH
    ):
        raise too_deep()
    keys = len(_keys_decoder.decode(raw))
    if keys > bounds.MAX_ATTRIBUTES:
        raise errors.BadRequestError(
            f"metadata: {keys} keys, a record may have {bounds.MAX_ATTRIBUTES}"
        )
    return msgspec.json.format(raw, indent=-1) if min(raw) < 32 else raw


def too_deep() -> errors.BadRequestError:
    """Return the refusal of JSON that is nested too deep."""
    return errors.BadRequestError(f"nested deeper than {bounds.MAX_JSON_DEPTH} levels")


def _depth(raw: bytes) -> int:
    """The nesting of a JSON text that has passed the parser."""
    bare = np.frombuffer(_STRING.sub(b"", raw), np.uint8)
    opens = (bare == ord("{")) | (bare == ord("["))
    closes = (bare == ord("}")) | (bare == ord("]"))
    return int(np.cumsum(opens.astype(np.int32) - closes).max())


def promoted(attributes: bytes, paths: tuple[str, ...]) -> dict[str, str]:
    """Return labels from attributes, by a list of dotted paths; only what fits a label."""
    if not paths or not attributes:
        return {}
    values = _values_decoder.decode(attributes)
    found = {}
    for path in paths:
        value = values.get(path)
        if value is None:
            value = values
            for step in path.split("."):
                value = value.get(step) if isinstance(value, dict) else None
        name, text = path.rsplit(".", 1)[-1], _scalar(value)
        if _is_label_name(name) and 0 < len(text.encode()) <= bounds.MAX_LABEL_VALUE_BYTES:
            found[name] = text
    return found


def _is_label_name(name: str) -> bool:
    return (
        name not in _RESERVED_LABELS
        and len(name.encode()) <= bounds.MAX_LABEL_NAME_BYTES
        and _LABEL_NAME.fullmatch(name) is not None
    )


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else ""


def hex_id(name: str, value: str | None) -> str:
    """Return a trace or span id in lower case; dashes of a UUID are dropped.

    Raises:
        BadRequestError: it is not hex, or too long.
    """
    if not value:
        return ""
    text = value.lower().replace("-", "")
    if len(text) > MAX_ID_BYTES or not _HEX.fullmatch(text):
        raise errors.BadRequestError(
            f"{name}: {value[:40]!r} is not hex of up to {MAX_ID_BYTES} digits"
        )
    return text


def labels_of(service: str, level: str, host: str | None, more: dict[str, str] | None) -> Labels:
    """Return a record's labels.

    Raises:
        BadRequestError: one is over the bounds, reserved or not a name; or there is no service.
    """
    found = dict(more or {})
    for name in found:
        if name in _RESERVED_LABELS:
            raise errors.BadRequestError(f"labels.{name[:64]}: the name is reserved")
        if len(name.encode()) > bounds.MAX_LABEL_NAME_BYTES or not _LABEL_NAME.fullmatch(name):
            raise errors.BadRequestError(
                f"labels: {name[:80]!r} is no label name of up to "
                f"{bounds.MAX_LABEL_NAME_BYTES} of a-z, A-Z, 0-9 and _ . - /"
            )
    found["service"] = service
    if host:
        found["host"] = host
    for name, value in found.items():
        size = len(value.encode("utf-8", "replace"))
        if size > bounds.MAX_LABEL_VALUE_BYTES:
            raise errors.BadRequestError(
                f"{name}: {size} bytes, a label's value may have {bounds.MAX_LABEL_VALUE_BYTES}"
            )
    if not service:
        raise errors.BadRequestError("service: it is empty")
    found["level"] = record.level(level)
    if len(found) > bounds.MAX_LABELS:
        raise errors.BadRequestError(f"labels: {len(found)}, a record may have {bounds.MAX_LABELS}")
    return record.labels(found)
