"""Waits until the control schema has what a program needs, as roles do in Kubernetes.

A schema that is newer will do: changes expand before they contract.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import psycopg

from logweir.backends import migrations, store
from logweir.core import errors, names
from logweir.core.binding import Login, PostgresServer

RETRY_S: Final = 1.0


class _Binding(msgspec.Struct, frozen=True):
    """What the bindings of the platform's roles have in common."""

    store: PostgresServer
    control_login: Login


def await_schema(path: Path, wait_s: float, say: Callable[[str], None]) -> None:
    """Return when the control schema is new enough.

    Args:
        path: a binding of query, keeper or auth; read anew at each look.
        wait_s: for so long.
        say: gets each new reason to wait.

    Raises:
        UnavailableError: it is not within that time.
    """
    deadline_s = time.monotonic() + wait_s
    said = ""
    while why := problem(path):
        if time.monotonic() > deadline_s:
            raise errors.UnavailableError(f"The control schema is not ready: {why}")
        if why != said:
            say(f"waiting: {why}")
            said = why
        time.sleep(RETRY_S)


def problem(path: Path) -> str:
    """Return why the control schema is not what is needed; empty when it is."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Binding)
        conninfo = store.conninfo(found.store, found.control_login, "logweir await-schema")
        with psycopg.connect(conninfo, autocommit=True, connect_timeout=2) as connection:
            revision = migrations.revision(connection, names.CONTROL_SCHEMA)
    except (OSError, msgspec.MsgspecError, psycopg.Error) as error:
        return " ".join(str(error).split())
    needed = migrations.HEADS["control"]
    if revision >= needed:
        return ""
    return f"the control schema is at revision {revision or 'none'}, {needed} is needed"
