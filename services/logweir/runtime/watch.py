"""What a platform role knows of tenants, pipelines and keys: read from the control schema.

    control schema --every 2 s--> Directory (access.py)

While the control schema is away, queries go on with what is known; access.py says for how long.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final

from logweir.backends import control, store
from logweir.core import access, errors, states
from logweir.core.binding import Login, PostgresServer
from logweir.runtime import metrics
from logweir.runtime.life import Life

logger = logging.getLogger(__name__)

POLL_S: Final = 2.0
"""Revocations reach every process within 5 s."""

DEFAULT_CONCURRENCY: Final = 8
DEFAULT_SCAN_BYTES: Final = 4 << 30


def directory(
    tenants: list[control.Tenant],
    pipelines: list[control.Pipeline],
    api_keys: list[control.ApiKeyRow],
    as_of_s: float,
) -> access.Directory:
    """Return what the rows say. A pipeline keeps records no longer than its tenant does."""
    of_tenant: dict[str, dict[Any, access.Pipeline]] = {one.id: {} for one in tenants}
    days = {one.id: one.retention_days for one in tenants}
    for row in pipelines:
        if row.tenant in of_tenant:
            kept_days = min(row.retention_days, days[row.tenant])
            of_tenant[row.tenant][row.id] = access.Pipeline(
                row.id, row.name, kept_days, is_deleted=row.state == "deleted"
            )
    return access.Directory(
        as_of_s=as_of_s,
        tenants={one.id: _tenant(one, of_tenant[one.id]) for one in tenants},
        keys={one.id: access.KnownKey(one.tenant, one.is_revoked) for one in api_keys},
    )


def _tenant(row: control.Tenant, pipelines: dict[Any, access.Pipeline]) -> access.Tenant:
    quotas = row.spec.get("quotas") or {}
    return access.Tenant(
        id=row.id,
        is_deleting=row.state in states.LEAVING,
        reader_slot=row.reader_slot,
        reader_revision=row.reader_revision,
        redis_revision=row.redis_revision,
        ingest_revision=row.ingest_revision,
        access_revision=row.access_revision,
        root_version=row.root_version,
        signed_since=row.signed_since,
        is_spreading=row.rotation == "spreading",
        concurrency=_quota(quotas, "queryConcurrency", DEFAULT_CONCURRENCY),
        scan_bytes=_quota(quotas, "queryScanBytes", DEFAULT_SCAN_BYTES),
        pipelines=pipelines,
    )


def _quota(quotas: dict[str, Any], name: str, default: int) -> int:
    value = quotas.get(name)
    return value if isinstance(value, int) and value > 0 else default


class Watch:
    """Keeps a directory up to date; `directory` is always the last good one."""

    def __init__(self, role: str, now_s: Callable[[], float] = time.time) -> None:
        self._role = role
        self.directory = access.Directory()
        self._now_s = now_s
        self._control: control.Control | None = None
        self._is_away = False
        metrics.REVOCATIONS_AGE_SECONDS.labels(role).set_function(self._age_s)

    def _age_s(self) -> float:
        return self._now_s() - self.directory.as_of_s if self.directory.as_of_s else math.inf

    async def bind(self, server: PostgresServer, login: Login) -> None:
        """Read from the control schema of this server, with this login, from now on."""
        conninfo = store.conninfo(server, login, f"logweir {self._role}")
        before, self._control = self._control, control.Control(conninfo)
        if before is not None:
            await before.close()

    async def refresh(self) -> None:
        """Read all once.

        Raises:
            UnavailableError: the control schema does not answer.
        """
        if self._control is None:
            raise errors.UnavailableError("The role has no binding yet.")
        as_of_s = self._now_s()
        self.directory = directory(
            await self._control.tenants(),
            await self._control.pipelines(with_deleted=True),
            await self._control.api_keys(),
            as_of_s,
        )

    async def follow(self, running: Life) -> None:
        """Refresh until the process stops; ready when the control schema was read once."""
        running.expect("control schema")
        while not running.stopping.is_set():
            if self._control is not None:
                await self._look(running)
            await running.pause(POLL_S if self._control is not None else 0.05)

    async def _look(self, running: Life) -> None:
        try:
            await self.refresh()
        except Exception as error:
            # Whatever it is (a schema that is migrated later, a row of a newer version), queries
            # go on with what is known, so the role stays ready once it was, for as long as keys
            # are trusted.
            if self._age_s() > access.STALE_AFTER_S:
                running.report("control schema", f"{access.StaleNewsError().message} {error}")
            elif not self._is_away:
                logger.warning("control schema away", extra={"reason": str(error)})
            self._is_away = True
            return
        running.report("control schema")
        if self._is_away and self.directory.as_of_s:
            logger.info("control schema back")
        self._is_away = False

    async def close(self) -> None:
        """Close the connection."""
        if self._control is not None:
            await self._control.close()
