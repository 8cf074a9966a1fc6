"""How clients come in to an `up`: the address, TLS, the proxies before it, with NGINX or without.

options of `logweir up` --choose--> entrance.json --> the next starts, too
"""

from __future__ import annotations

import ipaddress
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from logweir.core import errors
from logweir.runtime.settings import Tls
from logweir.standalone import servers
from logweir.standalone.folder import DEFAULT_PORT, Folder, Ports, read_json, write_json

SETTLED_S: Final = 1.0
"""A certificate and its key are replaced one after the other: both are read when both are old."""

_FILE: Final = "entrance.json"
_ANY: Final = {"0.0.0.0": servers.LOOPBACK, "::": "::1"}  # noqa: S104 - where to find who listens there


class Entrance(msgspec.Struct, frozen=True):
    """What an `up` is told once, and keeps."""

    host: str = servers.LOOPBACK
    tls: Tls | None = None
    trusted_proxies: tuple[str, ...] = ()
    with_nginx: bool = True

    def url(self, port: int) -> str:
        """Return the address for who is on this machine."""
        host = _ANY.get(self.host, self.host)
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def warning(self) -> str:
        """What somebody who starts it should know; empty when there is nothing."""
        if self.tls is None and not ipaddress.ip_address(self.host).is_loopback:
            return "Keys and logs travel in plain text: give --tls-cert and --tls-key, or a proxy."
        return ""


def choose(
    place: Folder,
    *,
    host: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    trusted_proxies: Sequence[str] | None = None,
    with_nginx: bool | None = None,
) -> Entrance:
    """Return the entrance of the next start, and keep it: None is as before, "" is none any more.

    Raises:
        SetupError: an option that cannot work, or an `up` runs there.
    """
    before = read(place)
    chosen = Entrance(
        host=before.host if host is None else _host(host or servers.LOOPBACK),
        tls=_tls(before.tls, tls_cert, tls_key),
        trusted_proxies=before.trusted_proxies
        if trusted_proxies is None
        else tuple(_network(one) for one in trusted_proxies if one),
        with_nginx=before.with_nginx if with_nginx is None else with_nginx,
    )
    if chosen != before:
        place.make()
        if place.holder() is not None:
            raise place.in_use()
        write_json(place.path / _FILE, chosen)
    return chosen


def read(place: Folder) -> Entrance:
    """Return the entrance as it was chosen.

    Raises:
        SetupError: the file cannot be read.
    """
    path = place.path / _FILE
    return read_json(path, Entrance) if path.exists() else Entrance()


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError as cause:
        raise errors.SetupError(
            f"--listen takes an address of this machine, not {text!r}.",
            hint="Use 0.0.0.0 for all of IPv4, or :: for all of IPv6.",
        ) from cause


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as cause:
        raise errors.SetupError(
            f"--trusted-proxy takes a network such as 10.0.0.0/8: {cause}."
        ) from cause


def _tls(before: Tls | None, certificate: str | None, key: str | None) -> Tls | None:
    if certificate is None and key is None:
        return before
    if certificate == "" and not key:
        return None
    if not certificate or not key:
        raise errors.SetupError(
            "--tls-cert and --tls-key go together.", hint="--tls-cert '' turns TLS off again."
        )
    tls = Tls(*(str(Path(one).expanduser().absolute()) for one in (certificate, key)))
    check(tls)
    return tls


def check(tls: Tls) -> None:
    """See that a certificate and its key can be used.

    Raises:
        SetupError: they cannot.
    """

    def no_password() -> str:
        raise errors.SetupError(
            f"The key {tls.key} is encrypted.", hint="Decrypt it with 'openssl pkey', mode 0600."
        )

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            tls.certificate, tls.key, no_password
        )
    except OSError as cause:  # an SSLError is one
        raise errors.SetupError(
            f"{tls.certificate} and {tls.key} are no certificate and its key: "
            f"{cause.strerror or cause}.",
            hint="Both are files in PEM; the certificate's has those that lead to its root.",
        ) from cause


def choose_ports(place: Folder, port: int | None, host: str) -> Ports:
    """Return the ports of a start: those of the last one where they are free.

    Raises:
        SetupError: the gateway's port is taken.
    """
    try:
        last: Ports | None = place.ports()
    except errors.SetupError:
        last = None
    gateway = port if port is not None else (last.gateway if last else DEFAULT_PORT)
    if gateway == 0:
        gateway = servers.free_port()
    elif problem := servers.port_problem(gateway, host):
        other = "hoose another port with '--port N' ('--port 0' takes a free one)."
        hint = f"Stop it, or c{other}" if problem == servers.IN_USE else f"C{other}"
        raise errors.SetupError(f"Port {gateway} {problem}.", hint=hint)
    internal = [
        wanted if wanted and servers.port_is_free(wanted) else servers.free_port()
        for wanted in ((last.postgres, last.valkey) if last else (0, 0))
    ]
    return Ports(gateway, *internal)


class Watch:
    """Looks for new certificates; `use` is called when there are some."""

    def __init__(
        self, tls: Tls | None, use: Callable[[], None], tell: Callable[[str], None]
    ) -> None:
        self._tls = tls
        self._use = use
        self._tell = tell
        self._used = self._stamp()

    def look(self) -> None:
        """Take new certificates, once they are complete; those that cannot be used are told of."""
        stamp = self._stamp()
        if stamp == self._used or stamp is None:
            return
        if max(changed_s for changed_s, _ in stamp) > time.time() - SETTLED_S:
            return
        self._used = stamp
        try:
            self._use()
        except (errors.SetupError, OSError) as error:  # NGINX may just have ended
            self._tell(f"the new certificate is not used: {error}")
        else:
            self._tell("the gateway has a new certificate")

    def _stamp(self) -> list[tuple[float, int]] | None:
        """When each file was changed, and which it is; None while one is not there."""
        if self._tls is None:
            return None
        try:
            found = [Path(one).stat() for one in (self._tls.certificate, self._tls.key)]
        except OSError:
            return None
        return [(one.st_mtime, one.st_ino) for one in found]
