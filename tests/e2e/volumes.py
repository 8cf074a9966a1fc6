"""Persistent volumes of the box, made by hand: folders of it as `local` volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2e import node


def make(folder: Path, number: int) -> list[dict[str, Any]]:
    """Make so many folders, and return their volumes; each takes one claim of up to 10 GiB."""
    volumes = []
    for name in (f"volume-{index}" for index in range(number)):
        path = folder / name
        path.mkdir(parents=True)
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node.NODE]}
        volumes.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name},
                "spec": {
                    "capacity": {"storage": "10Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": "local",
                    "persistentVolumeReclaimPolicy": "Retain",
                    "local": {"path": str(path)},
                    "nodeAffinity": {
                        "required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}
                    },
                },
            }
        )
    return volumes
