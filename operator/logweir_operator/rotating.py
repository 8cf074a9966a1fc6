"""Rotates the credentials of tenants, one step a pass: `rotation.decide` says which.

    Begin: new logins, second Redis passwords -> row      Sign: row      End: old ones closed -> row

What a row names is good before it is named, and what it names no more is closed before that is
written: a pass that was cut off anywhere is done again by the next one, to the same end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from redis import asyncio as redis

from logweir.backends import logins, provision
from logweir.backends.control import Tenant
from logweir.backends.rotations import ROOTS, Request, Rotations
from logweir.core import states
from logweir.core.names import TenantId
from logweir_operator import roots, rotation
from logweir_operator.bindings import Site
from logweir_operator.making import Maker
from logweir_operator.model import LogTenant, Rotation

logger = logging.getLogger(__name__)


class Rotator:
    """Takes the tenants of a cluster through their rotations."""

    def __init__(
        self, control: Rotations, journal: redis.Redis, maker: Maker, spread_s: float
    ) -> None:
        self._control = control
        self._journal = journal
        self._maker = maker
        self._spread_s = spread_s
        self._problems: dict[TenantId, str] = {}

    def problem(self, tenant: TenantId) -> str:
        """Why a tenant's rotation does not go on; empty when it does."""
        return self._problems.get(tenant, "")

    async def turn(
        self,
        tenants: Sequence[tuple[LogTenant, Tenant]],
        site: Site,
        requests: Mapping[str, Request],
        overlap_s: float | None,
    ) -> None:
        """Take the next step of each tenant that has one; who fails is tried again.

        Args:
            tenants: their resources and rows.
            site: the servers and roots.
            requests: rotations that somebody wants now, by tenant.
            overlap_s: that was asked for with the roots of now.
        """
        for resource, row in tenants:
            if not rotates(resource, row):
                continue
            try:
                await self._rotate(resource, row, site, requests, overlap_s)
                self._problems.pop(row.id, None)
            except Exception as error:
                problem = str(error) or type(error).__name__
                if self._problems.get(row.id) != problem:
                    logger.exception("rotation failed", extra={"tenant": row.id})
                self._problems[row.id] = problem

    async def _rotate(
        self,
        resource: LogTenant,
        row: Tenant,
        site: Site,
        requests: Mapping[str, Request],
        overlap_s: float | None,
    ) -> None:
        now, request = datetime.now(UTC), requests.get(row.id)
        step = rotation.decide(
            row,
            resource.spec.credentials.rotation,
            rotation.Asked(request.overlap_seconds) if request is not None else None,
            (site.version, overlap_s),
            self._spread_s,
            now,
            are_roots_asked=ROOTS in requests,
        )
        if isinstance(step, rotation.Begin):
            after = rotation.begun(row, step.overlap_s, site.version, now)
            await self._open(resource, after, site)
            await self._control.write(row, after, request)
        elif isinstance(step, rotation.Sign):
            await self._control.write(row, rotation.signed(row))
        elif isinstance(step, rotation.End):
            after = rotation.ended(row)
            await self._close(after, site)
            await self._control.write(row, after)
        if step is not None:
            extra = {"tenant": row.id, "step": type(step).__name__}
            logger.info("credentials rotate", extra=extra)

    async def _open(self, resource: LogTenant, after: Tenant, site: Site) -> None:
        limits = await self._maker.limits(resource)
        fresh = site.of(after.root_version)
        operator = roots.conninfo(site)
        await asyncio.to_thread(provision.open_logins, operator, after, fresh, limits)
        await provision.set_users(self._journal, after, fresh, site.old(after))

    async def _close(self, after: Tenant, site: Site) -> None:
        operator = roots.conninfo(site)
        await provision.set_users(self._journal, after, site.of(after.root_version))
        await logins.end_old_connections(self._journal, after.id, after.rotated_at.timestamp())
        await asyncio.to_thread(provision.close_idle_logins, operator, after)


def rotates(resource: LogTenant, row: Tenant) -> bool:
    """Whether a tenant's credentials may change now."""
    return row.state in states.MADE and not resource.spec.suspend


def status_of(spec: Mapping[str, Any], row: Tenant, problem: str) -> dict[str, Any]:
    """Return what the status of a LogTenant with this spec says of its credentials."""
    following = rotation.next_at(row, _spec_of(spec))
    times = {
        "lastRotationTime": row.rotated_at,
        "nextRotationTime": following,
        "overlapUntil": row.overlap_until,
    }
    return {
        "phase": row.rotation,
        "revision": row.writer_revision,
        "rootVersion": row.root_version,
        **({"problem": problem} if problem else {}),
        **{name: at.isoformat(timespec="seconds") for name, at in times.items() if at is not None},
    }


def _spec_of(spec: Mapping[str, Any]) -> Rotation:
    with contextlib.suppress(msgspec.ValidationError):  # the condition Ready says what is wrong
        return msgspec.convert((spec.get("credentials") or {}).get("rotation") or {}, Rotation)
    return Rotation()
