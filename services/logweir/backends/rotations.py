"""The part of the control schema that rotations need: requests, phases, revisions in use.

    ask() -> rotation_requests -> (rotation.decide) -> write(): the tenant's next phase

Only the operator comes here, and `logweir rotate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from logweir.backends.control import Control, Tenant
from logweir.core import errors, keys
from logweir.core.names import PLATFORM, TenantId

ROOTS: Final = PLATFORM
"""The subject of a request that asks for new roots; no tenant has this id."""


class Request(msgspec.Struct, frozen=True):
    """Somebody asks for a rotation; `overlap_seconds` of None is as the tenant's spec says."""

    subject: str
    overlap_seconds: int | None
    asked_at: datetime


class LiveRevision(msgspec.Struct, frozen=True):
    """A signing revision under which a tenant has a key that is neither revoked nor expired."""

    tenant: TenantId
    is_ingest: bool
    revision: int


_WRITTEN: Final = (
    *("writer_slot", "reader_slot", "keeper_slot"),
    *("writer_revision", "reader_revision", "keeper_revision", "redis_revision"),
    *("ingest_revision", "access_revision", "root_version", "old_root_version"),
    *("rotation", "rotated_at", "overlap_until"),
)


class Rotations(Control):
    """The control schema, with what rotations need."""

    async def ask(self, subject: str, overlap_seconds: int | None) -> None:
        """Ask for a rotation of a tenant's credentials, or of the roots (`ROOTS`).

        Raises:
            UnavailableError: the control schema did not answer (so do all methods here).
        """
        await self._rows(
            "insert into logweir.rotation_requests (subject, overlap_seconds) values (%s, %s)"
            " on conflict (subject) do update set overlap_seconds = excluded.overlap_seconds,"
            " asked_at = excluded.asked_at",
            [subject, overlap_seconds],
        )

    async def requests(self) -> dict[str, Request]:
        """Return what is asked for and not begun, by subject."""
        rows = await self._rows("select * from logweir.rotation_requests")
        return {one.subject: one for one in msgspec.convert(rows, list[Request])}

    async def answer(self, request: Request) -> None:
        """Forget a request that was answered; one that came meanwhile stays."""
        await self._rows(
            "delete from logweir.rotation_requests where subject = %s and asked_at = %s",
            [request.subject, request.asked_at],
        )

    async def write(
        self,
        before: Tenant,
        after: Tenant,
        answered: Request | None = None,
        *,
        forget_keys: bool = False,
    ) -> None:
        """Write a tenant's next phase, and forget the request that it answers, or keys, as one.

        Raises:
            UnavailableError: the row is not as it was.
        """
        columns = ", ".join(f"{name} = %({name})s" for name in _WRITTEN)
        values = {name: getattr(after, name) for name in _WRITTEN}
        values |= {"id": before.id, "was": before.rotation, "revision": before.writer_revision}
        values |= {"signed_since": list(after.signed_since)}
        async with self._door() as connection, connection.transaction():
            cursor = await connection.execute(
                f"update logweir.tenants set {columns}, signed_since = %(signed_since)s"  # noqa: S608 - our names
                " where id = %(id)s and rotation = %(was)s"
                " and writer_revision = %(revision)s".encode(),
                values,
            )
            if cursor.rowcount != 1:
                raise errors.UnavailableError(f"Tenant {before.id!r} was rotated by another.")
            if forget_keys:
                await connection.execute(
                    b"delete from logweir.api_keys where tenant = %s", [before.id]
                )
            if answered is not None:
                await connection.execute(
                    b"delete from logweir.rotation_requests where subject = %s and asked_at = %s",
                    [answered.subject, answered.asked_at],
                )

    async def live_revisions(self) -> Sequence[LiveRevision]:
        """Return the signing revisions that some key in force has, of all tenants."""
        rows = await self._rows(
            "select distinct tenant, scopes = %s as is_ingest, revision from logweir.api_keys"
            " where (revoked_at is null or revoked_at > now())"
            " and (expires_at is null or expires_at > now())",
            [keys.SCOPE_INGEST],
        )
        return msgspec.convert(rows, list[LiveRevision])
