"""The folder of YAML of an `up`: a file is applied when its content changes.

    manifests/*.yaml --changed?--> manifest.read -> objects.apply -> applied.json remembers it

A wrong file is looked at once and named in `logweir status` until it is mended or gone. A file
that vanishes deletes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from logweir.backends.control import Control
from logweir.standalone import objects
from logweir.standalone.folder import Folder, write_json
from logweir_operator import manifest

logger = logging.getLogger(__name__)

SUFFIXES: Final = (".yaml", ".yml")

SETTLED_S: Final = 2.0
"""A file that was changed later than this before may change again with the same time."""

_Signature = tuple[int, int, int]
"""Of a file that has not changed: inode, size, time of the last change."""


class Manifests:
    """Takes the folder's files, and knows what is wrong with them."""

    def __init__(self, folder: Folder, control: Control) -> None:
        self._folder = folder
        self._control = control
        self._memory = folder.path / "applied.json"
        self._applied = _remembered(self._memory)
        self._looked_at: dict[str, _Signature] = {}
        self._problems: dict[str, str] = {}

    @property
    def problems(self) -> list[str]:
        """What is wrong with files of the folder, each with its name."""
        return [self._problems[name] for name in sorted(self._problems)]

    async def take(self) -> None:
        """Apply each file whose content has changed since it was applied.

        Raises:
            UnavailableError: the control schema does not answer.
            SetupError: what was applied cannot be remembered.
        """
        found = self._files()
        for name, at in found.items():
            if self._looked_at.get(name) == at or not await self._take(name, at):
                continue
            if time.time() - at[2] / 1e9 > SETTLED_S:
                self._looked_at[name] = at
        for gone in self._problems.keys() - found.keys():
            del self._problems[gone]
        for gone in self._looked_at.keys() - found.keys():
            del self._looked_at[gone]

    def _files(self) -> dict[str, _Signature]:
        found = {}
        with contextlib.suppress(OSError):  # somebody has taken the folder away
            for entry in os.scandir(self._folder.manifests):
                with contextlib.suppress(OSError):  # gone meanwhile
                    if entry.name.endswith(SUFFIXES) and entry.is_file():
                        at = entry.stat()
                        found[entry.name] = (at.st_ino, at.st_size, at.st_mtime_ns)
        return dict(sorted(found.items()))

    async def _take(self, name: str, at: _Signature) -> bool:
        """Look at a file; false when it must be looked at again although it has not changed."""
        try:
            content = self._content(name, at[1])
            digest = hashlib.sha256(content).hexdigest()
            if self._applied.get(name) != digest:
                await self._apply(name, content, digest)
        except FileNotFoundError:
            return True
        except OSError as error:
            self._refuse(name, f"{name}: {error.strerror}")
            return False
        except objects.LeavingError as error:
            self._refuse(name, f"{name}: {error.message}")
            return False
        except manifest.ManifestError as error:
            self._refuse(name, error.message)
            return True
        self._problems.pop(name, None)
        return True

    def _content(self, name: str, size_bytes: int) -> bytes:
        if size_bytes > manifest.MAX_BYTES:  # not even read
            raise manifest.ManifestError(f"{name}: {manifest.TOO_LARGE}")
        return (self._folder.manifests / name).read_bytes()

    async def _apply(self, name: str, content: bytes, digest: str) -> None:
        resources = manifest.read(manifest.decode(content, name), name)
        applied = await objects.apply(self._control, resources, source=name, source_hash=digest)
        logger.info("manifest applied", extra={"what": ", ".join(map(str, applied))})
        self._applied[name] = digest
        write_json(self._memory, self._applied)

    def _refuse(self, name: str, why: str) -> None:
        if self._problems.get(name) != why:
            logger.error("manifest refused", extra={"file": name, "why": why})
        self._problems[name] = why


def _remembered(path: Path) -> dict[str, str]:
    """Digests by name; a file that cannot be read is as good as none: all is applied again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        logger.warning("applied.json not read", extra={"why": str(error)})
        return {}
