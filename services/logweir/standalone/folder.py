"""The folder in which all state of one `logweir up` stands, and who holds it.

DIR/                0755, so that the servers' user can enter its own part
  lock              held (flock) while an `up` runs; names its process
  secrets.json      0600: root keys and the servers' passwords; the operator rotates the roots
  ports.json        ports of the servers, the same at each start while they are free
  status.json       0600: what `logweir status` shows; written by the supervisor
  collectors.json   how many collectors should run; written by the reconciler
  manifests/        YAML of LogTenant and LogPipeline; applied.json knows what was taken
  bindings/ keys/   0600 files: what the roles serve; API keys by tenant
  logs/             one a process, rotated
  postgres/ valkey/ gateway/     the servers' own folders
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from logweir.core import errors
from logweir.standalone import accounts
from logweir_operator.rootsets import RootSecrets, RootSet

DEFAULT_PORT = 7080
LOCK_TRIES = 10
LOCK_RETRY_S = 0.02

_Value = TypeVar("_Value", bound=msgspec.Struct)


class Secrets(RootSecrets, frozen=True, kw_only=True):
    """Secrets of an installation: its roots, and passwords of 48 hex digits."""

    postgres_password: str
    valkey_password: str


class _FirstSecrets(msgspec.Struct, frozen=True):
    """Version 1 of the file: one version of the roots."""

    write_root: str
    maintain_root: str
    read_root: str
    sign_root: str
    postgres_password: str
    valkey_password: str

    def newer(self) -> Secrets:
        roots = (self.write_root, self.maintain_root, self.read_root, self.sign_root)
        return Secrets(
            roots=[RootSet(1, *roots)],
            postgres_password=self.postgres_password,
            valkey_password=self.valkey_password,
        )


class _Versioned(msgspec.Struct, frozen=True):
    version: int = 1


class Ports(msgspec.Struct, frozen=True):
    """Ports of the servers, on the loopback address."""

    gateway: int
    postgres: int
    valkey: int


class Holder(msgspec.Struct, frozen=True):
    """The process that holds a folder; 0 while it has not yet written its id."""

    pid: int


def default_path() -> Path:
    """Return where an `up` keeps its state when nothing else is said."""
    if os.geteuid() == 0:
        return Path("/var/lib/logweir")  # a home of mode 0700 would keep the servers' user out
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "logweir"


class Folder:
    """The folder; nothing of it is touched before a method says so."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock: int | None = None

    @property
    def logs(self) -> Path:
        """Where processes' output is."""
        return self.path / "logs"

    @property
    def manifests(self) -> Path:
        """Where YAML is applied from."""
        return self.path / "manifests"

    @property
    def bindings(self) -> Path:
        """Where roles' binding files are."""
        return self.path / "bindings"

    @property
    def keys(self) -> Path:
        """Where API keys are, a file a tenant; they stand for the Secrets of Kubernetes."""
        return self.path / "keys"

    @property
    def status(self) -> Path:
        """What the supervisor says of its processes."""
        return self.path / "status.json"

    @property
    def collectors(self) -> Path:
        """How many collectors should run; written by the reconciler, for the supervisor."""
        return self.path / "collectors.json"

    @property
    def access(self) -> Path:
        """What a newcomer needs; written by the reconciler."""
        return self.path / "access.json"

    def make(self) -> None:
        """Make the folder and those in it that are ours; rights of one that is there stay.

        Raises:
            SetupError: it cannot be written.
        """
        try:
            if not self.path.is_dir():
                self.path.mkdir(parents=True)
                self.path.chmod(0o755)
            for one in (self.logs, self.manifests):
                one.mkdir(exist_ok=True)
            for one in (self.bindings, self.keys):
                one.mkdir(mode=0o700, exist_ok=True)
        except OSError as cause:
            raise self._unwritable(cause) from cause

    def _unwritable(self, cause: OSError) -> errors.SetupError:
        return errors.SetupError(
            f"Cannot write to the data folder {self.path}: {cause.strerror}.",
            hint="Choose another one with '--data DIR', or change its owner.",
        )

    def take(self) -> None:
        """Hold the folder until this process ends.

        Raises:
            SetupError: another process holds it, or the folder cannot be written.
        """
        self.make()
        try:
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as cause:
            raise self._unwritable(cause) from cause
        if not _lock(handle):
            os.close(handle)
            raise self.in_use()
        named = f"{os.getpid()}\n".encode()
        os.pwrite(handle, named, 0)
        os.ftruncate(handle, len(named))  # never empty: 'down' reads it
        self._lock = handle
        for place in (self.path, self.bindings, self.keys):
            for left in place.glob("*.new"):  # of a start that was cut off while it wrote
                left.unlink(missing_ok=True)

    def in_use(self) -> errors.SetupError:
        """Return the error of a folder that another process holds."""
        return errors.SetupError(
            f"{self.path} is in use by another 'logweir up', process {self._named_pid()}.",
            hint=f"Stop it with 'logweir down --data {self.path}', or choose another folder "
            "with '--data DIR'.",
        )

    def let_go(self) -> None:
        """Give the folder up in this process alone; for a forked child of the one that holds it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def holder(self) -> Holder | None:
        """Return the process that holds the folder; None when nobody does."""
        try:
            handle = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Holder(self._named_pid())
        finally:
            os.close(handle)
        return None

    def _named_pid(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.path / "lock").read_text())
        return 0

    def secrets(self) -> Secrets:
        """Return the installation's secrets, made at the first start.

        Raises:
            SetupError: they are lost while the data they open is there, or cannot be read.
        """
        path = self.path / "secrets.json"
        if not path.exists() and (self.path / "postgres" / "data").exists():
            raise errors.SetupError(
                f"{path} is gone, but {self.path} holds data that only it opens.",
                hint="Put it back from a copy, or choose another folder with '--data DIR'.",
            )
        if not path.exists():
            fresh = Secrets(
                roots=[RootSet.fresh(1)],
                postgres_password=secrets.token_hex(24),
                valkey_password=secrets.token_hex(24),
            )
            write_json(path, fresh)
        return self.read_secrets()

    def read_secrets(self) -> Secrets:
        """Return the secrets of an installation that exists.

        Raises:
            SetupError: there is none here, or they cannot be read.
        """
        path = self.path / "secrets.json"
        if read_json(path, _Versioned).version == 1:
            return read_json(path, _FirstSecrets).newer()
        return read_json(path, Secrets)

    def write_secrets(self, changed: Secrets) -> None:
        """Replace the secrets of an installation that runs; for its operator alone.

        Raises:
            SetupError: they cannot be written.
        """
        write_json(self.path / "secrets.json", changed)

    def ports(self) -> Ports:
        """Return the ports of an installation that was started.

        Raises:
            SetupError: it never was.
        """
        return read_json(self.path / "ports.json", Ports)

    def write_ports(self, ports: Ports) -> None:
        """Remember the ports."""
        write_json(self.path / "ports.json", ports)


def _lock(handle: int) -> bool:
    """Lock for this process alone. Who looks whether the lock is held holds it for a moment."""
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(LOCK_RETRY_S)
    return False


def write_json(path: Path, value: msgspec.Struct | Mapping[str, Any]) -> bool:
    """Replace a file of mode 0600 when its content differs; true when it did.

    Raises:
        SetupError: it cannot be written.
    """
    text = msgspec.json.format(msgspec.json.encode(value))
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        if path.exists() and path.read_bytes() == text:
            return False
        accounts.replace(path, fresh, text)
    except OSError as cause:
        raise errors.SetupError(
            f"Cannot write {path}: {cause.strerror}.", hint="Free space, or mend its rights."
        ) from cause
    return True


def read_json(path: Path, kind: type[_Value]) -> _Value:
    """Return a file's value.

    Raises:
        SetupError: it is not there, not readable, or not of this kind.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as cause:
        raise errors.SetupError(
            f"There is no {path.name} in {path.parent}.",
            hint="'logweir up' makes it; give the folder of a running one with '--data DIR'.",
        ) from cause
    except OSError as cause:
        raise errors.SetupError(
            f"Cannot read {path}: {cause.strerror}.", hint="Run as the user who ran 'logweir up'."
        ) from cause
    except msgspec.MsgspecError as cause:
        raise errors.SetupError(
            f"{path} is damaged: {cause}.", hint="Put it back from a copy."
        ) from cause
