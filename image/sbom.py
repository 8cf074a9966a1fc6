"""Writes what is in the image as a bill of materials, CycloneDX 1.6.

    python image/sbom.py FILE

Python packages come from the metadata of those that this interpreter sees, Debian's from dpkg's
list where there is one. The same packages give the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

OWN: Final = "logweir"
DPKG_STATUS: Final = Path("/var/lib/dpkg/status")
Component = Mapping[str, Any]


def bill(packages: list[Component], own: Component, made_at: datetime) -> dict[str, object]:
    """Return the document; its serial number follows from its content."""
    content = json.dumps([own, packages], sort_keys=True)
    digest = hashlib.sha256(content.encode()).digest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}",
        "version": 1,
        "metadata": {"timestamp": made_at.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": own},
        "components": packages,
    }


def python_packages() -> dict[str, Component]:
    """Return the installed distributions by their normal names, and the interpreter."""
    found: dict[str, Component] = {}
    for one in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
        found[name] = {
            "type": "application" if name == OWN else "library",
            "bom-ref": f"pkg:pypi/{name}@{one.version}",
            "name": name,
            "version": one.version,
            "purl": f"pkg:pypi/{name}@{one.version}",
            **_licences(one.metadata.get("License-Expression"), one.metadata.get("License")),
        }
    version = platform.python_version()
    found["python"] = {
        "type": "platform",
        "bom-ref": f"pkg:generic/python@{version}",
        "name": "python",
        "version": version,
        "purl": f"pkg:generic/python@{version}",
        **_licences("PSF-2.0", None),
    }
    return found


def _licences(expression: str | None, text: str | None) -> dict[str, object]:
    """Return the licence in the form of CycloneDX; long texts are no names."""
    if expression:
        return {"licenses": [{"expression": expression}]}
    if text and len(text) <= 60 and "\n" not in text:
        return {"licenses": [{"license": {"name": text}}]}
    return {}


def debian_packages(status: str) -> Iterator[Component]:
    """Yield the packages that dpkg's status file says are installed."""
    for paragraph in status.split("\n\n"):
        fields = HeaderParser().parsestr(paragraph)
        if not (fields["Status"] or "").endswith(" installed"):
            continue
        name, version, machine = fields["Package"], fields["Version"], fields["Architecture"]
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={machine}"
        yield {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "purl": purl,
        }


def main(path: Path) -> None:
    """Write the bill of this environment."""
    packages = python_packages()
    own = packages.pop(OWN)
    found = [packages[name] for name in sorted(packages)]
    if DPKG_STATUS.exists():
        found += debian_packages(DPKG_STATUS.read_text(encoding="utf-8"))
    made_at = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(bill(found, own, made_at), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
