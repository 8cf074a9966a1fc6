"""The embedded PostgreSQL: its cluster, its configuration, its life.

    FOLDER/             owned by the servers' user, mode 0700
      data/             the cluster; made as data.new and renamed, so a half-made one is made again
        postgresql.conf   written at each start from `configuration`
        local.conf        optional, the user's own settings

Durability stands on the command line, where neither local.conf nor ALTER SYSTEM can turn it off.

It listens on the loopback address only, without a Unix socket, and knows passwords (SCRAM) only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
from pathlib import Path
from urllib.parse import quote

from logweir.core import errors
from logweir.standalone import accounts, binaries, servers
from logweir.standalone.accounts import Account
from logweir.standalone.binaries import Binaries

SUPERUSER = "postgres"

INITDB_WAIT_S = 120.0
"""Making a cluster takes half a second; a minute and more only where the disk is very slow."""

_DURABLE = ("fsync=on", "synchronous_commit=on", "full_page_writes=on")
"""What is acknowledged is on the disk."""

_FROM_EVERYWHERE = "host all all all scram-sha-256\n"

_PROGRAMS = frozenset({"postgres", "initdb"})
_STARTUP = struct.Struct("!ii")
_PROTOCOL_3 = 196608
_STATUS_LINE = 7
_BUILTIN_LOCALE_SINCE = (17,)
_SYNC_METHOD_SINCE = (17,)
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}


class Postgres(servers.Server):
    """A PostgreSQL in `folder`, for the superuser `postgres` with `password`."""

    name = "PostgreSQL"

    def __init__(
        self,
        folder: Path,
        port: int,
        password: str,
        run_as: Account | None = None,
        program: Binaries | None = None,
        host: str = servers.LOOPBACK,
    ) -> None:
        """Name the server; nothing happens yet.

        Args:
            folder: where all of it is; its parent exists and `run_as` can enter that.
            port: on the address `host`.
            password: of the superuser; taken when the cluster is made.
            run_as: the user to run as, when this process is root.
            program: which PostgreSQL; the one of `binaries.postgres` when None.
            host: the address to listen on; passwords are asked for from everywhere.
        """
        super().__init__()
        self._host = host
        self.folder = folder.absolute()
        self.port = port
        self._password = password
        self._account = run_as
        self._program = program

    @property
    def data(self) -> Path:
        """The cluster's folder."""
        return self.folder / "data"

    def prepare(self) -> None:
        """Make the cluster if there is none, end what is left of an earlier start, configure.

        Raises:
            SetupError: no program, no way to the folder, another version's data, a failed initdb.
        """
        accounts.check_reach(self.folder, self._account)
        accounts.make_folder(self.folder, self._account)
        found = self._program or binaries.postgres()
        self._program = binaries.reachable(found, self._account, self.folder.parent / ".bin")
        self._clear()
        version = self.data / "PG_VERSION"
        if version.exists():
            _check_version(self.folder, version.read_text().strip(), self._program)
        else:
            self._make_cluster()
        text = configuration(self.port, self._program.version, self._host)
        accounts.write_file(self.data / "postgresql.conf", text, self._account)
        if self._host != servers.LOOPBACK:
            accounts.write_file(self.data / "pg_hba.conf", _FROM_EVERYWHERE, self._account)

    def command(self) -> servers.Command:
        """Return the server's process; SIGINT stops it fast and in order (open work is undone)."""
        options = (part for setting in _DURABLE for part in ("-c", setting))
        return servers.Command(
            argv=(str(self._ready_program().program), "-D", str(self.data), *options),
            cwd=self.data,
            env=_ENVIRONMENT,
            account=self._account,
            stop_signal=signal.SIGINT,
        )

    def ready(self) -> bool:
        """Say whether it takes logins: not while it starts, recovers or stops.

        Begins a login and leaves when asked for the password, so no server process is kept busy.
        Its own word in the pid file tells it from another PostgreSQL on the port.
        """
        if _word(self.data / "postmaster.pid") != "ready":
            return False
        words = b"user\0" + SUPERUSER.encode() + b"\0database\0postgres\0\0"
        hello = _STARTUP.pack(len(words) + _STARTUP.size, _PROTOCOL_3) + words
        return servers.talk(self.port, hello, enough=bool)[:1] == b"R"

    def url(self, user: str = SUPERUSER, password: str = "", database: str = "postgres") -> str:
        """Return a libpq URL; the superuser's own password is filled in."""
        secret = password or (self._password if user == SUPERUSER else "")
        login = f"{quote(user, safe='')}:{quote(secret, safe='')}"
        place = f"{servers.LOOPBACK}:{self.port}/{quote(database, safe='')}"
        return f"postgresql://{login}@{place}"

    def _ready_program(self) -> Binaries:
        if self._program is None:
            raise errors.SetupError("PostgreSQL is started before it is prepared.")
        return self._program

    def _make_cluster(self) -> None:
        fresh = self.folder / "data.new"
        secret = self.folder / "password"
        accounts.write_file(secret, self._password + "\n", self._account)
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            self._initdb(fresh, secret)
            accounts.rename(fresh, self.data)
        finally:
            secret.unlink(missing_ok=True)

    def _initdb(self, fresh: Path, secret: Path) -> None:
        program = self._ready_program()
        command = servers.Command(
            argv=(
                *(str(program.beside("initdb")), f"--pgdata={fresh}", f"--pwfile={secret}"),
                *(f"--username={SUPERUSER}", "--auth=scram-sha-256", "--encoding=UTF8"),
                "--data-checksums",
                *_sync(program.version),
                *_locale(program.version),
            ),
            cwd=self.folder,
            env=_ENVIRONMENT,
            account=self._account,
            stop_signal=signal.SIGKILL,
        )
        log = self.folder / "initdb.log"
        log.unlink(missing_ok=True)
        with log.open("xb") as output:
            process = servers.spawn(command, output.fileno())
            try:
                code: int | None = process.wait(INITDB_WAIT_S)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                process.kill()
                process.wait()
        if code != 0:
            raise errors.SetupError(
                f"initdb could not make a cluster in {self.folder}: {servers.tail(log)}",
                hint="Free space or choose another folder with '--data DIR'.",
            )
        log.unlink()

    def _clear(self) -> None:
        """End a server that is left behind, or the backends that outlived it, and a stale pid.

        Backends of a killed server hold its shared memory, and PostgreSQL will not start before
        they are gone. A pid file without a number (the disk was full), or with one that now is
        some other process's, would stop it, too.
        """
        pid_file = self.data / "postmaster.pid"
        pid = _leader(pid_file)
        servers.clear(self.folder, _PROGRAMS, pid, signal.SIGINT)
        if pid is None or (Path("/proc/self").exists() and Path(f"/proc/{pid}").exists()):
            pid_file.unlink(missing_ok=True)


