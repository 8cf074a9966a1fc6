"""Keeps the cache true: by events as they come, by listings at the start and now and then.

    kopf --event--> take --changed--> queue        listing --what no event has said--> queue

A watch that begins anew says nothing of what was deleted meanwhile, so each time that one seems to
have done so, all is listed again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from logweir.runtime import metrics
from logweir.runtime.life import Life
from logweir_operator.cache import Cache, Watched, watched
from logweir_operator.kube import KINDS, RESOURCES, Kube, KubeError, Listing
from logweir_operator.resources import Key
from logweir_operator.watching import SELECTOR

logger = logging.getLogger(__name__)

SETTLE_S: Final = 3.0
"""A listing comes so long after a watch has begun anew: several begin at the same time."""

QUIET_START_S: Final = 20.0
"""For so long after the start, watches list for the first time, which is nothing to wonder at."""

RETRY_S: Final = 5.0


class Knowing:
    """What the API server has, and whom to tell when it changes.

    Args:
        kube: the API server.
        known: what is known.
        namespaces: that are watched; none: all.
        kinds: of children.
        told: called with the key of each resource that must be looked at again.
        changed: called when a resource itself has changed, came, or went.
    """

    def __init__(
        self,
        kube: Kube,
        known: Cache,
        namespaces: Collection[str],
        kinds: Collection[str],
        told: Callable[[Key], None],
        changed: Callable[[], None],
    ) -> None:
        self._kube = kube
        self._cache = known
        self._namespaces = tuple(namespaces)
        self._kinds = tuple(kinds)
        self._told = told
        self._changed = changed
        self._seen: dict[Key, Watched] = {}  # what resources were when they were last told of
        self._began_anew = asyncio.Event()
        self._started_s = asyncio.get_running_loop().time()
        self.is_synced = asyncio.Event()

    def seen(self, kind: str, event: str | None, body: dict[str, Any]) -> None:
        """Take one event of a watch."""
        metrics.OPERATOR_EVENTS.labels(kind).inc()
        now_s = asyncio.get_running_loop().time()
        if event is None and now_s > self._started_s + QUIET_START_S:
            self._began_anew.set()
        if kind in RESOURCES:
            self._resource(kind, event, body)
        else:
            self._child(kind, event, body)

    def _resource(self, kind: str, event: str | None, body: Mapping[str, Any]) -> None:
        if event == "DELETED":
            if key := self._cache.drop_resource(kind, body):
                self._gone(key)
            return
        self._cache.put_resource(kind, body)
        new = watched(kind, body)
        # Not with what the cache had: that may be the answer to a write of our own, in which news
        # of others came along that no pass has looked at.
        old, self._seen[new.key] = self._seen.get(new.key), new
        if _matters(old, new):
            self._told(new.key)
            self._changed()

    def _gone(self, key: Key) -> None:
        self._seen.pop(key, None)
        self._told(key)
        self._changed()

    def _child(self, kind: str, event: str | None, body: Mapping[str, Any]) -> None:
        if event == "DELETED":
            gone = self._cache.drop_child(kind, body)
            owner = gone.owner if gone else None
        else:
            meta = body["metadata"]
            before = self._cache.child((kind, meta["namespace"], meta["name"]))
            now = self._cache.put_child(kind, body)
            owner = None if now is before else now.owner
        if owner is not None:
            self._told(owner)

    # ---- listings ----------------------------------------------------------------------------

    async def run(self, resync_s: float, life: Life) -> None:
        """List at the start, after a watch has begun anew, and each `resync_s`, until the end."""
        while True:
            try:
                await self._list_all()
            except KubeError as error:
                logger.warning("not listed", extra={"problem": str(error)})
                if await life.pause(RETRY_S):
                    return
                continue
            self.is_synced.set()
            self._seen = dict(self._cache.resources)
            for key in self._cache.resources:
                self._told(key)
            self._changed()
            if await life.pause_until(self._began_anew, resync_s):
                return
            if self._began_anew.is_set():
                await life.pause(SETTLE_S)
                self._began_anew.clear()

    async def _list_all(self) -> None:
        # Children first: a resource is looked at when it comes, and must not find its own missing.
        for kind in self._kinds:
            for namespace in self._namespaces or ("",):
                for one in self._cache.replace_children(
                    kind, *await self._listed(kind, namespace), _scope(namespace)
                ):
                    if one.owner is not None:
                        self._told(one.owner)
        for kind in RESOURCES:
            for namespace in self._namespaces or ("",):
                for key in self._cache.replace_resources(
                    kind, *await self._listed(kind, namespace), _scope(namespace)
                ):
                    self._gone(key)

    async def _listed(self, kind: str, namespace: str) -> tuple[list[dict[str, Any]], int]:
        found = RESOURCES.get(kind) or KINDS[kind]
        selector = "" if kind in RESOURCES else SELECTOR
        try:
            listing = await self._kube.list(found, namespace, selector=selector)
        except KubeError as error:
            if error.http_status != 404:  # else the server does not know the kind
                raise
            listing = Listing([], 0)
        return listing.items, listing.version


def _scope(namespace: str) -> Callable[[str], bool]:
    return lambda one: not namespace or one == namespace


def _matters(old: Watched | None, new: Watched) -> bool:
    """Whether more than its status has changed."""
    if old is None or old.uid != new.uid:
        return True
    return (
        old.stored.generation != new.stored.generation
        or old.finalizers != new.finalizers
        or old.annotations != new.annotations
        or old.is_leaving != new.is_leaving
    )
