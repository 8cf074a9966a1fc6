"""The chart's job: its Secrets as files, its log as a list."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
from controlplane.plane import Plane

from logweir.standalone import servers
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey
from logweir_operator import bootstrap, kube, roots
from logweir_operator.config import Config, Image
from logweir_operator.rootsets import RootSecrets


class Job:
    """The job of one release: its Secrets as files, its log as a list."""

    def __init__(self, folder: Path, plane: Plane, namespace: str, **config: Any) -> None:
        self.plane = plane
        self.folder = folder
        self.kubeconfig = plane.kubeconfig
        self.config = Config(
            **{
                "namespace": namespace,
                "release": "logs",
                "image": Image(repository="logweir"),
                "postgres_folder": str(folder / "postgres"),
                "redis_folder": str(folder / "redis"),
                "bootstrap_wait_s": 20.0,
                **config,
            }
        )
        for name in ("postgres", "redis"):
            (folder / name).mkdir(parents=True)

    def use(self, postgres: Postgres, valkey: Valkey, user: str = "postgres", password: str = ""):
        for name, texts in {
            "postgres": {
                "host": servers.LOOPBACK,
                "port": str(postgres.port),
                "username": user,
                "password": password or "super",
                "sslmode": "disable",
            },
            "redis": {
                "host": servers.LOOPBACK,
                "port": str(valkey.port),
                "username": "lw_operator",
                "password": "operator",
            },
        }.items():
            for key, text in texts.items():
                (self.folder / name / key).write_text(text)
        return self

    async def run(self) -> list[str]:
        said: list[str] = []
        api = kube.Kube(await kube.access(str(self.kubeconfig)))
        try:
            await bootstrap.run(self.config, api, said.append)
        finally:
            await api.close()
        return said

    def secret(self, name: str) -> dict[str, str]:
        found = self.plane.api.get("Secret", name, self.config.namespace)
        return {key: base64.b64decode(text).decode() for key, text in found["data"].items()}

    def roots(self) -> RootSecrets:
        return msgspec.json.decode(self.secret("logs-roots")["secrets.json"], type=RootSecrets)

    def operator(self) -> str:
        """Connection string of the operator's login, as it follows from the Secret."""
        found = self.config.servers()
        return roots.conninfo(roots.site_of(found.store, found.journal, self.roots()))
