"""Runs the pass over PostgreSQL and Redis when something has changed, and tells whom it concerns.

resources of the cache -> tenancy.turn -> facts by key -> queue, where they differ from before
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from logweir.backends.control import Pipeline, StoredObject, Tenant
from logweir.backends.rotations import Rotations
from logweir.core import errors, states
from logweir.core.names import TenantId
from logweir.runtime import metrics
from logweir.runtime.life import Life
from logweir_operator.bindings import Served, Site
from logweir_operator.cache import Cache, Watched
from logweir_operator.making import Server, server_of
from logweir_operator.manifests import url
from logweir_operator.model import LogPipeline, LogTenant, Resource
from logweir_operator.own_secrets import RoleSecrets
from logweir_operator.plan import Verdict
from logweir_operator.resources import Key, key_of, tenant_name
from logweir_operator.tenancy import Outcome, Tenancy

logger = logging.getLogger(__name__)

IDLE_S: Final = 5.0
BUSY_S: Final = 1.0
"""Between two passes while a tenant is made, rotates, or goes."""

REST: Final = 50
"""At rest a pass is followed by so many times its length, but for `IDLE_S` at least."""

LONGEST_WAIT_S: Final = 30.0

ROTATE_AT: Final = "logweir.dev/rotate-at"
RECONCILE_AT: Final = "logweir.dev/reconcile-at"


class Facts(msgspec.Struct, frozen=True):
    """What is true of one resource outside of Kubernetes.

    Attributes:
        uid: of the resource, that this is true of: another one of its name is another matter.
        generation: likewise.
        resource: as the model knows it; None: it does not, or the resource goes.
        verdict: why it is not ready; None: it is.
        tenant: row of the tenant; None before its id is claimed.
        served: of a pipeline, what is served of it; None: nothing.
        key_texts: of a tenant, its API keys; None before it is made.
        revisions: of a pipeline, signing revisions of its tenant's ingest keys.
        roots: version of the roots that bindings and keys of it come from.
        urls: of a tenant, where each key is good that is for one pipeline.
        failing: of a tenant, the server that did not let it be made.
        rest: of a tenant, what its status says beside: credentials, storage, pipelines.
    """

    uid: str = ""
    generation: int = 0
    resource: Resource | None = None
    verdict: Verdict | None = None
    tenant: Tenant | None = None
    served: Served | None = None
    key_texts: Mapping[str, str] | None = None
    revisions: frozenset[int] = frozenset()
    roots: int = 0
    urls: Mapping[str, str] = {}
    failing: Server = ""
    rest: dict[str, Any] = {}


class Turns:
    """Knows the facts of the last pass."""

    def __init__(
        self,
        tenancy: Tenancy,
        control: Rotations,
        known: Cache,
        roles: RoleSecrets,
        told: Callable[[Key], None],
        let_go: Callable[[Watched], Awaitable[None]],
    ) -> None:
        self._tenancy = tenancy
        self._control = control
        self._cache = known
        self._roles = roles
        self._told = told
        self._let_go = let_go
        self._changed = asyncio.Event()
        self._asked: dict[str, str] = {}
        self._looked: dict[str, str] = {}
        self._is_prepared = False
        self.facts: dict[Key, Facts] = {}
        self.is_begun = False
        """Whether one pass has ended, however."""
        self.problem = ""
        """Why the last pass did not reach its end; empty when it did."""
        self.failing: Server = ""
        """The server of that, if it is known."""

    @property
    def site(self) -> Site:
        """Where the servers are, with the roots of now."""
        return self._tenancy.site

    def changed(self) -> None:
        """Make a pass soon."""
        self._changed.set()

    def rotation_asked(self, uid: str) -> str:
        """Return the value of a tenant's `logweir.dev/rotate-at` that was answered last."""
        return self._asked.get(uid, "")

    def has_looked(self, one: Watched) -> bool:
        """Whether what `logweir.dev/reconcile-at` asks for now was done in the servers."""
        return self._looked.get(one.uid) == one.annotations.get(RECONCILE_AT)

    async def run(self, life: Life) -> None:
        """Make passes until the process stops."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            began_s = loop.time()
            try:
                is_busy = await self._turn()
                failures, problem = 0, ""
            except errors.LogweirError as error:
                is_busy, failures, problem = True, failures + 1, str(error)
                self.failing = server_of(error)
            except Exception as error:
                logger.exception("pass failed")
                is_busy, failures, problem = True, failures + 1, repr(error)
                self.failing = server_of(error)
            self.is_begun = True
            if problem:  # a server that was away may have come back as another one
                self._is_prepared = False
            if problem != self.problem:
                self.problem = problem
                logger.log(
                    logging.WARNING if problem else logging.INFO,
                    "pass over databases",
                    extra={"problem": problem},
                )
                for key in self._cache.resources:
                    self._told(key)
            took_s = loop.time() - began_s
            metrics.OPERATOR_TURN_SECONDS.observe(took_s)
            if failures:
                if await life.pause(min(LONGEST_WAIT_S, BUSY_S * 2 ** min(failures - 1, 5))):
                    return
                continue
            # No more than half of the time is for passes, however fast resources change.
            if await life.pause(max(0.2, took_s)):
                return
            wait_s = BUSY_S if is_busy else max(IDLE_S, REST * took_s)
            if await life.pause_until(self._changed, wait_s):
                return

    async def _turn(self) -> bool:
        """Make one pass; return whether the next one should come soon."""
        if not self._is_prepared:
            await self._tenancy.finish_roots()
            await self._tenancy.prepare()
            self._is_prepared = True
        held = self._held()
        await self._ask_for_rotations(held)
        looked = self._look_again(held)

        async def gone(one: StoredObject) -> None:
            await self._let_go(held[key_of(one)])

        outcome = await self._tenancy.turn(
            [one.stored for one in held.values()],
            self._is_collected,
            gone,
            _places(self._cache.resources) - _places(held),
        )
        await self._roles.write(self._tenancy.site)
        facts = self._facts_of(outcome, held)
        before, self.facts = self.facts, facts
        for one in looked:
            self._looked[one.uid] = one.annotations[RECONCILE_AT]
            self._told(one.key)
        for key in facts.keys() | before.keys():
            if facts.get(key) != before.get(key):
                self._told(key)
        return any(
            one.state in states.LEAVING or one.state == "provisioning" or one.rotation != "steady"
            for one in outcome.rows.values()
        ) or any(one.is_leaving for one in held.values())

    def _held(self) -> dict[Key, Watched]:
        """The resources that do not go without us, or did not: a finalizer that somebody took away
        is put back, and meanwhile nothing is taken down."""

        def is_ours(one: Watched) -> bool:
            facts = self.facts.get(one.key)
            return one.is_held or (facts is not None and facts.uid == one.uid)

        return {one.key: one for one in self._cache.resources.values() if is_ours(one)}

    def _look_again(self, held: Mapping[Key, Watched]) -> list[Watched]:
        """Have tenants made again whose owner asks for it, or for one of their pipelines; return
        what was asked for."""
        asked = []
        for key, one in held.items():
            wanted = one.annotations.get(RECONCILE_AT, "")
            handled = one.stored.status.get("lastHandledReconcileAt", "")
            if wanted in ("", handled) or self._looked.get(one.uid) == wanted:
                continue
            asked.append(one)
            name = tenant_name(one.stored) if key[0] == "LogPipeline" else key[2]
            self._tenancy.again(("LogTenant", key[1], name))
        uids = {one.uid for one in held.values()}
        for known in (self._looked, self._asked):
            for gone in known.keys() - uids:
                del known[gone]
        return asked

    async def _ask_for_rotations(self, held: Mapping[Key, Watched]) -> None:
        for key, one in held.items():
            wanted = one.annotations.get(ROTATE_AT, "")
            handled = one.stored.status.get("lastHandledRotateAt", "")
            facts = self.facts.get(key)
            if not wanted or wanted in (handled, self._asked.get(one.uid)):
                continue
            if key[0] == "LogTenant" and facts is not None and facts.tenant is not None:
                await self._control.ask(facts.tenant.id, None)
                self._asked[one.uid] = wanted
                self._told(key)

    def _is_collected(self, pipeline: Pipeline, tenant: Tenant) -> bool:
        """Whether collectors were made for a pipeline, or it goes: its journal may hold records."""
        one = self._cache.resources.get(("LogPipeline", tenant.namespace, pipeline.name))
        name = f"{pipeline.name}-collector"
        is_made = self._cache.child(("Deployment", tenant.namespace, name)) is not None
        return is_made or (one is not None and one.is_leaving)

    def _facts_of(self, outcome: Outcome, held: Mapping[Key, Watched]) -> dict[Key, Facts]:
        roots = self._tenancy.site.version
        served = {(one.tenant.namespace, one.pipeline.name): one for one in outcome.served}
        live = {one.key: one.resource for one in outcome.live}
        own: dict[tuple[str, str], dict[str, LogPipeline]] = {}
        for (_, namespace, name), each in live.items():
            if isinstance(each, LogPipeline):
                own.setdefault((namespace, each.spec.tenant_ref.name), {})[name] = each
        facts = {}
        for one in outcome.found:
            key, at = key_of(one), (one.namespace, one.name)
            verdict = outcome.verdicts.get(key)
            if one.kind == "LogTenant":
                facts[key] = self._tenant_facts(held[key], outcome, live.get(key), own.get(at, {}))
                continue
            mine = served.get(at)
            facts[key] = Facts(
                uid=held[key].uid,
                generation=one.generation,
                resource=live.get(key),
                verdict=verdict,
                tenant=mine.tenant if mine else None,
                served=mine,
                revisions=_revisions(outcome, mine),
                roots=roots,
            )
        return facts

    def _tenant_facts(
        self,
        held: Watched,
        outcome: Outcome,
        resource: Resource | None,
        own: Mapping[str, LogPipeline],
    ) -> Facts:
        """Facts of a tenant; `own` are the LogPipelines that refer to it, by name."""
        key, one = held.key, held.stored
        row = outcome.rows.get((one.namespace, one.name))
        urls = {}
        if row is not None and isinstance(resource, LogTenant):
            urls = {
                wanted.name: url(own[wanted.pipeline], row.id)
                for wanted in resource.spec.api_keys
                if wanted.pipeline is not None and wanted.pipeline in own
            }
        rest: dict[str, Any] = {"pipelines": len(own)}
        if row is not None:
            rest |= self._tenancy.tenant_status(one, row)
        return Facts(
            uid=held.uid,
            generation=one.generation,
            resource=resource,
            verdict=outcome.verdicts.get(key),
            tenant=row,
            key_texts=self._tenancy.key_texts(key),
            roots=self._tenancy.site.version,
            urls=urls,
            failing=self._tenancy.failing(key),
            rest=rest,
        )


def _places(keys: Iterable[Key]) -> set[tuple[str, str]]:
    """Namespaces and names of the LogTenants among these."""
    return {key[1:] for key in keys if key[0] == "LogTenant"}


def _revisions(outcome: Outcome, served: Served | None) -> frozenset[int]:
    tenant: TenantId | None = served.tenant.id if served else None
    return frozenset(outcome.revisions.get(tenant, ())) if tenant is not None else frozenset()
