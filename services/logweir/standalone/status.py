"""What `logweir status` shows: from the supervisor's file, the operator's, and the lock.

`show` gathers it; `table` and `welcome` say it to a person.
"""

from __future__ import annotations

import contextlib

import msgspec

from logweir.core import errors
from logweir.standalone.cluster_files import Access
from logweir.standalone.folder import Folder, read_json
from logweir.standalone.supervisor import ProcessStatus, Status


class Shown(msgspec.Struct, frozen=True):
    """The form that scripts may rely on; more members may join.

    `problems` are manifests of the folder that could not be applied. `dashboard_url` is null
    until there is a dashboard.
    """

    ready: bool
    url: str
    dashboard_url: str | None
    tenant: str
    pipeline: str
    ingest_url: str
    ingest_key: str
    query_key: str
    processes: list[ProcessStatus]
    problems: list[str]
    data: str
    pid: int | None


def show(place: Folder) -> Shown:
    """Return the state of the `up` in a folder; nothing runs there: not ready, no processes."""
    status, access = Status(0, False, "", []), Access()
    holder = place.holder()
    if holder is not None:
        with contextlib.suppress(errors.SetupError):
            found = read_json(place.status, Status)
            status = found if found.pid == holder.pid else status  # else: of an earlier start
        with contextlib.suppress(errors.SetupError):
            access = read_json(place.access, Access)
    return Shown(
        ready=status.ready,
        url=status.url,
        dashboard_url=None,
        tenant=access.tenant,
        pipeline=access.pipeline,
        ingest_url=access.ingest_url,
        ingest_key=access.ingest_key,
        query_key=access.query_key,
        processes=status.processes,
        problems=access.problems,
        data=str(place.path),
        pid=(holder.pid or None) if holder else None,
    )


def table(shown: Shown, program: str) -> str:
    """Return what `logweir status` prints; `program` is how this program is called."""
    if shown.pid is None and not shown.processes:
        return f"Nothing runs in {shown.data}. Start it with: {program} up --data {shown.data}"
    if not shown.processes:
        return f"starting  {shown.data}"
    lines = [f"{'ready' if shown.ready else 'not ready'}  {shown.url}  {shown.data}"]
    for one in shown.processes:
        pid = str(one.pid) if one.pid else "-"
        restarts = f"restarts {one.restarts}" if one.restarts else ""
        line = f"  {one.name:<10} {one.state:<12} {pid:>8}  {restarts:<12} {one.why}"
        lines.append(line.rstrip())
    return "\n".join([*lines, *_problems(shown)])


def welcome(shown: Shown, program: str, where: str, stop: str) -> str:
    """Return what a newcomer does next.

    Args:
        shown: the state.
        program: how this program is called.
        where: the options that name the folder, when it is not the usual one.
        stop: what stops it.
    """
    lines = [f"Logweir is ready: {shown.url}    (data in {shown.data}; {stop} stops it)"]
    if shown.ingest_key:
        lines += [
            "",
            "  send a line",
            f"    curl {shown.ingest_url} -H 'Authorization: Bearer {shown.ingest_key}' \\",
            '      -d \'{"service": "shop", "level": "info", "message": "hello"}\'',
            "  find it",
            f'    {program} query{where} \'{{service="shop"}} |= "hello"\'',
            "  watch them come",
            f"    {program} tail{where}",
            "",
        ]
    return "\n".join([*lines, *_problems(shown)])


def _problems(shown: Shown) -> list[str]:
    return [f"  not applied: {problem}" for problem in shown.problems]
