"""Lists the licences of all packages: `python -m release.licence_list SBOM`, in Markdown.

SBOM is a file in CycloneDX's form, as `make packages` writes it. The licences are those that the
packages declare.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOT_DECLARED = "not declared; see its files"


def list_licences(sbom: Mapping[str, Any]) -> str:
    """Return a table of packages with version and licence, ordered by name."""
    rows = sorted(
        (each["name"].lower(), each["name"], each["version"], name_licence(each))
        for each in sbom["components"]
    )
    lines = [f"| {name} | {version} | {licence} |\n" for _, name, version, licence in rows]
    return "".join(["| package | version | licence |\n", "| --- | --- | --- |\n", *lines])


def name_licence(component: Mapping[str, Any]) -> str:
    """Return the licence of a package: its SPDX expression or id, otherwise what it says."""
    declared = component.get("licenses", [])
    expressions = [each["expression"] for each in declared if "expression" in each]
    licences = [each["license"] for each in declared if "license" in each]
    ids = [each["id"] for each in licences if "id" in each]
    names = [each["name"].rpartition(" :: ")[2] for each in licences if "name" in each]
    return "; ".join(dict.fromkeys(expressions or ids or names)) or NOT_DECLARED


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sbom", type=Path)
    print(list_licences(json.loads(parser.parse_args().sbom.read_text("utf-8"))), end="")
