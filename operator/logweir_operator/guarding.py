"""Keeps the operator's own rights in a namespace for as long as something there needs them.

Deleting a namespace deletes Role and RoleBinding at once. The operator could then take no finalizer
away any more, and the namespace would be there for ever. So both have our finalizer while a
resource of the namespace has it, and lose it when the last one has gone.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from logweir.runtime.life import Life
from logweir_operator.cache import FINALIZER, Cache
from logweir_operator.kube import Kube, KubeError, Object, kind_of

logger = logging.getLogger(__name__)

LOOK_S: Final = 2.0
KINDS: Final = ("Role", "RoleBinding")


class Guard:
    """Looks after the Role and the RoleBinding of each watched namespace.

    Args:
        kube: the API server.
        known: what there is.
        namespaces: that are watched; none: rights are the cluster's, and nobody deletes them so.
        name: of Role and RoleBinding.
    """

    def __init__(self, kube: Kube, known: Cache, namespaces: Collection[str], name: str) -> None:
        self._kube = kube
        self._cache = known
        self._namespaces = tuple(namespaces)
        self._name = name

    async def run(self, life: Life) -> None:
        """Look until the process stops."""
        while self._namespaces and not await life.pause(LOOK_S):
            for namespace in self._namespaces:
                try:
                    await self._look(namespace)
                except KubeError as error:
                    logger.warning(
                        "own rights not guarded",
                        extra={"namespace": namespace, "problem": str(error)},
                    )

    async def _look(self, namespace: str) -> None:
        role, bound = [await self._kube.get(kind_of(kind), namespace, self._name) for kind in KINDS]
        is_needed = any(
            one.is_held and one.stored.namespace == namespace
            for one in self._cache.resources.values()
        )

        async def set_binding() -> None:
            if bound is not None and _must_change(bound, is_needed=is_needed):
                await self._set(bound, is_needed=is_needed)

        if role is None or not _must_change(role, is_needed=is_needed):
            await set_binding()
        elif is_needed:
            await set_binding()
            await self._set(role, is_needed=is_needed)
        else:
            # Each of them, once it is gone, takes the right to change the other: so the binding
            # goes while the request to let the role go is authorised already.
            await self._set(role, is_needed=is_needed, meanwhile=set_binding)

    async def _set(
        self,
        one: Object,
        *,
        is_needed: bool,
        meanwhile: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        meta = one["metadata"]
        change = {"metadata": {"finalizers": _finalizers(one, is_needed=is_needed)}}
        await self._kube.patch(
            kind_of(one["kind"]), meta["namespace"], meta["name"], change, meanwhile=meanwhile
        )


def _finalizers(one: Object, *, is_needed: bool) -> Sequence[str]:
    others = [name for name in one["metadata"].get("finalizers") or () if name != FINALIZER]
    return [*others, FINALIZER] if is_needed else others


def _must_change(one: Object, *, is_needed: bool) -> bool:
    """None can be added to what is being deleted."""
    has_it = FINALIZER in (one["metadata"].get("finalizers") or ())
    if is_needed:
        return not has_it and "deletionTimestamp" not in one["metadata"]
    return has_it
