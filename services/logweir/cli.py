"""The entry point `logweir`: every command, each importing what it needs when it runs.

    logweir up | status | down | logs | doctor       one machine (standalone/)
    logweir apply | get | delete | rotate            its resources, by kubectl's words
    logweir release                                  the id of a deleted tenant
    logweir send | query | tail | usage              any Logweir, over HTTP (client/)
    logweir keys create | list | roll | revoke       likewise; keys check needs none (cli_keys.py)
    logweir run ROLE                                 one role, in a pod
    logweir bootstrap | await-schema                 before roles start in Kubernetes
    logweir operator | gateway | database            others of the chart's pods
    logweir smoke-test | uninstall-guard             the chart's hooks

Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 refused or
failed (the reason is one sentence with the fix), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from logweir import cli_keys, cli_pods
from logweir.core import errors
from logweir.options import Data, Key, Port, TenantName, Url, target
from logweir.options import folder as _folder
from logweir.options import print_json as _print_json
from logweir.options import usage as _usage

if TYPE_CHECKING:
    from logweir.backends.control import Control
    from logweir.backends.rotations import Rotations
    from logweir.client.api import Target
    from logweir.client.output import Form
    from logweir.standalone.folder import Folder
    from logweir_operator.resources import Key as ObjectKey

app = typer.Typer(
    name="logweir",
    help="Logs of many teams, on the PostgreSQL and Redis that you run already.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_HERE = "One machine"
_RESOURCES = "Resources of a running `up`"
_CLIENT = "Send and read"
_ROLES = "Roles (for pods)"

app.add_typer(cli_pods.app)
app.add_typer(cli_keys.app, name="keys", rich_help_panel="Keys of a tenant")

Output = Annotated[
    str, typer.Option("-o", "--output", help="default, json, raw (messages alone) or logfmt.")
]
Colour = Annotated[str, typer.Option("--color", help="auto, always or never.")]


def main() -> None:
    """Run the command line; an error becomes a sentence and an exit code."""
    # One process works for many: OpenBLAS would start a thread a core in each, for nothing.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app()
    except errors.LogweirError as error:
        _fail(str(error))
    except OSError as error:  # such as a full disk, where nobody foresaw it
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}.")


def _fail(text: str) -> NoReturn:
    _say(f"error: {text}")
    sys.exit(1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- one machine ----------------------------------------------------------------------------


@app.command(rich_help_panel=_HERE)
def up(
    data: Data = None,
    port: Port = None,
    listen: Annotated[
        str | None, typer.Option(help="Address to serve; 0.0.0.0 or :: for other machines.")
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option(help="Certificate and its chain, PEM; '' is none any more.")
    ] = None,
    tls_key: Annotated[str | None, typer.Option(help="Its key, PEM.")] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="Network whose X-Forwarded-For is believed; '' is none any more."),
    ] = None,
    nginx: Annotated[
        bool | None, typer.Option("--nginx/--no-nginx", help="Without it: one Python process.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when ready.")] = False,
) -> None:
    """Start all of Logweir on this machine; Ctrl-C stops it. It keeps how clients come in."""
    from logweir.standalone import entrance
    from logweir.standalone import up as standing
    from logweir.standalone.status import welcome

    _arm_failpoints()
    place, program = _folder(data), _program()
    chosen = entrance.choose(
        place,
        host=listen,
        tls_cert=tls_cert,
        tls_key=tls_key,
        trusted_proxies=trusted_proxy,
        with_nginx=nginx,
    )
    if chosen.warning:
        _say(f"- {chosen.warning}")
    where = f" --data {data}" if data else ""
    if detach:
        shown = standing.detach(place, port)
        print(welcome(shown, program, where, f"{program} down{where}"), flush=True)
        return
    _say(f"Starting Logweir in {place.path} ...")
    standing.up(
        place,
        port,
        ready=lambda shown: print(welcome(shown, program, where, "Ctrl-C"), flush=True),
        tell=lambda text: _say(f"- {text}"),
    )
    _say("Stopped.")


def _arm_failpoints() -> None:
    """Take LOGWEIR_FAILPOINT, for tests; LOGWEIR_MODE must allow it."""
    from logweir.backends import failpoint

    spec = os.environ.get("LOGWEIR_FAILPOINT", "")
    failpoint.check(spec, os.environ.get("LOGWEIR_MODE") or "production")
    failpoint.arm(spec)


def _program() -> str:
    """How this program was called, as short as it works."""
    from shutil import which

    called = Path(sys.argv[0])
    found = which("logweir")
    if found and called.name == "logweir" and Path(found).resolve() == called.resolve():
        return "logweir"
    if called.suffix == ".py":
        return f"{sys.executable} -m logweir.cli"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called)


@app.command(rich_help_panel=_HERE)
def status(
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Show what runs, what does not and why; exit code 0 when all is ready."""
    from logweir.standalone.status import show, table

    shown = show(_folder(data))
    if as_json:
        _print_json(shown)
    else:
        print(table(shown, _program()))
    raise typer.Exit(0 if shown.ready else 1)


