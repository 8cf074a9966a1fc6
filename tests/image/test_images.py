"""Images without Docker: the Dockerfile's settings, and the same bytes for the same files."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
import tomllib
from pathlib import Path

import pytest
from e2e import dockerfile
from e2e.images import Image, write_archive, write_layer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "tree"
    (tree / "opt/app").mkdir(parents=True)
    (tree / "opt/app/b.py").write_text("b = 1\n")
    (tree / "opt/app/a.py").write_text("a = 1\n")
    (tree / "opt/app/run").symlink_to("a.py")
    (tree / "cache/x").mkdir(parents=True)
    return tree


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_layer_of_the_same_files_has_the_same_digest_whatever_their_times_and_order(
    tree, tmp_path
):
    first = write_layer(tmp_path / "first.tar", tree)
    other = tmp_path / "other"
    (other / "opt/app").mkdir(parents=True)
    for name in ("opt/app/a.py", "opt/app/b.py"):  # made in another order, at another time
        shutil.copyfile(tree / name, other / name)
    (other / "cache/x").mkdir(parents=True)
    (other / "opt/app/run").symlink_to("a.py")

    second = write_layer(tmp_path / "second.tar", other)

    assert second.digest == first.digest
    assert first.digest == f"sha256:{digest(tmp_path / 'first.tar')}"
    (other / "opt/app/a.py").write_text("a = 2\n")
    assert write_layer(tmp_path / "third.tar", other).digest != first.digest


def test_a_layer_is_owned_by_root_and_leaves_out_what_it_is_told(tree, tmp_path):
    write_layer(tmp_path / "layer.tar", tree, leave_out=["cache", "opt/app/b.py"])

    with tarfile.open(tmp_path / "layer.tar") as tar:
        members = tar.getmembers()
    assert [one.name for one in members] == ["opt", "opt/app", "opt/app/a.py", "opt/app/run"]
    assert {(one.uid, one.gid, one.mtime) for one in members} == {(0, 0, 0)}


def test_an_archive_leaves_out_what_the_importer_has_and_names_it_all_the_same(tree, tmp_path):
    layers = [
        write_layer(tmp_path / "base.tar", tree / "opt"),
        write_layer(tmp_path / "app.tar", tree),
    ]
    image = Image("localhost/app:1", layers, {"User": "65532:65532"})

    small = write_archive(tmp_path / "small.tar", image, has=[layers[0].digest])
    whole = write_archive(tmp_path / "whole.tar", image)

    with tarfile.open(small) as tar:
        names = tar.getnames()
        index = json.load(tar.extractfile("index.json"))
        manifest = json.load(tar.extractfile(blob(index["manifests"][0]["digest"])))
        config = json.load(tar.extractfile(blob(manifest["config"]["digest"])))
    assert [one["digest"] for one in manifest["layers"]] == [one.digest for one in layers]
    assert config["rootfs"]["diff_ids"] == [one.digest for one in layers]
    assert config["config"] == {"User": "65532:65532"}
    assert blob(layers[0].digest) not in names
    assert blob(layers[1].digest) in names
    with tarfile.open(whole) as tar:
        (listed,) = json.load(tar.extractfile("manifest.json"))
        assert set(listed["Layers"]) <= set(tar.getnames())
    assert digest(write_archive(tmp_path / "again.tar", image)) == digest(whole)


def blob(name):
    return "blobs/" + name.replace(":", "/")


def test_settings_come_from_the_last_stage_of_the_dockerfile():
    config = dockerfile.configuration({"REVISION": "abc"})

    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["logweir"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.revision"] == "abc"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert not [text for text in labels.values() if "$" in text or '"' in text]
    assert any(one.startswith("PATH=/opt/logweir/bin:") for one in config["Env"])


def test_the_user_has_a_name_as_some_servers_want():
    assert dockerfile.account() == "logweir:x:65532:65532::/tmp:/usr/sbin/nologin\n"


def test_the_dockerfile_and_the_project_have_one_version_and_one_description():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = dockerfile.configuration({})["Labels"]

    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.description"] == project["description"]


def test_every_base_is_pinned_and_everything_is_installed_by_hash():
    text = (ROOT / "Dockerfile").read_text()
    installs = re.findall(r"pip\b[^&\n]* install [^&\n]*", text)

    assert re.search(r"^ARG PYTHON=3\.1[23]\.\d+-slim-\w+$", text, re.MULTILINE)
    assert len(installs) == 3
    assert all("--require-hashes" in one or "--no-index" in one for one in installs)


def test_what_docker_is_sent_is_what_the_image_is_made_of():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}

    assert "*" in lines
    assert kept == {"image", "LICENSE", "README.md", "operator", "pyproject.toml", "services"}
