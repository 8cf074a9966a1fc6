"""Requests to an API server for tests: plain dicts, as one identity, and errors that can be read.

    api.apply(pod)   api.get("Deployment", "web", "shop")   api.list("Pod", "shop", app="web")

A kind is named alone, or with its group where two share a name ("events.k8s.io/Event").
"""

from __future__ import annotations

import json
import ssl
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import httpx2 as httpx
import yaml

Object = dict[str, Any]
T = TypeVar("T")
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


class ApiError(Exception):
    """The API server refused: `code` is HTTP's, `reason` and `causes` are Kubernetes' words."""

    def __init__(self, code: int, status: Mapping[str, Any]) -> None:
        self.code = code
        self.reason: str = status.get("reason", "")
        self.message: str = status.get("message", "")
        details = status.get("details") or {}
        self.causes: list[tuple[str, str]] = [
            (one.get("field", ""), one.get("message", "")) for one in details.get("causes", [])
        ]
        super().__init__(f"{code} {self.reason}: {self.message}")


class Kind(NamedTuple):
    """Where objects of a kind are."""

    base: str
    plural: str
    namespaced: bool

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        inside = ["namespaces", namespace] if self.namespaced and namespace else []
        return "/".join(one for one in [self.base, *inside, self.plural, name, subresource] if one)


