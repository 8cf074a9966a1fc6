"""The few events of a tenant or a pipeline: what has changed between two passes. Pure.

status before, status now, fields that were put right -> Event, Event, ... -> Memory -> posted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from logweir_operator.resources import Key

AGAIN_S: Final = 3600.0
"""The same reason and message of an object is posted no sooner again."""

Reason = Literal[
    "Provisioned",
    "CredentialsRotated",
    "ScaledUp",
    "ScaledDown",
    "DriftCorrected",
    "Stalled",
    "CleanupBlocked",
]
REASONS: Final[Mapping[Reason, str]] = {
    "Provisioned": "It is ready, for the first time since its spec has changed.",
    "CredentialsRotated": "The tenant's passwords have changed.",
    "ScaledUp": "More collectors are wanted; the message says why.",
    "ScaledDown": "Fewer collectors are wanted; the message says why.",
    "DriftCorrected": "Somebody else had changed objects of the resource; they are right again.",
    "Stalled": "Nothing goes on until a person acts; the message says why.",
    "CleanupBlocked": "What it has in PostgreSQL and Redis cannot be put away, or is left there.",
}
"""What each of them means."""


class Event(msgspec.Struct, frozen=True):
    """What is told of an object."""

    type: Literal["Normal", "Warning"]
    reason: Reason
    message: str


def between(
    before: Mapping[str, Any], now: Mapping[str, Any], corrected: Sequence[str] = ()
) -> list[Event]:
    """Return the events of a change of status.

    Args:
        before: the status that was written last.
        now: the one that is written next.
        corrected: fields of children that somebody else had changed.
    """
    found = [_provisioned(before, now), _rotated(before, now), _scaled(before, now)]
    if corrected:
        message = f"Put right what somebody else had changed: {', '.join(corrected)}."
        found.append(Event("Normal", "DriftCorrected", message))
    stalled = _condition(now, "Stalled")
    if stalled and _said(stalled) != _said(_condition(before, "Stalled")):
        message = f"{stalled['reason']}: {stalled['message']}"
        found.append(Event("Warning", "Stalled", message))
    return [one for one in found if one is not None]


def _provisioned(before: Mapping[str, Any], now: Mapping[str, Any]) -> Event | None:
    """When it is ready for the first time since its spec changed."""
    ready, old = _condition(now, "Ready"), _condition(before, "Ready")
    if ready.get("status") != "True":
        return None
    was_ready = old.get("status") == "True"
    if was_ready and old.get("observedGeneration") == ready.get("observedGeneration"):
        return None
    return Event("Normal", "Provisioned", "Everything is as the resource says.")


def _rotated(before: Mapping[str, Any], now: Mapping[str, Any]) -> Event | None:
    old = (before.get("credentials") or {}).get("revision")
    new = (now.get("credentials") or {}).get("revision")
    if old is None or new is None or old == new:
        return None
    return Event("Normal", "CredentialsRotated", f"The credentials are those of revision {new}.")


def _scaled(before: Mapping[str, Any], now: Mapping[str, Any]) -> Event | None:
    old, new = before.get("collector") or {}, now.get("collector") or {}
    was, wanted = old.get("desiredReplicas"), new.get("desiredReplicas")
    if was is None or wanted is None or was == wanted:
        return None
    why = new.get("lastScaleReason", "")
    message = f"Collectors from {was} to {wanted}{f': {why}' if why else '.'}"
    return Event("Normal", "ScaledUp" if wanted > was else "ScaledDown", message)


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    found: Sequence[Mapping[str, Any]] = status.get("conditions") or ()
    return next((one for one in found if one["type"] == kind), {})


def _said(condition: Mapping[str, Any]) -> tuple[object, object]:
    return condition.get("reason"), condition.get("message")


class Memory:
    """What was posted of each object, and when."""

    def __init__(self) -> None:
        self._posted: dict[Key, dict[tuple[str, str], float]] = {}

    def fresh(self, key: Key, found: Sequence[Event], now_s: float) -> list[Event]:
        """Return the events that are not repeats, and remember them.

        Args:
            key: of the object.
            found: events of it.
            now_s: of a monotonic clock.
        """
        known = {
            said: at_s for said, at_s in self._posted.get(key, {}).items() if now_s - at_s < AGAIN_S
        }
        new = []
        for one in found:
            said = (one.reason, one.message)
            if said not in known:
                known[said] = now_s
                new.append(one)
        if known:
            self._posted[key] = known
        else:
            self._posted.pop(key, None)
        return new

    def forget(self, key: Key) -> None:
        """An object is gone."""
        self._posted.pop(key, None)
