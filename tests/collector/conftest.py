"""Workers whose pauses are short enough for a test."""

from __future__ import annotations

import pytest

from logweir.collector import worker


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BACKOFF_S", (0.01, 0.05))
    monkeypatch.setattr(worker, "IDLE_BLOCK_S", 0.05)


@pytest.fixture
def eager_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another consumer holds counts as left behind soon."""
    monkeypatch.setattr(worker, "CLAIM_IDLE_S", 0.05)
    monkeypatch.setattr(worker, "CLAIM_EVERY_S", 0.05)
