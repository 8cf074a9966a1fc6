"""What is known of the API server's objects: resources by key, children by key and by owner. Pure.

    events, listings, answers to our own writes -> Cache -> reconciling

An older version never replaces a newer one, so that nobody decides on what was before our own
write. Children are kept encoded: a thousand pipelines have ten thousand of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from logweir.backends.control import StoredObject
from logweir_operator.kube import RESOURCES, Object
from logweir_operator.resources import Key

FINALIZER: Final = "logweir.dev/cleanup"

_encode = msgspec.json.encode
_decode = msgspec.json.decode


class Watched(msgspec.Struct, frozen=True):
    """A LogTenant or LogPipeline of the API server."""

    stored: StoredObject
    uid: str
    version: int
    finalizers: tuple[str, ...]
    annotations: Mapping[str, str]

    @property
    def key(self) -> Key:
        """What names it."""
        return (self.stored.kind, self.stored.namespace, self.stored.name)

    @property
    def is_held(self) -> bool:
        """Whether it cannot go before we let it."""
        return FINALIZER in self.finalizers

    @property
    def is_leaving(self) -> bool:
        """Whether its deletion was asked for."""
        return self.stored.deleted_at is not None


class Child(msgspec.Struct, frozen=True):
    """An object that we have made, or that has our labels. `owner_uid` is empty without one."""

    key: Key
    uid: str
    version: int
    owner: Key | None
    owner_uid: str
    is_leaving: bool
    data: bytes

    def document(self) -> Object:
        """Return the object."""
        found: Object = _decode(self.data)
        return found


def watched(kind: str, body: Mapping[str, Any]) -> Watched:
    """Return a resource of the API server's form."""
    meta = body["metadata"]
    return Watched(
        stored=StoredObject(
            kind=kind,
            namespace=meta["namespace"],
            name=meta["name"],
            generation=meta.get("generation", 0),
            spec=body.get("spec") or {},
            source="",
            source_hash="",
            status=body.get("status") or {},
            deleted_at=_moment(meta.get("deletionTimestamp")),
            created_at=_moment(meta.get("creationTimestamp")) or datetime.now(UTC),
        ),
        uid=meta.get("uid", ""),
        version=version_of(body),
        finalizers=tuple(meta.get("finalizers") or ()),
        annotations=meta.get("annotations") or {},
    )


def child(kind: str, body: Mapping[str, Any]) -> Child:
    """Return a child of the API server's form, without what nobody here reads."""
    meta = body["metadata"]
    owner, owner_uid = _owner(meta)
    kept = {name: value for name, value in meta.items() if name != "managedFields"}
    return Child(
        key=(kind, meta["namespace"], meta["name"]),
        uid=meta.get("uid", ""),
        version=version_of(body),
        owner=owner,
        owner_uid=owner_uid,
        is_leaving="deletionTimestamp" in meta,
        data=_encode({**body, "metadata": kept}),
    )


def version_of(body: Mapping[str, Any]) -> int:
    """Return an object's resourceVersion, which rises with each change of any object."""
    text = str(body["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _owner(meta: Mapping[str, Any]) -> tuple[Key | None, str]:
    """The resource that owns a child: by its reference, else, when somebody took that, by label."""
    for one in meta.get("ownerReferences") or ():
        if one.get("controller") and one["kind"] in RESOURCES:
            return (one["kind"], meta["namespace"], one["name"]), one["uid"]
    labels = meta.get("labels") or {}
    pipeline, tenant = labels.get("logweir.dev/pipeline"), labels.get("logweir.dev/tenant")
    if pipeline:
        return ("LogPipeline", meta["namespace"], pipeline), ""
    if tenant:
        return ("LogTenant", meta["namespace"], tenant), ""
    return None, ""


class Cache:
    """All that is known."""

    def __init__(self) -> None:
        self.resources: dict[Key, Watched] = {}
        self._children: dict[Key, Child] = {}
        self._by_owner: dict[Key, set[Key]] = {}

    def put_resource(self, kind: str, body: Mapping[str, Any]) -> tuple[Watched | None, Watched]:
        """Learn of a resource; return what was known before, and what is known now."""
        new = watched(kind, body)
        old = self.resources.get(new.key)
        if old is not None and old.version > new.version:
            return old, old
        self.resources[new.key] = new
        return old, new

    def drop_resource(self, kind: str, body: Mapping[str, Any]) -> Key | None:
        """A resource is gone; return its key if it was this one."""
        gone = watched(kind, body)
        old = self.resources.get(gone.key)
        if old is None or old.uid != gone.uid:
            return None
        del self.resources[gone.key]
        return gone.key

    def forget_resource(self, key: Key, uid: str) -> None:
        """A resource was found to be gone."""
        old = self.resources.get(key)
        if old is not None and old.uid == uid:
            del self.resources[key]

    def put_child(self, kind: str, body: Mapping[str, Any]) -> Child:
        """Learn of a child; return what is known of it now."""
        new = child(kind, body)
        old = self._children.get(new.key)
        if old is not None:
            if old.version >= new.version:
                return old
            self._unlink(old)
        self._children[new.key] = new
        if new.owner is not None:
            self._by_owner.setdefault(new.owner, set()).add(new.key)
        return new

    def drop_child(self, kind: str, body: Mapping[str, Any]) -> Child | None:
        """A child is gone; return what was known of it if it was this one."""
        meta = body["metadata"]
        return self.forget_child((kind, meta["namespace"], meta["name"]), meta.get("uid", ""))

    def forget_child(self, key: Key, uid: str) -> Child | None:
        """As `drop_child`, by key."""
        old = self._children.get(key)
        if old is None or old.uid != uid:
            return None
        del self._children[key]
        self._unlink(old)
        return old

    def _unlink(self, old: Child) -> None:
        if old.owner is not None and (keys := self._by_owner.get(old.owner)):
            keys.discard(old.key)
            if not keys:
                del self._by_owner[old.owner]

    def child(self, key: Key) -> Child | None:
        """Return what is known of a child."""
        return self._children.get(key)

    def children_of(self, owner: Key) -> list[Child]:
        """Return all that is known to belong to a resource."""
        return [self._children[key] for key in sorted(self._by_owner.get(owner, ()))]

    def replace_resources(
        self,
        kind: str,
        listed: Iterable[Mapping[str, Any]],
        version: int,
        scope: Callable[[str], bool],
    ) -> list[Key]:
        """Take a listing; return the keys that are gone, which no event may have said.

        Args:
            kind: that was listed.
            listed: all objects of it.
            version: of the listing; what is newer came by events.
            scope: whether a namespace was listed.
        """
        found = {self.put_resource(kind, one)[1].key for one in listed}
        gone = [
            one.key
            for one in self.resources.values()
            if one.stored.kind == kind
            and one.key not in found
            and one.version <= version
            and scope(one.stored.namespace)
        ]
        for key in gone:
            del self.resources[key]
        return gone

    def replace_children(
        self,
        kind: str,
        listed: Iterable[Mapping[str, Any]],
        version: int,
        scope: Callable[[str], bool],
    ) -> list[Child]:
        """As `replace_resources`, of children; return those that are gone."""
        found = {self.put_child(kind, one).key for one in listed}
        gone = [
            one
            for one in self._children.values()
            if one.key[0] == kind
            and one.key not in found
            and one.version <= version
            and scope(one.key[1])
        ]
        for one in gone:
            self.forget_child(one.key, one.uid)
        return gone
