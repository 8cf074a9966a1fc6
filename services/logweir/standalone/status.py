"""What `logweir status` shows: from the supervisor's file, the operator's, and the lock."""

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
            access = read_json(place.path / "access.json", Access)
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
        pid=status.pid or None,
    )
