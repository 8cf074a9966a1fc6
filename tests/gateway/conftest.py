"""A gateway for all tests of this folder, and a way to make others."""

from __future__ import annotations

import grp
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import httpx2
import pytest
from fronting import KEY, Echo, Front, running, serving_in_a_thread

from logweir.gateway import config
from logweir.gateway.routes import Role
from logweir.standalone import accounts, binaries, nginx, servers

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def gateway_folder() -> Iterator[Path]:
    """A folder that the workers' user can enter, also when the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="logweir-gateway-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def make_gateway(gateway_folder: Path) -> Callable[..., config.Gateway]:
    """Makes a Gateway with a port and a folder of its own: `make_gateway(ingest=(...), ...)`."""
    program = binaries.nginx()
    assert program is not None
    told = subprocess.run([program.program, "-V"], capture_output=True, text=True).stderr
    build = {"version": program.version, "added": nginx.added(told)}

    def make(**fields: Any) -> config.Gateway:
        folder = gateway_folder / str(next(_numbers))
        folder.mkdir(mode=0o755)
        account = accounts.choose()
        run_as = (account.name, grp.getgrgid(account.gid).gr_name) if account else None
        options = {"workers": 1, "worker_connections": 256, "run_as": run_as} | build | fields
        names = [one for one in get_args(Role) if one in options]
        options["roles"] = {name: options.pop(name) for name in names}
        return config.Gateway(port=servers.free_port(), folder=folder, **options)

    return make


@pytest.fixture(scope="session")
def session_front(make_gateway: Callable[..., config.Gateway]) -> Iterator[Front]:
    roles = [Echo(name) for name in ("ingest", "query", "auth")]
    gateway = make_gateway(**{one.name: (one.address,) for one in roles})
    with serving_in_a_thread(*roles), running(gateway) as nginx:
        yield Front(nginx, *roles)


@pytest.fixture
def front(session_front: Front) -> Front:
    """The gateway of the session; its roles have seen nothing yet."""
    session_front.forget()
    return session_front


@pytest.fixture
def client(front: Front) -> Iterator[httpx2.Client]:
    """A client with a key, that leaves addresses as they are written."""
    with httpx2.Client(base_url=front.url, timeout=10, headers={"X-API-Key": KEY}) as found:
        yield found
