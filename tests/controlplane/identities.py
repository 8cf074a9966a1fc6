"""Who is who in a control plane of tests: certificates, and a kubeconfig for each identity."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml
from authorities import Authority
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

GROUPS: Final = {
    "admin": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    "system:kube-proxy": "",
    "kubelet-client": "system:masters",
}
"""The clients that have a certificate, and the group of each."""


class Identities:
    """The certificates and kubeconfigs of one API server, all in `folder`.

    Attributes:
        server: the files of the server's certificate and key.
        service_accounts: the files of the private and public key that sign and check their tokens.
    """

    def __init__(self, folder: Path, url: str, *addresses: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._url = url
        self._authority = Authority(folder, "logweir tests")
        self.authority = self._authority.file
        service = ["kubernetes", "default", "svc", "cluster", "local"]
        names = [".".join(service[:length]) for length in (1, 2, 3, 5)]
        self.server = self._authority.issue(
            "127.0.0.1", "10.96.0.1", "localhost", *names, *addresses, name="kube-apiserver"
        )
        self.service_accounts = _token_keys(folder)

    def listener(self, name: str, *hosts: str) -> tuple[Path, Path]:
        """Return the files of a certificate for another program that listens, such as a kubelet."""
        return self._authority.issue(*hosts, name=name)

    def client(self, name: str) -> tuple[Path, Path]:
        """Return the files of a client's certificate and key; a node's name is system:node:NAME."""
        group = "system:nodes" if name.startswith("system:node:") else GROUPS[name]
        return self._authority.issue(name=name, organization=group)

    def kubeconfig(self, name: str) -> Path:
        """Write a kubeconfig of a client with a certificate, and return its path."""
        certificate, key = self.client(name)
        user = {"client-certificate": str(certificate), "client-key": str(key)}
        return self._write(name, "default", user)

    def token_kubeconfig(self, name: str, namespace: str, token: str) -> Path:
        """Write a kubeconfig of whoever a token is for, and return its path."""
        return self._write(name, namespace, {"token": token})

    def _write(self, name: str, namespace: str, user: dict[str, str]) -> Path:
        cluster = {"server": self._url, "certificate-authority": str(self.authority)}
        context = {"cluster": "tests", "user": name, "namespace": namespace}
        path = self.folder / f"{name.replace(':', '-')}.kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "tests", "cluster": cluster}],
                    "users": [{"name": name, "user": user}],
                    "contexts": [{"name": "tests", "context": context}],
                    "current-context": "tests",
                }
            )
        )
        path.chmod(0o600)
        return path


def _token_keys(folder: Path) -> tuple[Path, Path]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = folder / "tokens.key", folder / "tokens.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public
