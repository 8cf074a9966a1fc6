"""PostgreSQL and Valkey (or Redis) as child processes, for `logweir up` and for the tests.

    prepare() -> launch() -> is_ready() ... stop()

Synchronous on purpose: the supervisor forks, and has neither threads nor an event loop. A server's
data folder is its own; secrets stand in files of mode 0600, never in arguments.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import psycopg

from logweir.core import errors
from logweir.standalone import binaries
from logweir.standalone.binaries import RunAs

_PR_SET_PDEATHSIG: Final = 1
START_TIMEOUT_S: Final = 30.0


def free_port() -> int:
    """Return a TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether one could listen on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class Postgres:
    """A PostgreSQL on 127.0.0.1, its cluster in `folder`/data."""

    superuser: Final = "postgres"

    def __init__(self, folder: Path, port: int, password: str, run_as: RunAs | None) -> None:
        self.folder = folder
        self.port = port
        self._password = password
        self._run_as = run_as
        self._data = folder / "data"
        self._program = binaries.reachable(binaries.postgres(), run_as, folder.parent / ".bin")

    def prepare(self) -> None:
        """Make the cluster when there is none; a half-made one is made again.

        Raises:
            SetupError: the folder cannot be used, or holds the cluster of another version.
        """
        make_folder(self.folder, self._run_as)
        version_file = self._data / "PG_VERSION"
        if version_file.exists():
            self._check_version(version_file.read_text().strip())
        else:
            self._initdb()
        (self._data / "logweir.conf").write_text(self._configuration())
        main = self._data / "postgresql.conf"
        if "logweir.conf" not in main.read_text():
            with main.open("a") as lines:
                lines.write("include = 'logweir.conf'\n")
        _own(self._data / "logweir.conf", self._run_as)

    def _check_version(self, found: str) -> None:
        mine = str(self._program.number[0])
        if found != mine:
            raise errors.SetupError(
                f"The data in {self._data} are of PostgreSQL {found}, the program here is"
                f" version {mine}.",
                hint=f"Install PostgreSQL {found}, or move the data over: pg_dumpall with"
                f" version {found}, remove the folder, start, and load the dump with psql.",
            )

    def _initdb(self) -> None:
        half = self.folder / "data.new"
        shutil.rmtree(half, ignore_errors=True)
        with tempfile.NamedTemporaryFile("w", dir=self.folder) as password_file:
            password_file.write(self._password)
            password_file.flush()
            _own(Path(password_file.name), self._run_as)
            done = subprocess.run(  # noqa: S603 - a program of this environment, no shell
                [
                    self._program.path.with_name("initdb"),
                    "--pgdata",
                    half,
                    "--username",
                    self.superuser,
                    "--auth=scram-sha-256",
                    "--pwfile",
                    password_file.name,
                    "--encoding=UTF8",
                    *self._locale(),
                    "--no-sync",
                    "--no-instructions",
                ],
                env=_environment(),
                capture_output=True,
                text=True,
                check=False,
                cwd=self.folder,
                **_identity(self._run_as),
            )
        if done.returncode:
            raise errors.SetupError(
                f"initdb failed: {(done.stderr or done.stdout).strip()[-400:]}",
                hint=f"The folder is {self.folder}; look at its rights and the disk's space.",
            )
        os.sync()
        half.rename(self._data)

    def _locale(self) -> list[str]:
        if self._program.number[0] >= 17:
            return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        return ["--locale=C.UTF-8"]

    def _configuration(self) -> str:
        lines = {
            "listen_addresses": "'127.0.0.1'",
            "port": str(self.port),
            "unix_socket_directories": "''",
            "max_connections": "200",
            "shared_buffers": "'64MB'",
            "wal_buffers": "'4MB'",
            "max_wal_size": "'2GB'",
            "jit": "off",
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            "password_encryption": "'scram-sha-256'",
            "recovery_init_sync_method": "'syncfs'",
            "max_parallel_workers_per_gather": "0",
            "log_destination": "'stderr'",
            "log_line_prefix": "'%m [%p] %u '",
            "log_statement": "'none'",
            "timezone": "'UTC'",
            "log_timezone": "'UTC'",
            "idle_in_transaction_session_timeout": "'10min'",
        }
        if self._program.number[0] >= 18:
            lines["io_method"] = "'sync'"  # its workers would idle in memory
        return "".join(f"{name} = {value}\n" for name, value in lines.items())

    def launch(self, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """Start the server, with its log going to `output`; it dies with this process."""
        _end_orphans(self._data)
        return subprocess.Popen(  # noqa: S603 - a program of this environment, no shell
            [self._program.path, "-D", self._data],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=self.folder,
            start_new_session=True,
            preexec_fn=_die_with_parent(signal.SIGINT),
            **_identity(self._run_as),
        )

    def is_ready(self) -> bool:
        """Whether a query would be answered."""
        try:
            psycopg.connect(self.conninfo(), connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def conninfo(self, database: str = "postgres") -> str:
        """Return libpq's connection string of the superuser."""
        return psycopg.conninfo.make_conninfo(
            host="127.0.0.1",
            port=self.port,
            user=self.superuser,
            password=self._password,
            dbname=database,
        )

    stop_signal: Final = signal.SIGINT
    """SIGINT is PostgreSQL's fast shutdown: sessions end, and nothing has to be recovered."""


class Journal:
    """A Valkey or Redis on 127.0.0.1, its append-only file in `folder`."""

    superuser: Final = "lw_operator"
    stop_signal: Final = signal.SIGTERM

    def __init__(
        self,
        folder: Path,
        port: int,
        password: str,
        run_as: RunAs | None,
        *,
        program: binaries.Program | None = None,
        max_bytes: int = 2 << 30,
    ) -> None:
        self.folder = folder
        self.port = port
        self._password = password
        self._run_as = run_as
        self._max_bytes = max_bytes
        self._program = binaries.reachable(
            program or binaries.journal(), run_as, folder.parent / ".bin"
        )

    def prepare(self) -> None:
        """Write the configuration; the users' file keeps what ACL SAVE wrote to it.

        Raises:
            SetupError: the folder cannot be used.
        """
        make_folder(self.folder, self._run_as)
        users = self.folder / "users.acl"
        digest = hashlib.sha256(self._password.encode()).hexdigest()
        mine = ("user default ", f"user {self.superuser} ")
        kept = [
            line
            for line in (users.read_text().splitlines() if users.exists() else ())
            if line and not line.startswith(mine)
        ]
        first = [
            "user default off resetchannels -@all",
            f"user {self.superuser} on #{digest} ~* &* +@all",
        ]
        _write_private(users, "\n".join([*first, *kept]) + "\n", self._run_as)
        configuration = self.folder / "journal.conf"
        _write_private(configuration, self._configuration(users), self._run_as)

    def _configuration(self, users: Path) -> str:
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {self.folder}",
            f"aclfile {users}",
            "daemonize no",
            'save ""',
            "appendonly yes",
            "appendfsync always",
            "no-appendfsync-on-rewrite no",
            "aof-load-truncated yes",
            f"maxmemory {self._max_bytes}",
            "maxmemory-policy noeviction",
            "lazyfree-lazy-expire yes",
            "client-output-buffer-limit pubsub 32mb 8mb 60",
        ]
        if self._is_valkey and self._program.number >= (9, 1):
            # Else large replies are not counted, and one stuck subscriber fills the memory.
            lines.append("min-string-size-avoid-copy-reply 0")
        return "\n".join(lines) + "\n"

    @property
    def _is_valkey(self) -> bool:
        return "valkey" in self._program.version.lower()

    def launch(self, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """Start the server, with its log going to `output`; it dies with this process."""
        return subprocess.Popen(  # noqa: S603 - a program of this environment, no shell
            [self._program.path, self.folder / "journal.conf"],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=self.folder,
            start_new_session=True,
            preexec_fn=_die_with_parent(signal.SIGTERM),
            **_identity(self._run_as),
        )

    def is_ready(self) -> bool:
        """Whether a command would be answered; not so while the append-only file is read."""
        words = f"AUTH {self.superuser} {self._password}\r\nPING\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(words.encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    piece = connection.recv(256)
                    if not piece:
                        return False
                    answer += piece
        except OSError:
            return False
        return answer.startswith(b"+OK") and b"+PONG" in answer


class Running:
    """A server that a test started; a context manager."""

    def __init__(self, server: Postgres | Journal) -> None:
        self.server = server
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Running:
        self.server.prepare()
        self.start()
        return self

    def start(self) -> None:
        """Start the server and wait until it is ready.

        Raises:
            SetupError: it ended, or was not ready in time; its last lines are in the message.
        """
        log = self.server.folder / "server.log"
        with log.open("ab") as output:
            self._process = self.server.launch(output)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self.server.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.stop()
                raise errors.SetupError(
                    f"The server did not start: {log.read_text(errors='replace')[-600:]}"
                )
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill it with -9, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Stop it in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self.server.stop_signal)
            self._process.wait(timeout=30)

    def __exit__(self, *_: object) -> None:
        self.stop()


def make_folder(folder: Path, user: RunAs | None, mode: int = 0o700) -> None:
    """Make a folder that only the servers' user can enter.

    Raises:
        SetupError: it cannot be made, or that user cannot reach it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _own(folder, user)
        folder.chmod(mode)
    except OSError as cause:
        raise errors.SetupError(
            f"Cannot write to {folder}: {cause.strerror}.",
            hint="Choose a folder of your own by --data, or mend its rights.",
        ) from cause
    if user is not None and not binaries.can_reach(folder / "x", user):
        raise errors.SetupError(
            f"The servers run as {user.user!r}, who cannot enter {folder}.",
            hint="Choose a folder outside of a private home by --data, such as /var/lib/logweir.",
        )


def _write_private(path: Path, text: str, user: RunAs | None) -> None:
    half = path.with_suffix(".half")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as lines:
        lines.write(text)
    _own(half, user)
    half.replace(path)


def _own(path: Path, user: RunAs | None) -> None:
    if user is not None:
        os.chown(path, user.uid, user.gid)


def _identity(user: RunAs | None) -> dict[str, object]:
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """Only what a server needs: no variable of the caller may change what it does."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _die_with_parent(number: int) -> Callable[[], None]:
    """Return what makes the child be sent a signal when this process dies (Linux only)."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        if hasattr(libc, "prctl"):
            libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)

    return prepare


def _end_orphans(data: Path) -> None:
    """After kill -9 of a postmaster, let its processes go before the next one starts."""
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return
    with contextlib.suppress(OSError):
        # Still alive and of this folder: it is what the last supervisor left behind.
        folder = Path(f"/proc/{pid}/cwd").resolve()
        if folder == data.resolve():
            os.kill(pid, signal.SIGQUIT)
            deadline_s = time.monotonic() + 5
            while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline_s:
                time.sleep(0.01)
