"""Requests of numbered records, as producers send them: realistic, and each unlike all others.

A record carries its producer `p` and number `seq` in the message and in the metadata. What is
random comes from the seed and the producer alone; the clock gives the timestamps.
"""

from __future__ import annotations

import gzip
import random
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from chaos import history
from chaos.history import Intent

DAY_NS = 86_400 * 10**9
RETENTION_DAYS = 30

_encode = msgspec.json.encode
_SERVICES = ("checkout", "payments", "search", "mailer", "gateway")
_LEVELS = ("debug", "info", "info", "info", "info", "warn", "error")
_PATHS = ("/api/v1/orders", "/api/v1/users/{}/cart", "/healthz", "/login", "/static/app.{}.js")
_TRACE = (
    "Traceback (most recent call last):\n"
    '  File "/srv/app/worker.py", line {}, in handle\n'
    "    return self.pool.acquire(timeout={})\n"
    "TimeoutError: no connection within {} ms"
)


class Prepared(msgspec.Struct, frozen=True):
    """A request ready to be sent, and to be sent again as it is."""

    intent: Intent
    headers: dict[str, str]
    body: bytes


class Maker:
    """Makes one producer's requests.

    Args:
        producer: its number.
        seed: of the run.
        style: of its keys: `numbered` (p1...), `free` or `none`.
        now_s: the clock.
    """

    def __init__(self, producer: int, seed: int, style: str, now_s: Callable[[], float]) -> None:
        self.producer, self.style = producer, style
        self.random = random.Random(f"{seed}/{producer}")
        self._now_s = now_s
        self._uuid = _uuid7(self.random, int(now_s() * 1000))
        self._requests = 0
        self._seq = 0

    def request(self) -> Prepared:
        """Return the next request, nearly always one of good records only."""
        chance = self.random.random
        count = self._count()
        spoiled = self.random.sample(range(count), k=min(count, 2))
        return self._prepare(
            count,
            key=self._key(),
            expired=spoiled[:1] if chance() < 0.04 else [],
            bad=spoiled[1:] if chance() < 0.04 else [],
            is_backdated=chance() < 0.03,
        )

    def bad_request(self) -> Prepared:
        """Return a request of which every record is refused."""
        count = self.random.randint(1, 5)
        return self._prepare(count, key=self._key(), bad=list(range(count)))

    def other_body(self, original: Prepared) -> Prepared:
        """Return a request with the key of another one."""
        intent = original.intent
        return self._prepare(self.random.randint(1, 20), key=intent.key, reuses=intent.request)

    def _count(self) -> int:
        """Records of a request: many are small, few are large."""
        low, high = self.random.choices(((1, 5), (5, 60), (60, 500)), weights=(55, 35, 10))[0]
        return self.random.randint(low, high)

    def _key(self) -> str:
        number = self._requests
        if self.style == "numbered":
            return f"p1.{self._uuid}.{1 + number // 400}.{number % 400}"
        if self.style == "free":
            return f"batch {self.producer}/{self.random.getrandbits(64):x}"
        return ""

    def _prepare(
        self,
        count: int,
        *,
        key: str,
        expired: list[int] | None = None,
        bad: list[int] | None = None,
        reuses: str = "",
        is_backdated: bool = False,
    ) -> Prepared:
        first, self._seq = self._seq, self._seq + count
        name, self._requests = f"{self.producer}/{self._requests}", self._requests + 1
        now_s = self._now_s()
        late_ns = self.random.randrange(DAY_NS) if is_backdated else 0
        start_ns = int(now_s * 1e9) - late_ns
        records, digests = [], []
        for index in range(count):
            time_ns = start_ns + index * 1000
            if expired and index in expired:
                time_ns -= (RETENTION_DAYS + 10) * DAY_NS
            record = self._record(time_ns, first + index)
            digests.append(digest(record))
            if bad and index in bad:
                del record["service"]
            records.append(record)
        intent = Intent(
            name, now_s, self.producer, first, digests, key, expired or [], bad or [], reuses
        )
        headers, body = self._body(records)
        if key:
            headers["Idempotency-Key"] = key
        return Prepared(intent, headers, body)

    def _record(self, time_ns: int, seq: int) -> dict[str, Any]:
        dice = self.random
        text, number = dice.random(), dice.getrandbits(20)
        path = dice.choice(_PATHS).format(number)
        if text < 0.02:
            message = _TRACE.format(number, number % 90, number % 30_000)
        elif text < 0.1:
            message = f"größe {number} ✓ user-{number:x} привет"
        else:
            message = f"GET {path} 200 {number % 9000} bytes in {number % 700} ms"
        record: dict[str, Any] = {
            "timestamp": time_ns,
            "level": dice.choice(_LEVELS),
            "service": dice.choice(_SERVICES),
            "message": f"{message} p={self.producer} seq={seq}",
            "metadata": {"p": self.producer, "seq": seq, "path": path, "ms": number % 700},
        }
        if dice.random() < 0.5:
            record["host"] = f"node-{number % 5}"
            record["trace_id"] = f"{dice.getrandbits(128):032x}"
            record["span_id"] = f"{dice.getrandbits(64):016x}"
        if dice.random() < 0.2:
            record["labels"] = {"zone": f"z{number % 3}"}
        return record

    def _body(self, records: list[dict[str, Any]]) -> tuple[dict[str, str], bytes]:
        is_array = self.random.random() < 0.5
        body = _encode(records) if is_array else b"\n".join(map(_encode, records))
        headers = {"Content-Type": "application/json"}
        if self.random.random() < 0.2:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, 1)
        return headers, body


def digest(record: dict[str, Any]) -> str:
    """Return the digest that the record of the native form has when it is stored."""
    labels = {name: record[name] for name in ("service", "level", "host") if name in record}
    return history.digest(
        record["timestamp"],
        labels | record.get("labels", {}),
        record["message"],
        record.get("trace_id", ""),
        record.get("span_id", ""),
        _encode(record["metadata"]),
    )


def _uuid7(dice: random.Random, now_ms: int) -> str:
    value = now_ms << 80 | 0x7 << 76 | dice.getrandbits(12) << 64
    return str(uuid.UUID(int=value | 0x2 << 62 | dice.getrandbits(62)))
