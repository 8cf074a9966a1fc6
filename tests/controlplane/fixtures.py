"""Fixtures with a real Kubernetes, for all tests (`tests/conftest.py` takes this module in).

| fixture | scope | what it is |
|---|---|---|
| `plane` | session | level 4: an API server with our CRDs, no controllers (`plane.Plane`) |
| `namespace` | test | the name of a new namespace there; it is left to the end |
| `cluster` | session | level 5: another, with controller-manager, scheduler and a fake kubelet |
| `cluster_namespace` | test | the name of a new namespace there; deleted afterwards |
| `start_plane` | test | starts planes of the test's own: `start_plane(controllers=False)` |
| `helm` | session | the path of Helm |

Each is started when the first test wants it. Tests share it, so they keep to their namespace, undo
what they do to the whole, and leave it running; `plane.restart_api_server()` is allowed. Programs
are built before the first test (`build.py`). When there is nothing to build them with, all these
tests are skipped with one line that says so; with CI set they fail.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Final

import pytest
from controlplane import build

if TYPE_CHECKING:
    from controlplane.plane import Plane

NEEDS: Final = {
    "plane": build.API,
    "cluster": build.CLUSTER,
    "start_plane": build.CLUSTER,
    "helm": ("helm",),
}
"""What is built for a fixture."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what the chosen tests need, where no test's time is counted."""
    if session.config.option.collectonly:
        return
    fixtures = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    names = {name for fixture in fixtures & NEEDS.keys() for name in NEEDS[fixture]}
    capture = session.config.pluginmanager.getplugin("capturemanager")
    if names:
        with capture.global_and_fixture_disabled():
            try:
                build.find(*sorted(names))
            except build.Unavailable:
                return  # the fixtures say it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[None]:
    """Let skips for want of a control plane stand in one line, not one for each test."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, NoPlane):
        report.longrepr = (__file__, 0, str(call.excinfo.value))
    return report


class NoPlane(pytest.skip.Exception):
    """The test is skipped, as there is nothing to make a control plane of."""


StartPlane = Callable[..., "Plane"]


@pytest.fixture(scope="session")
def plane() -> Iterator[Plane]:
    with _planes() as start:
        yield start(controllers=False)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Plane]:
    with _planes() as start:
        yield start(controllers=True)


@pytest.fixture
def start_plane() -> Iterator[StartPlane]:
    with _planes() as start:
        yield start


@pytest.fixture
def namespace(plane: Plane) -> str:
    return plane.make_namespace()


@pytest.fixture
def cluster_namespace(cluster: Plane) -> Iterator[str]:
    name = cluster.make_namespace()
    yield name
    cluster.api.delete("Namespace", name)


@pytest.fixture(scope="session")
def helm() -> Path:
    with _or_skipped():
        return build.find("helm")["helm"]


@contextlib.contextmanager
def _or_skipped() -> Iterator[None]:
    """Skip the test when there is nothing to build with; in CI that fails."""
    try:
        yield
    except build.Unavailable as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        raise NoPlane(str(missing)) from None


@contextlib.contextmanager
def _planes() -> Iterator[StartPlane]:
    """Yield what starts planes; they end with their folders."""
    from controlplane import plane

    with contextlib.ExitStack() as stack:

        def start(*, controllers: bool = False) -> Plane:
            folder = Path(tempfile.mkdtemp(prefix="logweir-plane-"))
            stack.callback(rmtree, folder, ignore_errors=True)
            with _or_skipped():
                started = plane.start(folder, controllers=controllers)
            stack.callback(started.stop)
            return started

        yield start
