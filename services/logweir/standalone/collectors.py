"""How many collector processes a node runs, and the supervisor's side of it.

    journals -> node_scaling.py: a decision each pipeline, the greatest counts -> collectors.json
        -> Watch: Supervisor.want -> status.json: how many are ready

Every process collects all pipelines of the node, each as a consumer of its own name. One is always
there; more than there are cores would only take the servers' time.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec

from logweir.core import errors
from logweir.standalone.folder import read_json
from logweir.standalone.supervisor import Supervisor

ROLE: Final = "collector"

LARGEST: Final = 16
"""Processes, however many cores there are."""


class Wanted(msgspec.Struct, frozen=True):
    """What collectors.json says."""

    replicas: int


def largest(cores: int) -> int:
    """Return how many collectors a node of so many cores may run."""
    return max(1, min(LARGEST, cores))


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def names(count: int) -> list[str]:
    """Return the names of so many collectors; each of them is the same at every start."""
    return [ROLE, *(f"{ROLE}-{number}" for number in range(1, count))]


def node_count(wishes: Collection[int], most: int) -> int:
    """Return how many collectors run when pipelines want so many each."""
    return max(1, min(most, max(wishes, default=1)))


class Watch:
    """The supervisor's side: has as many collectors run as collectors.json says."""

    def __init__(self, path: Path, supervisor: Supervisor, others: Sequence[str]) -> None:
        """Look at `path`; `others` are the names of those that run beside the first one."""
        self._path = path
        self._supervisor = supervisor
        self._others = others
        self._seen = 0

    def look(self) -> None:
        """Take the file's number when it has changed; one that cannot be read changes nothing."""
        try:
            changed_at = self._path.stat().st_mtime_ns
            if changed_at == self._seen:
                return
            wanted = read_json(self._path, Wanted)
        except (OSError, errors.SetupError):
            return
        self._seen = changed_at
        for number, name in enumerate(self._others, start=1):
            self._supervisor.want(name, number < wanted.replicas)
