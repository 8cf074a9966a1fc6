"""Cuts a reconciler off its servers after any of its statements, as a crash would.

Statements that change nothing are not counted: a cut after them is the same as one before. Nor are
those within a migration's transaction, which is undone or done as a whole.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import pq, sql
from redis import asyncio as redis
from redis import exceptions

_READS = ("XLEN", "HGET", "XPENDING", "CONFIG GET", "SCAN", "ACL GETUSER", "ACL DRYRUN", "FCALL")
_CHANGES = ("ensure_partition", "pg_terminate_backend")


class CutError(psycopg.OperationalError):
    """The connection is gone, as the test wants it."""


class Wire:
    """All connections of this process to PostgreSQL and Redis; `cut_after` lets some through."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._left: int | None = None
        self.is_cut = False
        self.last = ""
        execute, execute_async = psycopg.Cursor.execute, psycopg.AsyncCursor.execute
        command = redis.Redis.execute_command

        def send(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
            status = cursor.connection.info.transaction_status
            self._pass(query, is_alone=status == pq.TransactionStatus.IDLE)
            return execute(cursor, query, *args, **options)

        async def send_async(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
            self._pass(query, is_alone=True)
            return await execute_async(cursor, query, *args, **options)

        async def send_command(client: Any, *words: Any, **options: Any) -> Any:
            text = " ".join(str(one) for one in words[:3])
            if self._is_over(text, is_change=not text.startswith(_READS)):
                raise exceptions.ConnectionError("the test cut the connection")
            return await command(client, *words, **options)

        patch.setattr(psycopg.Cursor, "execute", send)
        patch.setattr(psycopg.AsyncCursor, "execute", send_async)
        patch.setattr(redis.Redis, "execute_command", send_command)

    def cut_after(self, count: int) -> None:
        """Let so many changes through, and nothing more."""
        self._left, self.is_cut = count, False

    def mend(self) -> None:
        """Let everything through again."""
        self._left = None

    def _pass(self, query: Any, *, is_alone: bool) -> None:
        text = query.as_string() if isinstance(query, sql.Composable) else query
        text = text.decode() if isinstance(text, bytes) else str(text)
        is_read = text.lower().startswith("select") and not any(one in text for one in _CHANGES)
        if self._is_over(text, is_change=is_alone and not is_read):
            raise CutError("the test cut the connection")

    def _is_over(self, text: str, *, is_change: bool) -> bool:
        if self._left is None:
            return False
        if self._left == 0 and (is_change or self.is_cut):
            self.is_cut = True
            return True
        if is_change:
            self._left -= 1
            self.last = text
        return False