def configuration(port: int, version: tuple[int, ...], host: str = servers.LOOPBACK) -> str:
    """Return postgresql.conf: small when idle."""
    newer = ["io_workers = 1"] if version >= (18,) else []
    lines = [
        "# Written at each start. Settings of your own belong into local.conf beside this file.",
        f"listen_addresses = '{host}'",
        f"port = {port}",
        "unix_socket_directories = ''",
        "max_connections = 300",
        "password_encryption = scram-sha-256",
        "timezone = 'UTC'",
        "log_timezone = 'UTC'",
        "# To stderr, for the supervisor. Statements and details may hold secrets or logs.",
        "log_destination = 'stderr'",
        "logging_collector = off",
        "log_line_prefix = '%m [%p] %q%u@%d %a '",
        "log_min_error_statement = panic",
        "log_error_verbosity = terse",
        "log_checkpoints = off",
        "# Memory and processes: queries read columns in bulk; parallel workers gain nothing.",
        "shared_buffers = '64MB'",
        "work_mem = '8MB'",
        "maintenance_work_mem = '64MB'",
        "jit = off",
        "max_parallel_workers_per_gather = 0",
        "max_logical_replication_workers = 0",
        *newer,
        "autovacuum = on",
        "# WAL: enough between checkpoints for a burst, little to replay after a kill.",
        "min_wal_size = '96MB'",
        "max_wal_size = '1GB'",
        "checkpoint_timeout = '5min'",
        "# A client that went away ends its query.",
        "client_connection_check_interval = '1s'",
        "tcp_keepalives_idle = 60",
        *(["recovery_init_sync_method = syncfs"] if _has_syncfs() else []),
        "include_if_exists = 'local.conf'",
        "",
    ]
    return "\n".join(lines)


def _locale(version: tuple[int, ...]) -> tuple[str, ...]:
    """Return initdb's options for one byte order everywhere, without the system's collations."""
    if version >= _BUILTIN_LOCALE_SINCE:
        return ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    return ("--locale=C", "--lc-ctype=C.UTF-8") if _has_syncfs() else ("--locale=C",)


def _sync(version: tuple[int, ...]) -> tuple[str, ...]:
    """Return initdb's option for one flush of the file system in place of one for each file."""
    return ("--sync-method=syncfs",) if version >= _SYNC_METHOD_SINCE and _has_syncfs() else ()


def _has_syncfs() -> bool:
    """Say whether this is a Linux, with syncfs and a C.UTF-8 locale in libc."""
    return os.uname().sysname == "Linux"


def _check_version(folder: Path, written: str, program: Binaries) -> None:
    ours = str(program.version[0])
    if written != ours:
        raise errors.SetupError(
            f"{folder} holds data of PostgreSQL {written}, but this is PostgreSQL {ours}.",
            hint=f"Dump it with PostgreSQL {written} "
            f"('postgres -D {folder / 'data'}' and 'pg_dumpall'), move the folder away, "
            "start Logweir once, and load the dump with 'psql'.",
        )


def _leader(pid_file: Path) -> int | None:
    """Return the process that the pid file names; None when there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(pid_file.read_text().splitlines()[0])
    return None


def _word(pid_file: Path) -> str:
    """Return what the server says of itself in the pid file; empty when nothing yet."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return pid_file.read_text().splitlines()[_STATUS_LINE].strip()
    return ""
