"""The embedded journal server: Valkey, or a Redis of 7.0 and newer, as an honest journal.

    FOLDER/               owned by the servers' user, mode 0700
      valkey.conf         written at each start from `configuration`
      users.acl           made at the first start; ACL SAVE rewrites it, so only our line is mended
      appendonlydir/      the data; each reply waits for its fsync
      written-by          which server wrote it last: another one may not be able to read it

The user `default` is off, as a connection falls back to it after RESET. The platform's own user
may do everything; the others are made by provisioning.
"""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from urllib.parse import quote

from logweir.core import errors
from logweir.standalone import accounts, binaries, servers
from logweir.standalone.accounts import Account
from logweir.standalone.binaries import Binaries

OPERATOR = "lw_operator"
"""The user that provisioning logs in as."""

DEFAULT_LINE = "user default off ~* &* +@all"
"""Nobody can log in as it. It may do all, as Redis 7.0 replays its journal with its rights."""

LARGEST_MEMORY_BYTES = 4 << 30
SMALLEST_MEMORY_BYTES = 256 << 20

_PROGRAMS = frozenset({"valkey-server", "redis-server"})


class Valkey(servers.Server):
    """A Valkey (or Redis) in `folder`, whose user `lw_operator` has `password`."""

    name = "Valkey"

    def __init__(
        self,
        folder: Path,
        port: int,
        password: str,
        run_as: Account | None = None,
        program: Binaries | None = None,
        max_memory_bytes: int | None = None,
        host: str = servers.LOOPBACK,
    ) -> None:
        """Name the server; nothing happens yet.

        Args:
            folder: where all of it is; its parent exists and `run_as` can enter that.
            port: on the address `host`.
            password: of `lw_operator`; a changed one is taken at the next start.
            run_as: the user to run as, when this process is root.
            program: which server; the one of `binaries.valkey` when None.
            max_memory_bytes: over it appends are refused; `journal_memory_bytes` when None.
            host: the address to listen on.
        """
        super().__init__()
        self._host = host
        self.folder = folder.absolute()
        self.port = port
        self._password = password
        self._account = run_as
        self._program = program
        self._max_memory_bytes = max_memory_bytes or journal_memory_bytes(_machine_bytes())

    def prepare(self) -> None:
        """End what is left of an earlier start, write the configuration and the users.

        Raises:
            SetupError: no program, no way to the folder, or it cannot be written.
        """
        accounts.check_reach(self.folder, self._account)
        accounts.make_folder(self.folder, self._account)
        found = self._program or binaries.valkey()
        self._program = binaries.reachable(found, self._account, self.folder.parent / ".bin")
        servers.clear(self.folder, _PROGRAMS, None, signal.SIGTERM)
        self._check_writer(self._program)
        text = configuration(
            self.folder, self.port, self._max_memory_bytes, self._program, self._host
        )
        accounts.write_file(self.folder / "valkey.conf", text, self._account)
        self._write_users()

    def _check_writer(self, program: Binaries) -> None:
        """Refuse data of another kind of server or of a newer one: it could not be read."""
        path = self.folder / "written-by"
        if path.exists() and (self.folder / "appendonlydir").exists():
            kind, _, version = path.read_text(encoding="utf-8").strip().partition(" ")
            if kind != program.kind or binaries.version_of(version) > program.version:
                raise errors.SetupError(
                    f"{self.folder} holds the journal of {kind} {version}, but this is"
                    f" {program.kind} {'.'.join(map(str, program.version))}.",
                    hint=f"Install {kind} {version} or newer, or choose another folder with"
                    " '--data DIR'.",
                )
        now = f"{program.kind} {'.'.join(map(str, program.version))}\n"
        accounts.write_file(path, now, self._account)

    def command(self) -> servers.Command:
        """Return the server's process; SIGTERM stops it in order."""
        if self._program is None:
            raise errors.SetupError("Valkey is started before it is prepared.")
        return servers.Command(
            argv=(str(self._program.program), str(self.folder / "valkey.conf")),
            cwd=self.folder,
            env={"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"},
            account=self._account,
            stop_signal=signal.SIGTERM,
        )

    def ready(self) -> bool:
        """Say whether it serves: not while it loads its data."""
        words = (("AUTH", OPERATOR, self._password), ("PING",))
        sent = "".join(
            f"*{len(line)}\r\n" + "".join(f"${len(w.encode())}\r\n{w}\r\n" for w in line)
            for line in words
        )
        answer = servers.talk(self.port, sent.encode(), enough=lambda got: got.count(b"\r\n") > 1)
        return answer == b"+OK\r\n+PONG\r\n"

    def url(self, user: str = OPERATOR, password: str = "") -> str:
        """Return a Redis URL; the operator's own password is filled in."""
        secret = password or (self._password if user == OPERATOR else "")
        login = f"{quote(user, safe='')}:{quote(secret, safe='')}"
        return f"redis://{login}@{servers.LOOPBACK}:{self.port}/0"

    def _write_users(self) -> None:
        path = self.folder / "users.acl"
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        after = users(before, self._password)
        if after != before:
            accounts.write_file(path, after, self._account)