class Api:
    """One identity's requests; may be used by several threads."""

    def __init__(self, server: str, context: ssl.SSLContext, token: str = "") -> None:
        headers = {"User-Agent": "logweir-test"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx.Client(
            base_url=server, verify=context, headers=headers, timeout=30, trust_env=False
        )
        self._kinds: dict[str, Kind] = {}

    @classmethod
    def of_kubeconfig(cls, path: Path) -> Self:
        """Return the identity of a kubeconfig with one user."""
        config = yaml.safe_load(path.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        if "client-certificate" in user:
            context.load_cert_chain(user["client-certificate"], user["client-key"])
        return cls(cluster["server"], context, user.get("token", ""))

    def close(self) -> None:
        self._client.close()

    def apply(
        self,
        *objects: Object,
        manager: str = "test",
        force: bool = True,
        dry_run: bool = False,
        subresource: str = "",
    ) -> Object:
        """Apply them on the server's side; return the last as it is then.

        Raises:
            ApiError: one is refused; those before it are applied.
        """
        query = {"fieldManager": manager, "force": str(force).lower()}
        if dry_run:
            query["dryRun"] = "All"
        answer: Object = {}
        for one in objects:
            path = self._path_of(one, subresource)
            answer = self.request("PATCH", path, one, query, content_type=APPLY_PATCH)
        return answer

    def apply_yaml(self, text: str, namespace: str | None = None, **options: Any) -> Object:
        """Apply all documents of a text; those without a namespace go into the one given."""
        objects = [one for one in yaml.safe_load_all(textwrap.dedent(text)) if one]
        for one in objects:
            if namespace and self.kind(_kind_of(one)).namespaced:
                one["metadata"].setdefault("namespace", namespace)
        return self.apply(*objects, **options)

    def create(self, one: Object, *, dry_run: bool = False) -> Object:
        """Make a new object; ApiError with reason AlreadyExists when there is one."""
        path = self.kind(_kind_of(one)).path(one["metadata"].get("namespace"))
        return self.request("POST", path, one, {"dryRun": "All"} if dry_run else {})

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object:
        """Return an object; ApiError with code 404 when there is none."""
        return self.request("GET", self.kind(kind).path(namespace, name))

    def find(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return an object, or None when there is none."""
        try:
            return self.get(kind, name, namespace)
        except ApiError as error:
            if error.code != 404:
                raise
            return None

    def list(
        self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        """Return all objects of a kind, of one namespace or of all, that have these labels."""
        selector = ",".join(f"{name}={value}" for name, value in (labels or {}).items())
        query = {"labelSelector": selector} if selector else {}
        found: list[Object] = self.request("GET", self.kind(kind).path(namespace), query=query)[
            "items"
        ]
        return found

    def patch(
        self, kind: str, name: str, namespace: str | None, change: Object, subresource: str = ""
    ) -> Object:
        """Merge a change into an object, or into its status or scale."""
        path = self.kind(kind).path(namespace, name, subresource)
        return self.request("PATCH", path, change, content_type=MERGE_PATCH)

    def delete(self, kind: str, name: str, namespace: str | None = None, **options: Any) -> Object:
        """Begin to delete an object; `options` are those of DeleteOptions."""
        return self.request("DELETE", self.kind(kind).path(namespace, name), options)

    def watch(self, kind: str, query: Mapping[str, str]) -> Iterator[tuple[str, Object]]:
        """Yield (ADDED, MODIFIED, DELETED or BOOKMARK; object) until the server ends the stream."""
        asked = {**query, "watch": "true", "allowWatchBookmarks": "true"}
        path = self.kind(kind).path(None)
        with self._client.stream("GET", path, params=asked, timeout=None) as answer:
            if answer.status_code >= 400:
                raise ApiError(answer.status_code, _json(answer.read()))
            for line in answer.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(event["object"].get("code", 0), event["object"])
                yield event["type"], event["object"]

    def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """Send a request and return the answer's object.

        Raises:
            ApiError: it is refused.
            httpx.TransportError: the server is not there.
        """
        answer = self._client.request(
            method,
            path,
            params=query,
            content=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type},
        )
        if answer.status_code >= 400:
            raise ApiError(answer.status_code, _json(answer.content))
        return _json(answer.content)

    def text(self, path: str) -> str:
        """Return what is at a path that has no objects, such as /metrics."""
        answer = self._client.get(path)
        answer.raise_for_status()
        return answer.text

    def kind(self, name: str) -> Kind:
        """Return where objects of a kind are; looks again for kinds that were not there before."""
        if name not in self._kinds:
            self._discover()
        assert name in self._kinds, f"the API server has no kind {name}"
        return self._kinds[name]

    def serves(self, name: str) -> bool:
        """Say whether the API server has this kind now, and its objects can be asked for."""
        if name not in self._kinds:
            self._discover()
        if name not in self._kinds:
            return False
        try:
            self.list(name)
        except ApiError as error:
            # Just after a CRD came or was changed.
            if error.code not in {404, 429}:
                raise
            return False
        return True

    def _path_of(self, one: Object, subresource: str = "") -> str:
        named = one["metadata"]
        return self.kind(_kind_of(one)).path(named.get("namespace"), named["name"], subresource)

    def _discover(self) -> None:
        found: dict[str, Kind] = {}
        for root in ("/api", "/apis"):
            answer = self._client.get(root, headers={"Accept": _AGGREGATED})
            answer.raise_for_status()
            for group in answer.json()["items"]:
                group_name = group.get("metadata", {}).get("name", "")
                for version in group["versions"]:
                    base = f"{root}/{group_name}/{version['version']}" if group_name else "/api/v1"
                    for one in version["resources"]:
                        kind = Kind(base, one["resource"], one["scope"] == "Namespaced")
                        name = one["responseKind"]["kind"]
                        # The first stays: it is of the preferred version, and of the core.
                        found.setdefault(f"{group_name}/{name}", kind)
                        found.setdefault(name, kind)
        self._kinds = found


def _kind_of(one: Object) -> str:
    return f"{one['apiVersion'].rpartition('/')[0]}/{one['kind']}"


def _json(content: bytes) -> Object:
    try:
        found: Object = json.loads(content)
    except ValueError:
        found = {"message": content.decode(errors="replace")}
    return found


def until(look: Callable[[], T], wait_s: float = 20.0, every_s: float = 0.02) -> T:
    """Look again until there is something true, and return it; fail with the last that was seen."""
    deadline_s = time.monotonic() + wait_s
    while not (seen := look()):
        assert time.monotonic() < deadline_s, f"it did not come true within {wait_s} s: {seen!r}"
        time.sleep(every_s)
    return seen
