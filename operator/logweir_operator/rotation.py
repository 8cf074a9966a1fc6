"""When credentials change, and to what. Pure: rows, specs and the time in, the next step out.

    steady --Begin--> spreading --Sign--> overlapping --End--> steady

    Begin  the idle slots of writer, reader and keeper get new passwords and come into use, Redis
           users get a second one; the old ones stay good, and processes move to the new ones
    Sign   all who check keys know the next signing secret by now: new keys are signed with it
    End    the old logins are closed, the old Redis passwords forgotten

Each step may be done again; the row is written when all of it is done (the first time: when all
that it names is there). The roots go the same way: made, known by all, used, forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
from msgspec.structs import replace

from logweir.backends.control import Tenant
from logweir.core import keys, states
from logweir_operator.model import Rotation

DEFAULT_OVERLAP_S: Final = 86400.0
"""Of the platform's own logins."""


class Asked(msgspec.Struct, frozen=True):
    """A rotation that somebody wants now; without `overlap_s` the tenant's own is taken."""

    overlap_s: float | None = None


class Begin(msgspec.Struct, frozen=True):
    """Make new credentials, and let the old ones be good for `overlap_s` more."""

    overlap_s: float


class Sign(msgspec.Struct, frozen=True):
    """Sign new keys with the next revision."""


class End(msgspec.Struct, frozen=True):
    """Close the old credentials."""


Step = Begin | Sign | End


def decide(
    row: Tenant,
    spec: Rotation,
    asked: Asked | None,
    roots: tuple[int, float | None],
    spread_s: float,
    now: datetime,
    *,
    are_roots_asked: bool = False,
) -> Step | None:
    """Return what is to be done for a tenant now; None: nothing.

    A rotation that is asked for while another one overlaps ends that: all processes have moved.

    Args:
        row: of the tenant.
        spec: its `credentials.rotation`.
        asked: the rotation that somebody wants, besides those of the interval.
        roots: the version that all should have, and the overlap that was asked for with it.
        spread_s: after which every process has what the binding files and rows said.
        now: the time.
        are_roots_asked: whether somebody wants new roots, which are made when nothing overlaps.
    """
    age_s = (now - row.rotated_at).total_seconds()
    is_wanted = asked is not None or roots[0] > row.root_version
    if row.rotation == "spreading":
        return Sign() if age_s >= spread_s else None
    if row.rotation == "overlapping":
        is_over = row.overlap_until is None or now >= row.overlap_until
        return End() if is_over or is_wanted or are_roots_asked else None
    if is_wanted:
        wanted = asked.overlap_s if asked is not None else roots[1]
        return Begin(max(spread_s, wanted if wanted is not None else spec.overlap_seconds))
    if spec.enabled and age_s >= spec.interval_seconds:
        return Begin(max(spread_s, spec.overlap_seconds))
    return None


def next_at(row: Tenant, spec: Rotation) -> datetime | None:
    """When the interval asks for the next rotation; None: never."""
    return row.rotated_at + timedelta(seconds=spec.interval_seconds) if spec.enabled else None


def begun(row: Tenant, overlap_s: float, root_version: int, now: datetime) -> Tenant:
    """Return the row with the other slots, new revisions, and passwords of a root version."""
    skipped = root_version - len(row.signed_since)
    return replace(
        row,
        writer_slot=_other(row.writer_slot),
        reader_slot=_other(row.reader_slot),
        keeper_slot=_other(row.keeper_slot),
        writer_revision=row.writer_revision + 1,
        reader_revision=row.reader_revision + 1,
        keeper_revision=row.keeper_revision + 1,
        redis_revision=row.redis_revision + 1,
        root_version=root_version,
        old_root_version=row.root_version,
        signed_since=(*row.signed_since, *[next_signing(row)] * skipped),
        rotation="spreading",
        rotated_at=now,
        overlap_until=now + timedelta(seconds=overlap_s),
    )


def next_signing(row: Tenant) -> int:
    """The signing revision that comes after those of now."""
    return max(row.ingest_revision, row.access_revision) + 1


def signed(row: Tenant) -> Tenant:
    """Return the row with the next signing revision."""
    following = next_signing(row)
    return replace(
        row, ingest_revision=following, access_revision=following, rotation="overlapping"
    )


def ended(row: Tenant) -> Tenant:
    """Return the row with one set of credentials."""
    return replace(row, rotation="steady", overlap_until=None)


def made_anew(row: Tenant, root_version: int, now: datetime) -> Tenant:
    """Return the row of a tenant that is not made yet with the roots of now: nobody has its old
    credentials in use, so nothing overlaps."""
    return ended(signed(begun(row, 0.0, root_version, now)))


def _other(slot: str) -> str:
    return "a" if slot == "b" else "b"


# ---- roots ----------------------------------------------------------------------------------


class Roots(msgspec.Struct, frozen=True):
    """Versions of the roots that are held, in rising order, and the one that the platform uses.

    Times are seconds since the epoch: when the newest was made, and since when it is used.
    """

    versions: Sequence[int]
    used: int
    made_at_s: float
    used_at_s: float
    overlap_s: float


class Uses(msgspec.Struct, frozen=True):
    """Versions of the roots from which passwords, and keys in force, are derived."""

    logins: Collection[int]
    keys: Collection[int]
    moving: Collection[int] = ()
    """Of `logins`, those of tenants that rotate: the others keep theirs, however long it takes."""


def uses(
    rows: Sequence[Tenant], live: Mapping[str, Collection[int]], moving: Collection[str]
) -> Uses:
    """Return what tenants need, with the signing revisions of keys in force by tenant.

    One whose logins are closed needs nothing: when it is made again, it gets the roots of then.
    `moving` are the tenants that rotate: made, not suspended, and with a resource.
    """
    rows = [one for one in rows if one.state in states.COLLECTED]
    logins = _login_versions(rows)
    signing = {
        keys.root_version(one.signed_since, revision)
        for one in rows
        for revision in {one.ingest_revision, one.access_revision, *live.get(one.id, ())}
    }
    return Uses(logins, signing, _login_versions([one for one in rows if one.id in moving]))


def _login_versions(rows: Sequence[Tenant]) -> set[int]:
    """The root versions that logins of these tenants have, and had before a rotation that is on."""
    before = {one.old_root_version for one in rows if one.rotation != "steady"}
    return before | {one.root_version for one in rows}


class Make(msgspec.Struct, frozen=True):
    """Make the next version; roles learn of it by their binding files."""


class Use(msgspec.Struct, frozen=True):
    """Let the platform's own logins, and then all tenants, have the newest version."""


class Close(msgspec.Struct, frozen=True):
    """Close the platform's logins of all but the newest version, and forget versions: `whole`
    altogether, of `but_sign` all but the root that signs keys."""

    whole: tuple[int, ...]
    but_sign: tuple[int, ...]


def next_of_roots(
    held: Roots, needed: Uses, *, is_asked: bool, spread_s: float, now_s: float
) -> Make | Use | Close | None:
    """Return what is to be done for the roots now; None: nothing.

    `Close` comes again and again while an older version is held, and may be done again.
    """
    newest = held.versions[-1]
    if newest != held.used:
        return Use() if now_s - held.made_at_s >= spread_s else None
    if is_asked and set(needed.moving) <= {newest}:
        return Make()
    if len(held.versions) == 1 or now_s - held.used_at_s < max(held.overlap_s, spread_s):
        return None
    older = [one for one in held.versions if one != newest and one not in needed.logins]
    return Close(
        whole=tuple(one for one in older if one not in needed.keys),
        but_sign=tuple(one for one in older if one in needed.keys),
    )
