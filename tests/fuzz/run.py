"""Fuzzes one target with coverage: `make fuzz TARGET=logql SECONDS=600`.

    python tests/fuzz/run.py TARGET SECONDS [FOLDER]

Inputs that reach new code stay in FOLDER/TARGET and are where the next run begins; what breaks a
law is written there as `crash-...`. Such an input becomes a case of `tests/corpus` with its mend.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

with atheris.instrument_imports(include=["logweir"]):
    from fuzz import seeds, targets

MEMORY_MIB = 4096
"""Far more than any decoder takes: the instrumentation keeps some memory of every run."""

ALLOCATION_MIB = 256
SLOW_S = 10


def main(name: str, seconds: str, folder: str = ".fuzz") -> None:
    place = Path(folder, name)
    place.mkdir(parents=True, exist_ok=True)
    begin = seeds.of(name)
    for number, data in enumerate(begin):
        (place / f"seed-{number}").write_bytes(data)
    longest = max(4096, *(2 * len(one) for one in begin))
    target = targets.TARGETS[name]

    def one(data: bytes) -> None:
        target(data)

    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={int(seconds)}",
            f"-rss_limit_mb={MEMORY_MIB}",
            f"-malloc_limit_mb={ALLOCATION_MIB}",
            f"-timeout={SLOW_S}",
            f"-max_len={longest}",
            f"-artifact_prefix={place}/",
            "-print_final_stats=1",
            str(place),
        ],
        one,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
