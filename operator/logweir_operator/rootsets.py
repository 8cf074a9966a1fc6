"""The root keys as they are kept: in secrets.json of an `up`, in a Secret of Kubernetes."""

from __future__ import annotations

import secrets
import time
from typing import Final

import msgspec

FORMAT_VERSION: Final = 2


class RootSet(msgspec.Struct, frozen=True):
    """One version of the root keys, 64 hex digits each; those that nothing needs are empty."""

    version: int
    write: str
    maintain: str
    read: str
    sign: str
    made_at_s: float = 0.0

    @classmethod
    def fresh(cls, version: int) -> RootSet:
        """Return a new version, made now."""
        write, maintain, read, sign = (secrets.token_hex(32) for _ in range(4))
        return cls(version, write, maintain, read, sign, time.time())


class RootSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """Versions of the root keys, in rising order.

    `used` is the version of the roots that the platform uses, since `used_at_s`; the logins of the
    version before it are good for `overlap_s` more (without: as is usual).
    """

    roots: list[RootSet]
    used: int = 1
    used_at_s: float = 0.0
    overlap_s: float | None = None
    version: int = FORMAT_VERSION
