"""A thin door to the Kubernetes API: dicts in, dicts out, server-side apply, errors that decide.

Paths are static, so nothing is discovered; only `served` asks the server which kinds it knows.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from kubernetes.aio import client, config

from logweir.core import errors
from logweir_operator.model import GROUP, VERSION

TIMEOUT_S: Final = 20.0
PAGE: Final = 500
"""Objects of one answer to a listing."""

HTTP_ERRORS: Final = 400
TOKEN_FILE: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path

MANAGER: Final = "logweir-operator"
STATUS_MANAGER: Final = "logweir-operator-status"

Object = dict[str, Any]


class Kind(msgspec.Struct, frozen=True):
    """A kind of object and where the API has it."""

    group: str
    version: str
    plural: str
    name: str

    @property
    def api_version(self) -> str:
        """As it stands in an object."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the URL's path; without a namespace of all of them."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        place = f"/namespaces/{namespace}" if namespace else ""
        parts = [part for part in (self.plural, name, subresource) if part]
        return "/".join([root + place, *parts])


def _kinds(group: str, version: str, **plurals: str) -> dict[str, Kind]:
    return {name: Kind(group, version, plural, name) for name, plural in plurals.items()}


RESOURCES: Final[Mapping[str, Kind]] = _kinds(
    GROUP, VERSION, LogTenant="logtenants", LogPipeline="logpipelines"
)

CORE_KINDS: Final[Mapping[str, Kind]] = {
    **_kinds("", "v1", Service="services", ServiceAccount="serviceaccounts"),
    "Secret": Kind("", "v1", "secrets", "Secret"),
    **_kinds("apps", "v1", Deployment="deployments"),
    **_kinds("policy", "v1", PodDisruptionBudget="poddisruptionbudgets"),
    **_kinds("networking.k8s.io", "v1", Ingress="ingresses", NetworkPolicy="networkpolicies"),
}
"""Children that every cluster knows."""

QUOTA_KINDS: Final[Mapping[str, Kind]] = _kinds("", "v1", ResourceQuota="resourcequotas")
ROUTE_KINDS: Final[Mapping[str, Kind]] = _kinds(
    "gateway.networking.k8s.io", "v1", HTTPRoute="httproutes"
)
KEDA_KINDS: Final[Mapping[str, Kind]] = _kinds(
    "keda.sh",
    "v1alpha1",
    ScaledObject="scaledobjects",
    TriggerAuthentication="triggerauthentications",
)
MONITORING_KINDS: Final[Mapping[str, Kind]] = _kinds(
    "monitoring.coreos.com",
    "v1",
    ServiceMonitor="servicemonitors",
    PrometheusRule="prometheusrules",
)
OPTIONAL_KINDS: Final[Mapping[str, Kind]] = {**ROUTE_KINDS, **KEDA_KINDS, **MONITORING_KINDS}
"""Children that a cluster knows when somebody has installed their definitions."""

KINDS: Final[Mapping[str, Kind]] = {**CORE_KINDS, **QUOTA_KINDS, **OPTIONAL_KINDS}
"""All kinds of children."""

OTHER_KINDS: Final[Mapping[str, Kind]] = {
    **_kinds("", "v1", Event="events", Namespace="namespaces"),
    **_kinds("coordination.k8s.io", "v1", Lease="leases"),
    **_kinds("rbac.authorization.k8s.io", "v1", Role="roles", RoleBinding="rolebindings"),
}

_ALL: Final = {**RESOURCES, **KINDS, **OTHER_KINDS}


def kind_of(name: str) -> Kind:
    """Return a kind of the tables above."""
    return _ALL[name]


