"""`logweir up`: all of Logweir on one machine, from one folder, until Ctrl-C.

    lock the folder -> PostgreSQL, Valkey -> operator -> ingest, collector, query, keeper
                                                      -> NGINX in front of them

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
from collections.abc import Callable
from pathlib import Path
from typing import Final

from logweir.core import errors
from logweir.core.binding import JournalServer, Login, PostgresServer
from logweir.runtime.settings import Listen, Settings
from logweir.standalone import accounts, cluster, folder, servers
from logweir.standalone.bindings import Site
from logweir.standalone.children import RoleChild, RoleMain, ServerChild
from logweir.standalone.folder import Folder, Ports, Secrets
from logweir.standalone.nginx import Nginx
from logweir.standalone.postgres import Postgres
from logweir.standalone.status import Shown, show
from logweir.standalone.supervisor import Supervisor
from logweir.standalone.valkey import Valkey

ROLES: Final = ("ingest", "collector", "query")
DETACHED_WAIT_S: Final = 120.0
DOWN_WAIT_S: Final = 120.0

Tell = Callable[[str], None]


def up(place: Folder, port: int | None, ready: Callable[[Shown], None], tell: Tell) -> None:
    """Run everything until SIGTERM or SIGINT; `ready` is called once, when all is.

    Args:
        place: the folder.
        port: of the gateway; 0 takes a free one, None the last one or the default.
        ready: gets what a newcomer needs.
        tell: gets a line for a person when a process ended or came back.

    Raises:
        SetupError: something here cannot work as it is; everything is stopped again.
    """
    place.take()
    place.status.unlink(missing_ok=True)
    ports = choose_ports(place, port)
    secrets = place.secrets()
    place.write_ports(ports)
    _write_demo(place)
    account = accounts.choose()
    url = f"http://{servers.LOOPBACK}:{ports.gateway}"
    postgres = Postgres(place.path / "postgres", ports.postgres, secrets.postgres_password, account)
    valkey = Valkey(place.path / "valkey", ports.valkey, secrets.valkey_password, account)
    http = {role: _listening() for role in ("ingest", "query")}
    ops = {role: _listening() for role in ("operator", *ROLES)}
    nginx = Nginx(
        place.path / "gateway",
        ports.gateway,
        ingest_port=_port(http["ingest"]),
        query_port=_port(http["query"]),
        run_as=account,
    )
    roles = [_role(place, role, http.get(role), ops[role]) for role in ROLES]
    supervisor = Supervisor(
        [
            ServerChild("postgres", postgres),
            ServerChild("valkey", valkey),
            _operator(place, secrets, ports, postgres, url, ops["operator"]),
            *roles,
            ServerChild("gateway", nginx),
        ],
        logs=place.logs,
        status=place.status,
        url=url,
        tell=tell,
    )
    with supervisor.signals() as wakeup:
        try:
            _begin(postgres, valkey, supervisor)
            _run(place, supervisor, wakeup, ready)
        finally:
            supervisor.stop(wakeup)


def _begin(postgres: Postgres, valkey: Valkey, supervisor: Supervisor) -> None:
    """Start the servers, and import what the roles share while they come up."""
    preparing = 0
    if not (postgres.data / "PG_VERSION").exists():
        # initdb takes as long as the imports do: a process of its own does it meanwhile.
        preparing = os.fork()
        if preparing == 0:
            try:
                postgres.prepare()
            finally:
                os._exit(0)  # what is wrong is found again, and said, by the start below
    else:
        supervisor.start("postgres")
    supervisor.start("valkey")
    for role in ROLES:
        importlib.import_module(f"logweir.{role}.app")
    if preparing:
        os.waitpid(preparing, 0)
        supervisor.start("postgres")
    gc.collect()
    gc.freeze()


def _run(
    place: Folder, supervisor: Supervisor, wakeup: int, ready: Callable[[Shown], None]
) -> None:
    is_told = False
    while not supervisor.is_stopping:
        supervisor.turn(wakeup)
        if not is_told and supervisor.is_ready:
            supervisor.write_status()
            ready(show(place))
            is_told = True


def choose_ports(place: Folder, port: int | None) -> Ports:
    """Return the ports of a start: those of the last one where they are free.

    Raises:
        SetupError: the gateway's port is taken.
    """
    try:
        last: Ports | None = place.ports()
    except errors.SetupError:
        last = None
    gateway = port if port is not None else (last.gateway if last else folder.DEFAULT_PORT)
    if gateway == 0:
        gateway = servers.free_port()
    elif not servers.port_is_free(gateway):
        raise errors.SetupError(
            f"Port {gateway} is in use by another program.",
            hint="Stop it, or choose another port with '--port N' ('--port 0' takes a free one).",
        )
    internal = [
        wanted if wanted and servers.port_is_free(wanted) else servers.free_port()
        for wanted in ((last.postgres, last.valkey) if last else (0, 0))
    ]
    return Ports(gateway, *internal)


def _write_demo(place: Folder) -> None:
    """A first start begins with a tenant and a pipeline; later ones leave the folder alone."""
    is_first = not (place.path / "applied.json").exists()
    if is_first and not any(place.manifests.iterdir()):
        (place.manifests / "demo.yaml").write_text(cluster.demo(), encoding="utf-8")


def _listening() -> socket.socket:
    made = socket.socket()
    made.bind((servers.LOOPBACK, servers.free_port()))
    made.listen(1024)
    return made


def _port(listening: socket.socket) -> int:
    port: int = listening.getsockname()[1]
    return port


def _role(place: Folder, role: str, http: socket.socket | None, ops: socket.socket) -> RoleChild:
    def main() -> RoleMain:
        found: RoleMain = importlib.import_module(f"logweir.{role}.app").main
        return found

    settings = Settings(
        role=role,
        binding=place.bindings / f"{role}.json",
        ops=Listen(fd=ops.fileno()),
        http=Listen(fd=http.fileno()) if http else None,
        log_format="json",
        consumer=f"{role}-0",
    )
    sockets = [one for one in (http, ops) if one is not None]
    return RoleChild(settings, main, sockets, _port(ops), after=("operator",))


def _operator(
    place: Folder, secrets: Secrets, ports: Ports, postgres: Postgres, url: str, ops: socket.socket
) -> RoleChild:
    def main() -> RoleMain:
        def run(settings: Settings) -> None:
            site = site_of(secrets, ports)
            login = Login("lw_operator", secrets.valkey_password)
            found = cluster.Cluster(place, site, login, url)
            cluster.main(found, postgres.url(), settings)

        return run

    settings = Settings(
        role="operator", binding=place.bindings, ops=Listen(fd=ops.fileno()), log_format="json"
    )
    return RoleChild(settings, main, [ops], _port(ops), after=("postgres", "valkey"))


def site_of(secrets: Secrets, ports: Ports) -> Site:
    """Return where the servers of an `up` are, and its roots."""
    from logweir.backends.provision import DATABASE, Roots

    return Site(
        store=PostgresServer(servers.LOOPBACK, ports.postgres, DATABASE, tls="disable"),
        journal=JournalServer(servers.LOOPBACK, ports.valkey),
        roots=Roots(
            write=bytes.fromhex(secrets.write_root),
            maintain=bytes.fromhex(secrets.maintain_root),
            read=bytes.fromhex(secrets.read_root),
            sign=bytes.fromhex(secrets.sign_root),
        ),
    )


def detach(place: Folder, port: int | None) -> Shown:
    """Start `up` in a process of its own and return when it is ready.

    Raises:
        SetupError: it did not become ready, in its own words.
    """
    place.make()
    holder = place.holder()
    if holder is not None:
        place.take()  # says who holds it
    log = place.logs / "supervisor.log"
    arguments = [sys.executable, "-m", "logweir.cli", "up", "--data", str(place.path)]
    arguments += ["--port", str(port)] if port is not None else []
    with log.open("ab") as output:
        begin = output.tell()
        process = subprocess.Popen(  # noqa: S603 - ourselves
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + DETACHED_WAIT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise errors.SetupError(_words(log, begin) or "It ended without a word.")
        found = show(place)
        if found.ready and found.pid == process.pid:
            return found
        time.sleep(0.05)
    raise errors.SetupError(
        f"It is not ready after {DETACHED_WAIT_S:.0f} s.",
        hint=f"'logweir status --data {place.path}' says what it waits for.",
    )


def _words(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace").strip().removeprefix("error: ")


def down(place: Folder) -> bool:
    """Stop the `up` that holds the folder and wait for its end; false when there is none.

    Raises:
        SetupError: it belongs to somebody else, or does not end.
    """
    holder = place.holder()
    if holder is None:
        return False
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except PermissionError as cause:
        raise errors.SetupError(
            f"Process {holder.pid} belongs to another user.",
            hint="Run 'logweir down' as that user.",
        ) from cause
    deadline_s = time.monotonic() + DOWN_WAIT_S
    while place.holder() is not None:
        if time.monotonic() >= deadline_s:
            raise errors.SetupError(
                f"Process {holder.pid} has not ended after {DOWN_WAIT_S:.0f} s.",
                hint=f"'logweir status --data {place.path}' says what it waits for.",
            )
        time.sleep(0.02)
    return True