@app.command(rich_help_panel=_HERE)
def down(data: Data = None) -> None:
    """Stop what `up --detach` left running; returns when all of it has ended."""
    from logweir.standalone import up as standing

    place = _folder(data)
    _say("Stopped." if standing.down(place) else f"Nothing runs in {place.path}.")


@app.command(rich_help_panel=_HERE)
def logs(
    role: Annotated[str, typer.Argument(help="ingest, postgres, ...; without it: all.")] = "",
    data: Data = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with new lines.")] = False,
    last: Annotated[int, typer.Option("-n", "--tail", min=0, help="Lines of each.")] = 20,
) -> None:
    """Print what the processes of an `up` have written."""
    from logweir.standalone.readlogs import lines

    for line in lines(_folder(data).logs, role, last, follow=follow):
        print(line, flush=follow)


@app.command(rich_help_panel=_HERE)
def doctor(
    data: Data = None,
    port: Port = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Check this machine: programs, ports, disk, clock; what is wrong and the fix."""
    from logweir.standalone.doctor import checks

    found = checks(_folder(data), port)
    if as_json:
        _print_json(found)
    else:
        for one in found:
            print(f"{'ok ' if one.is_well else 'BAD'}  {one.name:<12} {one.found}")
            if one.fix:
                print(f"     {'':<12} fix: {one.fix}")
    raise typer.Exit(0 if all(one.is_well for one in found) else 1)


# ---- resources ------------------------------------------------------------------------------


@app.command(rich_help_panel=_RESOURCES)
def apply(
    file: Annotated[str, typer.Option("-f", "--filename", help="YAML; - is standard input.")],
    data: Data = None,
) -> None:
    """Create or change LogTenants and LogPipelines."""
    resources = _manifest(file)

    async def work(control: Control) -> None:
        from logweir.standalone import objects

        for one in await objects.apply(control, resources):
            print(one)

    _with_control(data, work)


@app.command(rich_help_panel=_RESOURCES)
def get(
    kind: Annotated[
        str, typer.Argument(help="logtenants (lt), logpipelines (lp), all, keys; or TYPE/NAME.")
    ],
    name: Annotated[str, typer.Argument(help="Only this one.")] = "",
    namespace: Annotated[str, typer.Option("-n", "--namespace")] = "default",
    output: Annotated[str, typer.Option("-o", "--output", help="wide, yaml or json.")] = "",
    data: Data = None,
) -> None:
    """List resources, or the API keys of a tenant (`get keys TENANT`)."""
    from logweir.standalone import listing

    kind, name = _kind_and_name(kind, name)
    if kind == "keys":
        print(listing.keys(_folder(data), namespace, name))
        return

    async def work(control: Control) -> None:
        text = listing.text(await control.objects(), kind, namespace, name, output)
        if text:
            print(text)
        else:
            _say(f"No resources found in {namespace} namespace.")

    _with_control(data, work)


@app.command(rich_help_panel=_RESOURCES)
def delete(
    kind: Annotated[
        str, typer.Argument(help="logtenant (lt), logpipeline (lp); or TYPE/NAME.")
    ] = "",
    name: Annotated[str, typer.Argument()] = "",
    file: Annotated[str, typer.Option("-f", "--filename", help="All resources of a YAML.")] = "",
    namespace: Annotated[str, typer.Option("-n", "--namespace")] = "default",
    wait: Annotated[bool, typer.Option(help="Return when they are gone.")] = True,
    data: Data = None,
) -> None:
    """Delete resources; journals drain first, a tenant's data stays (deletionPolicy)."""
    from logweir.standalone import objects

    kind, name = _kind_and_name(kind, name)
    if bool(file) == bool(kind and name):
        _usage("Give a type and a name, or -f FILE.")
    if file:
        resources = _manifest(file)
        wanted = [(one.kind, one.metadata.namespace, one.metadata.name) for one in resources]
        wanted.sort(key=lambda key: key[0] != "LogPipeline")  # before the tenants they belong to
    else:
        wanted = [(objects.kind_of(kind), namespace, name)]
    _with_control(data, lambda control: _delete(control, wanted, wait=wait))


async def _delete(control: Control, wanted: list[ObjectKey], *, wait: bool) -> None:
    """Delete all that can be deleted; an error of one does not spare the others."""
    from logweir.standalone import objects

    problem: errors.LogweirError | None = None
    for key in wanted:
        try:
            await objects.delete(control, *key)
            print(f'{key[0].lower()}.logweir.dev "{key[2]}" deleted', flush=True)
        except errors.UnavailableError:
            raise
        except errors.LogweirError as error:
            if problem is not None:
                _say(f"error: {problem}")
            problem = error
    if wait:
        await objects.until_gone(control, wanted, _say)
    if problem is not None:
        raise problem


@app.command(rich_help_panel=_RESOURCES)
def rotate(
    tenant: Annotated[str, typer.Argument(help="LogTenant, as NAME or NAMESPACE/NAME.")] = "",
    roots: Annotated[
        bool, typer.Option("--roots", help="The root keys, and with them all tenants.")
    ] = False,
    overlap_seconds: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=30 * 86400,
            help="How long the old credentials stay good; without it: as each tenant's"
            " spec.credentials.rotation says (a day).",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Return when new keys are signed anew.")] = True,
    data: Data = None,
) -> None:
    """Change the credentials of a tenant: logins, Redis users, what signs keys.

    New ones come into use within seconds and the old ones stay good for the overlap, so nothing
    that is running fails. API keys stay as they are: they are good until they end or are rolled
    (spec.apiKeys, generation + 1), which helps after a leak only when this command has returned.
    After a leak of a server's files use a short overlap, such as --overlap-seconds 60. 'logweir get
    logtenants -o yaml' shows how far it is.
    """
    if bool(tenant) == roots:
        _usage("Give a LogTenant, or --roots for all of them and the root keys.")

    from logweir.backends.rotations import ROOTS

    async def work(control: Rotations) -> None:
        from logweir.standalone import objects

        subject = ROOTS if roots else await objects.tenant_id(control, tenant)
        name = "the root keys" if roots else f'"{tenant}"'
        before = await objects.rotating(control, None if roots else subject)
        await control.ask(subject, overlap_seconds)
        print(f"the rotation of {name} begins", flush=True)
        if wait:
            await objects.until_signed_anew(control, subject, before)
            print(f"new keys of {name} are signed anew")

    _with_control(data, work)


@app.command(rich_help_panel=_RESOURCES)
def release(
    tenant: Annotated[str, typer.Argument(help="The spec.tenantId of a tenant that was deleted.")],
    data: Data = None,
) -> None:
    """Let the id of a deleted tenant be given again: to whoever asks for it first."""
    from logweir.core import names

    wanted = names.tenant_id(tenant)

    async def work(control: Control) -> None:
        if not await control.release_tenant_id(wanted):
            raise errors.NotFoundError(
                f"No deleted tenant has had the id {tenant!r}.",
                hint="Only ids that are retired (deletionPolicy Delete) can be released.",
            )
        print(f"tenant id {tenant!r} released")

    _with_control(data, work)


def _kind_and_name(kind: str, name: str) -> tuple[str, str]:
    """As kubectl: a type and a name, or both in one word."""
    if "/" in kind and not name:
        kind, _, name = kind.partition("/")
    return kind, name


def _manifest(file: str) -> list[Any]:
    from logweir_operator import manifest

    source = "standard input" if file == "-" else file
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as cause:
        raise errors.SetupError(f"Cannot read {file}: {cause.strerror}.") from cause
    resources: list[Any] = manifest.read(manifest.decode(content, source), source)
    if not resources:
        raise errors.BadRequestError(f"{source}: there is no resource in it.")
    return resources


def _with_control(
    data: Path | None, work: Callable[[Rotations], Coroutine[Any, Any, None]]
) -> None:
    """Run `work` with the control schema of a running `up`."""
    import asyncio

    from logweir.backends import provision, store
    from logweir.backends.rotations import Rotations
    from logweir.standalone.up import site_of

    place = _folder(data)
    if place.holder() is None:
        raise errors.SetupError(
            f"Nothing runs in {place.path}.",
            hint="Start it with 'logweir up', or give '--data DIR'.",
        )
    site = site_of(place.read_secrets(), place.ports())
    login = site.login(provision.OPERATOR)
    door = Rotations(store.conninfo(site.store, login, "logweir cli"))

    async def whole() -> None:
        try:
            await work(door)
        finally:
            await door.close()

    asyncio.run(whole())


# ---- send and read --------------------------------------------------------------------------


def _target(
    url: str, key: str, data: Path | None, tenant: str, pipeline: str, prefix: str
) -> Target:
    """Where to send or read: what was given, or the running `up`."""

    def find(place: Folder) -> tuple[str, str]:
        from logweir.standalone import listing

        return listing.address(place, tenant, pipeline, prefix)

    return target(url, key, data, find)


@app.command(rich_help_panel=_CLIENT)
def send(
    file: Annotated[str, typer.Argument(help="Lines of text or JSON; - is standard input.")] = "-",
    service: Annotated[str, typer.Option(help="For lines that do not name one.")] = "cli",
    level: Annotated[str, typer.Option(help="For lines that do not name one.")] = "info",
    host: Annotated[str, typer.Option(help="For lines that do not name one.")] = "",
    url: Url = "",
    key: Key = "",
    tenant: TenantName = "",
    pipeline: Annotated[str, typer.Option(help="Of that tenant; without it: the first.")] = "",
    data: Data = None,
) -> None:
    """Send lines as records; returns when the last one is acknowledged."""
    from logweir.client import lines, terminal
    from logweir.client import send as sending

    target = _target(url, key, data, tenant, pipeline, "lwi_")
    progress = terminal.Progress()
    defaults = sending.Defaults(service, level, host)
    with _open(file) as opened:
        done = sending.send(target, lines.read(opened), defaults, progress.show)
    progress.end(done)
    raise typer.Exit(1 if done.rejected else 0)


def _open(file: str) -> Any:  # noqa: ANN401 - a binary file
    from contextlib import nullcontext

    if file == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except OSError as cause:
        raise errors.SetupError(f"Cannot read {file}: {cause.strerror}.") from cause


@app.command(rich_help_panel=_CLIENT)
def query(
    text: Annotated[str, typer.Argument(metavar="QUERY", help='{service="shop"} |= "text"')] = "{}",
    since: Annotated[str, typer.Option(help="Begin of the range: 15m ago, or a time.")] = "1h",
    until: Annotated[str, typer.Option(help="End of the range; without it: now.")] = "",
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="Records.")] = 100,
    newest_first: Annotated[bool, typer.Option("--newest-first", help="As the API does.")] = False,
    output: Output = "default",
    color: Colour = "auto",
    url: Url = "",
    key: Key = "",
    tenant: TenantName = "",
    data: Data = None,
) -> None:
    """Print the newest matching records, the newest last."""
    from logweir.client import read, terminal

    form = _look(output, color)
    asked = read.Asked(text, terminal.moment(since), terminal.moment(until))
    target = _target(url, key, data, tenant, "", "lwa_")
    with terminal.explained(text):
        found = read.query(target, asked, limit)
        records = found if newest_first else iter(list(found)[::-1])
        terminal.show_records(records, form, color, is_live=False)


