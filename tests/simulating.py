"""A pipeline whose collectors are scaled: records arrive, wait and are stored, step by step.

    load (bytes a second by time) -> queue, first in first out -> collectors -> stored
                                       ^-- every look: Sample -> scaling.decide -> how many

Always the same for the same arguments, so that its figures can be asserted and drawn.
"""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Callable

import msgspec

from logweir.core.backlog import Sample
from logweir_operator import scaling
from logweir_operator.model import Autoscaling

MIB = 1 << 20
STEP_S = 0.5
ENTRY_BYTES = 1 << 16
HELD_ENTRIES = 32
"""That a collector holds at most."""

Load = Callable[[float], float]


class Moment(msgspec.Struct, frozen=True):
    """One second of the simulation; the backlog in bytes, the age of the oldest of it."""

    at_s: float
    arrival: float
    backlog: float
    age_s: float
    wanted: int
    ready: int


class Pipeline:
    """What is simulated. `capacity` is bytes that a collector stores in a second."""

    def __init__(
        self,
        spec: Autoscaling,
        within_s: float = 2.0,
        *,
        load: Load,
        capacity: float = 4 * MIB,
        start_s: float = 20.0,
        noise: float = 0.15,
        collectors: int = 1,
        most: int | None = None,
        has_sample: Callable[[float], bool] = lambda _: True,
        dies_every_s: float | None = None,
        store: Callable[[float], float] = lambda _: 1.0,
        seed: int = 1,
    ) -> None:
        self.spec, self.within_s, self.load, self.capacity = spec, within_s, load, capacity
        self.start_s, self.noise, self.most = start_s, noise, most
        self.has_sample, self.dies_every_s, self.store = has_sample, dies_every_s, store
        self.chance = random.Random(seed)
        self.now_s = 0.0
        self.queue: collections.deque[tuple[float, float]] = collections.deque()
        self.backlog = self.appended = self.stored = 0.0
        self.wanted = collectors
        self.ready_at_s = [0.0] * collectors
        self.memory = scaling.Memory()
        self.look_at_s = 0.0
        self.decisions: list[tuple[float, scaling.Decision]] = []
        self.moments: list[Moment] = []

    @property
    def ready(self) -> int:
        return sum(at_s <= self.now_s for at_s in self.ready_at_s)

    @property
    def age_s(self) -> float:
        return self.now_s - self.queue[0][0] if self.queue else 0.0

    def run(self, until_s: float) -> Pipeline:
        while self.now_s < until_s:
            arrival = self._arrive()
            self._store()
            self._die()
            if self.now_s >= self.look_at_s:
                self._look()
            if self.now_s % 1 == 0:
                self.moments.append(
                    Moment(self.now_s, arrival, self.backlog, self.age_s, self.wanted, self.ready)
                )
            self.now_s += STEP_S
        return self

    def restart_operator(self) -> None:
        self.memory = scaling.Memory()

    def _arrive(self) -> float:
        arrival = self.load(self.now_s) * (1 + self.chance.uniform(-self.noise, self.noise))
        if arrival:
            self.queue.append((self.now_s, arrival * STEP_S))
            self.backlog += arrival * STEP_S
            self.appended += arrival * STEP_S
        return arrival

    def _store(self) -> None:
        """Collectors wait for company: what came in this step is stored in the next, if then."""
        jitter = 1 + self.chance.uniform(-self.noise, self.noise)
        can = self.capacity * self.ready * jitter * self.store(self.now_s) * STEP_S
        while self.queue and can > 0 and self.queue[0][0] < self.now_s:
            since_s, size = self.queue.popleft()
            taken = min(size, can)
            can -= taken
            self.backlog -= taken
            self.stored += taken
            if taken < size:
                self.queue.appendleft((since_s, size - taken))
        if not self.queue:
            self.backlog = 0.0

    def _die(self) -> None:
        every_s = self.dies_every_s
        if every_s and self.ready_at_s and self.now_s % every_s == 0:
            self.ready_at_s[0] = self.now_s + self.start_s

    def _sample(self) -> Sample | None:
        if not self.has_sample(self.now_s):
            return None
        entries = -(-int(self.backlog) // ENTRY_BYTES) if self.queue else 0
        return Sample(
            at_s=self.now_s,
            backlog_bytes=int(self.appended) - int(self.stored) if self.queue else 0,
            entries=entries,
            pending=min(entries, self.ready * HELD_ENTRIES),
            oldest_age_s=self.age_s if self.queue else None,
            appended_bytes=int(self.appended),
            stored_bytes=int(self.stored),
        )

    def _look(self) -> None:
        decision = scaling.decide(
            self.spec,
            self.within_s,
            self._sample(),
            self.memory,
            self.wanted,
            self.ready,
            self.now_s,
            most=self.most,
        )
        self.memory, self.look_at_s = decision.memory, decision.needs_at_s
        self.decisions.append((self.now_s, decision))
        while len(self.ready_at_s) < decision.replicas:
            self.ready_at_s.append(self.now_s + self.start_s)
        del self.ready_at_s[decision.replicas :]
        self.wanted = decision.replicas

    # ---- what came of it ---------------------------------------------------------------------

    def changes(self, since_s: float = 0.0) -> list[tuple[float, int]]:
        """When the number of collectors changed, and to what."""
        counts = [one for one in self.moments if one.at_s >= since_s]
        return [
            (after.at_s, after.wanted)
            for before, after in itertools.pairwise(counts)
            if after.wanted != before.wanted
        ]

    def worst_backlog(self, since_s: float = 0.0) -> float:
        return max(one.backlog for one in self.moments if one.at_s >= since_s)

    def late_s(self, since_s: float = 0.0) -> float:
        """How many seconds a record waited for longer than the goal."""
        return sum(one.age_s > self.within_s for one in self.moments if one.at_s >= since_s)

    def recovered_at_s(self, since_s: float) -> float:
        """From when on no record waits for longer than the goal."""
        late = [
            one.at_s for one in self.moments if one.at_s >= since_s and one.age_s > self.within_s
        ]
        return max(late, default=since_s)
