"""What the key API takes and answers, as JSON; an unknown field is refused. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from logweir.backends.control import ApiKeyRow, Origin
from logweir.core import errors, keys
from logweir.core.names import PipelineId

MAX_BODY_BYTES: Final = 16 << 10
DEFAULT_OVERLAP_S: Final = 86_400
MAX_OVERLAP_S: Final = 30 * 86_400
LAST_EXPIRY: Final = datetime(2100, 1, 1, tzinfo=UTC)
"""A key's text has 32 bits for its end, and who asks for more has mistyped."""

Scope = Literal["ingest", "query", "admin"]
State = Literal["active", "ending", "revoked", "expired"]

Name = Annotated[str, Meta(max_length=40, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?\\Z")]
"""As the names of keys and of pipelines in resources."""

Moment = Annotated[datetime, Meta(tz=True)]
_Form = TypeVar("_Form", bound="_Part")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """Base of what is sent in."""


class Create(_Part, frozen=True):
    """The body of `POST /api/v1/keys`."""

    name: Name
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=3)]
    pipeline: Name | None = None
    expires_at: Moment | None = None


class Roll(_Part, frozen=True):
    """The body of `POST /api/v1/keys/<name>/roll`. Without `expires_at` the new generation lives as
    long as the one before was to live; with null it does not expire."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=MAX_OVERLAP_S)] = DEFAULT_OVERLAP_S
    expires_at: Moment | msgspec.UnsetType | None = msgspec.UNSET


class Shown(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A key as it is listed. `revoked_at` lies ahead while the state is "ending"."""

    name: str
    id: str
    scopes: list[str]
    pipeline: str | None
    generation: int
    origin: Origin
    state: State
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None


class Made(Shown, frozen=True, kw_only=True):
    """A key with its text, which is answered once."""

    key: str


def decode(body: bytes, form: type[_Form]) -> _Form:
    """Return a body's content.

    Raises:
        BadRequestError: it is not of this form.
    """
    try:
        return msgspec.json.decode(body, type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise errors.BadRequestError(f"The body is not as it must be: {cause}.") from cause


def is_name(text: str) -> bool:
    """Whether a key may have this name; what else stands in a path is not asked for."""
    try:
        msgspec.convert(text, Name)
    except msgspec.ValidationError:
        return False
    return True


def scopes_of(form: Create) -> int:
    """Return the sum of a new key's scopes.

    Raises:
        BadRequestError: they do not go together.
    """
    scopes = sum(keys.SCOPE_NAMES[name] for name in set(form.scopes))
    if scopes & keys.SCOPE_INGEST and scopes != keys.SCOPE_INGEST:
        raise errors.BadRequestError(
            "A key with the scope 'ingest' has no other.", hint="Make two keys."
        )
    if scopes & keys.SCOPE_ADMIN and form.pipeline is not None:
        raise errors.BadRequestError(
            "A key of one pipeline cannot administer.", hint="Leave 'admin' or 'pipeline' out."
        )
    return scopes


def expiry(at: datetime | None, now_s: float) -> datetime | None:
    """Return when a new key is to expire, in whole seconds as its text has it.

    Raises:
        BadRequestError: that is not ahead, or too far.
    """
    if at is None:
        return None
    if not now_s + 1 <= at.timestamp() <= LAST_EXPIRY.timestamp():
        raise errors.BadRequestError(
            f"expiresAt must lie ahead, and before {LAST_EXPIRY:%Y-%m-%d}.",
            hint="Leave it out for a key that does not expire.",
        )
    return at.astimezone(UTC).replace(microsecond=0)


def shown(row: ApiKeyRow, pipelines: dict[PipelineId, str], now_s: float) -> Shown:
    """Return a key as it is listed."""
    return Shown(**_fields(row, pipelines, now_s))  # type: ignore[arg-type]


def made(row: ApiKeyRow, pipelines: dict[PipelineId, str], now_s: float, text: str) -> Made:
    """Return a new key with its text."""
    return Made(**_fields(row, pipelines, now_s), key=text)  # type: ignore[arg-type]


def _fields(row: ApiKeyRow, pipelines: dict[PipelineId, str], now_s: float) -> dict[str, object]:
    return {
        "name": row.name,
        "id": str(row.id),
        "scopes": [name for name, scope in keys.SCOPE_NAMES.items() if row.scopes & scope],
        "pipeline": pipelines.get(row.pipeline, str(row.pipeline)) if row.pipeline else None,
        "generation": row.generation,
        "origin": row.origin,
        "state": state(row, now_s),
        "created_at": row.created_at,
        "created_by": row.created_by,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
    }


def state(row: ApiKeyRow, now_s: float) -> State:
    """Say in a word what a key is good for."""
    if row.is_revoked:
        return "revoked"
    if row.expires_at is not None and row.expires_at.timestamp() <= now_s:
        return "expired"
    return "active" if row.revoked_at is None else "ending"
