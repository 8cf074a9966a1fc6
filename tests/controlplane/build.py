"""Binaries of the control plane, built once by Go from three modules with pinned sums.

    python -m controlplane.build            those of levels 4 and 5: five minutes at first
    python -m controlplane.build helm       others by their names (TARGETS); prints the paths

They lie in the user's cache folder, under a key of all that decides what they are, so only the
first run after a change pays. A person who has no Go may point KUBEBUILDER_ASSETS at a folder with
etcd, kube-apiserver and kubectl, as `setup-envtest` makes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

HERE = Path(__file__).parent

API: Final = ("etcd", "kube-apiserver", "kubectl")
"""What level 4 needs: an API server alone."""
CLUSTER: Final = (*API, "kube-controller-manager", "kube-scheduler")
"""What level 5 needs: its controllers too."""


class Unavailable(Exception):  # noqa: N818 - it says what is so; nothing has failed
    """There is neither Go nor a folder of binaries here; the message says what would help."""


class Target(NamedTuple):
    """A program: the module that pins it, by its folder, and its package."""

    module: str
    package: str


TARGETS: Final = {
    "etcd": Target(".", "go.etcd.io/etcd/server/v3"),
    **{
        name: Target(".", f"k8s.io/kubernetes/cmd/{name}")
        for name in (*CLUSTER[1:], "kubelet", "kube-proxy")
    },
    "helm": Target("tools", "helm.sh/helm/v3/cmd/helm"),
    "coredns": Target("tools", "github.com/coredns/coredns"),
    "traefik": Target("traefik", "github.com/traefik/traefik/v3/cmd/traefik"),
}


def find(*names: str) -> dict[str, Path]:
    """Return the path of each program, and build those that are not there yet.

    Raises:
        Unavailable: there is nothing to take or to build them with.
        subprocess.CalledProcessError: Go could not build one.
    """
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS", ""))
    has_assets = assets != Path()
    missing = [name for name in names if not (assets / name).exists()]
    if has_assets and not missing:
        return {name: assets / name for name in names}
    for name in names:
        problem = _go_problem(TARGETS[name].module)
        if problem is not None:
            where = f", and KUBEBUILDER_ASSETS has no {', '.join(missing)}" if has_assets else ""
            raise Unavailable(
                f"no control plane: {problem}{where}; install Go, or set KUBEBUILDER_ASSETS"
            )
    built = {name: _cached(name) for name in names}
    for name, path in built.items():
        if not path.exists():
            _build(name, path)
    return built


def version() -> str:
    """Return the version of Kubernetes that go.mod names, as in 1.35.3."""
    found = re.search(r"k8s\.io/kubernetes v([0-9.]+)", (HERE / "go.mod").read_text())
    assert found is not None
    return found[1]


@functools.cache
def _go_problem(module: str) -> str | None:
    """Return why Go cannot build this module here, or None."""
    wanted = re.search(r"^go (\d+)\.(\d+)", (HERE / module / "go.mod").read_text(), re.MULTILINE)
    assert wanted is not None
    if shutil.which("go") is None:
        return "there is no Go"
    found = re.search(r"go(\d+)\.(\d+)", _go_version())
    if found is None or tuple(map(int, found.groups())) < tuple(map(int, wanted.groups())):
        return f"Go {wanted[1]}.{wanted[2]} or newer is needed, and {_go_version()} is here"
    return None


@functools.cache
def _go_version() -> str:
    asked = ["go", "env", "GOVERSION", "GOOS", "GOARCH"]
    return " ".join(
        subprocess.run(asked, cwd="/", check=True, capture_output=True, text=True).stdout.split()
    )


def _cached(name: str) -> Path:
    """Return where the program lies once it is built."""
    folder = HERE / TARGETS[name].module
    parts = [(folder / file).read_bytes() for file in ("go.mod", "go.sum")]
    parts += [_go_version().encode(), _flags().encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "logweir" / "controlplane" / key / name


def _command(name: str, output: str) -> list[str]:
    options = ["-trimpath", "-buildvcs=false", "-ldflags", _flags()]
    return ["go", "build", *options, "-o", output, TARGETS[name].package]


def _flags() -> str:
    """Return what the linker writes into the programs: without it none knows its version."""
    major, minor, _ = version().split(".")
    values = {
        "gitVersion": f"v{version()}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "0" * 40,
        "buildDate": "1970-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    named = {f"{package}.{name}": one for package in packages for name, one in values.items()}
    # The Kubernetes that `helm template` and `helm lint` think of when there is none to ask.
    for package, prefix in (("chartutil", "k8sVersion"), ("lint/rules", "k8sVersion")):
        named[f"helm.sh/helm/v3/pkg/{package}.{prefix}Major"] = major
        named[f"helm.sh/helm/v3/pkg/{package}.{prefix}Minor"] = minor
    return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in named.items())])


def _build(name: str, path: Path) -> None:
    """Build it, unless another process did so while this one waited for its turn."""
    with _turn(path.parent.parent):
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".fresh")
        print(f"controlplane: building {name}, once ...", file=sys.stderr, flush=True)
        began_s = time.monotonic()
        subprocess.run(
            _command(name, str(fresh)),
            cwd=HERE / TARGETS[name].module,
            env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"},
            stdout=sys.stderr.fileno(),
            check=True,
        )
        fresh.replace(path)
        took_s = time.monotonic() - began_s
        print(f"controlplane: built {name} in {took_s:.0f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: one build at a time, as each takes all cores."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(names: Sequence[str]) -> None:
    """Build the programs, and print their paths."""
    for path in find(*(names or CLUSTER)).values():
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
