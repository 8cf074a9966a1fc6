"""Writes the status of a resource and posts its events, where they differ from what is there.

facts + live children + scaler -> status.py -> status of the object
                               -> events.py -> Events
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from logweir.core import states
from logweir_operator import events, status
from logweir_operator.cache import Cache, Watched
from logweir_operator.kube import RESOURCES, STATUS_MANAGER, Kube, KubeError, Object
from logweir_operator.making import Server
from logweir_operator.manifests import key_secret_name, url
from logweir_operator.model import LogPipeline
from logweir_operator.plan import Verdict
from logweir_operator.resources import Key
from logweir_operator.scaler import Scaler
from logweir_operator.turns import RECONCILE_AT, Facts, Turns

logger = logging.getLogger(__name__)

ABANDON: Final = "logweir.dev/abandon-external"
COMPONENT: Final = "logweir-operator"


class Problem(msgspec.Struct, frozen=True):
    """Why a pass did not reach its end: a reason of the closed list, and when it is tried again."""

    reason: str
    message: str
    is_stalled: bool = False
    after_s: float = 0.0


class Reporter:
    """Says on objects what is true of them."""

    def __init__(
        self,
        kube: Kube,
        known: Cache,
        turns: Turns,
        scaler: Scaler,
        served_kinds: Callable[[], frozenset[str]],
    ) -> None:
        self._kube = kube
        self._cache = known
        self._turns = turns
        self._scaler = scaler
        self._served_kinds = served_kinds
        self._news = events.Memory()

    def forget(self, key: Key) -> None:
        """A resource is gone."""
        self._news.forget(key)

    async def report(
        self,
        one: Watched,
        facts: Facts | None,
        corrected: Sequence[str],
        problem: Problem | None,
    ) -> None:
        """Write the status if it is another one, and post what has changed.

        Args:
            one: the resource.
            facts: of it; None: nobody has looked at it yet.
            corrected: fields of children that were put right.
            problem: why its children could not be made as they should be.

        Raises:
            KubeError: the API server refused, or did not answer.
        """
        before = one.stored.status
        if facts is None and not self._turns.problem:
            return  # it is looked at soon; after a restart, what it says was true
        verdict = self._verdict(one, facts, problem)
        # What the facts are of: a later generation was not looked at yet.
        is_of_facts = facts is not None and not self._unreached(one, facts)
        generation = facts.generation if facts and is_of_facts else one.stored.generation
        of_kind = self._tenant if one.stored.kind == "LogTenant" else self._pipeline
        now = of_kind(one, facts, verdict, generation, self._handled(one, facts, problem))
        if _without_time(now) != _without_time(before):
            await self._write(one, now)
        found = events.between(before, now, corrected)
        if one.is_leaving and self._turns.problem:
            found.append(_blocked(self._turns.problem))
        await self.post(one, found)

    def _unreached(self, one: Watched, facts: Facts) -> bool:
        """Whether the servers do not answer, and what is asked for now has not been done."""
        is_done = facts.generation == one.stored.generation and not one.is_leaving
        return bool(self._turns.problem) and not is_done

    def _verdict(
        self, one: Watched, facts: Facts | None, problem: Problem | None
    ) -> Verdict | None:
        if problem is not None:
            return Verdict(problem.reason, problem.message, is_stalled=problem.is_stalled)
        if facts is None or self._unreached(one, facts):
            return Verdict("Deleting" if one.is_leaving else "Retrying", self._turns.problem)
        if facts.verdict is None and self._turns.problem and one.stored.kind == "LogTenant":
            return Verdict("Retrying", self._turns.problem)
        return facts.verdict

    # ---- what is known of each kind ----------------------------------------------------------

    def _tenant(
        self,
        one: Watched,
        facts: Facts | None,
        verdict: Verdict | None,
        generation: int,
        rest: dict[str, Any],
    ) -> dict[str, Any]:
        if asked := self._turns.rotation_asked(one.uid) or _text(one, "lastHandledRotateAt"):
            rest["lastHandledRotateAt"] = asked
        failing: Server = ""
        if facts is not None:
            rest |= facts.rest
            failing = facts.failing
            rest["apiKeys"] = [
                {"name": name, "secretName": key_secret_name(one.stored.name, name)}
                for name in sorted(facts.key_texts or ())
            ]
            if facts.key_texts is None:  # after a restart it is not known yet
                rest["apiKeys"] = one.stored.status.get("apiKeys", [])
        if self._turns.problem:
            failing = self._turns.failing
        return status.tenant_status(
            status.TenantFacts(
                generation=generation,
                verdict=verdict,
                is_made=_is_made(facts),
                failing=failing,
                rest=rest,
            ),
            one.stored.status,
            datetime.now(UTC),
        )

    def _pipeline(
        self,
        one: Watched,
        facts: Facts | None,
        verdict: Verdict | None,
        generation: int,
        rest: dict[str, Any],
    ) -> dict[str, Any]:
        _, namespace, name = one.key
        resource = facts.resource if facts is not None else None
        resource = resource if isinstance(resource, LogPipeline) else None
        if facts is not None and facts.served is not None:
            rest["pipelineId"] = facts.served.pipeline.id
            if resource is not None:
                rest["url"] = url(resource, facts.served.tenant.id)
        kind = resource.spec.exposure.type if resource is not None else "None"
        return status.pipeline_status(
            status.PipelineFacts(
                resource=resource,
                generation=generation,
                verdict=verdict,
                ingest=self._live("Deployment", namespace, f"{name}-ingest"),
                collector=self._live("Deployment", namespace, f"{name}-collector"),
                route=None if kind == "None" else self._live(kind, namespace, f"{name}-ingest"),
                served_kinds=self._served_kinds(),
                decision=self._scaler.decisions.get(one.key),
                sample=self._scaler.samples.get(one.key),
                fresh=self._scaler.fresh.get(one.key),
                selector=f"app.kubernetes.io/name=logweir,app.kubernetes.io/component=collector,"
                f"app.kubernetes.io/instance={name}",
                rest=rest,
            ),
            one.stored.status,
            datetime.now(UTC),
        )

    def _live(self, kind: str, namespace: str, name: str) -> Object | None:
        found = self._cache.child((kind, namespace, name))
        return found.document() if found is not None else None

    def _handled(
        self, one: Watched, facts: Facts | None, problem: Problem | None
    ) -> dict[str, Any]:
        """Which `reconcile-at` was answered: the one of now when this pass has reached its end."""
        verdict = facts.verdict if facts is not None else None
        is_suspended = verdict is not None and verdict.reason == "Suspended"
        is_done = problem is None and self._turns.has_looked(one) and not is_suspended
        handled = one.annotations.get(RECONCILE_AT, "") if is_done else ""
        handled = handled or _text(one, "lastHandledReconcileAt")
        return {"lastHandledReconcileAt": handled} if handled else {}

    # ---- to the API server -------------------------------------------------------------------

    async def _write(self, one: Watched, wanted: Mapping[str, Any]) -> None:
        kind, namespace, name = one.key
        answer = await self._kube.apply(
            {
                "apiVersion": RESOURCES[kind].api_version,
                "kind": kind,
                "metadata": {"namespace": namespace, "name": name, "uid": one.uid},
                "status": wanted,
            },
            manager=STATUS_MANAGER,
            subresource="status",
        )
        self._cache.put_resource(kind, answer)

    async def post(self, one: Watched, found: Sequence[events.Event]) -> None:
        """Post events that were not posted lately; one that is refused is only logged."""
        for each in self._news.fresh(one.key, found, time.monotonic()):
            try:
                await self._kube.create(_event(one, each, datetime.now(UTC)))
            except KubeError as error:
                logger.warning("event not posted", extra={"problem": str(error)})


def _event(one: Watched, found: events.Event, at: datetime) -> Object:
    kind, namespace, name = one.key
    moment = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": f"{name}.{secrets.token_hex(8)}"},
        "involvedObject": {
            "apiVersion": RESOURCES[kind].api_version,
            "kind": kind,
            "namespace": namespace,
            "name": name,
            "uid": one.uid,
            "resourceVersion": str(one.version),
        },
        "type": found.type,
        "reason": found.reason,
        "message": found.message[:1024],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }


def _blocked(problem: str) -> events.Event:
    message = (
        f"What it has in PostgreSQL and Redis cannot be put away: {problem} It is tried again. To"
        f" let this object go without it, annotate it with {ABANDON}=true."
    )
    return events.Event("Warning", "CleanupBlocked", message)


def _is_made(facts: Facts | None) -> bool:
    return facts is not None and facts.tenant is not None and facts.tenant.state in states.MADE


def _text(one: Watched, name: str) -> str:
    found: str = one.stored.status.get(name, "")
    return found


def _without_time(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """A status without when its sample was taken: by itself that is no news."""
    if "lag" not in found:
        return found
    lag = {name: value for name, value in found["lag"].items() if name != "sampledAt"}
    return {**found, "lag": lag}
