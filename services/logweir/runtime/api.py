"""What the APIs of roles share that are made with FastAPI: their form, and errors of one shape."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from logweir.core import errors
from logweir.runtime import web


def new_app(title: str, known: str) -> FastAPI:
    """Return an application without routes.

    Args:
        title: of the application.
        known: a sentence that says which addresses it has, for who asks for another.
    """

    async def http_error(request: Request, error: Exception) -> Response:
        """What the router itself refuses, in our shape."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        if status == errors.MethodNotAllowedError.status:
            return error_response(
                errors.MethodNotAllowedError(f"{request.method} is not taken here.")
            )
        return error_response(
            errors.NotFoundError(f"There is no {request.url.path[:80]!r} here.", hint=known)
        )

    return FastAPI(
        title=title,
        openapi_url=None,
        redirect_slashes=False,  # a redirect would name this process, not the gateway
        telemetry={"auto_configure": False},  # it would send its own logs to itself
        exception_handlers={HTTPException: http_error},
    )


def error_response(error: errors.LogweirError) -> Response:
    """Return an error's answer."""
    headers = {name.decode(): value.decode() for name, value in web.error_headers(error)}
    return Response(
        web.error_body(error), error.status, headers=headers, media_type="application/json"
    )