class KubeError(errors.LogweirError):
    """The API server said no, or nothing. `http_status` is 0 when it did not answer."""

    code = "kubernetes"
    status = 503

    def __init__(self, message: str, http_status: int = 0, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.retry_after_s = retry_after_s

    @property
    def is_final(self) -> bool:
        """Whether the same request would be refused again: the object itself is wrong."""
        is_untyped = self.http_status == 500 and "failed to create typed patch" in self.message
        return is_untyped or self.http_status in (400, 413, 415, 422)

    @property
    def is_forbidden(self) -> bool:
        """Whether the operator lacks the right, or the namespace is being deleted."""
        return self.http_status == 403

    @property
    def is_conflict(self) -> bool:
        """Whether somebody else has changed or made the object meanwhile."""
        return self.http_status == 409

    @property
    def is_terminating(self) -> bool:
        """Whether nothing can be made because the namespace is being deleted."""
        return self.is_forbidden and "being terminated" in self.message


class Listing(msgspec.Struct, frozen=True):
    """All objects of a kind, as of a resourceVersion."""

    items: list[Object]
    version: int


class Access(msgspec.Struct, frozen=True):
    """How to reach the API server. `token_file` is read again at each request, as kubelets
    replace it; a certificate stands in the TLS context."""

    server: str
    tls: ssl.SSLContext | None
    token_file: Path | None = None
    fixed_token: str = ""

    def token(self) -> str:
        """Return the bearer token of now; empty for who has a certificate.

        Raises:
            KubeError: there is none any more.
        """
        if self.token_file is None:
            return self.fixed_token
        try:
            return self.token_file.read_text().strip()
        except OSError as cause:
            raise KubeError(f"Cannot read the token: {cause.strerror}.") from cause

    def session(self, connections: int) -> aiohttp.ClientSession:
        """Return a new pool of connections, whose requests have the token of now."""

        async def authorized(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            if token := self.token():
                request.headers["Authorization"] = f"Bearer {token}"
            return await handler(request)

        tls = self.tls if self.tls is not None else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, ssl=tls), middlewares=(authorized,)
        )


async def access(kubeconfig: str = "") -> Access:
    """Return how to reach the API server: of a kubeconfig, else of the pod.

    Raises:
        SetupError: there is neither.
    """
    found = client.Configuration()
    try:
        if kubeconfig:
            await config.load_kube_config(  # type: ignore[no-untyped-call]
                kubeconfig, client_configuration=found
            )
        else:
            config.load_incluster_config(  # type: ignore[no-untyped-call]
                client_configuration=found
            )
    except (config.ConfigException, OSError) as cause:
        raise errors.SetupError(
            f"Cannot find the Kubernetes API: {cause}.",
            hint="Run in a pod with a ServiceAccount's token, or name a kubeconfig.",
        ) from cause
    tls = ssl.create_default_context(cafile=found.ssl_ca_cert) if found.ssl_ca_cert else None
    if tls is not None:
        # Since Python 3.13 a CA without key identifiers is refused, and some clusters have one.
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if found.cert_file:
            tls.load_cert_chain(found.cert_file, found.key_file)
    if not kubeconfig:
        return Access(found.host, tls, Path(TOKEN_FILE))
    texts = [text for text in (found.api_key or {}).values() if text]
    fixed = str(texts[0]).removeprefix("Bearer ") if texts else ""
    return Access(found.host, tls, fixed_token=fixed)


async def _late(body: bytes, meanwhile: Callable[[], Awaitable[object]]) -> AsyncIterator[bytes]:
    await meanwhile()
    yield body


