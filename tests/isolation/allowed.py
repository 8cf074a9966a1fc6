"""The one table of what is allowed: whose key, to which address, naming whom. Read it aloud.

A request is let in, or refused, by its credential and by the place where it names a tenant
(`ACCESS`); what a request that is let in gets is said by its address (`ADDRESSES`).
"""

from __future__ import annotations

from typing import Final

import msgspec

LET_IN: Final = "+"
URL: Final = "query,selector,cursor"

ADDRESSES: Final = """
role    path                               methods     access  let in, and what of it is odd
ingest  /ingest                            POST        bare    200 body=400
ingest  /ingest                            other       bare    405
ingest  /nothing                           every       bare    404
ingest  /t/{tenant}/{pipeline}/ingest      POST        send    200 body=400
ingest  /t/{tenant}/{pipeline}/ingest      other       send    405
ingest  /t/{tenant}/{pipeline}/nothing     every       send    404
ingest  /t/{tenant}/{pipeline}             every       nobody  -
ingest  /t/{tenant}                        every       nobody  -
ingest  /livez                             every       bare    404
ingest  /metrics                           every       bare    404
ingest  /readyz                            every       bare    404
ingest  *                                  WebSocket   closed  -
query   /api/v1/query                      GET,POST    read    200 query,body=400 cursor=400/200
query   /api/v1/histogram                  GET,POST    read    200 query,body,cursor=400
query   /api/v1/labels                     GET,POST    read    200 query,body,cursor=400
query   /api/v1/labels/{name:path}/values  GET,POST    read    200 query,body,cursor=400
query   /api/v1/fields                     GET,POST    read    200 query,body,cursor=400
query   /api/v1/usage                      GET,POST    read    200 url,body=400
query   /api/v1/receipts/{receipt}         GET         ask     200 url=400
query   /api/v1/tail                       WebSocket   read    101 query,cursor=400
query   /api/v1/tail                       other       missing -
query   /nothing                           every       missing -
query   /livez                             every       missing -
query   /metrics                           every       missing -
query   /readyz                            every       missing -
query   *                                  WebSocket   closed  -
query   *                                  other       method  -
auth    /api/v1/keys                       GET         keys    200 url=400
auth    /api/v1/keys                       POST        keys    201 url,body=400
auth    /api/v1/keys/{name}                GET         keys    200/404 url=400 key=404/200
auth    /api/v1/keys/{name}                DELETE      keys    404 url=400
auth    /api/v1/keys/{name}/roll           POST        keys    404 url,body=400
auth    /nothing                           every       missing -
auth    /livez                             every       missing -
auth    /metrics                           every       missing -
auth    /readyz                            every       missing -
auth    *                                  WebSocket   closed  -
auth    *                                  other       method  -
"""
"""The first line that fits an address and a method counts; `*` stands for any address that has a
line of its own, `other` for every method that no line above names, `every` for all but WebSocket.
`400/200` is for A and for B, `url` for all that stands in the query string."""

