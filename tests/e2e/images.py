"""Container images as files, without Docker: layers of sorted tar, and archives that point to them.

    archive(image, has=box.blobs())     OCI layout, without the layers that are there already
    archive(image)                      with all of them, as `docker load` and `kind load` want it

The same files give the same bytes, and so the same digests.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"


class Layer(NamedTuple):
    """A tar file, uncompressed, and its digest."""

    path: Path
    digest: str

    @classmethod
    def of(cls, path: Path) -> Layer:
        with path.open("rb") as file:
            return cls(path, "sha256:" + hashlib.file_digest(file, "sha256").hexdigest())


class Image(NamedTuple):
    """What runs: a name with a tag, layers from the bottom up, and the configuration of OCI."""

    name: str
    layers: Sequence[Layer]
    config: Mapping[str, Any]


def write_layer(path: Path, tree: Path, prefix: str = "", leave_out: Collection[str] = ()) -> Layer:
    """Write a folder's content as a layer, owned by root; `leave_out` names paths within it."""
    fresh = path.with_suffix(".fresh")
    with tarfile.open(fresh, "w", format=tarfile.PAX_FORMAT) as tar:
        for parent in _parents(prefix):
            tar.addfile(_folder(parent))
        for relative in _sorted_paths(tree, leave_out):
            place = tree / relative
            info = tar.gettarinfo(place, arcname=str(Path(prefix, relative)))
            if info is None:
                continue  # a socket
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = 0
            if info.type == tarfile.LNKTYPE:  # whole, so that order of reading does not matter
                info.type, info.size = tarfile.REGTYPE, place.stat().st_size
            if info.isreg():
                with place.open("rb") as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
    fresh.replace(path)
    return Layer.of(path)


def _sorted_paths(tree: Path, leave_out: Collection[str]) -> Iterator[str]:
    """Yield the paths below a folder, parents before children."""
    for name in sorted(place.name for place in tree.iterdir()):
        if name in leave_out:
            continue
        yield name
        place = tree / name
        if stat.S_ISDIR(place.lstat().st_mode):
            below = {one.partition("/")[2] for one in leave_out if one.startswith(f"{name}/")}
            yield from (f"{name}/{one}" for one in _sorted_paths(place, below))


def _parents(prefix: str) -> list[str]:
    parts = Path(prefix).parts
    return ["/".join(parts[: length + 1]) for length in range(len(parts))]


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def write_archive(path: Path, image: Image, has: Collection[str] = ()) -> Path:
    """Write an image as a file that containerd, Docker and kind can import.

    Args:
        path: where to.
        image: what.
        has: digests of layers that the importer has already; they are left out. With all layers in
            it the archive is also in the form of `docker save`.
    """
    digests = [layer.digest for layer in image.layers]
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": digests},
            "history": [{"created_by": layer.path.name} for layer in image.layers],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, _digest(config), len(config)),
            "layers": [
                _descriptor(_LAYER, layer.digest, layer.path.stat().st_size)
                for layer in image.layers
            ],
        }
    )
    listed = _descriptor(_MANIFEST, _digest(manifest), len(manifest))
    annotations = {
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": image.name.rpartition(":")[2],
    }
    index = {
        "schemaVersion": 2,
        "mediaType": _INDEX,
        "manifests": [{**listed, "annotations": annotations}],
    }
    docker = {
        "Config": _blob(_digest(config)),
        "RepoTags": [image.name],
        "Layers": [_blob(digest) for digest in digests],
    }
    with tarfile.open(path, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", _json(index))
        for content in (config, manifest):
            _add(tar, _blob(_digest(content)), content)
        for layer in image.layers:
            if layer.digest not in has:
                info = tarfile.TarInfo(_blob(layer.digest))
                info.size = layer.path.stat().st_size
                with layer.path.open("rb") as file:
                    tar.addfile(info, file)
        if not has:
            _add(tar, "manifest.json", _json([docker]))
    return path


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest, "size": size}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
