"""`logweir keys`: make, list, roll and revoke a tenant's keys over the API; say what a key is.

A new key is printed alone on standard output, so that it can go where nobody reads it:
`logweir keys create ci --scope ingest > ci.key`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from logweir.options import AsJson, Data, Key, TenantName, Url, print_json, target

if TYPE_CHECKING:
    from logweir.client.api import Target
    from logweir.client.keys import ApiKey
    from logweir.standalone.folder import Folder

app = typer.Typer(
    help="API keys of a tenant: create, list, roll, revoke, check.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="Of the key.")]
Expires = Annotated[
    str, typer.Option("--expires", help="In 90d, or at a time (RFC 3339); without it: never.")
]


@app.command()
def create(
    name: Name,
    scope: Annotated[
        list[str], typer.Option("--scope", help="ingest alone, or query, admin; may be repeated.")
    ],
    pipeline: Annotated[str, typer.Option(help="The only one that it is good for.")] = "",
    expires: Expires = "",
    as_json: AsJson = False,
    url: Url = "",
    key: Key = "",
    tenant: TenantName = "",
    data: Data = None,
) -> None:
    """Make a key and print it: it is shown this once."""
    from logweir.client import keys, terminal

    ends = terminal.ahead(expires) if expires else None
    made = keys.create(_target(url, key, data, tenant), name, scope, pipeline or None, ends)
    _print_made(made, as_json=as_json)


@app.command("list")
def list_(
    every: Annotated[bool, typer.Option("--all", help="Revoked and expired ones too.")] = False,
    as_json: AsJson = False,
    url: Url = "",
    key: Key = "",
    tenant: TenantName = "",
    data: Data = None,
) -> None:
    """List keys; never their texts."""
    from logweir.client import keys

    found = keys.listed(_target(url, key, data, tenant))
    chosen = found if every else [one for one in found if one.is_good]
    if as_json:
        print_json(chosen)
    else:
        print(keys.table(chosen))


@app.command()
def roll(
    name: Name,
    overlap: Annotated[
        str, typer.Option("--overlap", help="For how long the old one is good too; 0s: not at all.")
    ] = "24h",
    expires: Expires = "",
    as_json: AsJson = False,
    url: Url = "",
    key: Key = "",
    tenant: TenantName = "",
    data: Data = None,
) -> None:
    """Replace a key and print the new one; the old one ends after the overlap."""
    from logweir.client import keys, terminal

    ends = terminal.ahead(expires) if expires else None
    made = keys.roll(_target(url, key, data, tenant), name, terminal.seconds(overlap), ends)
    _print_made(made, as_json=as_json)


@app.command()
def revoke(
    name: Name, url: Url = "", key: Key = "", tenant: TenantName = "", data: Data = None
) -> None:
    """Revoke a key and what is left of its older generations; within 5 seconds all refuse it."""
    from logweir.client import keys

    keys.revoke(_target(url, key, data, tenant), name)
    _say(f"key {name!r} revoked")


@app.command()
def check(
    key: Annotated[str, typer.Argument(help="The key; - reads it from standard input.")] = "-",
    as_json: AsJson = False,
) -> None:
    """Say what a key is for, or that it is mistyped; asks no server, so not whether it is good."""
    from logweir.client import keys

    found = keys.checked(sys.stdin.readline(4096).strip() if key == "-" else key)
    if as_json:
        print_json(found)
    else:
        print(keys.sheet(found))


def _print_made(made: ApiKey, *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    print(made.key)
    _say(f"key {made.name!r}, generation {made.generation}: it is shown this once")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _target(url: str, key: str, data: Path | None, tenant: str) -> Target:
    """Where the API is: what was given, or the running `up`, for who may read its folder."""
    import asyncio

    def find(place: Folder) -> tuple[str, str]:
        from logweir.standalone import admin

        return asyncio.run(admin.address(place, tenant))

    return target(url, key, data, find)
