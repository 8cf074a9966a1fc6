"""Connections to Redis or Valkey, with the options that this project needs everywhere.

redis-py's defaults break a blocking read (a socket timeout of 5 s) and repeat a command in silence;
both are off here: a caller sees each failure once and decides.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from logweir.backends import doors
from logweir.core.binding import JournalServer, Login

CONNECT_TIMEOUT_S: Final = 3.0


class _TlsConnection(redis.SSLConnection):
    """A connection that says why there is none where redis-py has no words for it."""

    async def _connect(self) -> None:
        try:
            await super()._connect()  # type: ignore[no-untyped-call]  # has no types
        except TimeoutError as cause:
            raise ConnectionError(doors.NO_TLS) from cause
        except FileNotFoundError as cause:
            file = self.ssl_context.ca_certs
            raise ConnectionError(f'root certificate file "{file}" does not exist') from cause


def client(
    server: JournalServer,
    login: Login,
    *,
    connections: int = 8,
    command_timeout_s: float | None = 5.0,
    name: str = "",
) -> redis.Redis:
    """Return a client with a bounded pool; nothing connects before the first command.

    A `command_timeout_s` of None is for blocking reads, which need a deadline of their own.
    """
    options: dict[str, Any] = {
        "host": server.host,
        "port": server.port,
        "username": login.user,
        "password": login.password,
        "socket_timeout": command_timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "socket_read_size": 1 << 18,
        "retry": Retry(NoBackoff(), 0),
        # CLIENT SETINFO is no command of Redis 7.0's ACLs and would be logged as a denial.
        "driver_info": None,
        # With it, a connection that the server closed meanwhile is handed out all the same.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "client_name": name or None,
    }
    if server.tls:
        options["connection_class"] = _TlsConnection
        options["ssl_check_hostname"] = True
        options["ssl_ca_certs"] = server.ca_file or None
        options["ssl_min_version"] = ssl.TLSVersion.TLSv1_2
    pool = redis.BlockingConnectionPool(
        max_connections=connections, timeout=command_timeout_s, **options
    )
    return redis.Redis.from_pool(pool)  # closing the client closes the pool
