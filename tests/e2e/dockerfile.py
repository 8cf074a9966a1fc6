"""What an image without Docker takes from the Dockerfile, so that both agree."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]


def configuration(arguments: Mapping[str, str]) -> dict[str, Any]:
    """Return OCI's configuration of the last stage, with these build arguments."""
    values: dict[str, str] = {}
    config: dict[str, Any] = {"Env": [], "Labels": {}}
    for word, rest in _last_stage():
        if word == "ARG":
            name, _, default = rest.partition("=")
            values[name] = arguments.get(name, default)
        elif word == "ENV":
            config["Env"] += shlex.split(rest)
        elif word == "LABEL":
            text = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], rest)
            config["Labels"] |= dict(one.split("=", 1) for one in shlex.split(text))
        elif word == "USER":
            config["User"] = rest
        elif word == "WORKDIR":
            config["WorkingDir"] = rest
        elif word == "ENTRYPOINT":
            config["Entrypoint"] = json.loads(rest)
    return config


def account() -> str:
    """Return the line of /etc/passwd that the Dockerfile's useradd makes."""
    (command,) = [rest for word, rest in _last_stage() if word == "RUN" and "useradd" in rest]
    words = shlex.split(command.partition("useradd")[2].partition("&&")[0])
    options = dict(itertools.pairwise(words))
    return (
        f"{words[-1]}:x:{options['--uid']}:{options['--gid']}::"
        f"{options['--home-dir']}:{options['--shell']}\n"
    )


def _last_stage() -> Iterator[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    last = max(number for number, (word, _) in enumerate(instructions) if word == "FROM")
    yield from ((word, " ".join(rest.split())) for word, rest in instructions[last + 1 :])
