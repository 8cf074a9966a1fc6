"""Makes a box into a cluster that things can be installed on: images, DNS, volumes, a gateway."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from controlplane import build
from e2e import recipes, volumes
from e2e.box import Box
from e2e.images import write_archive
from e2e.target import Boxed

CLUSTER: Final = Path(__file__).parent / "cluster"
VOLUMES: Final = 4


@contextlib.contextmanager
def started(values: dict[str, Any], *, keep: bool = False) -> Iterator[Boxed]:
    """Start a box with everything in it that a cluster has, and Logweir's image of this tree."""
    images = recipes.all_images(revision())
    with Box.start(keep=keep) as box:
        has = box.blobs()
        for image in images:
            box.load(write_archive(box.folder / "image.tar", image, has))
        (box.folder / "image.tar").unlink()
        for crd in sorted(gateway_api().glob("gateway*.yaml")):
            box.api.apply_yaml(crd.read_text())
        for name in ("coredns", "storage", "traefik"):
            box.api.apply_yaml((CLUSTER / f"{name}.yaml").read_text())
        box.api.apply(*volumes.make(box.folder / "volumes", VOLUMES))
        repository, _, tag = recipes.LOGWEIR.rpartition(":")
        image = {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"}
        cluster = Boxed(box, {**values, "image": image})
        try:
            for namespace, name in (("kube-system", "coredns"), ("traefik", "traefik")):
                cluster.kubectl("-n", namespace, "rollout", "status", f"deploy/{name}")
            yield cluster
        finally:
            cluster.close()


def gateway_api() -> Path:
    """Return the folder with the CRDs of Gateway API that Traefik was built against."""
    argv = ["go", "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api"]
    module = build.HERE / "traefik"
    found = subprocess.run(argv, cwd=module, check=True, capture_output=True, text=True).stdout
    return Path(found.strip(), "config/crd/standard")


def revision() -> str:
    """Return the commit of this tree; "unknown" outside of a repository."""
    argv = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
