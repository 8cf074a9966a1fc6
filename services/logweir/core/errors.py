"""Every error that a user or an operator of Logweir can meet, in one tree.

A class says three things once: the `code` in the answer's JSON, the HTTP `status`, and whether the
same request may succeed when it is sent again (`retry`). Doors turn foreign errors into these;
shells turn these into answers.
"""

from __future__ import annotations


class LogweirError(Exception):
    """Base of all. `message` says what was found and needed, `hint` what to do about it."""

    code = "internal"
    status = 500
    retry = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class BadRequestError(LogweirError):
    """The request cannot be understood, and will not be when it is sent again."""

    code = "bad_request"
    status = 400


class UnauthorizedError(LogweirError):
    """No, bad, expired or revoked credentials, or no such tenant or pipeline: one text for all.

    `reason` is a word for metrics, which no sender sees.
    """

    code = "unauthorized"
    status = 401

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(
            "The key is missing, not valid, expired or revoked for this address.",
            hint="Send a key as 'Authorization: Bearer KEY', 'X-API-Key: KEY' or Basic password,"
            " and look at tenant and pipeline in the URL; lwi_ keys send, lwa_ keys read.",
        )


class ForbiddenError(LogweirError):
    """The credentials are good, but may not do this (a missing scope, a tenant being deleted).

    `reason` is a word for metrics.
    """

    code = "forbidden"
    status = 403

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class NotFoundError(LogweirError):
    """There is no such address or thing."""

    code = "not_found"
    status = 404


class MethodNotAllowedError(LogweirError):
    """The address exists, but not with this method."""

    code = "method_not_allowed"
    status = 405


class TimeoutReachedError(LogweirError):
    """The sender took too long to send its request."""

    code = "request_timeout"
    status = 408
    retry = True


class ConflictError(LogweirError):
    """What is wanted does not go together with what is there."""

    code = "conflict"
    status = 409


class TooLargeError(LogweirError):
    """The request is over a bound of `core.bounds`; nothing of it was taken."""

    code = "too_large"
    status = 413


class UnsupportedMediaError(LogweirError):
    """Content type or encoding that is not taken here."""

    code = "unsupported_media_type"
    status = 415


class KeyConflictError(LogweirError):
    """The idempotency key was used before with another body."""

    code = "key_conflict"
    status = 422


class OverLimitError(LogweirError):
    """The tenant is over its rate, its buffer or what it may store.

    `retry_after_s` is when to come back, `sure_s` how long nothing is sure to be taken.
    """

    code = "over_limit"
    status = 429
    retry = True

    def __init__(
        self, message: str, *, retry_after_s: float, sure_s: float | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
        self.sure_s = retry_after_s if sure_s is None else sure_s


class UnavailableError(LogweirError):
    """The journal, the store or the process is not ready; nothing was taken."""

    code = "unavailable"
    status = 503
    retry = True

    def __init__(self, message: str, *, retry_after_s: float = 1.0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class FormatError(LogweirError):
    """Stored bytes are not what their version promises: a checksum, a length or an id is wrong."""

    code = "bad_format"


class UnknownVersionError(FormatError):
    """Stored bytes of a version that this program does not know; a newer one may."""

    code = "unknown_version"


class SetupError(LogweirError):
    """This machine or configuration cannot run Logweir as it is; the hint is the fix."""

    code = "setup"
