"""Commands that pods of the chart run, beside `logweir run ROLE`; people need none of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logweir.options import usage

if TYPE_CHECKING:
    from logweir_operator.kube import Kube

app = typer.Typer()

_PODS = "Roles (for pods)"

Kubeconfig = Annotated[str, typer.Option(help="Without it: the one of the pod.")]


def _with_kube(kubeconfig: str, work: Callable[[Kube], Coroutine[Any, Any, None]]) -> None:
    """Run `work` with the API server of a kubeconfig, or of the pod."""
    import asyncio

    from logweir_operator.kube import Kube, access

    _end_when_told()

    async def whole() -> None:
        kube = Kube(await access(kubeconfig))
        try:
            await work(kube)
        finally:
            await kube.close()

    asyncio.run(whole())


def _end_when_told() -> None:
    """End by SIGTERM: as a pod's first process it would be ignored otherwise."""
    import signal

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _tell(text: str) -> None:
    print(text, flush=True)


@app.command(rich_help_panel=_PODS)
def bootstrap(
    config: Annotated[Path, typer.Option(help="The operator's configuration.")],
    kubeconfig: Kubeconfig = "",
) -> None:
    """Bring PostgreSQL and Redis to what this version needs; may be repeated at any time."""
    from logweir_operator import bootstrap as booting
    from logweir_operator import config as configuration

    found = configuration.read(config)
    _with_kube(kubeconfig, lambda kube: booting.run(found, kube, _tell))


@app.command("smoke-test", rich_help_panel=_PODS)
def smoke_test(
    name: Annotated[str, typer.Option(help="Of the tenant and pipeline to make.")],
    namespace: Annotated[str, typer.Option(help="That the operator looks after.")],
    query_url: Annotated[str, typer.Option(help="Of the gateway.")],
    kubeconfig: Kubeconfig = "",
) -> None:
    """Make a tenant and a pipeline, send a line, find it, and delete them: `helm test`."""
    from logweir_operator import smoke

    _with_kube(kubeconfig, lambda kube: smoke.run(kube, namespace, name, query_url, _tell))


@app.command("uninstall-guard", rich_help_panel=_PODS)
def uninstall_guard(
    namespace: Annotated[list[str] | None, typer.Option(help="Without it: all.")] = None,
    kubeconfig: Kubeconfig = "",
) -> None:
    """Fail while there are resources that nobody could delete after `helm uninstall`."""
    from logweir_operator import smoke

    _with_kube(kubeconfig, lambda kube: smoke.guard(kube, namespace or ()))


@app.command(rich_help_panel=_PODS)
def gateway(
    query: Annotated[str, typer.Option(help="HOST:PORT of the role query.")],
    auth: Annotated[str, typer.Option(help="HOST:PORT of the role auth.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to serve.")] = "0.0.0.0:8080",
    folder: Annotated[Path, typer.Option(help="For what does not fit into memory.")] = Path(
        "/tmp/gateway"  # noqa: S108 - a pod's own
    ),
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(help="Network whose X-Forwarded-For is believed.")
    ] = None,
) -> None:
    """Run NGINX in front of query and auth, in place of this process."""
    from logweir.runtime.settings import Listen
    from logweir.standalone import podded

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        usage(f"{listen!r} is not HOST:PORT.")
    place = Listen(host.strip("[]"), int(port))
    podded.gateway(folder, place, {"query": query, "auth": auth}, trusted_proxy or ())


@app.command(rich_help_panel=_PODS)
def database(
    kind: Annotated[str, typer.Argument(help="postgres or valkey.")],
    data: Annotated[Path, typer.Option(help="Folder of its data.")],
    secret: Annotated[Path, typer.Option(help="Mounted Secret with the key `password`.")],
    max_memory_bytes: Annotated[int, typer.Option(help="Of valkey.", min=1 << 20)] = 256 << 20,
) -> None:
    """Run a database of the chart's evaluation mode, in place of this process."""
    from logweir.standalone import podded

    password = podded.password_of(secret)
    if kind not in ("postgres", "valkey"):
        usage(f"KIND is postgres or valkey, not {kind!r}.")
    if kind == "postgres":
        podded.postgres(data, password)
    podded.valkey(data, password, max_memory_bytes)


@app.command("await-schema", rich_help_panel=_PODS)
def await_schema(
    binding: Annotated[Path, typer.Option(help="Of query, keeper or auth.")],
    wait_s: Annotated[float, typer.Option("--wait-seconds", help="Then it fails.")] = 600.0,
) -> None:
    """Wait until the control schema is as new as this program needs it."""
    from logweir.backends import readiness

    _end_when_told()
    readiness.await_schema(binding, wait_s, _tell)
