"""Seeded corpora of realistic records, as NDJSON of the native form: *web* and *id-heavy*.

    web         30 services of a shop: access lines, business events, errors with stack traces in 1 %
    id-heavy    the same shop as a tracing zealot logs it: unique request ids, UUIDs, addresses,
                durations and user ids in messages and attributes

The same seed gives the same bytes on every machine. A corpus is made once into a cache folder.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

KINDS = ("web", "id-heavy")
SPAN_S = 24 * 3600
"""Records of a corpus are spread over a day, with the wave of a working day."""

_SERVICES = [
    *("gateway", "cart", "checkout", "catalog", "search", "payment", "shipping", "users"),
    *("sessions", "mailer", "stock", "pricing", "reviews", "images", "recommend", "fraud"),
    *("orders", "invoices", "returns", "coupons", "taxes", "banners", "export", "import"),
    *("scheduler", "webhooks", "audit", "metrics", "support", "admin"),
]
_LEVELS = ("info",) * 80 + ("debug",) * 12 + ("warn",) * 5 + ("error",) * 3
_METHODS = ("GET",) * 7 + ("POST",) * 2 + ("PUT",)
_PATHS = (
    *("/", "/cart", "/cart/items", "/checkout", "/products", "/products/{n}", "/search?q={w}"),
    *("/login", "/orders/{n}", "/orders/{n}/invoice", "/api/v2/stock/{n}", "/static/app.js"),
)
_WORDS = [
    "shoe",
    "red",
    "blue",
    "cotton",
    "winter",
    "jacket",
    "lamp",
    "chair",
    "table",
    "phone",
    "cable",
    "case",
    "glass",
    "bottle",
    "knife",
    "green",
    "board",
    "paper",
    "stone",
    "light",
    "heavy",
    "small",
    "large",
    "soft",
    "warm",
    "cold",
    "fresh",
    "quick",
    "silent",
    "bright",
]
_STATUSES = (200,) * 85 + (304,) * 6 + (404,) * 5 + (500, 502, 503, 429)
_EVENTS = (
    "item {n} added to cart by user, {k} items in total",
    "payment authorised by provider {w} after {ms} ms",
    "order {n} moved from {w} to {w2}",
    "cache miss for key {w}:{n}, loading from database",
    "retrying call to {w} service, attempt {k} of 5",
    "connection pool has {k} idle and {m} busy connections",
    "sent mail of template {w} to recipient {n}",
    "job {w} finished in {ms} ms, {n} rows processed",
    "feature flag {w} evaluated to true for segment {w2}",
    "stock of article {n} is low: {k} left in warehouse {w}",
)
_TRACE = (
    "Traceback (most recent call last):\n"
    '  File "/srv/app/{w}/handlers.py", line {n}, in handle\n'
    "    return self.service.{w2}(request)\n"
    '  File "/srv/app/{w}/service.py", line {m}, in {w2}\n'
    '    raise {W}Error(f"no {w2} for {w}")\n'
    "{w}.errors.{W}Error: no {w2} for {w} {n}"
)


def _hex(rng: random.Random, digits: int) -> str:
    return f"{rng.getrandbits(4 * digits):0{digits}x}"


def _uuid(rng: random.Random) -> str:
    text = _hex(rng, 32)
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def _filled(rng: random.Random, template: str) -> str:
    word, other = rng.choice(_WORDS), rng.choice(_WORDS)
    return template.format(
        n=rng.randrange(1_000_000),
        m=rng.randrange(200),
        k=rng.randrange(1, 40),
        ms=rng.randrange(1, 2500),
        w=word,
        w2=other,
        W=word.capitalize(),
    )


def _web(rng: random.Random, level: str) -> tuple[str, str]:
    """A message and its attributes, JSON."""
    if level == "error" and rng.random() < 1 / 3:
        return _filled(rng, _TRACE), f'{{"retryable":false,"attempt":{rng.randrange(1, 6)}}}'
    if rng.random() < 0.6:
        path = _filled(rng, rng.choice(_PATHS))
        status, size = rng.choice(_STATUSES), rng.randrange(200, 90_000)
        took = rng.randrange(1, 900)
        message = f"{rng.choice(_METHODS)} {path} {status} {size} {took}ms"
        attributes = (
            f'{{"http":{{"status":{status},"bytes":{size}}},"duration_ms":{took},'
            f'"region":"{rng.choice(("eu", "us", "ap"))}-{rng.randrange(1, 4)}",'
            f'"user_agent":"Mozilla/5.0 ({rng.choice(("X11", "Macintosh", "Windows"))}) Safari/60{rng.randrange(9)}"}}'
        )
        return message, attributes
    return _filled(
        rng, rng.choice(_EVENTS)
    ), f'{{"pool":"{rng.choice(_WORDS)}","worker":{rng.randrange(16)}}}'


def _id_heavy(rng: random.Random, level: str) -> tuple[str, str]:
    request, user = _uuid(rng), rng.randrange(10_000_000)
    address = f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
    message, _ = _web(rng, level)
    whole = f"[{request}] {message} user=u{user} from {address}:{rng.randrange(1024, 65_000)}"
    attributes = (
        f'{{"request_id":"{request}","session":"{_hex(rng, 32)}","user_id":"u{user}",'
        f'"client":"{address}","duration_us":{rng.randrange(50, 5_000_000)},"etag":"{_hex(rng, 16)}"}}'
    )
    return whole, attributes


_MAKERS: dict[str, Callable[[random.Random, str], tuple[str, str]]] = {
    "web": _web,
    "id-heavy": _id_heavy,
}


def records(kind: str, count: int, start_ns: int, seed: int = 7) -> Iterator[str]:
    """Yield `count` records as JSON lines, in the order of time."""
    rng = random.Random(f"{kind} {seed}")
    maker = _MAKERS[kind]
    weights = [1 / (place + 1) for place in range(len(_SERVICES))]
    step_ns = SPAN_S * 1_000_000_000 // count
    services = rng.choices(_SERVICES, weights, k=4096)
    trace = _hex(rng, 32)
    for number in range(count):
        level = rng.choice(_LEVELS)
        message, attributes = maker(rng, level)
        if rng.random() < 0.2:
            trace = _hex(rng, 32)
        at_ns = start_ns + number * step_ns + rng.randrange(step_ns)
        text = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        service = services[rng.getrandbits(12)]
        yield (
            f'{{"timestamp":{at_ns},"level":"{level}","service":"{service}",'
            f'"host":"{service}-{rng.randrange(3)}","message":"{text}","trace_id":"{trace}",'
            f'"span_id":"{_hex(rng, 16)}","metadata":{attributes}}}'
        )


def cache_folder() -> Path:
    """Where corpora stay between runs."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "logweir-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def ndjson(kind: str, count: int, start_ns: int) -> Path:
    """Return the file of a corpus, made when it is not there yet."""
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    path = cache_folder() / f"{kind}-{count}-{start_ns}-{made_by}.ndjson"
    if not path.exists():
        fresh = path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in records(kind, count, start_ns))
        fresh.rename(path)
    return path


