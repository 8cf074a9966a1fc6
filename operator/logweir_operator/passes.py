"""One pass over one resource: its children, its replicas, its status, its events.

    key -> facts + cache -> manifests -> apply, prune -> scale -> status -> events

Every pass may be cut off anywhere and is done again. What it cannot do it says on the object.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from logweir.backends.control import Tenant
from logweir.core import binding, errors, names
from logweir.runtime import metrics
from logweir_operator import bindings, events, manifest, manifests, resources, scaling
from logweir_operator.apply import Children, ForeignObjectError, PredecessorError
from logweir_operator.bindings import Served, Site
from logweir_operator.cache import FINALIZER, Cache, Watched
from logweir_operator.config import Config, Servers
from logweir_operator.kube import RESOURCES, Kube, KubeError, Object, kind_of
from logweir_operator.model import LogPipeline, LogTenant, Resource, TenantPostgres
from logweir_operator.reporting import ABANDON, Problem, Reporter
from logweir_operator.resources import Key
from logweir_operator.scaler import Scaled, Scaler
from logweir_operator.turns import RECONCILE_AT, Facts, Turns
from logweir_operator.workqueue import Again, FailedError

logger = logging.getLogger(__name__)

PREDECESSOR_S: Final = 0.5


class _Deployment(msgspec.Struct, frozen=True):
    """What scaling reads of a Deployment."""

    spec: dict[str, Any]
    status: dict[str, Any] = {}


class Passes:
    """Makes passes, by what turns, cache and scaler know."""

    def __init__(
        self,
        config: Config,
        kube: Kube,
        known: Cache,
        turns: Turns,
        scaler: Scaler,
        servers: Servers,
        served_kinds: Callable[[], frozenset[str]],
    ) -> None:
        self._config = config
        self._kube = kube
        self._cache = known
        self._turns = turns
        self._scaler = scaler
        self._servers = servers
        self._served_kinds = served_kinds
        self._children = Children(kube, known)
        self._reporter = Reporter(kube, known, turns, scaler, served_kinds)

    async def work(self, key: Key) -> Again:
        """Make one pass.

        Raises:
            FailedError: it is to be made again later, or when the resource changes.
        """
        began_s = time.perf_counter()
        result = "failed"
        try:
            again, problem = await self._pass(key)
            result = "done" if problem is None else "stalled" if problem.is_stalled else "failed"
        except KubeError as error:
            raise FailedError(str(error), after_s=error.retry_after_s) from error
        finally:
            metrics.OPERATOR_RECONCILES.labels(key[0], result).inc()
            metrics.OPERATOR_RECONCILE_SECONDS.labels(key[0]).observe(time.perf_counter() - began_s)
        if problem is not None:
            raise FailedError(problem.message, is_final=problem.is_stalled, after_s=problem.after_s)
        return again

    async def _pass(self, key: Key) -> tuple[Again, Problem | None]:
        one = self._cache.resources.get(key)
        if one is None:
            self._reporter.forget(key)
            return Again(), None
        if not one.is_held:
            if one.is_leaving:
                return Again(), None
            await self.hold(one)
            one = self._cache.resources.get(key, one)
        if one.is_leaving and one.annotations.get(ABANDON) == "true":
            await self._abandon(one)
            return Again(), None
        facts = self._turns.facts.get(key)
        if facts is not None and facts.uid != one.uid:
            facts = None  # of an earlier one of this name
        corrected: list[str] = []
        problem = None
        try:
            if facts is not None and not _is_paused(one, facts):
                corrected = await self._make(one, facts)
        except KubeError as error:
            problem = _refused(error)
            if problem is None:
                return Again(), None
        except ForeignObjectError as error:
            problem = Problem("ForeignObject", str(error), is_stalled=True)
        except PredecessorError as error:
            problem = Problem("Retrying", str(error), after_s=PREDECESSOR_S)
        except Exception as error:
            logger.exception("pass failed", extra={"kind": key[0], "object": key[2]})
            # The message of any error may hold what nobody may read here.
            known = str(error) if isinstance(error, errors.LogweirError) else ""
            problem = Problem(
                "Retrying", known or f"{type(error).__name__}: see the operator's log."
            )
        await self._reporter.report(one, facts, corrected, problem)
        return Again(), problem

    # ---- holding and letting go --------------------------------------------------------------

    async def hold(self, one: Watched) -> None:
        """Put our finalizer on a resource: it must not go before what it has is put away."""
        await self._set_finalizers(one, [*one.finalizers, FINALIZER])

    async def let_go(self, one: Watched) -> None:
        """Take our finalizer away; a resource that is gone or another one by now is left."""
        now = self._cache.resources.get(one.key)
        if now is None or now.uid != one.uid:
            return
        one = now
        await self._set_finalizers(one, [name for name in one.finalizers if name != FINALIZER])
        logger.info("deleted", extra={"kind": one.stored.kind, "object": one.stored.name})

    async def _set_finalizers(self, one: Watched, finalizers: Sequence[str]) -> None:
        kind, namespace, name = one.key
        change = {
            "metadata": {
                "finalizers": list(finalizers),
                "resourceVersion": str(one.version),
                "uid": one.uid,
            }
        }
        answer = await self._kube.patch(RESOURCES[kind], namespace, name, change)
        if answer is None:  # it is gone
            self._cache.forget_resource(one.key, one.uid)
            return
        self._cache.put_resource(kind, answer)
        self._turns.changed()

    async def _abandon(self, one: Watched) -> None:
        """Let a resource go with what it has outside of Kubernetes, as a person asks for."""
        message = (
            f"The annotation {ABANDON} is set: it goes without what it has in PostgreSQL and Redis."
            " A deletion that had begun there goes on when the servers are back; else its data and"
            " its keys stay, and the next of its name gets them."
        )
        await self._reporter.post(one, [events.Event("Warning", "CleanupBlocked", message)])
        await self.let_go(one)

    # ---- children ----------------------------------------------------------------------------

    async def _make(self, one: Watched, facts: Facts) -> list[str]:
        intents = self._intents(one, facts)
        if intents is None:
            return []
        is_forced = one.annotations.get(RECONCILE_AT, "") != one.stored.status.get(
            "lastHandledReconcileAt", ""
        )
        corrected = await self._children.make(one, intents, is_forced=is_forced)
        kept = {
            (each["kind"], each["metadata"]["namespace"], each["metadata"]["name"])
            for each in intents
        }
        if one.stored.kind == "LogTenant" and facts.key_texts is None:  # not known yet
            kept |= {
                each.key for each in self._cache.children_of(one.key) if each.key[0] == "Secret"
            }
        await self._children.prune(one, kept)
        if one.stored.kind == "LogPipeline":
            await self._scale(one)
        return corrected

    def _intents(self, one: Watched, facts: Facts) -> list[Object] | None:
        """Return the children that a resource should have; None: those that it has."""
        resource = facts.resource or _resource_of(one)
        if resource is None:
            return None
        if isinstance(resource, LogTenant):
            return manifests.tenant_objects(self._tenant_view(one, resource, facts))
        if facts.served is None:
            # Nothing of it was ever served, or nothing is any more.
            return None if facts.verdict is not None and _may_pass(facts.verdict.reason) else []
        return manifests.pipeline_objects(self._pipeline_view(one, resource, facts.served, facts))

    def _tenant_view(self, one: Watched, resource: LogTenant, facts: Facts) -> manifests.TenantView:
        tenant = facts.tenant.id if facts.tenant is not None else ""
        return manifests.TenantView(
            resource=resource,
            uid=one.uid,
            tenant=tenant,
            key_texts=facts.key_texts or {},
            urls=facts.urls,
            config=self._config,
        )

    def _pipeline_view(
        self, one: Watched, resource: LogPipeline, served: Served, facts: Facts
    ) -> manifests.PipelineView:
        site = self._pods_site()
        revisions = {served.tenant.id: facts.revisions}
        return manifests.PipelineView(
            resource=resource,
            uid=one.uid,
            tenant_name=resource.spec.tenant_ref.name,
            tenant=served.tenant.id,
            pipeline=served.pipeline.id,
            ingest_binding=msgspec.json.encode(bindings.ingest([served], site, revisions)),
            collector_binding=msgspec.json.encode(bindings.collector([served], site)),
            cas=self._servers.cas,
            config=self._config,
            served_kinds=self._served_kinds(),
            redis=self._redis(site, served),
            redis_tls=site.journal.tls,
            is_open=served.is_open,
        )

    def _pods_site(self) -> Site:
        return msgspec.structs.replace(
            self._turns.site, store=self._servers.pods_store, journal=self._servers.pods_journal
        )

    @staticmethod
    def _redis(site: Site, served: Served) -> tuple[str, binding.Login]:
        """Address and login by which KEDA looks at the journal."""
        login = site.journal_login(served.tenant, names.redis_user(served.tenant.id, "col"))
        return f"{site.journal.host}:{site.journal.port}", login

    async def _scale(self, one: Watched) -> None:
        """Give the collectors their number."""
        decision = self._scaler.decisions.get(one.key)
        _, namespace, name = one.key
        live = self._cache.child(("Deployment", namespace, f"{name}-collector"))
        if decision is None or live is None or decision.reason == "ManagedByKeda":
            return
        if (live.document()["spec"] or {}).get("replicas", 1) == decision.replicas:
            return
        change = {"spec": {"replicas": decision.replicas}}
        kind = kind_of("Deployment")
        await self._kube.patch(kind, namespace, live.key[2], change, subresource="scale")
        metrics.OPERATOR_APPLIES.labels("Deployment", "scale", "done").inc()
        logger.info(
            "collectors scaled",
            extra={"pipeline": name, "replicas": decision.replicas, "why": decision.message},
        )

    def scaled(self) -> dict[Key, Scaled]:
        """Return the pipelines whose collectors are ours to count."""
        found: dict[Key, Scaled] = {}
        for key, facts in self._turns.facts.items():
            one, served = self._cache.resources.get(key), facts.served
            if one is None or served is None or _is_paused(one, facts):
                continue
            live = self._cache.child(("Deployment", key[1], f"{key[2]}-collector"))
            resource = facts.resource or _resource_of(one)
            if live is None or not isinstance(resource, LogPipeline):
                continue
            counts = msgspec.json.decode(live.data, type=_Deployment)
            found[key] = Scaled(
                tenant=served.tenant.id,
                pipeline=served.pipeline.id,
                resource=resource if served.is_open else _draining(resource),
                most=0,
                current=counts.spec.get("replicas", 1),
                ready=counts.status.get("readyReplicas", 0),
            )
        return self._within_budget(found)

    def _within_budget(self, found: Mapping[Key, Scaled]) -> dict[Key, Scaled]:
        """Add what the connections of each tenant allow, by what its other pipelines have."""
        counts = Counter[str]()
        for one in found.values():
            counts[one.tenant] += one.current
        budgeted = {}
        for key, one in found.items():
            tenant = self._turns.facts[key].tenant
            limit = _connection_limit(tenant)
            most = scaling.budget(limit, counts[one.tenant] - one.current)
            budgeted[key] = msgspec.structs.replace(one, most=most)
        return budgeted


def _resource_of(one: Watched) -> Resource | None:
    try:
        return resources.resource_of(one.stored)
    except manifest.ManifestError:
        return None


def _draining(resource: LogPipeline) -> LogPipeline:
    """A pipeline that goes: as many collectors as its backlog needs, whatever it said before."""
    collector = resource.spec.collector
    scaling_spec = msgspec.structs.replace(collector.autoscaling, driver="Internal", min_replicas=0)
    collector = msgspec.structs.replace(collector, replicas=None, autoscaling=scaling_spec)
    spec = msgspec.structs.replace(resource.spec, collector=collector)
    return msgspec.structs.replace(resource, spec=spec)


def _connection_limit(tenant: Tenant | None) -> int:
    postgres = (tenant.spec.get("postgres") or {}) if tenant is not None else {}
    found: int = postgres.get("connectionLimit", TenantPostgres().connection_limit)
    return found


def _is_paused(one: Watched, facts: Facts) -> bool:
    """Whether nothing of a resource is to be changed; one that goes is put away all the same."""
    is_suspended = facts.verdict is not None and facts.verdict.reason == "Suspended"
    return is_suspended and not one.is_leaving


def _refused(error: KubeError) -> Problem | None:
    """What the API server's refusal of a child means; None: nothing is to be said of it."""
    if error.is_terminating:
        return None
    if error.is_final:
        return Problem("InvalidSpec", str(error), is_stalled=True)
    if error.is_forbidden and "exceeded quota" in str(error):
        return Problem("Retrying", str(error), after_s=error.retry_after_s)
    if error.is_forbidden:
        return Problem("PermissionDenied", str(error), after_s=error.retry_after_s)
    return Problem("Retrying", str(error), after_s=error.retry_after_s)


def _may_pass(reason: str) -> bool:
    """Whether a resource of which nothing is served may be served soon, so that its children are
    best left as they are."""
    return reason in ("Progressing", "Retrying", "Suspended", "InvalidSpec", "IdentityClaimed")