def configuration(
    folder: Path,
    port: int,
    max_memory_bytes: int,
    program: Binaries,
    host: str = servers.LOOPBACK,
) -> str:
    """Return the server's configuration; what makes the journal honest comes first."""
    lines = [
        "# Written at each start. A reply means that the entry is on the disk, nothing is evicted.",
        "appendonly yes",
        "appendfsync always",
        "no-appendfsync-on-rewrite no",
        "aof-load-truncated yes",
        'save ""',
        f"maxmemory {max_memory_bytes}",
        "maxmemory-policy noeviction",
        f"dir {quoted(str(folder))}",
        f"aclfile {quoted(str(folder / 'users.acl'))}",
        f"bind {host}",
        f"port {port}",
        "protected-mode yes",
        "daemonize no",
        'logfile ""',
        "tcp-keepalive 60",
        "lazyfree-lazy-expire yes",
        "lazyfree-lazy-user-del yes",
        "# A tail that does not read loses its connection before it costs others their memory.",
        "client-output-buffer-limit pubsub 32mb 8mb 30",
        'proc-title-template "{title} {listen-addr} {config-file}"',
    ]
    if program.kind == "valkey-server" and program.version >= (9, 1):
        # By reference, published entries would not count towards the limit above.
        lines.append("min-string-size-avoid-copy-reply 0")
    return "\n".join([*lines, ""])


def users(before: str, password: str) -> str:
    """Return the ACL file with `default` off and `lw_operator` right; other lines as they were."""
    secret = "#" + hashlib.sha256(password.encode()).hexdigest()
    lines = ((line, line.split()) for line in before.splitlines())
    kept = {words[1]: line for line, words in lines if words[:1] == ["user"] and len(words) > 1}
    if not _is_off(kept.get("default", "")):
        kept["default"] = DEFAULT_LINE
    if not _is_operator(kept.get(OPERATOR, ""), secret):
        kept[OPERATOR] = f"user {OPERATOR} on {secret} ~* &* +@all"
    after = "\n".join([*kept.values(), ""])
    return before if before.splitlines() == after.splitlines() else after


def journal_memory_bytes(machine_bytes: int) -> int:
    """Return how much the journal may hold: a quarter of the machine, within sane bounds."""
    return min(max(machine_bytes // 4, SMALLEST_MEMORY_BYTES), LARGEST_MEMORY_BYTES)


def quoted(text: str) -> str:
    """Return text as one argument of the configuration, whatever characters it has."""
    return '"' + "".join(_escaped(byte) for byte in text.encode()) + '"'


def _escaped(byte: int) -> str:
    plain = 0x20 <= byte < 0x7F and byte not in b'"\\'
    return chr(byte) if plain else f"\\x{byte:02x}"


def _is_off(line: str) -> bool:
    words = line.split()
    return "off" in words and "on" not in words and "nopass" not in words


def _is_operator(line: str, secret: str) -> bool:
    wanted = {"user", OPERATOR, "on", secret, "~*", "&*", "+@all"}
    return set(line.split()) - {"sanitize-payload"} == wanted


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
