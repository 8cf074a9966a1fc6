"""Certificates for tests, each its own root, by the machine's openssl."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

from logweir.runtime.settings import Tls

NAME = "logs.example"


def make(folder: Path, days: int = 30, name: str = NAME) -> Tls:
    """Write `tls.crt` and `tls.key` in the folder, in place of those that are there."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    fresh = certificate.with_suffix(".fresh"), key.with_name("tls.key.fresh")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-noenc", "-days", str(days), "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"),
            *("-keyout", fresh[1], "-out", fresh[0]),
        ],
        check=True,
        capture_output=True,
    )
    fresh[1].replace(key)
    fresh[0].replace(certificate)
    return Tls(str(certificate), str(key))


def trusting(tls: Tls, newest: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client's context that trusts this certificate alone."""
    context = ssl.create_default_context(cafile=tls.certificate)
    if newest is not None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = newest
    return context


def der(tls: Tls) -> bytes:
    """The certificate, as a server shows it."""
    return ssl.PEM_cert_to_DER_cert(Path(tls.certificate).read_text())
