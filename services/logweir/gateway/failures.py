"""What the gateway says when it does not reach a role: our errors in place of NGINX's pages.

A sender that stalls gets no answer at all: NGINX closes the connection, and logs it as 408.
"""

from __future__ import annotations

from typing import Final

import msgspec

from logweir.core import bounds, errors


class Failure(msgspec.Struct, frozen=True):
    """An answer in place of `found`, the statuses that NGINX would give itself."""

    found: tuple[int, ...]
    status: int
    error: errors.LogweirError


MALFORMED: Final = 400
"""Also given for paths that NGINX and a role could read differently."""

_HEADER_TOO_LARGE: Final = 494
"""NGINX's own number for what the client knows as 431."""

FAILURES: Final = (
    Failure(
        (MALFORMED, 421, 501, 505),
        400,
        errors.BadRequestError(
            "The request is not HTTP/1.x as it is taken here.",
            hint="Look at its first line, its headers, and its path for '/./' or '/../'.",
        ),
    ),
    Failure((404,), 404, errors.NotFoundError("There is no such page here.")),
    Failure((405,), 405, errors.MethodNotAllowedError("This method is not taken here.")),
    Failure(
        (413,),
        413,
        errors.TooLargeError(
            f"The body has more than {bounds.MAX_BODY_BYTES} bytes.", hint="Send several requests."
        ),
    ),
    Failure(
        (414,),
        414,
        errors.BadRequestError(
            "The URL is too long.", hint="Send the parameters of a query as the body of a POST."
        ),
    ),
    Failure(
        (_HEADER_TOO_LARGE,), 431, errors.BadRequestError("The headers are too many or too large.")
    ),
    Failure(
        (500, 502, 503, 504, 507),
        503,
        errors.UnavailableError(
            "This part of Logweir is away or too busy; it may or may not have taken the request.",
            hint="Send it again; with the same Idempotency-Key it is stored once.",
            retry_after_s=0.5,
        ),
    ),
)
