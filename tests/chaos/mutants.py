"""Mutants: copies of the product in which one thing that keeps records safe is broken.

    MUTANTS -> copy() -> a folder for PYTHONPATH -> mutation.py runs it -> the checker must object

Each is an edit of the text, with the faults in whose course it does harm and what the checker must
call that. A text that is not found any more fails: then the mutant is to be brought up to date.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
from chaos import failpoint_moves

ROOT = Path(__file__).parents[2]
PACKAGES = {"services": "logweir", "operator": "logweir_operator"}


class Edit(msgspec.Struct, frozen=True):
    """In `file` of the package `logweir`, the one place that is `old` becomes `new`."""

    file: str
    old: str
    new: str


class Mutant(msgspec.Struct, frozen=True):
    """A broken product. `faults` are names of moves, or failpoints."""

    name: str
    breaks: str
    edits: tuple[Edit, ...]
    faults: tuple[str, ...]
    caught_as: str


def edited(mutant: Mutant) -> dict[str, str]:
    """Return the new text of each file that a mutant edits.

    Raises:
        ValueError: an edit's text is not in its file, or more than once.
    """
    texts: dict[str, str] = {}
    for edit in mutant.edits:
        text = texts.get(edit.file) or (ROOT / "services/logweir" / edit.file).read_text()
        if text.count(edit.old) != 1:
            found = f"{edit.file} has {text.count(edit.old)} times"
            raise ValueError(f"{mutant.name}: {found}: {edit.old}")
        texts[edit.file] = text.replace(edit.old, edit.new)
    return texts


def copy(mutant: Mutant, folder: Path) -> Path:
    """Write the mutant's packages into a folder and return that.

    Raises:
        ValueError: as `edited`.
    """
    texts = edited(mutant)
    for place, package in PACKAGES.items():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / place / package, folder / package, ignore=ignored)
    for file, text in texts.items():
        (folder / "logweir" / file).write_text(text)
    return folder


_WORKER, _STORE, _LEDGERS = "collector/worker.py", "backends/store.py", "backends/ledgers.py"
_LUA, _PROVISION = "backends/journal.lua", "backends/provision.py"

UNANSWERED = "kill ingest between append and answer"
FORGOTTEN = "the same, and its markers"
IN_COMMIT = "kill collector within a commit"
SLOW_FSYNC = "kill valkey with a backlog in a slow fsync"
"""Of mutation.py: by kills alone nothing is lost that the kernel has."""

UNACKED = "kill both between commit and ack"

MUTANTS = (
    Mutant(
        "ack before commit",
        "blocks are deleted from the journal before the store has them",
        (
            Edit(
                _WORKER,
                "        done = await self._store_in_order(line, line.buffer.deliveries)\n",
                "        await self._reader.ack(line.pipeline.id, entries)\n"
                "        done = await self._store_in_order(line, line.buffer.deliveries)\n",
            ),
        ),
        (IN_COMMIT, "collector.before_commit:crash:1"),
        "lost",
    ),
    Mutant(
        "ledger apart from segment",
        "the ledger's rows are committed before the records",
        (
            Edit(
                _STORE,
                "            kept = _first_of_each(",
                "        async with connection.transaction():\n            kept = _first_of_each(",
            ),
        ),
        (IN_COMMIT, "collector.before_commit:crash:1"),
        "lost",
    ),
    Mutant(
        "ledger by stream id",
        "a request is known by its place in the journal, not by its sender's key",
        (
            Edit(
                "collector/buffer.py",
                "    return msgspec.structs.replace(bare, header=header, records=records)\n",
                "    keyed = tuple(\n"
                "        msgspec.structs.replace(\n"
                "            one,\n"
                "            producer=b'',\n"
                "            key=hashlib.blake2b(\n"
                "                b'%b/%d' % (entry.id.encode(), n), digest_size=16\n"
                "            ).digest(),\n"
                "        )\n"
                "        for n, one in enumerate(header.requests)\n"
                "    )\n"
                "    header = msgspec.structs.replace(header, requests=keyed)\n"
                "    return msgspec.structs.replace(bare, header=header, records=records)\n",
            ),
        ),
        (FORGOTTEN, FORGOTTEN),
        "doubled",
    ),
    Mutant(
        "no ledger of blocks",
        "a block that is delivered again is stored again",
        (
            Edit(
                _LEDGERS,
                "    return {row[0].bytes for row in await cursor.fetchall()}\n",
                "    return {uuid for uuid, _ in rows}\n",
            ),
        ),
        (UNACKED, "collector.after_commit:crash:1"),
        "doubled",
    ),
    Mutant(
        "marker apart from entry",
        "the journal remembers a request in one call and takes its block in the next",
        (
            Edit(
                "backends/journal.py",
                '            failpoint.reach("ingest.before_append")\n'
                "            answer = await self._append(stream, arguments)\n",
                "            mark = [*arguments[:3], b'', *arguments[4:]]\n"
                "            answer = await self._append(stream, mark)\n"
                "            if answer[0] == b'MARKED':\n"
                '                failpoint.reach("ingest.before_append")\n'
                "                answer = await self._append(stream, arguments)\n",
            ),
            Edit(
                _LUA,
                "    if not found then\n",
                "    if not found or (A[4] ~= '' and string.sub(found, 9, 24) == A[1]) then\n",
            ),
            Edit(
                _LUA,
                "  local named = {}\n",
                "  if A[4] == '' then\n"
                "    for _, f in ipairs(fresh) do remember(f[1], f[2], f[3], bw * nb) end\n"
                "    return {'MARKED'}\n"
                "  end\n"
                "  local named = {}\n",
            ),
        ),
        (UNANSWERED, "ingest.before_append:error:0.3"),
        "lost",
    ),
    Mutant(
        "no reclaim",
        "blocks that a dead collector was given are given to nobody else",
        (
            Edit(
                _WORKER,
                'self.recover_after: str | None = "0"',
                "self.recover_after: str | None = None",
            ),
            Edit(
                _WORKER,
                '        for line in self.lines.values():\n            line.recover_after = "0"\n',
                "        return\n",
            ),
            Edit(
                _WORKER, "            while self._may_take(line):\n", "            while False:\n"
            ),
        ),
        ("kill collector", "collector.after_read:crash:1"),
        "stuck",
    ),
    Mutant(
        "trim by length",
        "the journal keeps the newest 60 blocks, whoever has read them",
        (Edit(_LUA, "K[1], 'NOMKSTREAM', '*'", "K[1], 'NOMKSTREAM', 'MAXLEN', 60, '*'"),),
        ("collector.before_commit:hang:1", "kill both with a backlog"),
        "lost",
    ),
    Mutant(
        "synchronous_commit off",
        "PostgreSQL answers a COMMIT before it is on the disk",
        (
            Edit(
                _PROVISION,
                '    "w": {\n',
                '    "w": {\n        "synchronous_commit": "off",\n',
            ),
            Edit(
                "standalone/postgres.py",
                "        \"max_wal_size = '1GB'\",\n",
                "        \"max_wal_size = '1GB'\",\n"
                "        \"wal_writer_delay = '10s'\",\n"
                "        \"wal_writer_flush_after = '1GB'\",\n",
            ),
        ),
        ("kill postgres", "kill postgres", "kill postgres"),
        "lost",
    ),
    Mutant(
        "journal without AOF",
        "Valkey writes a snapshot every second and no log",
        (
            Edit("standalone/valkey.py", '"appendonly yes"', '"appendonly no"'),
            Edit("standalone/valkey.py", "'save \"\"'", "'save 1 1'"),
            Edit(_PROVISION, '    "appendonly": "yes",\n', '    "appendonly": "no",\n'),
        ),
        ("kill valkey with a backlog",) * 3,
        "lost",
    ),
    Mutant(
        "journal fsyncs every second",
        "Valkey answers before the block is on the disk, as most set it up",
        (
            Edit("standalone/valkey.py", '"appendfsync always"', '"appendfsync everysec"'),
            Edit(_PROVISION, '    "appendfsync": "always",\n', '    "appendfsync": "everysec",\n'),
        ),
        (SLOW_FSYNC, SLOW_FSYNC, SLOW_FSYNC),
        "lost",
    ),
    Mutant(
        "poison dropped",
        "what cannot be stored is acknowledged and kept nowhere",
        (
            Edit(
                _STORE,
                "for row in (row for result in results for row in result.quarantine):",
                "for row in ():",
            ),
        ),
        ("collector.refusal:error:0.6", FORGOTTEN),
        "lost",
    ),
    Mutant(
        "keyless",
        "ingest takes no notice of the Idempotency-Key",
        (Edit("ingest/app.py", 'headers.get(b"idempotency-key"),', "None,"),),
        (UNANSWERED, "ingest.after_append:crash:1"),
        "doubled",
    ),
    Mutant(
        "answer before append",
        "a sender is answered when its block is made, not when the journal has it",
        (
            Edit(
                "ingest/group.py",
                "            answer = await self._append_block(taken, uuid, refused)\n",
                "            await self._answer(taken, uuid, {})\n"
                "            answer = await self._append_block(taken, uuid, refused)\n",
            ),
        ),
        ("kill valkey with a backlog", "ingest.before_append:crash:1"),
        "lost",
    ),
    Mutant(
        "failed commit acknowledged",
        "a COMMIT of which nobody knows whether it took place counts as done",
        (
            Edit(
                _WORKER,
                "        except store.RefusedByStoreError as error:\n",
                "        except errors.UnavailableError:\n"
                "            return count\n"
                "        except store.RefusedByStoreError as error:\n",
            ),
        ),
        ("kill postgres", "collector.before_commit:error:0.3"),
        "lost",
    ),
    Mutant(
        "usage apart from data",
        "what was stored is counted after the transaction that stored it",
        (
            Edit(
                _STORE,
                "            await self._add_rest(connection, work, kept, stored_bytes)\n"
                '            failpoint.reach("collector.before_commit")\n'
                '        failpoint.reach("collector.cut_on_commit")\n',
                '            failpoint.reach("collector.before_commit")\n'
                '        failpoint.reach("collector.cut_on_commit")\n'
                "        await self._add_rest(connection, work, kept, stored_bytes)\n",
            ),
        ),
        (IN_COMMIT, "collector.cut_on_commit:crash:1"),
        "accounting",
    ),
    Mutant(
        "merge apart",
        "the keeper deletes small segments in one transaction and adds the merged in the next",
        (
            Edit(
                "backends/keeper_store.py",
                "            async with connection.transaction() as transaction:\n",
                "            async with contextlib.nullcontext() as transaction:\n",
            ),
        ),
        ("keeper.mid_merge:crash:1",),
        "lost",
    ),
    Mutant(
        "fingerprint ignored",
        "another body under a known key is taken for a repeat of the first",
        (
            Edit(
                _LUA,
                "    elseif string.sub(found, 1, FINGERPRINT) ~= A[i + 1] then\n",
                "    elseif false then\n",
            ),
        ),
        ("kill ingest",),
        "wrong answer",
    ),
    Mutant(
        "no markers",
        "the journal remembers no request; the ledger alone does",
        (
            Edit(
                _LUA,
                "    local cur, found = marker(P, A[i], nb, sh, bucket)\n",
                "    local cur, found = marker(P, A[i], nb, sh, bucket), false\n",
            ),
        ),
        (UNANSWERED, "ingest.after_append:crash:1"),
        "wrong answer",
    ),
)
"""All of them; the checker's word for the harm is the last of each."""

CLEAN = Mutant(
    "the product as it is",
    "nothing",
    (),
    tuple(
        dict.fromkeys(
            [*(fault for mutant in MUTANTS for fault in mutant.faults), *failpoint_moves.MOVES]
        )
    ),
    "",
)
"""In the course of all those faults, and of others at failpoints, nothing may be wrong with it."""
