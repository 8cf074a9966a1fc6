"""Why a server did not let us in, in words that say what to do about it.

What libpq and redis-py raise says what was found; for TLS it leaves open what follows from it.
"""

from __future__ import annotations

import re
from typing import Final

NO_TLS: Final = "it did not answer in TLS"

_CA: Final = "Give the certificate of the CA that signed it in the binding's ca_file."
_NAME: Final = (
    "Reach the server by a name that its certificate has, or give it a certificate for this one."
)
_OLD: Final = "Renew the server's certificate."
_PLAIN: Final = "Turn TLS on in the server, or give the port on which it speaks TLS."

_ADVICE: Final = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        ("certificate has expired|certificate is not yet valid", _OLD),
        ("does not match host name|certificate is not valid for", _NAME),
        ("unable to get local issuer|self.signed certificate", _CA),
        (
            "SSL error: certificate verify failed",
            f"It has expired, or no CA that is known signed it. {_OLD} {_CA}",
        ),
        (f"does not support SSL|{NO_TLS}|WRONG_VERSION_NUMBER", _PLAIN),
        (
            "root certificate file .* does not exist",
            "Put the certificate of the server's CA where the binding's ca_file says.",
        ),
    )
)


def reason_of(cause: BaseException) -> str:
    """Return what an error of a server's client says, and what to do when TLS is to blame."""
    text = str(cause).strip() or type(cause).__name__
    for pattern, advice in _ADVICE:
        if pattern.search(text):
            return f"{text.partition(chr(10))[0].rstrip('.')}. {advice}"
    return text
