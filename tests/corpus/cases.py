"""Bad inputs, as data: `index.ndjson` has one case a line, with the class expected of it.

| field | |
|---|---|
| `name` | category and name; a test's id |
| `target` | the decoder that takes it, one of `fuzz.targets` |
| `expect` | `accept`: taken, with equal content back. `reject`: refused in words. `free`: either |
| `text`, `base64`, `file` | the bytes |
| `parts` | the bytes as texts, each so many times; with `binary` a character is a byte |
| `post` | the class when it is posted to ingest, where that is another one than the decoder's |

`native` cases are bodies; those of `compressed` begin with a byte that names the encoding (0 gzip,
1 zstd, 2 none, 3 br). `texts.json` has texts that are sent as every field of a record.
"""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import Final, Literal

import msgspec

FOLDER: Final = Path(__file__).parent
ENCODINGS: Final = ("gzip", "zstd", "", "br")

Class = Literal["accept", "reject", "free"]


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the index."""

    name: str
    target: str
    expect: Class
    text: str = ""
    base64: str = ""
    file: str = ""
    parts: list[tuple[str, int]] = []
    binary: bool = False
    post: Class | None = None

    @property
    def data(self) -> bytes:
        if self.file:
            return (FOLDER / "files" / self.file).read_bytes()
        if self.parts:
            coding = "latin-1" if self.binary else "utf-8"
            return b"".join(text.encode(coding) * count for text, count in self.parts)
        return base64.b64decode(self.base64) if self.base64 else self.text.encode()


@functools.cache
def index() -> list[Case]:
    """All cases."""
    lines = (FOLDER / "index.ndjson").read_bytes()
    return msgspec.json.Decoder(Case).decode_lines(lines)


def of_target(*names: str) -> list[Case]:
    """The cases of some decoders."""
    return [one for one in index() if one.target in names]


def texts() -> list[str]:
    """Texts for the fields of records."""
    return msgspec.json.decode((FOLDER / "texts.json").read_bytes(), type=list[str])
