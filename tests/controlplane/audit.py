"""What an account asked the API server for, beside what it is granted.

    before = audit.mark(plane)
    ...                                                    # the account works
    seen = audit.requests(plane, "logs", "operator", before)
    assert audit.compare(seen, audit.grants(plane.api, "logs", "operator")) == audit.EQUAL

Every plane writes the requests of ServiceAccounts to a log, so nothing needs to be turned on. Of
an apply that made an object, the right to create counts as asked for too. What admission alone
looks at is in no log: `update` of OWNER/finalizers (for owner references that block) is to be
added by the caller, as a `Right`. Discovery, which all accounts may do, is left out.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Final, NamedTuple

from controlplane.api import Api, Object
from controlplane.plane import Plane


class Right(NamedTuple):
    """A verb on a resource ("deployments/scale" is one).

    Of a request, `namespace` and `name` are those of the object, or "" for all of them; of a grant
    "" is any.
    """

    group: str
    resource: str
    verb: str
    namespace: str = ""
    name: str = ""

    def covers(self, asked: Right) -> bool:
        """Say whether this grant allows a request."""
        return (
            self[:3] == asked[:3]
            and self.namespace in {"", asked.namespace}
            and self.name in {"", asked.name}
        )


class Request(NamedTuple):
    """One request: what right it needs, the answer's HTTP code, and who sent it.

    `is_implied`: it is a further right that the request before it needed.
    """

    right: Right
    code: int
    agent: str
    is_implied: bool = False


class Comparison(NamedTuple):
    """Rights that were asked for and are not granted; grants that nothing asked for."""

    missing: tuple[Right, ...]
    unused: tuple[Right, ...]


EQUAL: Final = Comparison((), ())


def mark(plane: Plane) -> int:
    """Return where the log ends now."""
    return plane.audit_log.stat().st_size if plane.audit_log.exists() else 0


def requests(plane: Plane, namespace: str, account: str, since: int = 0) -> list[Request]:
    """Return the account's requests since a mark, allowed and refused; each stands there once."""
    user = f"system:serviceaccount:{namespace}:{account}"
    found: list[Request] = []
    known: set[str] = set()
    with plane.audit_log.open("rb") as file:
        file.seek(since)
        for line in file:
            event = json.loads(line)
            if event["user"]["username"] == user and event["auditID"] not in known:
                known.add(event["auditID"])
                found += _needed(event)
    return found


def _needed(event: Object) -> list[Request]:
    target = event.get("objectRef")
    if not target:
        return []
    resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
    right = Right(
        target.get("apiGroup", ""),
        resource,
        event["verb"],
        target.get("namespace", ""),
        target.get("name", ""),
    )
    code, agent = event["responseStatus"]["code"], event.get("userAgent", "")
    found = [Request(right, code, agent)]
    if event["verb"] == "patch" and code == 201:
        made = right._replace(verb="create", name="")
        found.append(Request(made, code, agent, is_implied=True))
    return found


def grants(api: Api, namespace: str, account: str) -> set[Right]:
    """Return what the bindings of an account grant it; wildcards stay as they are written."""
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    found: set[Right] = set()
    for binding in (*api.list("RoleBinding"), *api.list("ClusterRoleBinding")):
        if not any(subject.items() <= one.items() for one in binding.get("subjects", [])):
            continue
        where = binding["metadata"].get("namespace", "")
        role = binding["roleRef"]
        of_role = where if role["kind"] == "Role" else None
        found |= granted_by(api.get(role["kind"], role["name"], of_role).get("rules") or [], where)
    return found


def granted_by(rules: Iterable[Object], namespace: str = "") -> set[Right]:
    """Return what the rules of a Role or ClusterRole grant in a namespace, or in all."""
    return {
        Right(group, resource, verb, namespace, name)
        for rule in rules
        for group, resource, verb, name in itertools.product(
            rule.get("apiGroups", []),
            rule.get("resources", []),
            rule["verbs"],
            rule.get("resourceNames") or [""],
        )
    }


def compare(
    seen: Iterable[Request], granted: Iterable[Right], implied: Iterable[Right] = ()
) -> Comparison:
    """Say what was asked for without a grant, and what was granted without being asked for.

    Args:
        seen: what the account did.
        granted: what it may do.
        implied: rights that it used and that no log shows.
    """
    asked = {*implied, *(one.right for one in seen)}
    granted = set(granted)
    missing = {one for one in asked if not any(grant.covers(one) for grant in granted)}
    unused = {grant for grant in granted if not any(grant.covers(one) for one in asked)}
    return Comparison(tuple(sorted(missing)), tuple(sorted(unused)))
