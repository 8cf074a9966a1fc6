"""One pass over all resources: brings what lies in PostgreSQL and Redis closer to what they say.

    objects -> leaving -> making -> rotating -> measuring -> plan -> Outcome
        up:          files of YAML in, binding files and status out   (logweir.standalone.cluster)
        Kubernetes:  watched resources in, children and status out    (logweir_operator.cluster)

Level-triggered: each pass compares what is wanted with what is there, and may run again at any
time. A tenant that cannot be made right is tried again later and holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from typing import Any, Final

import msgspec
from redis import asyncio as redis

from logweir.backends import closing, failpoint, provision, rotations
from logweir.backends.control import ApiKeyRow, Pipeline, StoredObject, Tenant, revocations
from logweir.backends.rotations import LiveRevision, Rotations
from logweir.core import errors, states
from logweir.core.names import TenantId
from logweir_operator import plan, roots, rotating
from logweir_operator.bindings import Served, Site
from logweir_operator.leaving import Leaver
from logweir_operator.making import Maker, Server, Wanted, rows_by_object
from logweir_operator.measuring import Measures
from logweir_operator.model import LogPipeline, LogTenant
from logweir_operator.plan import SeenPipeline, SeenTenant, Verdict
from logweir_operator.resources import Key, Live, Reader, key_of, tenant_name
from logweir_operator.roots import RootKeys, Vault
from logweir_operator.rotating import Rotator, rotates

logger = logging.getLogger(__name__)

TELL_AGAIN_S: Final = 60.0

SPREAD_S: Final = 12.0
"""After which every process has what binding files and rows say: the keeper, the slowest, reads
its rows every 10 s."""

Rows = Mapping[tuple[str, str], Tenant]
"""Tenants by namespace and name of their LogTenants."""

Gone = Callable[[StoredObject], Awaitable[None]]
"""Called for each object whose deletion is over."""

Collected = Callable[[Pipeline, Tenant], bool]


class Outcome(msgspec.Struct, frozen=True):
    """What a pass has found and made.

    Attributes:
        found: all objects that are not gone.
        live: those that are not being deleted and that the model understands.
        rows: of the tenants that are not deleted.
        served: what roles serve.
        verdicts: why a resource is not ready; one that is has none.
        revisions: signing revisions of each tenant's ingest keys that are in force.
    """

    found: Sequence[StoredObject]
    live: Sequence[Live]
    rows: Rows
    served: Sequence[Served]
    verdicts: Mapping[Key, Verdict]
    revisions: Mapping[TenantId, Set[int]]


class Tenancy:
    """Knows the tenants and pipelines of one cluster, or of one `up`."""

    def __init__(
        self,
        cluster: str,
        site: Site,
        control: Rotations,
        journal: redis.Redis,
        vault: Vault,
        spread_s: float = SPREAD_S,
    ) -> None:
        conninfo = roots.conninfo(site)
        self.site = site
        self._cluster = cluster
        self._conninfo = conninfo
        self._control = control
        self._journal = journal
        self._reader = Reader()
        self._maker = Maker(cluster, control, journal, site, conninfo)
        self._leaver = Leaver(control, journal, conninfo)
        self._measures = Measures(control, journal)
        self._root_keys = RootKeys(vault, control, journal, spread_s)
        self._rotator = Rotator(control, journal, self._maker, spread_s)
        self._tell_at_s = 0.0

    async def bootstrap(self, superuser: str) -> None:
        """Make what all tenants share, and refuse servers that would break the promise.

        Raises:
            SetupError: a server's settings are wrong.
            UnavailableError: a server does not answer.
        """
        site = self.site
        await asyncio.to_thread(provision.bootstrap_store, superuser, site.roots, site.version)
        await asyncio.to_thread(closing.close_other_databases, superuser, provision.DATABASE)
        failpoint.reach("operator.before_migration")
        await asyncio.to_thread(provision.upgrade_control, self._conninfo)
        failpoint.reach("operator.before_library")
        await self.prepare()

    async def prepare(self) -> None:
        """Bring the journal to what this program needs, and check both servers.

        Raises:
            SetupError: a server's settings are wrong.
            UnavailableError: a server does not answer.
        """
        await self._prepare_journal()
        provision.check(await provision.journal_problems(self._journal))
        provision.check(await asyncio.to_thread(provision.store_problems, self._conninfo))

    async def _prepare_journal(self) -> None:
        site = self.site
        await provision.bootstrap_journal(self._journal)
        await provision.bootstrap_auth_user(self._journal, site.roots, site.before())

    # ---- one pass ----------------------------------------------------------------------------

    async def turn(
        self,
        found: Sequence[StoredObject],
        is_collected: Collected,
        gone: Gone,
        others: Set[tuple[str, str]] = frozenset(),
    ) -> Outcome:
        """Bring everything one step closer to what the resources say.

        Args:
            found: all resources.
            is_collected: whether collectors serve a pipeline: its journal may hold records.
            gone: called for each resource whose deletion is over.
            others: namespaces and names of LogTenants that are there and not among `found`.

        Raises:
            UnavailableError: the control schema does not answer.
            SetupError: the roots cannot be kept.
        """
        rows = await self._rows()
        over = await self._leaver.go_on(found, rows, await self._control.pipelines())
        left = set[Key]()
        for one in over:
            try:
                await gone(one)
            except errors.LogweirError as error:  # of this one alone
                self._leaver.note(key_of(one), str(error))
                continue
            left.add(key_of(one))
            self._maker.forget(key_of(one))
        found = [one for one in found if key_of(one) not in left]
        live, wrong = self._reader.read(one for one in found if one.deleted_at is None)
        wanted = _wanted(found, live, rows)
        await self._find_lost_users(wanted, rows)
        await self._maker.make(wanted)
        await self._rotate(live)
        rows = await self._rows()
        await self._measures.follow(one for one in rows.values() if _is_made(one))
        pipelines = await self._control.pipelines()
        planned = plan.plan(
            msgspec.structs.replace(
                self._gather(live, rows, pipelines), others=_others(found, live) | others
            )
        )
        served = _served(planned, rows, pipelines, is_collected)
        # Read after all steps: a key made before a Sign must not be missing in what comes after.
        revisions = _ingest_revisions(await self._control.live_revisions())
        verdicts = {
            **planned.verdicts,
            **{key: Verdict("InvalidSpec", why, is_stalled=True) for key, why in wrong.items()},
            **{
                key: Verdict("Deleting", self._leaver.waits_for(key))
                for one in found
                if one.deleted_at is not None and (key := key_of(one))
            },
        }
        await self._tell_again(rows)
        return Outcome(found, live, rows, served, verdicts, revisions)

    async def _find_lost_users(self, wanted: Sequence[Wanted], rows: Rows) -> None:
        """Have tenants made again whose users the journal has forgotten since we made them."""
        keys_of = {
            rows[one.live.stored.namespace, one.live.stored.name].id: one.live.key
            for one in wanted
            if one.is_made and self._maker.work(one.live.key).done
        }
        if not keys_of:
            return
        try:
            lost = await provision.tenants_without_users(self._journal, keys_of)
        except Exception:  # who needs the journal in this pass says so, of a tenant
            return
        if not lost:
            return
        logger.warning("users of the journal are gone", extra={"tenants": sorted(lost)})
        await self._prepare_journal()
        for tenant in lost:
            self._maker.again(keys_of[tenant])

    async def _rows(self) -> Rows:
        return rows_by_object(await self._control.tenants(), self._cluster)

    async def _tell_again(self, rows: Rows) -> None:
        """Tell all journals now and then which keys are revoked, as the role auth does: ingest
        trusts no key when nobody has for long, and either of the two is enough."""
        now_s = time.monotonic()
        if now_s < self._tell_at_s:
            return
        by_tenant: dict[TenantId, list[ApiKeyRow]] = {
            one.id: [] for one in rows.values() if _is_made(one)
        }
        for key in await self._control.api_keys():
            by_tenant.get(key.tenant, []).append(key)
        for tenant, found in by_tenant.items():
            await provision.publish_revocations(self._journal, tenant, *revocations(found))
        self._tell_at_s = now_s + TELL_AGAIN_S

    @property
    def is_between_roots(self) -> bool:
        """Whether a change of the roots was cut off, and `bootstrap` must put it right."""
        return self._root_keys.is_between

    async def finish_roots(self) -> None:
        """Finish a change of the roots that was cut off where nobody else can.

        Raises:
            SetupError: the roots cannot be kept.
        """
        site = await self._root_keys.finish(self.site)
        if site is not self.site:
            self._use(site)

    async def _rotate(self, live: Sequence[Live]) -> None:
        """Take the next step of each rotation."""
        requests = await self._control.requests()
        revisions = await self._control.live_revisions()
        rows = await self._control.tenants()
        by_object = rows_by_object(rows, self._cluster)
        tenants = [
            (one.resource, row)
            for one in live
            if isinstance(one.resource, LogTenant)
            and (row := by_object.get((one.stored.namespace, one.stored.name)))
        ]
        moving = [row.id for resource, row in tenants if rotates(resource, row)]
        site = await self._root_keys.turn(
            self.site, rows, revisions, moving, requests.get(rotations.ROOTS)
        )
        if site is not self.site:
            self._use(site)
        await self._rotator.turn(tenants, site, requests, self._root_keys.overlap_s)

    def _use(self, site: Site) -> None:
        """Have other roots, and the operator's password of them, from now on."""
        self.site, self._conninfo = site, roots.conninfo(site)
        self._control.use(self._conninfo)
        self._maker.use(site, self._conninfo)
        self._leaver.use(self._conninfo)

    def _gather(self, live: Sequence[Live], rows: Rows, pipelines: Sequence[Pipeline]) -> plan.Seen:
        ids = {(one.tenant, one.name): one.id for one in pipelines}
        seen_tenants, seen_pipelines = [], []
        for one in live:
            namespace, name, resource = one.stored.namespace, one.stored.name, one.resource
            if isinstance(resource, LogTenant):
                row, work = rows.get((namespace, name)), self._maker.work(one.key)
                seen_tenants.append(
                    SeenTenant(
                        resource=resource,
                        tenant=row.id if row else None,
                        is_provisioned=_is_made(row),
                        problem=work.problem,
                        claimed_by_other=work.claimed_by_other,
                    )
                )
                continue
            tenant = resource.spec.tenant_ref.name
            row, work = (
                rows.get((namespace, tenant)),
                self._maker.work(("LogTenant", namespace, tenant)),
            )
            mine = ids.get((row.id, name)) if row else None
            seen_pipelines.append(
                SeenPipeline(
                    resource=resource,
                    made_at=one.stored.created_at.timestamp(),
                    pipeline=mine,
                    is_provisioned=mine is not None and _is_made(row),
                    problem=work.problem,
                )
            )
        return plan.Seen(seen_tenants, seen_pipelines)

    # ---- what is known of one ----------------------------------------------------------------

    def key_texts(self, key: Key) -> Mapping[str, str] | None:
        """Return the texts of the API keys that a LogTenant names; None before it is made."""
        work = self._maker.work(key)
        return work.key_texts if work.done else None

    def again(self, key: Key) -> None:
        """Make a LogTenant again in the next pass, although nothing of it has changed."""
        self._maker.again(key)

    def failing(self, key: Key) -> Server:
        """Return which server did not let a LogTenant be made; empty: none, or it is not known."""
        return self._maker.work(key).failing

    def tenant_status(self, stored: StoredObject, row: Tenant) -> dict[str, Any]:
        """Return what the status of a LogTenant says of its row: id, credentials, storage."""
        problem = self._rotator.problem(row.id)
        status = {
            "tenantId": row.id,
            "credentials": rotating.status_of(stored.spec, row, problem),
        }
        if storage := self._measures.status(row.id):
            status["storage"] = storage
        return status


