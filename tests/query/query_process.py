"""Runs the query role as a process of its own and says at its end how much memory it ever had.

python query_process.py BINDING HTTP_FD OPS_FD
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from logweir.query import app
from logweir.runtime.settings import Listen, Settings


def peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says begins with the peak of the process that started this one.
        [line] = [one for one in status.read_text().splitlines() if one.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    binding, http, ops = sys.argv[1:]
    app.main(Settings("query", Path(binding), Listen(fd=int(ops)), Listen(fd=int(http))))
    print(peak_bytes())
