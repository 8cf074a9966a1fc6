"""`make profile`: flame graphs of ingest, collector and query of a running `up` under load.

    py-spy (native frames too) -> stacks with counts -> tree -> SVG

The SVG is plain: no script, a frame's name and share show when the pointer rests on it. Frames of
less than a thousandth are left out, paths are cut to the package. Width is CPU time, not waiting.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import bench
import corpus
import machine
import site_
from bench import Bench
from run import teller
from store_rows import NEEDLES, Asked

ROLES = ("ingest", "collector", "query")
SECONDS = {"full": 20, "quick": 8}
RECORDS = {"full": 1_000_000, "quick": 200_000}
RATE = 200
WARM_UP_S = 3
MANY = 10**6

WIDTH, ROW, LETTER = 1200, 17, 6.6
SMALLEST = 0.001
_PATH = re.compile(r"(?<=\()/[^();]*/(?:site-packages|services|operator|lib/python3\.\d+)/")
_FOLDER = re.compile(r"(?<=\()/[^();]*/")
_ADDRESS = re.compile(r"^0x[0-9a-f]+")
_ABOVE = re.compile(r"^(main \(logweir/\w+/app\.py\)|Thread\.run \(threading\.py\))$")
"""Where a role or a thread of it begins; how it came there is the same for every sample."""


class Frame:
    """A function below its caller: samples in it and in what it called."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples = 0
        self.below: dict[str, Frame] = {}


def tree(stacks: str) -> Frame:
    """Build the tree of py-spy's raw format: frames with semicolons, a space, a count."""
    root = Frame("all")
    for line in stacks.splitlines():
        names, _, count = line.rpartition(" ")
        at = root
        at.samples += int(count)
        for name in _from_its_beginning([plain(name) for name in names.split(";")]):
            at = at.below.setdefault(name, Frame(name))
            at.samples += int(count)
    return root


def _from_its_beginning(names: list[str]) -> list[str]:
    begins = [place for place, name in enumerate(names) if _ABOVE.match(name)]
    return names[begins[0] :] if begins else names


def plain(name: str) -> str:
    """Cut a frame's path to the part from its package on.

    >>> plain("run (/srv/app/.venv/lib/python3.11/site-packages/uvicorn/server.py)")
    'run (uvicorn/server.py)'
    >>> plain("zstd (/usr/lib/x86_64-linux-gnu/libzstd.so.1)")
    'zstd (libzstd.so.1)'
    """
    return _ADDRESS.sub("native", _FOLDER.sub("", _PATH.sub("", name)))


def svg(root: Frame, title: str) -> str:
    """Draw the tree, callers above those whom they call."""
    boxes = list(_boxes(root, 0, 0, root.samples))
    height = (max(depth for depth, _ in boxes) + 3) * ROW
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" font-family="monospace" font-size="11">',
            "<style>rect{stroke:#fff;stroke-width:.5}text{fill:#222}</style>",
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="4" y="13" font-size="13">{escape(title)}</text>',
            *(text for _, text in boxes),
            "</svg>\n",
        ]
    )


def _boxes(frame: Frame, begin: int, depth: int, whole: int) -> Iterator[tuple[int, str]]:
    """Yield a frame's box and those below it, each with its depth."""
    share = frame.samples / whole
    if share < SMALLEST:
        return
    x, width, y = begin / whole * WIDTH, share * WIDTH, (depth + 1.5) * ROW
    letters = int((width - 4) / LETTER)
    label = frame.name if len(frame.name) <= letters else frame.name[: letters - 1] + "…"
    text = f'<text x="{x + 2:.1f}" y="{y + 12:.1f}">{escape(label)}</text>' if letters > 2 else ""
    words = f"{frame.name}: {share:.1%}"
    yield (
        depth,
        f'<g><title>{escape(words)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{ROW}" fill={quoteattr(_colour(frame.name))}/>{text}</g>',
    )
    for below in sorted(frame.below.values(), key=lambda one: one.name):
        yield from _boxes(below, begin, depth + 1, whole)
        begin += below.samples


def _colour(name: str) -> str:
    """Ours are green, Python's and libraries' Python yellow, native code red; shades tell apart."""
    shade = hashlib.sha256(name.encode()).digest()[0] % 24
    if "(logweir/" in name:
        return f"hsl({110 + shade},55%,70%)"
    hue = 40 if ".py)" in name else 4
    return f"hsl({hue + shade // 2},75%,{72 + shade // 4}%)"


def record(pid: int, seconds: int) -> str:
    """Return the stacks that a process had on the processor during some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stacks"
        words = ("record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(RATE))
        form = ("--format", "raw", "--native", "--nolineno", "--output", str(path))
        done = subprocess.run([site_.BIN / "py-spy", *words, *form], capture_output=True, text=True)
        if done.returncode or not path.exists():
            raise RuntimeError(f"py-spy: {done.stderr}\nIt may need root, or ptrace_scope 0.")
        return path.read_text()


def under_writes(run: Bench, records: int, profile: Callable[[], str]) -> str:
    """Profile while batches of 1000 come in as fast as ingest takes them."""
    bodies = run.folder / "bodies"
    with corpus.ndjson("web", records, bench.START_NS).open("rb") as file:
        corpus.bodies(file, bench.BATCH, bodies)
    loader = run.loading([run.tenant()], bodies, MANY)
    try:
        threading.Event().wait(WARM_UP_S)
        return profile()
    finally:
        loader.kill()
        loader.communicate()


def under_queries(run: Bench, records: int, profile: Callable[[], str]) -> str:
    """Profile while needles, a regular expression and a histogram are asked in a loop."""
    bodies = run.folder / "bodies"
    with corpus.ndjson("web", records, bench.START_NS).open("rb") as file:
        lines = bench.with_needles(file, records, "web", NEEDLES)
        requests = corpus.bodies(lines, bench.BATCH, bodies)
    tenant = run.tenant(is_read=True)
    run.stored(tenant, bodies, requests, records)
    asked, ended = Asked(tenant, "web", records, corpus.SPAN_S), threading.Event()

    def ask() -> None:
        while not ended.is_set():
            for one in (asked.scan, asked.pattern, asked.probe, asked.histogram):
                one()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        ended.wait(WARM_UP_S)
        return profile()
    finally:
        ended.set()
        asking.join()


def main() -> int:
    """Profile some roles, each on a Logweir of its own, and write a flame graph of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=(*ROLES, "all"))
    parser.add_argument("--size", choices=sorted(SECONDS), default="full")
    parser.add_argument("--out", type=Path, default=bench.OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    say = teller()
    for role in ROLES if options.role == "all" else (options.role,):
        under = under_queries if role == "query" else under_writes
        with tempfile.TemporaryDirectory() as folder, site_.running() as site:
            load = bench.compiled_load(Path(folder))
            run = Bench(site, bench.SIZES[options.size], load, say)
            seconds, pid = SECONDS[options.size], site.pids[role]
            stacks = under(run, RECORDS[options.size], lambda: record(pid, seconds))  # noqa: B023
        root = tree(stacks)
        what = f"{role} under load, commit {machine.commit(bench.HERE.parent)}"
        path = options.out / f"flame-{role}.svg"
        path.write_text(svg(root, f"{what}; {root.samples:,} samples in {seconds} s"))
        say(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