def _ingest_revisions(live: Sequence[LiveRevision]) -> dict[TenantId, set[int]]:
    revisions: dict[TenantId, set[int]] = {}
    for one in live:
        if one.is_ingest:
            revisions.setdefault(one.tenant, set()).add(one.revision)
    return revisions


def _is_made(row: Tenant | None) -> bool:
    return row is not None and row.state in states.MADE


def _others(found: Sequence[StoredObject], live: Sequence[Live]) -> Set[tuple[str, str]]:
    """LogTenants that are there and of which nobody can say now what they want."""
    known = {(one.stored.namespace, one.stored.name) for one in live if _is_tenant(one.stored)}
    return {(one.namespace, one.name) for one in found if _is_tenant(one)} - known


def _is_tenant(one: StoredObject) -> bool:
    return one.kind == "LogTenant"


def _wanted(found: Sequence[StoredObject], live: Sequence[Live], rows: Rows) -> list[Wanted]:
    """Each LogTenant with the pipelines that refer to it."""
    pipelines: dict[tuple[str, str], list[tuple[str, LogPipeline]]] = {}
    for one in live:
        if isinstance(one.resource, LogPipeline) and not one.resource.spec.suspend:
            at = (one.stored.namespace, one.resource.spec.tenant_ref.name)
            pipelines.setdefault(at, []).append((one.stored.name, one.resource))
    used = {(namespace, name) for (namespace, _), own in pipelines.items() for name, _ in own}
    kept: dict[tuple[str, str], list[str]] = {}
    for each in found:
        is_kept = each.deleted_at is None and (each.namespace, each.name) not in used
        if is_kept and not _is_tenant(each):
            kept.setdefault((each.namespace, tenant_name(each)), []).append(each.name)
    return [
        Wanted(one, one.resource, _is_made(rows.get(at)), pipelines.get(at, []), kept.get(at, ()))
        for one in live
        if isinstance(one.resource, LogTenant) and (at := (one.stored.namespace, one.stored.name))
    ]


def _served(
    planned: plan.Plan, tenants: Rows, pipelines: Sequence[Pipeline], is_collected: Collected
) -> list[Served]:
    """What roles serve: planned pipelines; to collectors also those that were open once, whatever
    is wrong with them now, until they are deleted: their journals may hold records."""
    rows = {one.id: one for one in pipelines}
    by_tenant = {one.id: one for one in tenants.values()}
    served = []
    for one in planned.served:
        row = rows.get(one.pipeline) if one.pipeline is not None else None
        if row is not None and row.tenant in by_tenant:
            served.append(Served(by_tenant[row.tenant], row, one.resource, is_open=True))
    open_ids = {one.pipeline.id for one in served}
    for row in rows.values():
        tenant = by_tenant.get(row.tenant)
        if row.id in open_ids or tenant is None or tenant.state not in states.COLLECTED:
            continue
        if is_collected(row, tenant):
            served.append(Served(tenant, row, None, is_open=False))
    return served
