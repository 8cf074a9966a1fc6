"""Which role answers which address: the gateway's table. To add a protocol, add a line.

Paths are compared exactly as the roles see them: percent signs decoded, nothing else changed.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Role = Literal["ingest", "query", "auth"]


class Route(msgspec.Struct, frozen=True):
    """A path of a role. One that ends with `/` stands for all below it, another for itself only."""

    path: str
    role: Role
    is_stream: bool = False
    """A WebSocket may be opened here, and answers are passed on as they come."""


ROUTES: Final = (
    Route("/", "query"),
    Route("/api/v1/keys/", "auth"),
    Route("/api/v1/tail", "query", is_stream=True),
    Route("/ingest", "ingest"),
    Route("/t/", "ingest"),
)
"""The longest path that fits decides; the order is of no matter."""

HIDDEN: Final = ("/livez", "/metrics", "/readyz")
"""Addresses of the roles' own ports; nobody sees them from outside, whatever a role would say."""

PROBE: Final = "/-/gateway"
"""Where the gateway itself answers, with 204: it runs. Says nothing about the roles."""
