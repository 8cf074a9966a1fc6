"""Options that several commands share, and what they do with them; light to import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
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


def print_json(value: Any) -> None:  # noqa: ANN401 - whatever msgspec takes
    """Print a value as JSON for scripts, and for eyes."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def usage(message: str) -> NoReturn:
    """End the command: it was called in a wrong way."""
    raise typer.BadParameter(message)
