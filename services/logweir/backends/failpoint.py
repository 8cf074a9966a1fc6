"""Failpoints: moments at which a test lets a process die, stand still or fail.

    LOGWEIR_MODE=test LOGWEIR_FAILPOINT=collector.after_commit:crash:0.1,keeper.mid_merge:hang:1

`name:action:probability`, several with commas, or `@FILE` with such a text, which each role reads
when it starts. All names stand in `POINTS`, and docs/failpoints.md says what each must not harm.
Code that reaches a point calls `reach`; while nothing is armed that is one look at a variable.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from logweir.core import errors

logger = logging.getLogger(__name__)

POINTS: Final[Mapping[str, str]] = {
    "ingest.before_append": "a block is made, and the journal does not have it",
    "ingest.after_append": "the journal has a block, and no sender was answered",
    "ingest.mid_group": "the first sender of a shared block was answered, the others were not",
    "collector.after_read": "blocks were handed out, and nobody holds them",
    "collector.after_claim": "blocks of another consumer were taken over, and nobody holds them",
    "collector.after_partition": "a partition was made for a batch that is not stored",
    "collector.refusal": "a batch is about to be stored; error: the store refuses its values",
    "collector.mid_halves": "the first half of a refused batch is stored, the second is not",
    "collector.after_quarantine": "a block is in quarantine by a transaction that is open",
    "collector.before_commit": "all of a transaction is sent but its end",
    "collector.cut_on_commit": "a transaction is committed; error: its answer did not come",
    "collector.after_commit": "blocks are committed, and not acknowledged",
    "collector.after_ack": "blocks are acknowledged; error: the answer did not come",
    "keeper.mid_merge": "small segments are deleted, and the merged one is not inserted",
    "keeper.after_merge": "a merge is committed; error: its answer did not come",
    "keeper.mid_expire": "expired segments are deleted, and usage does not know",
    "keeper.after_expire": "expired segments are gone; error: the answer did not come",
    "keeper.after_drop": "a partition is dropped; error: the answer did not come",
    "keeper.between_pieces": "one transaction of a visit has ended, the next has not begun",
    "operator.before_migration": "logins and database are made, the control schema is not",
    "operator.before_library": "the control schema is made, the journal has no functions",
    "operator.before_schema": "a tenant has its row and its keys, and no schema",
    "operator.mid_schema": "a tenant's schema is migrated, its logins have no rights on it",
    "operator.before_journal": "a tenant has its place in the store, and none in the journal",
    "operator.mid_pipeline_deletion": "a pipeline's journal is gone, its row is not",
    "operator.mid_tenant_deletion": "a tenant's doors are closed, its data is not dropped",
    "up.before_roles": "the supervisor has started the servers, and no role",
}
"""Every point, with what is so when it is reached."""

ACTIONS: Final = ("crash", "hang", "error")
"""kill -9, SIGSTOP (until SIGCONT, or the supervisor's patience ends), an exception."""

MODES: Final = ("production", "test")

SENT_S: Final = 0.02
"""In which an answer that was begun is with the operating system."""


class _Armed(msgspec.Struct, frozen=True):
    action: str
    probability: float


_armed: dict[str, _Armed] | None = None
_spec = ""


def check(spec: str, mode: str) -> None:
    """Refuse failpoints in production, and a text that is none.

    Args:
        spec: what LOGWEIR_FAILPOINT says; may be empty.
        mode: what LOGWEIR_MODE says.

    Raises:
        SetupError: with the fix.
    """
    if mode not in MODES:
        raise errors.SetupError(
            f"LOGWEIR_MODE is {mode!r}.", hint=f"It is one of {', '.join(MODES)}."
        )
    if spec and mode == "production":
        raise errors.SetupError(
            "LOGWEIR_FAILPOINT is set: it would make this process die or fail on purpose.",
            hint="Unset it, or set LOGWEIR_MODE=test where no data matters.",
        )
    _parse(spec)


def arm(spec: str) -> None:
    """Arm what the text says in this process, and nothing else; a `@FILE` is read now.

    Raises:
        SetupError: it is no such text.
    """
    global _armed, _spec
    _armed, _spec = _parse(spec) or None, spec


def arm_again() -> None:
    """After a fork: read the parent's text again, so that a `@FILE` may have changed."""
    arm(_spec)


def reach(name: str, error: type[Exception] = ConnectionAbortedError) -> None:
    """Be at a point: nothing happens unless it is armed and the dice fall so.

    Args:
        name: of the point.
        error: raised by the action `error`: one that can really happen there.
    """
    if _armed is not None:
        _act(name, error)


async def reach_when_sent(name: str, error: type[Exception] = ConnectionAbortedError) -> None:
    """The same, after other tasks have sent what they had to."""
    if _armed is not None and name in _armed:
        await asyncio.sleep(SENT_S)
        _act(name, error)


def _act(name: str, error: type[Exception]) -> None:
    found = _armed.get(name) if _armed else None
    if found is None or random.random() >= found.probability:  # noqa: S311 - no secret
        return
    logger.warning("failpoint", extra={"point": name, "action": found.action})
    if found.action == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif found.action == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        raise error(f"failpoint {name}")


def _parse(spec: str) -> dict[str, _Armed]:
    if spec.startswith("@"):
        path = Path(spec[1:])
        spec = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return dict(_one(part.strip()) for part in spec.split(",")) if spec else {}


def _one(text: str) -> tuple[str, _Armed]:
    name, _, rest = text.partition(":")
    action, _, number = rest.partition(":")
    if name not in POINTS:
        raise errors.SetupError(
            f"There is no failpoint {name!r}.", hint=f"There are {', '.join(POINTS)}."
        )
    try:
        probability = float(number)
    except ValueError:
        probability = -1.0
    if action not in ACTIONS or not 0 <= probability <= 1:
        raise errors.SetupError(
            f"The failpoint {text!r} is not understood.",
            hint=f"It is NAME:ACTION:PROBABILITY, the action one of {', '.join(ACTIONS)}, the "
            "probability from 0 to 1.",
        )
    return name, _Armed(action, probability)
