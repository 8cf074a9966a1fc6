"""The servers of `up` as the one process of a pod: the chart's gateway and its bundled databases.

prepare, then become the server; the kubelet's signals reach it, and its probes say whether it works
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from logweir.core import errors
from logweir.gateway.routes import Role
from logweir.runtime.settings import Listen
from logweir.standalone import servers
from logweir.standalone.nginx import Nginx
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey

EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - a pod is reached from other pods
POSTGRES_PORT: Final = 5432
REDIS_PORT: Final = 6379


def gateway(
    folder: Path, listen: Listen, roles: Mapping[Role, str], trusted_proxies: Sequence[str]
) -> NoReturn:
    """Become an NGINX in front of roles that are elsewhere.

    Args:
        folder: for what it writes; its parent exists.
        listen: what clients connect to.
        roles: where each is, as `HOST:PORT`.
        trusted_proxies: networks whose X-Forwarded-For is believed.
    """
    server = Nginx(
        folder, listen.port, roles, host=listen.host, trusted_proxies=tuple(trusted_proxies)
    )
    become(server)


def postgres(data: Path, password: str) -> NoReturn:
    """Become a PostgreSQL that keeps its data in a folder."""
    become(Postgres(data / "postgres", POSTGRES_PORT, password, host=EVERYWHERE))


def valkey(data: Path, password: str, max_memory_bytes: int) -> NoReturn:
    """Become a Valkey that keeps its data in a folder, and takes no more than so many bytes."""
    become(
        Valkey(
            data / "valkey",
            REDIS_PORT,
            password,
            max_memory_bytes=max_memory_bytes,
            host=EVERYWHERE,
        )
    )


def become(server: servers.Server) -> NoReturn:
    """Prepare a server and let it take this process's place."""
    server.prepare()
    command = server.command()
    os.chdir(command.cwd)
    os.umask(0o077)
    os.execve(command.argv[0], command.argv, dict(command.env))  # noqa: S606 - our own


def password_of(secret: Path) -> str:
    """Return the password of a mounted Secret.

    Raises:
        SetupError: there is none.
    """
    try:
        return secret.joinpath("password").read_text().strip()
    except OSError as cause:
        raise errors.SetupError(f"Cannot read {secret}/password: {cause.strerror}.") from cause
