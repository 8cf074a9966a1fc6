"""What waits in a pipeline's journal, as seen at one moment; `backends.backlog` asks for it."""

from __future__ import annotations

import msgspec


class Sample(msgspec.Struct, frozen=True):
    """What waits in the journal of one pipeline.

    Attributes:
        at_s: when it was seen, in the process's monotonic clock.
        backlog_bytes: of entries that are not acknowledged.
        entries: that are not acknowledged.
        pending: those of them that collectors hold.
        oldest_age_s: how long the oldest entry waits, by the journal's clock; None: there is none.
        appended_bytes: ever appended, from any origin: only differences mean something.
        stored_bytes: ever acknowledged, from the same origin.
    """

    at_s: float
    backlog_bytes: int = 0
    entries: int = 0
    pending: int = 0
    oldest_age_s: float | None = None
    appended_bytes: int = 0
    stored_bytes: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, and no collector holds anything."""
        return not (self.entries or self.pending or self.backlog_bytes > 0)
