"""Makes the children of one resource as they are wanted: apply what differs, delete what is left.

    intents -> is it there? ours? as wanted? -> server-side apply      left over, ours -> delete

What is not ours is never touched. What is as it is wanted costs no request, also after a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, NoReturn

from logweir.runtime import metrics
from logweir_operator import cache, drift
from logweir_operator.cache import Cache, Child, Watched
from logweir_operator.kube import Kube, KubeError, Object, kind_of
from logweir_operator.resources import Key

logger = logging.getLogger(__name__)

ADOPT: Final = "logweir.dev/adopt"
"""Annotation by which a person lets us take over an object of the same name."""


class ForeignObjectError(Exception):
    """An object of a child's name is somebody else's."""


class PredecessorError(Exception):
    """A child of an earlier resource of this name is still being collected."""


class Children:
    """Applies and prunes, by what the cache knows."""

    def __init__(self, kube: Kube, known: Cache) -> None:
        self._kube = kube
        self._cache = known

    async def make(
        self, owner: Watched, intents: Sequence[Object], *, is_forced: bool = False
    ) -> list[str]:
        """Apply in their order what is not as it is wanted; return the fields that somebody else
        had changed, as `Deployment/web-ingest.spec.replicas`.

        Args:
            owner: whose children they are.
            intents: with their owner's reference.
            is_forced: apply also what seems to be right.

        Raises:
            ForeignObjectError: an object of this name is somebody else's.
            PredecessorError: one is of an earlier resource, and goes now.
            KubeError: the API server refused one, or did not answer.
        """
        corrected = []
        for intent in intents:
            wanted = drift.signed(intent)
            key: Key = (intent["kind"], intent["metadata"]["namespace"], intent["metadata"]["name"])
            live = self._cache.child(key) or await self._unseen(key)
            if live is not None:
                if _is_predecessors(owner, live):
                    await self._remove(owner, live)
                self._check_ours(owner, live)
                document = live.document()
                different = drift.difference(document, wanted)
                if not different and not is_forced:
                    continue
                is_old_intent = _intent_of(document) == _intent_of(wanted)
                if different and is_old_intent:
                    corrected.append(f"{key[0]}/{key[2]}{different}")
                    metrics.OPERATOR_DRIFT.labels(key[0]).inc()
            # With the uid of what was looked at: somebody else's of this name is not meant.
            known = {"uid": live.uid} if live is not None else {}
            answer = await self._apply({**wanted, "metadata": {**wanted["metadata"], **known}})
            self._cache.put_child(key[0], answer)
        return corrected

    async def _apply(self, wanted: Object) -> Object:
        kind = wanted["kind"]
        try:
            answer = await self._kube.apply(wanted)
        except KubeError:
            metrics.OPERATOR_APPLIES.labels(kind, "apply", "failed").inc()
            raise
        metrics.OPERATOR_APPLIES.labels(kind, "apply", "done").inc()
        return answer

    async def _unseen(self, key: Key) -> Child | None:
        """An object that the watch does not show: there is none, or it lacks our label."""
        kind, namespace, name = key
        found = await self._kube.get(kind_of(kind), namespace, name)
        return None if found is None else cache.child(kind, {**found, "kind": kind})

    def _check_ours(self, owner: Watched, live: Child) -> None:
        if live.owner_uid == owner.uid:
            return
        kind, _, name = live.key
        meta = live.document()["metadata"]
        is_ours = not live.owner_uid and live.owner == owner.key and self._was_made(meta)
        if is_ours or (meta.get("annotations") or {}).get(ADOPT) == "true":
            return
        raise ForeignObjectError(
            f"{kind} {name} is there already and is not this {owner.stored.kind}'s. Rename one of"
            f" both, or annotate it with {ADOPT}=true to let it be taken over."
        )

    async def _remove(self, owner: Watched, live: Child) -> NoReturn:
        """Delete a child of an earlier resource of this name, which is gone: the API server does so
        too, but after minutes when it was away. What is not older than our resource may be of a
        later one, of which only another operator knows yet."""
        kind, namespace, name = live.key
        made_at = datetime.fromisoformat(live.document()["metadata"]["creationTimestamp"])
        if made_at < owner.stored.created_at:
            await self._kube.delete(kind_of(kind), namespace, name, live.uid)
            self._cache.forget_child(live.key, live.uid)
        raise PredecessorError(f"{kind} {name} of an earlier {owner.stored.kind} still goes.")

    @staticmethod
    def _was_made(meta: Object) -> bool:
        """Whether a child whose owner's reference was taken away was made by us."""
        return drift.INTENT in (meta.get("annotations") or {})

    async def prune(self, owner: Watched, kept: Collection[Key]) -> None:
        """Delete the children that are not wanted any more.

        Raises:
            KubeError: the API server refused, or did not answer.
        """
        for one in self._cache.children_of(owner.key):
            if one.key in kept or one.owner_uid != owner.uid or one.is_leaving:
                continue
            kind, namespace, name = one.key
            await self._kube.delete(kind_of(kind), namespace, name, one.uid)
            metrics.OPERATOR_APPLIES.labels(kind, "delete", "done").inc()


def _is_predecessors(owner: Watched, live: Child) -> bool:
    """Whether a child is of an earlier resource of its owner's name."""
    return bool(live.owner_uid) and live.owner_uid != owner.uid and live.owner == owner.key


def _intent_of(document: Object) -> str:
    found: str = (document["metadata"].get("annotations") or {}).get(drift.INTENT, "")
    return found
