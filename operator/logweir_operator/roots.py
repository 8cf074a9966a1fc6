"""The root keys of an installation, several versions of them in a rotation.

    asked for -> a new version is made -> all roles know it by their bindings -> the platform's own
    logins have it, and tenants follow, each by a rotation -> who needs the old one? -> forgotten

`rotation.next_of_roots` decides, this file does it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from typing import Protocol

import psycopg
from msgspec.structs import replace
from redis import asyncio as redis

from logweir.backends import provision, store
from logweir.backends.control import Tenant
from logweir.backends.rotations import LiveRevision, Request, Rotations
from logweir.core.binding import JournalServer, PostgresServer
from logweir.core.names import TenantId
from logweir_operator import rotation
from logweir_operator.bindings import Site
from logweir_operator.rootsets import RootSecrets, RootSet

logger = logging.getLogger(__name__)


def site_of(store: PostgresServer, journal: JournalServer, secrets: RootSecrets) -> Site:
    """Return the site of these servers, with these roots."""
    held = {one.version: _roots(one) for one in secrets.roots}
    used = held.pop(secrets.used)
    return Site(store, journal, used, secrets.used, held)


def _roots(one: RootSet) -> provision.Roots:
    texts = (one.write, one.maintain, one.read, one.sign)
    return provision.Roots(*(bytes.fromhex(text) for text in texts))


def conninfo(site: Site) -> str:
    """Return libpq's connection string of the operator's login."""
    login = site.login(provision.OPERATOR)
    return store.conninfo(site.store, login, "logweir operator")


class Vault(Protocol):
    """Where the roots of an installation are kept: secrets.json, or a Secret of Kubernetes."""

    async def read(self) -> RootSecrets:
        """Return what is kept."""

    async def write(self, changed: RootSecrets) -> None:
        """Keep what is changed, in place of what `read` has returned."""


class RootKeys:
    """Takes the roots of an installation through their rotations."""

    def __init__(
        self, vault: Vault, control: Rotations, journal: redis.Redis, spread_s: float
    ) -> None:
        self._vault = vault
        self._control = control
        self._journal = journal
        self._spread_s = spread_s
        self._closed_before = 0
        self.is_between = False
        """Whether the platform's logins may have passwords that `site` does not know: `finish`, or
        a new start of the servers' part, puts that right."""

        self.overlap_s: float | None = None
        """What was asked for with the roots of now; None: as each tenant says."""

    async def turn(
        self,
        site: Site,
        rows: Sequence[Tenant],
        live: Sequence[LiveRevision],
        moving: Collection[TenantId],
        request: Request | None,
    ) -> Site:
        """Take the next step, if there is any; return the site with the roots of now.

        Args:
            site: as it is.
            rows: all tenants that are not deleted.
            live: signing revisions of keys in force.
            moving: tenants that rotate.
            request: of somebody who wants new roots.

        Raises:
            UnavailableError: the control schema does not answer.
            SetupError: the roots cannot be read or written.
        """
        if request is None and not site.others:
            return site
        secrets = await self._vault.read()
        self.overlap_s = secrets.overlap_s
        newest = secrets.roots[-1]
        if request is not None and newest.made_at_s >= request.asked_at.timestamp():
            await self._control.answer(request)  # the pass that made them was cut off
            request = None
        step = rotation.next_of_roots(
            _seen(secrets),
            _uses(rows, live, moving),
            is_asked=request is not None,
            spread_s=self._spread_s,
            now_s=time.time(),
        )
        changed = await self._do(step, site, secrets, request)
        if changed is None:
            return site
        await self._vault.write(changed)
        self.is_between = False
        logger.info("roots changed", extra={"step": type(step).__name__, "used": changed.used})
        if request is not None:
            await self._control.answer(request)
        return site_of(site.store, site.journal, changed)

    async def finish(self, site: Site) -> Site:
        """Finish a change that was cut off between the operator's own password, which has no second
        login, and the vault; return the site with the roots that let it in.

        Raises:
            SetupError: the roots cannot be read or written.
        """
        secrets = await self._vault.read()
        newest = secrets.roots[-1]
        if newest.version == secrets.used or await asyncio.to_thread(_opens, conninfo(site)):
            return site
        changed = replace(secrets, used=newest.version, used_at_s=time.time())
        after = site_of(site.store, site.journal, changed)
        if not await asyncio.to_thread(_opens, conninfo(after)):
            return site  # it is something else, and said by who needs the server
        await provision.bootstrap_auth_user(self._journal, after.roots, site.roots)
        await self._vault.write(changed)
        self.is_between = False
        logger.info("roots changed", extra={"step": "finish", "used": changed.used})
        return after

    async def _do(
        self,
        step: rotation.Make | rotation.Use | rotation.Close | None,
        site: Site,
        secrets: RootSecrets,
        request: Request | None,
    ) -> RootSecrets | None:
        """Do one step; return the secrets when they are other ones then."""
        newest = secrets.roots[-1]
        if isinstance(step, rotation.Make):
            made = RootSet.fresh(newest.version + 1)
            overlap_s = request.overlap_seconds if request is not None else None
            return replace(secrets, roots=[*secrets.roots, made], overlap_s=overlap_s)
        if isinstance(step, rotation.Use):
            operator = conninfo(site)
            self.is_between = True
            await asyncio.to_thread(provision.use_roots, operator, _roots(newest), newest.version)
            await provision.bootstrap_auth_user(self._journal, _roots(newest), site.roots)
            return replace(secrets, used=newest.version, used_at_s=time.time())
        if isinstance(step, rotation.Close):
            if self._closed_before != newest.version:
                operator = conninfo(site)
                await asyncio.to_thread(provision.close_platform_logins, operator, newest.version)
                await provision.bootstrap_auth_user(self._journal, site.roots)
                self._closed_before = newest.version
            left = [
                replace(one, write="", maintain="", read="")
                if one.version in step.but_sign
                else one
                for one in secrets.roots
                if one.version not in step.whole
            ]
            return replace(secrets, roots=left) if left != secrets.roots else None
        return None


def _opens(operator: str) -> bool:
    """Whether a login gets in."""
    try:
        psycopg.connect(operator).close()
    except psycopg.OperationalError:
        return False
    return True


def _seen(secrets: RootSecrets) -> rotation.Roots:
    overlap_s = secrets.overlap_s
    return rotation.Roots(
        versions=[one.version for one in secrets.roots],
        used=secrets.used,
        made_at_s=secrets.roots[-1].made_at_s,
        used_at_s=secrets.used_at_s,
        overlap_s=rotation.DEFAULT_OVERLAP_S if overlap_s is None else overlap_s,
    )


def _uses(
    rows: Sequence[Tenant], live: Sequence[LiveRevision], moving: Collection[TenantId]
) -> rotation.Uses:
    by_tenant: dict[str, set[int]] = {}
    for one in live:
        by_tenant.setdefault(one.tenant, set()).add(one.revision)
    return rotation.uses(rows, by_tenant, moving)