class Kube:
    """Requests to the API server, each with a time limit."""

    def __init__(self, access: Access, *, connections: int = 32) -> None:
        self._server = access.server.rstrip("/")
        self._session = access.session(connections)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        query: Mapping[str, str] = {},
        meanwhile: Callable[[], Awaitable[object]] | None = None,
    ) -> Object:
        """Send one request and return the answer's JSON.

        `meanwhile` is done when the request is authorised already, and not carried out yet: the
        server asks for the body then (`100 Continue`).

        Raises:
            KubeError: it was refused, or not answered in time.
        """
        data: bytes | AsyncIterator[bytes] | None
        data = None if body is None else msgspec.json.encode(body)
        if meanwhile is not None and data is not None:
            data = _late(data, meanwhile)
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._session.request(
                    method,
                    self._server + path,
                    data=data,
                    params=query,
                    headers=headers,
                    expect100=meanwhile is not None,
                ) as answer,
            ):
                text = await answer.read()
                if answer.status >= HTTP_ERRORS:
                    raise _refused(answer, text)
                found: Object = msgspec.json.decode(text)
                return found
        except (TimeoutError, OSError, aiohttp.ClientError, msgspec.DecodeError) as cause:
            reason = str(cause) or type(cause).__name__
            raise KubeError(f"The Kubernetes API did not answer: {reason}.") from cause

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Return an object; None when there is none."""
        return await self._or_none("get", kind.path(namespace, name))

    async def list(self, kind: Kind, namespace: str = "", *, selector: str = "") -> Listing:
        """Return all objects of a kind, of one namespace or of all; `apiVersion` and `kind` are
        left out of each, as the API does."""
        found: list[Object] = []
        query = {"limit": str(PAGE)}
        if selector:
            query["labelSelector"] = selector
        while True:
            page = await self.request("get", kind.path(namespace), query=query)
            found += page.get("items") or ()
            meta = page.get("metadata") or {}
            if not meta.get("continue"):
                return Listing(found, int(meta.get("resourceVersion") or 0))
            query["continue"] = meta["continue"]

    async def apply(
        self, document: Object, *, manager: str = MANAGER, subresource: str = ""
    ) -> Object:
        """Apply an object server-side; what others own and we want, we take."""
        kind = kind_of(document["kind"])
        meta = document["metadata"]
        return await self.request(
            "patch",
            kind.path(meta["namespace"], meta["name"], subresource),
            document,
            content_type="application/apply-patch+yaml",
            query={"fieldManager": manager, "force": "true"},
        )

    async def create(self, document: Object) -> Object:
        """Create an object."""
        kind = kind_of(document["kind"])
        namespace = document["metadata"]["namespace"]
        query = {"fieldManager": MANAGER}
        return await self.request("post", kind.path(namespace), document, query=query)

    async def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        change: object,
        *,
        subresource: str = "",
        meanwhile: Callable[[], Awaitable[object]] | None = None,
    ) -> Object | None:
        """Change an object by a merge patch; None when it is not there. As `request` otherwise."""
        return await self._or_none(
            "patch",
            kind.path(namespace, name, subresource),
            change,
            content_type="application/merge-patch+json",
            query={"fieldManager": MANAGER},
            meanwhile=meanwhile,
        )

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete an object if it is this one; one that is gone already is well gone."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        try:
            await self._or_none("delete", kind.path(namespace, name), options)
        except KubeError as error:
            if not error.is_conflict:  # another one of this name has come since
                raise

    async def _or_none(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        query: Mapping[str, str] = {},
        meanwhile: Callable[[], Awaitable[object]] | None = None,
    ) -> Object | None:
        try:
            return await self.request(
                method, path, body, content_type=content_type, query=query, meanwhile=meanwhile
            )
        except KubeError as error:
            if error.http_status == 404:
                return None
            raise

    async def served(self) -> frozenset[str]:
        """Return which of the optional kinds the API server knows."""
        found: set[str] = set()
        for group in {(one.group, one.version) for one in OPTIONAL_KINDS.values()}:
            answer = await self._or_none("get", "/apis/{}/{}".format(*group))
            known = {one["name"] for one in (answer or {}).get("resources", ())}
            found |= {
                name
                for name, one in OPTIONAL_KINDS.items()
                if (one.group, one.version) == group and one.plural in known
            }
        return frozenset(found)


def _refused(answer: aiohttp.ClientResponse, text: bytes) -> KubeError:
    try:
        message = str(msgspec.json.decode(text)["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        message = text[:500].decode(errors="replace") or "no reason given"
    after = answer.headers.get("Retry-After", "")
    return KubeError(message, answer.status, float(after) if after.isdecimal() else 0.0)
