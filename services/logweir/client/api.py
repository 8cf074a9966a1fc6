"""HTTP to a Logweir: where it is, which key opens it, and its errors as sentences."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

import httpx2
import msgspec

from logweir.core import errors

TIMEOUT_S: Final = 60.0
_END_OF_CERTIFICATE: Final = "-----END CERTIFICATE-----"
_PREFIX = re.compile(r"/t/[^/]+(?:/[^/]*)?/?$")
Kind = TypeVar("Kind")
_encode = msgspec.json.Encoder().encode
_POSITION = re.compile(r"\(line (\d+), column (\d+)\)")


class Target(msgspec.Struct, frozen=True):
    """A Logweir and a key for it. `url` is the platform's, or a pipeline's base URL."""

    url: str
    key: str
    certificate: str = ""
    """File with the one certificate that this server shows, whatever name stands in it; without
    it the system's authorities and the name in the URL decide."""

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]", self.url):
            raise errors.BadRequestError(
                f"{self.url!r} is no URL of a Logweir.", hint="It begins with http:// or https://."
            )
        if not self.key.isascii() or not self.key.isprintable():
            raise errors.BadRequestError("The key has characters that no key has.")

    @property
    def ingest_url(self) -> str:
        """Where records go in."""
        return self.url.rstrip("/") + "/ingest"

    @property
    def platform_url(self) -> str:
        """Where the read API is: the URL without a pipeline's prefix."""
        return _PREFIX.sub("", self.url).rstrip("/")

    @property
    def headers(self) -> dict[str, str]:
        """The key, as a header."""
        return {"authorization": f"Bearer {self.key}"}

    def tls(self) -> ssl.SSLContext | None:
        """Return how the server is known by TLS; None: as everywhere.

        Raises:
            SetupError: the certificate cannot be read.
        """
        if not self.certificate:
            return None
        try:
            text = Path(self.certificate).read_text(encoding="ascii")
            first, end, _ = text.partition(_END_OF_CERTIFICATE)
            context = ssl.create_default_context(cadata=first + end)
        except (OSError, ValueError) as cause:
            raise errors.SetupError(
                f"Cannot read the certificate {self.certificate}: {cause}.",
                hint="'logweir up' was given it with '--tls-cert'.",
            ) from cause
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


class AnswerError(errors.LogweirError):
    """The server refused, in its own words."""

    code = "refused"

    def __init__(self, status: int, message: str, hint: str, retry_after_s: float | None) -> None:
        super().__init__(message, hint=hint)
        self.http_status = status
        self.retry_after_s = retry_after_s
        self.retry = status in (408, 429, 502, 503, 504)


def client(target: Target) -> httpx2.Client:
    """Return an HTTP client with the target's key."""
    context = target.tls()
    return httpx2.Client(
        headers=target.headers,
        timeout=TIMEOUT_S,
        trust_env=False,
        verify=True if context is None else context,
    )


def get(
    http: httpx2.Client, target: Target, path: str, params: Mapping[str, str], kind: type[Kind]
) -> Kind:
    """Return the JSON of a GET of the read API.

    Raises:
        AnswerError: the server refused, or this is no Logweir.
        UnavailableError: there is no answer.
    """
    return decode(send(http, target, "GET", path, params=params), kind)


def send(
    http: httpx2.Client,
    target: Target,
    method: str,
    path: str,
    body: object = None,
    params: Mapping[str, str] | None = None,
) -> httpx2.Response:
    """Return the successful answer of one request of the platform's API; `body` goes as JSON.

    Raises:
        AnswerError: the server refused, or this is no Logweir.
        UnavailableError: there is no answer.
    """
    content = None if body is None else _encode(body)
    headers = {} if body is None else {"content-type": "application/json"}
    try:
        answer = http.request(
            method, target.platform_url + path, params=params, content=content, headers=headers
        )
    except httpx2.TransportError as cause:
        raise no_answer(target, cause) from cause
    check(answer)
    return answer


def decode(answer: httpx2.Response, kind: type[Kind]) -> Kind:
    """Return an answer's JSON.

    Raises:
        AnswerError: it is not what a Logweir answers.
    """
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.MsgspecError as cause:
        raise AnswerError(
            answer.status_code,
            f"{answer.url.copy_with(query=None)} does not answer as a Logweir does.",
            "Check the URL.",
            None,
        ) from cause


def check(answer: httpx2.Response) -> None:
    """Raise AnswerError unless the answer is a success."""
    if answer.is_success:
        return
    message, hint = f"{answer.status_code} {answer.reason_phrase}", ""
    try:
        error = answer.json()["error"]
        message, hint = error["message"], error.get("hint", "")
    except (ValueError, KeyError, TypeError):
        pass  # not from Logweir: the status is all that is known
    after = answer.headers.get("retry-after", "")
    raise AnswerError(
        answer.status_code, message, hint, float(after) if after.isdecimal() else None
    )


def no_answer(target: Target, cause: Exception) -> errors.UnavailableError:
    """Return the error of a server that cannot be reached."""
    return errors.UnavailableError(
        f"No answer from {target.platform_url}: {str(cause) or type(cause).__name__}.",
        hint="Is it running? 'logweir status' tells; 'logweir up' starts it.",
    )


def picture(query: str, message: str) -> str:
    """Return the query with a caret under the place that an error names; empty without one."""
    found = _POSITION.search(message)
    lines = query.splitlines()
    if found is None or not 0 < int(found[1]) <= len(lines):
        return ""
    return f"  {lines[int(found[1]) - 1]}\n  {' ' * (int(found[2]) - 1)}^"
