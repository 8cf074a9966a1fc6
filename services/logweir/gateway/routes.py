"""Which role answers which address: the gateway's table. To add a protocol, add a line.

Paths are compared exactly as the roles see them: percent signs decoded, nothing else changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal

import msgspec

from logweir.core import bounds

Role = Literal["ingest", "query", "auth"]


class Route(msgspec.Struct, frozen=True):
    """A path of a role. One that ends with `/` stands for all below it, another for itself only."""

    path: str
    role: Role
    is_stream: bool = False
    """A WebSocket may be opened here, and answers are passed on as they come."""

    takes_passwords: bool = False
    """What is guessed here is guessed by a person's measure, so few requests a second will do."""


ROUTES: Final = (
    Route("/", "query"),
    Route("/api/v1/tail", "query", is_stream=True),
    Route("/ingest", "ingest"),
    Route("/t/", "ingest"),
    Route("/api/v1/keys/", "auth"),
    Route("/api/v1/audit", "auth"),
    Route("/api/v1/auth/", "auth", takes_passwords=True),
    Route("/.well-known/jwks.json", "auth"),
)
"""The longest path that fits decides; the order is of no matter."""

HIDDEN: Final = ("/livez", "/metrics", "/readyz")
"""Addresses of the roles' own ports; nobody sees them from outside, whatever a role would say."""

OWN: Final = "/-/"
"""What is below it is the gateway's own; no role has an address there."""

PROBE: Final = "/-/gateway"
"""Where the gateway itself answers, with 204: it runs. Says nothing about the roles."""

BODY_SLACK_BYTES: Final = 64 << 10
"""So much over the bound still reaches the role, which can say what is too large about it."""

BODY_BYTES: Final[Mapping[Role, int]] = {
    "ingest": bounds.MAX_BODY_BYTES + BODY_SLACK_BYTES,
    "query": (128 << 10) + BODY_SLACK_BYTES,
    "auth": 64 << 10,
}
"""The largest body that reaches a role, with slack where roles say more than a bare 413. Only
ingest's, which are behind keys, take a file each; others fit into NGINX's buffer in memory."""


def served(roles: Collection[Role]) -> tuple[Route, ...]:
    """Return the routes of the roles that there are; what another would have is found nowhere."""
    return tuple(route for route in ROUTES if route.role in roles)


def find(routes: Collection[Route], path: str) -> Route | None:
    """Return the route of a path, as NGINX finds it."""
    fitting = [route for route in routes if _fits(route.path, path)]
    return max(fitting, key=lambda route: len(route.path), default=None)


def _fits(place: str, path: str) -> bool:
    if not place.endswith("/"):
        return path == place
    return path.startswith(place) or path == place.rstrip("/")
