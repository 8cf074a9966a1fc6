"""The bill of materials: everything that is installed, in CycloneDX's form, the same each time."""

from __future__ import annotations

import importlib.metadata
import json
import re
import runpy
from datetime import UTC, datetime
from pathlib import Path

SBOM = runpy.run_path(str(Path(__file__).parents[2] / "image/sbom.py"))
STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u14
Description: GNU C Library
 shared libraries

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def test_a_bill_names_every_package_by_a_purl_with_its_licence(tmp_path):
    SBOM["main"](tmp_path / "share/logweir.cdx.json")

    bill = json.loads((tmp_path / "share/logweir.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    found = {one["purl"]: one for one in bill["components"]}
    assert len(found) == len(bill["components"])
    version = importlib.metadata.version("msgspec")
    assert found[f"pkg:pypi/msgspec@{version}"]["licenses"]
    assert bill["metadata"]["component"]["name"] == "logweir"
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", bill["serialNumber"])


def test_the_same_packages_give_the_same_bill(tmp_path):
    for name in ("one", "two"):
        SBOM["main"](tmp_path / name)

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    own = {"name": "logweir", "version": "1"}
    at = datetime(2026, 1, 1, tzinfo=UTC)
    serials = {SBOM["bill"](packages, own, at)["serialNumber"] for packages in ([], [own])}
    assert len(serials) == 2


def test_debian_packages_are_listed_when_they_are_installed():
    (package,) = SBOM["debian_packages"](STATUS)

    assert package["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64"
