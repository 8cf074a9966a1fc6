"""Which user the servers run as, and what of the file system is theirs.

PostgreSQL refuses to run as root, and the other servers should not. Started by root, the servers
run as an unprivileged user that owns its own data folder and nothing else; started by anybody
else, they run as that user and nothing here changes hands.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from logweir.core import errors

CANDIDATES = ("logweir", "nobody", "daemon")
"""Users that root's servers may run as, the best first: a user made for it, then common ones."""


class Account(msgspec.Struct, frozen=True):
    """An unprivileged user of this machine."""

    name: str
    uid: int
    gid: int


def choose(names: Iterable[str] = CANDIDATES) -> Account | None:
    """Return the user for the servers when this process is root, else None (stay who you are).

    Raises:
        SetupError: root, but none of `names` is an unprivileged user here.
    """
    if os.geteuid() != 0:
        return None
    for name in names:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        if found.pw_uid != 0:
            return Account(name, found.pw_uid, found.pw_gid)
    raise errors.SetupError(
        "Started by root, but this machine has no unprivileged user for the servers.",
        hint="Make one with 'useradd --system logweir', or start as a plain user.",
    )


def blocked_at(path: Path, account: Account | None) -> Path | None:
    """Return the first folder on the way to `path` that the user cannot enter; None when it can.

    Judges by owner and mode, as those decide on nearly every machine; `path` itself counts too.
    """
    if account is None:
        return None
    whole = path.resolve()
    for folder in [*reversed(whole.parents), whole]:
        found = folder.stat()
        if stat.S_ISDIR(found.st_mode) and not _may_enter(found, account):
            return folder
    return None


def check_reach(folder: Path, account: Account | None) -> None:
    """Make sure that the user can enter the parents of `folder`, its data folder.

    Raises:
        SetupError: it cannot, or there are none, with the fix.
    """
    try:
        wall = blocked_at(folder.resolve().parent, account)
    except OSError as cause:
        raise errors.SetupError(
            f"Cannot get to the folder {folder.parent}: {cause.strerror}.",
            hint="Make it first, or choose another with '--data DIR'.",
        ) from cause
    if wall is not None and account is not None:
        raise errors.SetupError(
            f"The servers run as user {account.name!r}, who cannot enter {wall}.",
            hint=f"Choose a data folder outside of it (such as '--data /var/lib/logweir'), "
            f"or 'chmod o+x {wall}'.",
        )


def make_folder(folder: Path, account: Account | None, mode: int = 0o700) -> None:
    """Make the folder, if need be, and hand it with all that is in it to the user.

    Raises:
        SetupError: the folder cannot be made or handed over.
    """
    try:
        folder.mkdir(mode=mode, exist_ok=True)
        if account is not None and folder.stat().st_uid != account.uid:
            # From the leaves up: a walk that is cut short leaves the top as it was, so the next
            # start does it all again.
            for root, folders, files in os.walk(folder, topdown=False):
                for name in (*folders, *files):
                    os.chown(Path(root, name), account.uid, account.gid, follow_symlinks=False)
            os.chown(folder, account.uid, account.gid)  # of a link here, what it stands for
        folder.chmod(mode)
    except OSError as cause:
        raise errors.SetupError(
            f"Cannot prepare the folder {folder}: {cause.strerror}.",
            hint="Choose a folder that can be written with '--data DIR', or change its owner.",
        ) from cause


def write_file(path: Path, text: str, account: Account | None) -> None:
    """Replace the file with `text`, mode 0600, owned by the user; never half-written.

    The folder belongs to an unprivileged user, so a link in place of the file is not followed.

    Raises:
        SetupError: the file cannot be written.
    """
    try:
        replace(path, path.with_name(path.name + ".new"), text.encode(), account)
    except OSError as cause:
        raise errors.SetupError(
            f"Cannot write {path}: {cause.strerror}.", hint="Free space, or choose another folder."
        ) from cause


def replace(path: Path, fresh: Path, data: bytes, account: Account | None = None) -> None:
    """Write `fresh` beside `path`, mode 0600, and rename it; see `write_file`.

    Raises:
        OSError: it cannot be written.
    """
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        if account is not None:
            os.fchown(handle, account.uid, account.gid)
        file.write(data)
        file.flush()
        os.fsync(handle)
    rename(fresh, path)


def rename(old: Path, new: Path) -> None:
    """Rename within a folder, in place of what has the new name; a power cut does not undo it.

    Raises:
        OSError: it cannot be renamed.
    """
    old.replace(new)
    handle = os.open(new.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _may_enter(found: os.stat_result, account: Account) -> bool:
    if found.st_uid == account.uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == account.gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)
