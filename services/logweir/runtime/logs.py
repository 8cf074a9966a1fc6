"""Logs of the platform itself: stdlib logging, JSON lines unless a person watches a terminal.

The event is a constant string and the facts are in `extra`. Records of tenants never go here.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

_PLAIN = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {
    "message",
    "asctime",
    "taskName",
}
_encoder = msgspec.json.Encoder(enc_hook=str)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `timestamp`, `level`, `role`, `logger`, `message`, the extras."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "role": self._role,
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encoder.encode(line).decode()


class TextFormatter(logging.Formatter):
    """`12:30:01.123 INFO  ingest  message  key=value`, for a person."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        facts = "".join(f"  {name}={value}" for name, value in _extras(record).items())
        text = f"{at} {record.levelname:<7} {self._role:<9} {record.getMessage()}{facts}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}


def configure(
    role: str,
    log_format: Literal["auto", "json", "text"] = "auto",
    stream: TextIO | None = None,
    level: int = logging.INFO,
) -> None:
    """Send all logs of this process to `stream` (default: standard error)."""
    target = stream or sys.stderr
    as_text = log_format == "text" or (log_format == "auto" and target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(TextFormatter(role) if as_text else JsonFormatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for noisy in ("uvicorn.error", "uvicorn.access", "websockets", "psycopg.pool"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_is_no_refused_handshake)


def _is_no_refused_handshake(record: logging.LogRecord) -> bool:
    """False for uvicorn's complaint about a WebSocket that was answered with a plain 401."""
    return "without completing handshake" not in str(record.msg)