@app.command(rich_help_panel=_CLIENT)
def tail(
    text: Annotated[str, typer.Argument(metavar="QUERY", help='{service="shop"} |= "text"')] = "{}",
    since: Annotated[str, typer.Option(help="How old the last lines may be.")] = "1h",
    last: Annotated[
        int, typer.Option("-n", "--tail", min=1, max=5000, help="Last lines first.")
    ] = 10,
    output: Output = "default",
    color: Colour = "auto",
    url: Url = "",
    key: Key = "",
    tenant: TenantName = "",
    data: Data = None,
) -> None:
    """Print the last records, then new ones as they come in."""
    from logweir.client import read, terminal

    form = _look(output, color)
    asked = read.Asked(text, terminal.moment(since))
    target = _target(url, key, data, tenant, "", "lwa_")
    with terminal.explained(text):
        records = read.tail(target, asked, last, lambda line: _say(f"- {line}"), terminal.is_read)
        terminal.show_records(records, form, color, is_live=True)


@app.command(rich_help_panel=_CLIENT)
def usage(
    since: Annotated[str, typer.Option(help="Begin of the range: 7d ago, or a time.")] = "",
    until: Annotated[str, typer.Option(help="End of the range; without it: now.")] = "",
    by: Annotated[str, typer.Option(help="hour, day or total.")] = "day",
    output: Annotated[str, typer.Option("-o", "--output", help="table, json or csv.")] = "table",
    url: Url = "",
    key: Key = "",
    tenant: TenantName = "",
    data: Data = None,
) -> None:
    """Show requests, records and bytes of each pipeline, and what was refused."""
    from logweir.client import terminal
    from logweir.client import usage as using

    _choice("--by", by, ("hour", "day", "total"))
    _choice("--output", output, ("table", "json", "csv"))
    start, end = terminal.moment(since), terminal.moment(until)
    target = _target(url, key, data, tenant, "", "lwa_")
    print(using.text(target, {"start": start, "end": end, "step": by}, output))