ACCESS: Final = """
send                  plain own other several twice query selector body cursor path pipeline nobody
ingest                +     +   401   400     401   +     +        +    +      401  401      401
ingest, all pipelines +     +   401   400     401   +     +        +    +      401  401      401
other's ingest        401   401 401   401     401   401   401      401  401    +    401      401
*                     401

bare                  plain own other several twice query selector body cursor
ingest                +     +   401   400     401   +     +        +    +
ingest, 2nd pipeline  +     +   401   400     401   +     +        +    +
ingest, all pipelines 400   400 401   400     401   400   400      400  400
other's ingest        +     401 +     400     401   +     +        +    +
*                     401

read                  plain own other several twice query selector body cursor
query                 +     +   401   400     401   +     +        +    +
query, 2nd pipeline   +     +   401   400     401   +     +        +    +
query and admin       +     +   401   400     401   +     +        +    +
other's query         +     401 +     400     401   +     +        +    +
admin                 403   403 401   400     401   403   403      403  403
admin, 2nd pipeline   403   403 401   400     401   403   403      403  403
no scopes             403   403 401   400     401   403   403      403  403
ingest                403   403 401   400     401   403   403      403  403
ingest, 2nd pipeline  403   403 401   400     401   403   403      403  403
ingest, all pipelines 403   403 401   400     401   403   403      403  403
other's ingest        403   401 403   400     401   403   403      403  403
other's admin         403   401 403   400     401   403   403      403  403
*                     401

ask                   plain own other several twice query selector cursor receipt
ingest                +     +   401   400     401   +     +        +      +
ingest, 2nd pipeline  +     +   401   400     401   +     +        +      +
ingest, all pipelines +     +   401   400     401   +     +        +      +
query                 +     +   401   400     401   +     +        +      +
query, 2nd pipeline   +     +   401   400     401   +     +        +      +
query and admin       +     +   401   400     401   +     +        +      +
other's ingest        +     401 +     400     401   +     +        +      +
other's query         +     401 +     400     401   +     +        +      +
admin                 403   403 401   400     401   403   403      403    403
admin, 2nd pipeline   403   403 401   400     401   403   403      403    403
no scopes             403   403 401   400     401   403   403      403    403
other's admin         403   401 403   400     401   403   403      403    403
*                     401

keys                  plain own other several twice query selector body cursor key
admin                 +     +   401   400     401   +     +        +    +      +
query and admin       +     +   401   400     401   +     +        +    +      +
other's admin         +     401 +     400     401   +     +        +    +      +
query                 403   403 401   400     401   403   403      403  403    403
query, 2nd pipeline   403   403 401   400     401   403   403      403  403    403
admin, 2nd pipeline   403   403 401   400     401   403   403      403  403    403
no scopes             403   403 401   400     401   403   403      403  403    403
ingest                403   403 401   400     401   403   403      403  403    403
ingest, 2nd pipeline  403   403 401   400     401   403   403      403  403    403
ingest, all pipelines 403   403 401   400     401   403   403      403  403    403
other's ingest        403   401 403   400     401   403   403      403  403    403
other's query         403   401 403   400     401   403   403      403  403    403
*                     401

nobody                plain own other several twice query selector body cursor path nobody
*                     401

closed                plain own other several twice query selector path
*                     403

missing               plain own other several twice query selector body cursor
*                     404

method                plain own other several twice query selector body cursor receipt key
*                     405
"""
"""`+` is let in. Places: no name but the address's own, A in `X-Scope-OrgID`, B in it, `A|B` in it,
A and B in two of it, B in the query string, in the query itself, in the body, B's cursor, B's
tenant and pipeline in the path, B's pipeline there, a tenant that does not exist, B's receipt, the
name of a key of B's. The names of keys in the path are A's, or nobody's where the key would go."""


class Address(msgspec.Struct, frozen=True):
    """A line of ADDRESSES."""

    role: str
    path: str
    methods: str
    access: str
    let_in: str

    def fits(self, role: str, path: str, method: str) -> bool:
        if self.role != role or self.path not in ("*", path):
            return False
        if self.methods in ("other", "every"):
            return method != "WebSocket"
        return method in self.methods.split(",")

    def status(self, place: str, is_owner: bool) -> int:
        """What a request gets that is let in."""
        usual, *odd = self.let_in.split()
        found = usual
        for one in odd:
            places, _, status = one.replace("url", URL).partition("=")
            found = status if place in places.split(",") else found
        return int(found.split("/")[-1 if is_owner else 0])


def addresses() -> list[Address]:
    _, *lines = ADDRESSES.strip().splitlines()
    return [Address(*line.split(maxsplit=4)) for line in lines]


def access() -> dict[str, dict[str, dict[str, str]]]:
    """Statuses by class, credential and place; those of `*` are for all that have no row."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for block in ACCESS.strip().split("\n\n"):
        head, *rows = block.splitlines()
        name, *places = head.split()
        found[name] = {}
        for row in rows:
            who, cells = row[:22].strip(), row[22:].split()
            found[name][who] = dict(zip(places, cells * len(places), strict=False))
    return found
