"""Builds the bundle for MCP clients: `python -m release.mcp_bundle DIST`, with the wheel in DIST.

The bundle is a zip with the manifest, the wheel, and a project that names the wheel. The client
runs it with uv, which installs what the wheel needs.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path

from mcpruntime_server import APP_NAME, __version__

ROOT = Path(__file__).parents[1]
MANIFEST = Path(__file__).parent / "manifest.json"
TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the same input makes the same bundle
PROJECT = """\
[project]
name = "mcpruntime-server-bundle"
version = "{version}"
requires-python = ">=3.11"
dependencies = ["mcpruntime-server"]

[tool.uv]
package = false

[tool.uv.sources]
mcpruntime-server = {{ path = "{wheel}" }}
"""
MAIN = '''\
"""Serves MCP on stdin and stdout."""

import sys

from mcpruntime_server.cli import main

sys.exit(main(["--stdio"]))
'''


def build_bundle(folder: Path) -> Path:
    """Write the bundle beside the wheel in `folder` and return its path.

    Raises `ValueError` unless there is one wheel of this version.
    """
    wheels = list(folder.glob(f"{APP_NAME.replace('-', '_')}-{__version__}-*.whl"))
    if len(wheels) != 1:
        count = len(wheels)
        raise ValueError(f"There must be one wheel of {__version__} in {folder}, not {count}.")
    manifest = json.loads(MANIFEST.read_text("utf-8"))
    if manifest["version"] != __version__:
        raise ValueError(f"{MANIFEST} has the version {manifest['version']}, not {__version__}.")
    wheel = wheels[0]
    members = {
        "manifest.json": MANIFEST.read_bytes(),
        "pyproject.toml": PROJECT.format(version=__version__, wheel=wheel.name).encode(),
        "server/main.py": MAIN.encode(),
        "LICENSE": (ROOT / "LICENSE").read_bytes(),
        wheel.name: wheel.read_bytes(),
    }
    bundle = folder / f"{APP_NAME}-{__version__}.mcpb"
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, TIMESTAMP), content, zipfile.ZIP_DEFLATED)
    return bundle


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with the wheel; the bundle is written there")
    print(build_bundle(parser.parse_args().folder))