def _look(output: str, color: str) -> Form:
    """Check how records are to be printed."""
    _choice("--color", color, ("auto", "always", "never"))
    form: Form = _choice("--output", output, ("default", "json", "raw", "logfmt"))
    return form


def _choice(option: str, value: str, known: tuple[str, ...]) -> Any:  # noqa: ANN401 - a literal
    if value not in known:
        _usage(f"{option} is one of {', '.join(known)}, not {value!r}.")
    return value


# ---- roles ----------------------------------------------------------------------------------


@app.command(rich_help_panel=_ROLES)
def run(
    role: Annotated[str, typer.Argument(help="ingest, collector, query, keeper or auth.")],
    binding: Annotated[
        Path, typer.Option(envvar="LOGWEIR_BINDING", help="Binding file; re-read on change.")
    ],
    listen: Annotated[
        str, typer.Option(envvar="LOGWEIR_LISTEN", help="HOST:PORT of the role's API.")
    ] = "0.0.0.0:8080",
    ops: Annotated[
        str, typer.Option(envvar="LOGWEIR_OPS", help="HOST:PORT of /livez, /readyz, /metrics.")
    ] = "0.0.0.0:9090",
    consumer: Annotated[
        str, typer.Option(envvar="LOGWEIR_CONSUMER", help="Of a collector; stable over restarts.")
    ] = "",
) -> None:
    """Run one role in this process until SIGTERM."""
    import importlib
    import socket

    from logweir.runtime.settings import Settings

    _arm_failpoints()
    name = _choice("ROLE", role, ("ingest", "collector", "query", "keeper", "auth"))
    settings = Settings(
        role=name,
        binding=binding,
        ops=_listen(ops),
        http=_listen(listen) if name in ("ingest", "query", "auth") else None,
        consumer=consumer or socket.gethostname(),
    )
    importlib.import_module(f"logweir.{name}.app").main(settings)


@app.command(rich_help_panel=_ROLES)
def operator(
    config: Annotated[
        Path, typer.Option(envvar="LOGWEIR_CONFIG", help="Configuration, made by the chart.")
    ] = Path("/etc/logweir/operator/config.yaml"),
    ops: Annotated[
        str, typer.Option(envvar="LOGWEIR_OPS", help="HOST:PORT of /livez, /readyz, /metrics.")
    ] = "0.0.0.0:9090",
    kubeconfig: Annotated[
        str, typer.Option(help="To run outside of a pod, as who this file names.")
    ] = "",
) -> None:
    """Run the Kubernetes operator in this process until SIGTERM."""
    from logweir_operator import app as kubernetes
    from logweir_operator import config as configuration

    _arm_failpoints()
    kubernetes.main(configuration.read(config), kubeconfig, _listen(ops))


def _listen(text: str) -> Any:  # noqa: ANN401 - imported lazily
    from logweir.runtime.settings import Listen as Address

    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        _usage(f"{text!r} is not HOST:PORT.")
    return Address(host.strip("[]"), int(port))


if __name__ == "__main__":
    main()
