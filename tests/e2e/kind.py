"""A cluster of kind, for who has Docker: images by `docker build` from the real Dockerfile.

kind must be on the PATH. Not run where there is no Docker; the steps are those of the box, by
`kubectl port-forward`.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from e2e import boxed
from e2e.box import Unfit
from e2e.target import ROOT, Cluster

NAME: Final = "logweir-e2e"
IMAGE: Final = ("logweir", "e2e")
TRAEFIK: Final = "docker.io/library/traefik:v3.6.12"


@contextlib.contextmanager
def started() -> Iterator[Cluster]:
    """Make a cluster with the image of this tree and Traefik in it; delete it after the block.

    Raises:
        Unfit: there is no Docker, or no kind.
    """
    missing = [name for name in ("docker", "kind") if shutil.which(name) is None]
    if missing:
        raise Unfit(f"no cluster of kind here: {' and '.join(missing)} must be on the PATH")
    image = ":".join(IMAGE)
    _run("docker", "build", "-t", image, "--build-arg", f"REVISION={boxed.revision()}", ROOT)
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder, "kubeconfig")
        # One that a killed run left.
        _run("kind", "delete", "cluster", "--name", NAME, "--kubeconfig", kubeconfig)
        _run("kind", "create", "cluster", "--name", NAME, "--kubeconfig", kubeconfig)
        try:
            _run("kind", "load", "docker-image", image, "--name", NAME)
            repository, tag = IMAGE
            values = {"image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}}
            cluster = Cluster(kubeconfig, values, Path(folder))
            for crd in sorted(boxed.gateway_api().glob("gateway*.yaml")):
                cluster.apply(crd.read_text())
            text = (boxed.CLUSTER / "traefik.yaml").read_text()
            cluster.apply(text.replace(boxed.recipes.TRAEFIK, TRAEFIK))
            cluster.kubectl("-n", "traefik", "rollout", "status", "deploy/traefik")
            try:
                yield cluster
            finally:
                cluster.close()
        finally:
            _run("kind", "delete", "cluster", "--name", NAME, "--kubeconfig", kubeconfig)


def _run(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True)
