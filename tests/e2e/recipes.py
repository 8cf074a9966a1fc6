"""The images of the end-to-end tests, made from this tree: root and Debian's debootstrap.

    base            Debian minbase with its own Python, less what no pod needs
    dependencies    image/requirements.lock, chosen by that Python's version
    application     the wheel of this tree

Layers that change seldom stay in the user's cache under a key of what they follow from.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from controlplane import build
from e2e import box, dockerfile, node
from e2e.dockerfile import ROOT
from e2e.images import Image, Layer, write_layer

SUITE: Final = "bookworm"
TAG: Final = "e2e"
LOGWEIR: Final = f"localhost/logweir:{TAG}"
COREDNS: Final = f"localhost/logweir-e2e/coredns:{TAG}"
TRAEFIK: Final = f"localhost/logweir-e2e/traefik:{TAG}"

_UV: Final = Path(sys.executable).with_name("uv")
_HOME: Final = "opt/logweir"
_POD_USER: Final = "65532:65532"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOT_NEEDED: Final = (
    *("boot", "build", "dev", "home", "media", "mnt", "proc", "run", "sys", "tmp", "root"),
    *("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/info", "usr/share/zoneinfo"),
    *("usr/lib/apt", "usr/bin/apt", "usr/bin/apt-get", "usr/bin/apt-cache", "usr/bin/perl"),
    *("usr/lib/x86_64-linux-gnu/perl-base", "usr/share/perl5", "usr/lib/python3/dist-packages"),
    *("usr/lib/python3.11/test", "usr/lib/python3.11/ensurepip", "var/cache", "var/log"),
    *("var/lib/apt", "etc/resolv.conf", "etc/hostname", "etc/machine-id"),
)
"""Paths of the base that are left out, or that a container gets of its own."""

_EMPTY: Final = {
    "dev": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var/log": 0o755,
}
"""Folders that a container mounts over or writes to, and their modes."""

_PAUSE_C: Final = """\
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGTERM, end); signal(SIGINT, end); signal(SIGCHLD, reap);
  for (;;) pause();
}
"""


def all_images(revision: str) -> list[Image]:
    """Make all images that the box needs, and Logweir's own.

    Raises:
        subprocess.CalledProcessError: a step failed; `stderr` says why.
    """
    with _turn():
        base = _base()
        programs = build.find("coredns", "traefik")
        return [
            Image(node.PAUSE, [_pause()], {"Entrypoint": ["/pause"], "User": _POD_USER}),
            _of_program(COREDNS, programs["coredns"]),
            _of_program(TRAEFIK, programs["traefik"]),
            Image(
                LOGWEIR,
                [base, _dependencies(), _application()],
                dockerfile.configuration({"REVISION": revision}),
            ),
        ]


def _base() -> Layer:
    """Return Debian with Python, and leave it unpacked for the steps that need its Python."""
    text = f"{SUITE} {_NOT_NEEDED} {dockerfile.account()}"

    def make(path: Path) -> None:
        rootfs = _rootfs()
        shutil.rmtree(rootfs, ignore_errors=True)
        _run("debootstrap", "--variant=minbase", "--include=python3", SUITE, rootfs, _mirror())
        with (rootfs / "etc/passwd").open("a") as file:
            file.write(dockerfile.account())
        with (rootfs / "etc/group").open("a") as file:
            name, _, uid, *_ = dockerfile.account().split(":")
            file.write(f"{name}:x:{uid}:\n")
        for compiled in rootfs.rglob("__pycache__"):
            shutil.rmtree(compiled)
        _compile(rootfs, "/usr/lib/python3.11")
        fresh = path.with_suffix(".tree.tar")
        write_layer(fresh, rootfs, leave_out=_NOT_NEEDED)
        _with_empty_folders(fresh)
        fresh.replace(path)

    if not _rootfs().exists():
        for old in box.cache().glob("base-*.tar"):
            old.unlink()
    return _cached("base", text, make)


def _with_empty_folders(layer: Path) -> None:
    """Append the folders that a container mounts over, or writes to."""
    with tarfile.open(layer, "a") as tar:
        for name, mode in _EMPTY.items():
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, mode
            tar.addfile(info)


def _dependencies() -> Layer:
    lock = ROOT / "image/requirements.lock"

    def make(path: Path) -> None:
        with _workplace() as place:
            home = place / _HOME
            (home / "bin").mkdir(parents=True)
            (home / "bin/python").symlink_to("/usr/bin/python3")
            (home / "pyvenv.cfg").write_text(
                "home = /usr/bin\ninclude-system-site-packages = false\n"
            )
            _install(home / _site_packages(), "--require-hashes", "--requirement", lock)
            shutil.rmtree(home / _site_packages() / "bin", ignore_errors=True)
            _compile(_rootfs(), f"/{place.relative_to(_rootfs())}/{_HOME}", strip=place)
            write_layer(path, place)

    return _cached("dependencies", lock.read_text() + _python_version(), make)


def _application() -> Layer:
    """Return the wheel of this tree as a layer, with its bill of materials."""
    with _workplace() as place, tempfile.TemporaryDirectory() as wheels:
        home = place / _HOME
        _run(_UV, "build", "--wheel", "--quiet", "--out-dir", wheels, ROOT)
        (wheel,) = Path(wheels).glob("*.whl")
        _install(home / _site_packages(), "--no-index", wheel)
        shutil.rmtree(home / _site_packages() / "bin")
        for record in (home / _site_packages()).glob("logweir-*.dist-info/RECORD"):
            record.write_text("")  # uv writes where the wheel was
        for direct in (home / _site_packages()).glob("logweir-*.dist-info/*.json"):
            direct.unlink()
        script = home / "bin/logweir"
        script.parent.mkdir()
        script.write_text(
            f"#!/{_HOME}/bin/python\nimport sys\nfrom logweir.cli import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)
        _compile(_rootfs(), f"/{place.relative_to(_rootfs())}/{_HOME}", strip=place)
        return write_layer(box.cache() / "application.tar", place)


def _of_program(name: str, program: Path) -> Image:
    """Return an image with one static program in it, beside an empty /tmp."""

    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, program.name)
            shutil.copyfile(program, place)
            place.chmod(0o755)
            tmp = Path(folder, "tmp")
            tmp.mkdir()
            tmp.chmod(0o1777)
            write_layer(path, Path(folder))

    layer = _cached(program.name, str(program), make)
    return Image(name, [layer], {"Entrypoint": [f"/{program.name}"], "User": _POD_USER})


def _pause() -> Layer:
    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            argv = ["gcc", "-static", "-Os", "-s", "-x", "c", "-o", f"{folder}/pause", "-"]
            subprocess.run(argv, input=_PAUSE_C.encode(), check=True)
            write_layer(path, Path(folder))

    return _cached("pause", _PAUSE_C, make)


def _cached(name: str, follows_from: str, make: Callable[[Path], None]) -> Layer:
    """Return the layer with this name and key; `make` writes it when it is not there."""
    key = hashlib.sha256(follows_from.encode()).hexdigest()[:12]
    path = box.cache() / f"{name}-{key}.tar"
    if not path.exists():
        print(f"e2e: making the layer {name}, once ...", flush=True)
        for old in box.cache().glob(f"{name}-*.tar"):
            old.unlink()
        fresh = path.with_suffix(".new")
        make(fresh)
        fresh.replace(path)
    return Layer.of(path)


def _rootfs() -> Path:
    return box.cache() / "rootfs"


def _python_version() -> str:
    """Return the version of the base's Python, as in 3.11.2."""
    return _run(
        "chroot", _rootfs(), "python3", "-c", "import platform as p; print(p.python_version())"
    ).strip()


