"""Options that several commands share, and what they do with them; light to import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from logweir.client.api import Target
    from logweir.standalone.folder import Folder

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="LOGWEIR_DATA",
        help="Folder of all state; without it, one under your data folder.",
    ),
]
Port = Annotated[
    int | None,
    typer.Option("--port", envvar="LOGWEIR_PORT", min=0, max=65535, help="0 takes a free one."),
]
Url = Annotated[
    str, typer.Option("--url", envvar="LOGWEIR_URL", help="Of a Logweir, or a pipeline's base URL.")
]
Key = Annotated[
    str, typer.Option("--key", envvar="LOGWEIR_KEY", help="API key; better in LOGWEIR_KEY.")
]
TenantName = Annotated[
    str, typer.Option("--tenant", help="LogTenant of the running `up`, as NAME or NAMESPACE/NAME.")
]

AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]


def folder(data: Path | None) -> Folder:
    """Return the folder of an `up`: the given one, or the usual one."""
    from logweir.standalone import folder as folders

    return folders.Folder(data or folders.default_path())


def target(
    url: str, key: str, data: Path | None, find: Callable[[Folder], tuple[str, str]]
) -> Target:
    """Return where an API is: what was given, or what `find` says of the running `up`.

    Raises:
        SetupError: nothing was given, and nothing runs.
    """
    from logweir.client.api import Target
    from logweir.core import errors
    from logweir.standalone import entrance

    if url and key:
        return Target(url, key)
    if url or key:
        usage("--url and --key go together (or LOGWEIR_URL and LOGWEIR_KEY).")
    place = folder(data)
    if place.holder() is None:
        raise errors.SetupError(
            f"Nothing runs in {place.path}, and no URL and key are given.",
            hint="Start one with 'logweir up', or set LOGWEIR_URL and LOGWEIR_KEY.",
        )
    tls = entrance.read(place).tls
    return Target(*find(place), certificate=tls.certificate if tls else "")


def print_json(value: Any) -> None:  # noqa: ANN401 - whatever msgspec takes
    """Print a value as JSON for scripts, and for eyes."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def usage(message: str) -> NoReturn:
    """End the command: it was called in a wrong way."""
    raise typer.BadParameter(message)
