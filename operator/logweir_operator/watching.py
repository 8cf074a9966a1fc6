"""What kopf does here: it logs in, watches, and hands each event on; nothing else imports it.

    API server --watch streams--> kopf, in its own thread and loop --event--> seen(kind, type, body)

There are no handlers of creation, change or deletion, so kopf writes nothing: no finalizer, no
annotation. What an event means is decided level by level, elsewhere. A loop of its own, because at
its end kopf cancels every task of its loop that is younger than itself, and in the main thread it
takes SIGTERM for itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, Final

import kopf

from logweir_operator.kube import KINDS, RESOURCES, Access, Kind

logger = logging.getLogger(__name__)

MANAGED: Final = {"app.kubernetes.io/managed-by": "logweir-operator"}
SELECTOR: Final = ",".join(f"{name}={value}" for name, value in MANAGED.items())

SERVER_TIMEOUT_S: Final = 300
"""After which the API server ends a watch: what went silent behind a load balancer comes back."""

LOGIN_PAUSE_S: Final = 5.0
"""kopf asks for a new login after each 401; a token that is no good stays so for a while."""

CLOSE_S: Final = 0.25
"""For so long the loop goes on after the last session was closed: aiohttp lets TLS connections end
by themselves."""

IDLE_S: Final = 0.5
"""After which the task that kopf makes for each object ends: ten thousand of them are in no hurry
otherwise."""

Seen = Callable[[str, str | None, dict[str, Any]], None]
"""Called with a kind, the type of the event (None: it was listed) and the object."""


class _NoDiffs(kopf.DiffBaseStorage):
    """Keeps no copy of objects: nothing here asks what has changed."""

    def build(self, **_: object) -> Any:  # noqa: ANN401 - as kopf has it
        return {}

    def fetch(self, **_: object) -> Any:  # noqa: ANN401
        return {}

    def store(self, **_: object) -> None:
        pass


async def watch(
    access: Access,
    namespaces: Collection[str],
    kinds: Iterable[str],
    seen: Seen,
    stopping: asyncio.Event,
) -> None:
    """Watch both resources and these kinds of children until `stopping` is set.

    Args:
        access: of the API server.
        namespaces: that are watched; none: all of them.
        kinds: of children; those that the server does not know yet are watched when it does, if
            all namespaces are watched.
        seen: called in the caller's loop with each event.
        stopping: ends the watch.

    Raises:
        RuntimeError: kopf ended by itself.
    """
    loop, ended = asyncio.get_running_loop(), threading.Event()

    def hand_over(kind: str, event: str | None, body: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(seen, kind, event, body)

    operator = _operator(access, namespaces, list(kinds), hand_over, ended)
    running = asyncio.create_task(asyncio.to_thread(asyncio.run, operator))
    stopped = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        ended.set()
        await running
    if not stopping.is_set():
        raise RuntimeError("kopf ended by itself")


def _operator(
    access: Access,
    namespaces: Collection[str],
    kinds: Collection[str],
    seen: Seen,
    ended: threading.Event,
) -> Coroutine[None, None, None]:
    registry = kopf.OperatorRegistry()
    for name, kind in RESOURCES.items():
        _hand_on(registry, name, kind, seen)
    for name in kinds:
        _hand_on(registry, name, KINDS[name], seen)
    _log_in(registry, access)
    # Each of its attempts while the API server is away is an error to kopf; we say it once.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    for noisy in ("kopf._cogs.clients", "kopf._core.reactor.running"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    operator = kopf.operator(
        registry=registry,
        settings=_settings(kinds, is_everywhere=not namespaces),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=tuple(namespaces),
        stop_flag=ended,
    )

    async def run() -> None:
        try:
            await operator
        finally:
            await asyncio.sleep(CLOSE_S)

    return run()


def _hand_on(registry: kopf.OperatorRegistry, name: str, kind: Kind, seen: Seen) -> None:
    async def handler(event: Mapping[str, Any], **_: object) -> None:
        seen(name, event["type"], event["object"])

    labels = MANAGED if name in KINDS else None
    kopf.on.event(
        kind.group,
        kind.version,
        kind.plural,
        id=f"seen-{kind.plural}",
        labels=labels,
        registry=registry,
    )(handler)


def _log_in(registry: kopf.OperatorRegistry, access: Access) -> None:
    last_s = float("-inf")

    async def login(**_: object) -> kopf.AiohttpSession:
        nonlocal last_s
        now_s = asyncio.get_running_loop().time()
        if now_s < last_s + LOGIN_PAUSE_S:
            raise kopf.TemporaryError("The API server refused the token.", delay=LOGIN_PAUSE_S)
        last_s = now_s
        # A new one each time: kopf closes it when it is refused.
        return kopf.AiohttpSession(
            server=access.server,
            default_namespace=None,
            aiohttp_session=access.session(connections=0),
        )

    kopf.on.login(registry=registry)(login)


def _settings(kinds: Iterable[str], *, is_everywhere: bool) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # Not ours: what kopf believes to be its own, it takes away when it has no handler for it.
    settings.persistence.finalizer = "logweir.dev/kopf"
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(
        prefix="logweir.dev", v1=False
    )
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.watching.server_timeout = SERVER_TIMEOUT_S
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    for name in kinds:
        kind = KINDS[name]
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = SELECTOR
    settings.process.ultimate_exiting_timeout = None
    settings.queueing.idle_timeout = IDLE_S
    settings.scanning.disabled = not is_everywhere
    return settings
