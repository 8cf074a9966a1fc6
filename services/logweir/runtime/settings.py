"""What a role process is told from outside: a binding file and the sockets to listen on.

Read once from the environment in `cli.py`, or made by the supervisor of `up`; nobody else reads
the environment. Secrets never come this way: they stand in the binding file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec


class Listen(msgspec.Struct, frozen=True):
    """Where to listen: an inherited socket when `fd` is set, else `host` and `port`."""

    host: str = "127.0.0.1"
    port: int = 0
    fd: int | None = None


class Tls(msgspec.Struct, frozen=True):
    """Paths of PEM files: a certificate with those that lead to its root, and its key."""

    certificate: str
    key: str


class Settings(msgspec.Struct, frozen=True):
    """Settings of one role process."""

    role: str
    """Name of the role, as it stands in logs and metrics."""

    binding: Path
    """The binding file of `core.binding`; re-read when it changes."""

    ops: Listen
    """Where /livez, /readyz and /metrics are; never routed by a gateway."""

    http: Listen | None = None
    """Where the role's own API is; None for roles without one."""

    tls: Tls | None = None
    """What is shown to clients of `http`; None for plain HTTP."""

    trusted_proxies: tuple[str, ...] = ()
    """Networks whose X-Forwarded-For is believed; for who stands before the roles."""

    log_format: Literal["auto", "json", "text"] = "auto"
    """`auto` writes text on a terminal and JSON elsewhere."""

    consumer: str = ""
    """Collectors: the name of the consumer, stable over restarts, so that it finds its own."""
