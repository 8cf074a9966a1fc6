"""What the gateway says when it does not reach a role: our errors in place of NGINX's pages.

A sender that stalls gets no answer at all: NGINX closes the connection, and logs it as 408.
"""

from __future__ import annotations

from typing import Final

import msgspec

from logweir.core import errors


class Failure(msgspec.Struct, frozen=True):
    """An answer in place of `found`, the statuses that NGINX would give itself."""

    found: tuple[int, ...]
    status: int
    error: errors.LogweirError


MALFORMED: Final = 400
"""Also given for paths that NGINX and a role could read differently."""

UNKEYED: Final = 401
_KEY_IS_BAD: Final = 403
"""NGINX's own answer after a check of the key (`guards.py`); those of roles pass as they are."""

NOT_FOUND: Final = 404
NOT_ALLOWED: Final = 405
TOO_LARGE: Final = 413
URL_TOO_LONG: Final = 414
OVER_LIMIT: Final = 429
AWAY: Final = 503

HEADER_TOO_LARGE: Final = 494
_PLAIN_TO_TLS: Final = 497
"""NGINX's own numbers: the client knows them as 431 and 400."""

FAILURES: Final = (
    Failure(
        (MALFORMED, 421, 495, 496, 501, 505),
        400,
        errors.BadRequestError(
            "The request is not HTTP/1.x as it is taken here.",
            hint="Look at its first line, its headers, and its path for '/./' or '/../'.",
        ),
    ),
    Failure((UNKEYED, _KEY_IS_BAD), 401, errors.UnauthorizedError()),
    Failure((NOT_FOUND,), 404, errors.NotFoundError("There is no such page here.")),
    Failure((NOT_ALLOWED,), 405, errors.MethodNotAllowedError("This method is not taken here.")),
    Failure(
        (TOO_LARGE,),
        413,
        errors.TooLargeError(
            "The body is larger than what is taken here.", hint="Send several requests."
        ),
    ),
    Failure(
        (URL_TOO_LONG,),
        414,
        errors.BadRequestError(
            "The URL is too long.", hint="Send the parameters of a query as the body of a POST."
        ),
    ),
    Failure(
        (OVER_LIMIT,),
        429,
        errors.OverLimitError(
            "Too many requests come from this address, or large ones or queries with this key.",
            retry_after_s=1.0,
            hint="Wait as long as Retry-After says; send more records in fewer requests.",
        ),
    ),
    Failure(
        (HEADER_TOO_LARGE,), 431, errors.BadRequestError("The headers are too many or too large.")
    ),
    Failure(
        (_PLAIN_TO_TLS,),
        400,
        errors.BadRequestError(
            "This port speaks TLS.",
            hint="Use https://; a key that was sent without it should be rolled.",
        ),
    ),
    Failure(
        (AWAY, 500, 502, 504, 507),
        503,
        errors.UnavailableError(
            "This part of Logweir is away or too busy; it may or may not have taken the request.",
            hint="Send it again; with the same Idempotency-Key it is stored once.",
            retry_after_s=0.5,
        ),
    ),
)


def failure(found: int) -> Failure:
    """Return the answer in place of a status of NGINX."""
    return next(one for one in FAILURES if found in one.found)
