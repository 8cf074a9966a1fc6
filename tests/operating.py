"""An operator in the test's own loop, over a real API server and the session's real databases.

Each has a namespace, a cluster name and a release of its own, so tests do not meet.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import itertools
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import reconciling
import world

from logweir.backends import provision
from logweir.backends.rotations import Rotations
from logweir.runtime.life import Life, end
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey
from logweir_operator import app, kube
from logweir_operator.config import Config, Features, Image, LeaseTerms, Scope
from logweir_operator.own_secrets import ROOTS_KEY, roots_name
from logweir_operator.rootsets import RootSecrets, RootSet

if TYPE_CHECKING:
    from controlplane.plane import Plane

_numbers = itertools.count(1)

Object = dict[str, Any]

CHILDREN = (
    *("Secret", "ServiceAccount", "NetworkPolicy", "Deployment", "Service"),
    *("PodDisruptionBudget", "Ingress"),
)


class Place:
    """A namespace with an operator that looks after it."""

    def __init__(
        self,
        folder: Path,
        plane: Plane,
        namespace: str,
        postgres: Postgres,
        valkey: Valkey,
        roots: provision.Roots,
        home: str = "",
        **config: Any,
    ) -> None:
        """`home` is the namespace of the release; without one it is the watched one too."""
        self.plane = plane
        self.namespace = namespace
        self.postgres, self.valkey = postgres, valkey
        self._home = home or namespace
        self.release = f"lw{next(_numbers)}"
        self.control = Rotations(world.operator_conninfo(postgres, roots))
        self.folder = folder
        _write(folder / "postgres", host="127.0.0.1", port=str(postgres.port), sslmode="disable")
        _write(
            folder / "redis",
            host="127.0.0.1",
            port=str(valkey.port),
            username="lw_operator",
            password="operator",
        )
        self.config = Config(
            **{
                "namespace": self._home,
                "release": self.release,
                "cluster": f"{self.release}-{namespace}",
                "image": Image(repository="logweir", tag="test"),
                "scope": Scope(mode="Namespaced", namespaces=(namespace,)),
                "features": Features(namespace_quota=True),
                "lease": LeaseTerms(duration_s=3.0, renew_s=2.0, retry_s=0.3),
                "postgres_folder": str(folder / "postgres"),
                "redis_folder": str(folder / "redis"),
                "spread_s": 0.0,
                **config,
            }
        )
        self._make_roots(roots)
        self._running: list[tuple[Life, asyncio.Task[None]]] = []

    def _make_roots(self, roots: provision.Roots) -> None:
        texts = (roots.write, roots.maintain, roots.read, roots.sign)
        held = RootSecrets(roots=[RootSet(1, *(one.hex() for one in texts))])
        self.plane.api.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": roots_name(self.release), "namespace": self._home},
                "data": {ROOTS_KEY: base64.b64encode(msgspec.json.encode(held)).decode()},
            }
        )

    async def start(
        self, kubeconfig: Path | None = None, door: Callable[[kube.Access], kube.Kube] = kube.Kube
    ) -> Life:
        """Start an operator, as the one who a kubeconfig names; cluster-admin by default. `door`
        makes its way to the API server."""
        access = await kube.access(str(kubeconfig or self.plane.kubeconfig))
        life, api = Life(), door(access)

        async def run() -> None:
            try:
                await app.Operator(self.config, access, api).run(life)
            finally:
                await api.close()

        self._running.append((life, asyncio.create_task(run())))
        return life

    async def stop(self, life: Life | None = None) -> None:
        """Stop one operator, or all, and say what it died of."""
        ending = [one for one in self._running if life is None or one[0] is life]
        for running, task in ending:
            running.stopping.set()
            self._running.remove((running, task))
        for _, task in ending:
            await asyncio.wait_for(task, 20)

    async def kill(self) -> None:
        """End all operators in the middle of what they do."""
        for life, task in self._running:
            task.cancel()
            life.stopping.set()  # a TaskGroup cancels once, which redis-py may swallow
        await end(*(task for _, task in self._running))
        self._running.clear()

    def break_databases(self) -> None:
        """Let operators that start from now on find no PostgreSQL."""
        (self.folder / "postgres" / "port").write_text("1")

    async def close(self) -> None:
        await self.kill()
        await self.control.close()
        # Who is killed amid a TLS handshake leaves the socket to the garbage collector, which would
        # say so in another test.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    # ---- the API server, without holding up the loop -----------------------------------------

    async def apply(self, *documents: Object) -> Object:
        placed = [
            {**one, "metadata": {**one["metadata"], "namespace": self.namespace}}
            for one in documents
        ]
        return await asyncio.to_thread(self.plane.api.apply, *placed)

    async def apply_tenant(self, name: str = "acme", **spec: Any) -> Object:
        return await self.apply(reconciling.tenant(name, **spec))

    async def apply_pipeline(self, name: str = "web", of: str = "acme", **spec: Any) -> Object:
        return await self.apply(reconciling.pipeline(name, of, **spec))

    async def find(self, kind: str, name: str) -> Object | None:
        return await asyncio.to_thread(self.plane.api.find, kind, name, self.namespace)

    async def get(self, kind: str, name: str) -> Object:
        return await asyncio.to_thread(self.plane.api.get, kind, name, self.namespace)

    async def list(self, kind: str) -> list[Object]:
        return await asyncio.to_thread(self.plane.api.list, kind, self.namespace)

    async def delete(self, kind: str, name: str) -> None:
        await asyncio.to_thread(self.plane.api.delete, kind, name, self.namespace)

    async def patch(self, kind: str, name: str, change: Object, subresource: str = "") -> Object:
        return await asyncio.to_thread(
            self.plane.api.patch, kind, name, self.namespace, change, subresource
        )

    async def children(self) -> dict[str, Object]:
        """What operators have made, by kind and name, without what differs each time."""
        found = {}
        for kind in CHILDREN:
            for one in await self.list(kind):
                meta = one["metadata"]
                owners = [(each["kind"], each["name"]) for each in meta.get("ownerReferences", ())]
                if owners:
                    found[f"{kind}/{meta['name']}"] = {"labels": meta["labels"], "owners": owners}
        return found

    async def states(self) -> list[str]:
        """States of the tenants that are not deleted."""
        rows = await self.control.tenants()
        return [one.state for one in rows if one.cluster == self.config.cluster]

    async def condition(self, kind: str, name: str, condition: str = "Ready") -> Object:
        """A condition; empty when there is none."""
        found = await self.find(kind, name) or {}
        conditions = (found.get("status") or {}).get("conditions") or ()
        return next((one for one in conditions if one["type"] == condition), {})

    async def ready(self, kind: str, name: str, wait_s: float = 20.0) -> None:
        async def is_ready() -> bool:
            found = await self.find(kind, name) or {}
            one = await self.condition(kind, name)
            generation = (found.get("metadata") or {}).get("generation")
            return one.get("status") == "True" and one["observedGeneration"] == generation

        await until(is_ready, wait_s, lambda: self.find(kind, name))


async def until(
    check: Callable[[], Awaitable[Any]],
    wait_s: float = 20.0,
    seen: Callable[[], Awaitable[object]] | None = None,
) -> Any:
    """Wait until something is true, and return it; fail with what is seen instead."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + wait_s
    while not (found := await check()):
        if loop.time() > deadline_s:
            raise AssertionError(f"not within {wait_s} s: {await seen() if seen else found!r}")
        await asyncio.sleep(0.02)
    return found


def _write(folder: Path, **texts: str) -> None:
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)


@contextlib.asynccontextmanager
async def operating(*args: Any, **config: Any) -> AsyncIterator[Place]:
    """A place that is closed at the end, whatever happened in it."""
    place = Place(*args, **config)
    try:
        yield place
    finally:
        await place.close()
