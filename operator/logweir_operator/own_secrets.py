"""Secrets of the platform itself, in the namespace of the release: the roots, bindings of roles.

bootstrap Job --makes--> NAME-roots <--reads, rotates-- operator --> NAME-query-binding, ...
"""

from __future__ import annotations

import base64
import logging
import time
from typing import Final

import msgspec

from logweir.core import errors
from logweir_operator import bindings
from logweir_operator.bindings import Site
from logweir_operator.config import Servers
from logweir_operator.kube import CORE_KINDS, Kube, Object
from logweir_operator.rootsets import RootSecrets
from logweir_operator.watching import MANAGED

logger = logging.getLogger(__name__)

SECRET: Final = CORE_KINDS["Secret"]
AGAIN_S: Final = 120.0
ROOTS_KEY: Final = "secrets.json"
BINDING_KEY: Final = "binding.json"


def roots_name(release: str) -> str:
    """Return the name of the Secret with the roots."""
    return f"{release}-roots"


class SecretVault:
    """The roots in a Secret, changed only as they were read."""

    def __init__(self, kube: Kube, namespace: str, release: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = roots_name(release)
        self._version = ""

    async def read(self) -> RootSecrets:
        """Return the roots.

        Raises:
            SetupError: there are none yet, or the Secret holds something else.
            KubeError: the API server did not answer.
        """
        found = await self._kube.get(SECRET, self._namespace, self._name)
        text = ((found or {}).get("data") or {}).get(ROOTS_KEY)
        if found is None or text is None:
            raise errors.SetupError(
                f"The Secret {self._name} with the root keys is not there yet.",
                hint="The job of the chart that prepares the databases makes it; look at its log.",
            )
        self._version = found["metadata"]["resourceVersion"]
        try:
            return msgspec.json.decode(base64.b64decode(text), type=RootSecrets)
        except (msgspec.MsgspecError, ValueError) as cause:
            raise errors.SetupError(
                f"The Secret {self._name} holds no root keys: {cause}.",
                hint="Put it back from a copy: every password and key comes from it.",
            ) from cause

    async def write(self, changed: RootSecrets) -> None:
        """Keep what is changed, unless somebody else has changed the Secret since `read`.

        Raises:
            KubeError: somebody has, or the API server did not answer.
            SetupError: it is gone.
        """
        data = {ROOTS_KEY: base64.b64encode(msgspec.json.encode(changed)).decode()}
        change = {"metadata": {"resourceVersion": self._version}, "data": data}
        if await self._kube.patch(SECRET, self._namespace, self._name, change) is None:
            raise errors.SetupError(
                f"The Secret {self._name} with the root keys is gone.",
                hint="Put it back from a copy: every password and key comes from it.",
            )


class RoleSecrets:
    """The bindings of the platform's roles; written when they differ from what was written last."""

    def __init__(self, kube: Kube, namespace: str, release: str, servers: Servers) -> None:
        self._kube = kube
        self._namespace = namespace
        self._release = release
        self._servers = servers
        self._written: dict[str, bytes] = {}
        self._written_s = float("-inf")

    async def write(self, site: Site) -> None:
        """Bring all of them to what the roots and servers of now say.

        Raises:
            KubeError: the API server refused, or did not answer.
        """
        # The roles find certificates beside their binding, not where we have them.
        site = msgspec.structs.replace(
            site, store=self._servers.pods_store, journal=self._servers.pods_journal
        )
        wanted = {
            "query": msgspec.json.encode(bindings.query(site)),
            "keeper": msgspec.json.encode(bindings.keeper(site)),
            "auth": msgspec.json.encode(bindings.auth(site)),
        }
        now_s = time.monotonic()
        if now_s - self._written_s > AGAIN_S:  # somebody may have taken one away
            self._written.clear()
            self._written_s = now_s
        for role, text in wanted.items():
            if self._written.get(role) == text:
                continue
            await self._kube.apply(self._secret(role, text))
            self._written[role] = text
            logger.info("binding written", extra={"role_of": role})

    def _secret(self, role: str, text: bytes) -> Object:
        files = {BINDING_KEY: text, **self._servers.cas}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": f"{self._release}-{role}-binding",
                "namespace": self._namespace,
                "labels": {**MANAGED, "app.kubernetes.io/component": role},
            },
            "type": "Opaque",
            "data": {name: base64.b64encode(value).decode() for name, value in files.items()},
        }