def _site_packages() -> str:
    return f"lib/python{_python_version().rpartition('.')[0]}/site-packages"


def _install(target: Path, *words: object) -> None:
    """Install what the base's Python would: chosen by its version, by hash, without compiling."""
    _run(
        *(_UV, "pip", "install", "--quiet", "--no-deps", "--no-config", "--link-mode", "copy"),
        *("--python-version", _python_version(), "--python-platform", "x86_64-manylinux_2_36"),
        *("--target", target, *words),
    )
    shutil.rmtree(target / ".lock", ignore_errors=True)
    (target / ".lock").unlink(missing_ok=True)


def _compile(rootfs: Path, folder: str, strip: Path | None = None) -> None:
    """Compile a folder with the base's Python; the files say where they will lie in the image."""
    options = ["-s", f"/{strip.relative_to(rootfs)}"] if strip else []
    modes = ("--invalidation-mode", "unchecked-hash")
    _run("chroot", rootfs, "python3", "-m", "compileall", "-q", *modes, *options, folder)


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    """Yield an empty folder within the base, so that the base's Python sees it."""
    place = _rootfs() / "build"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


def _mirror() -> str:
    """Return the mirror that this machine's own apt takes Debian from."""
    listed = _run(
        "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"
    )
    return next(line.split()[0] for line in listed.splitlines() if line.split()[1] == SUITE)


def _run(*argv: object) -> str:
    done = subprocess.run(
        [str(word) for word in argv],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_PATH}", "LC_ALL": "C"},
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"{argv[0]} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Hold the cache's lock for layers."""
    with (box.cache() / "layers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
