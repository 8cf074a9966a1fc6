"""`logweir` as it is, but its servers and roles can be reached by the faults.

The servers are started with the shim (shims.py), and each role's binding names the ports of its
links (proxy.py) in place of the servers'. Everything else is the command's own.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
from chaos.shims import SLOTS

from logweir import cli
from logweir.standalone import servers
from logweir_operator import bindings
from logweir_operator.bindings import Site

LINKS = "CHAOS_LINKS"
"""The environment's name for the links' ports, as JSON."""

_PROGRAMS = {"initdb": "postgres", "valkey-server": "valkey", "redis-server": "valkey"}


def _preload() -> None:
    """Hand the shim on to the servers, whose environment is made anew."""
    spawn = servers.spawn
    shim = {name: os.environ[name] for name in ("LD_PRELOAD", "CHAOS_SHIM") if name in os.environ}

    def preloaded(command: servers.Command, output: int | None = None) -> subprocess.Popen[bytes]:
        program = Path(command.argv[0]).name
        name = _PROGRAMS.get(program, program)
        if shim and name in SLOTS:
            env = {**command.env, **shim, "CHAOS_SLOT": str(SLOTS.index(name))}
            command = msgspec.structs.replace(command, env=env)
        return spawn(command, output)

    servers.spawn = preloaded


def _link(links: dict[str, int]) -> None:
    def linked(site: Site, role: str) -> Site:
        store, journal = site.store, site.journal
        if port := links.get(f"{role}-postgres"):
            store = msgspec.structs.replace(store, port=port)
        if port := links.get(f"{role}-valkey"):
            journal = msgspec.structs.replace(journal, port=port)
        return msgspec.structs.replace(site, store=store, journal=journal)

    for role in ("ingest", "collector", "query", "keeper"):
        make = getattr(bindings, role)

        def made(*args: Any, make: Any = make, role: str = role) -> Any:
            return make(*(linked(one, role) if isinstance(one, Site) else one for one in args))

        setattr(bindings, role, made)


if __name__ == "__main__":
    _preload()
    _link(msgspec.json.decode(os.environ.get(LINKS, "{}")))
    cli.main()