def bodies(lines: Iterable[bytes], batch: int, path: Path) -> int:
    """Write NDJSON bodies of `batch` records for the load generator; return how many."""
    number, each = 0, iter(lines)
    with path.open("wb") as file:
        while group := list(itertools.islice(each, batch)):
            body = b"\n".join(line.rstrip(b"\n") for line in group)
            file.write(struct.pack("<I", len(body)) + body)
            number += 1
    return number


def parts(path: Path) -> Iterator[bytes]:
    """Yield what `bodies` wrote: each part of a file behind its length."""
    with path.open("rb") as file:
        while size := file.read(4):
            yield file.read(struct.unpack("<I", size)[0])


def write_parts(found: Iterable[bytes], path: Path) -> Path:
    """Write parts, each behind its length, as the load generator reads them."""
    path.write_bytes(b"".join(struct.pack("<I", len(part)) + part for part in found))
    return path


def repeated(lines: Callable[[], Iterable[bytes]], count: int) -> Iterator[bytes]:
    """Yield `count` of the lines, from the first again when they end, then a span later."""
    head = len(b'{"timestamp":')
    shift_ns, left = 0, count
    while left > 0:
        for line in itertools.islice(lines(), left):
            left -= 1
            at_ns = int(line[head : head + 19]) + shift_ns
            yield b"%b%d%b" % (line[:head], at_ns, line[head + 19 :])
        shift_ns += SPAN_S * 1_000_000_000
