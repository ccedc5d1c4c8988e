"""The demo's upstream servers: where they are found on this machine, and the settings file that names them.

They are real ones, installed by `scripts/test-upstreams` in a checkout, else run by `uvx` and `npx`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from ...config import Config
from ...errors import Unavailable

INSTALL_FOLDER = Path(__file__).resolve().parents[4] / ".venvs"  # of a checkout
NODE_PACKAGE = "@modelcontextprotocol/server-filesystem"
INSTALL_REMEDY = "Run `scripts/test-upstreams` in a checkout, or install uv, whose `uvx` runs Python servers without installing."

ServerEntry = Mapping[str, Any]


def find_python_server(installed_in: Path, name: str, *args: str) -> ServerEntry:
    """Return the entry of a server from PyPI; raises `Unavailable` if it can be had in no way."""
    installed = installed_in / name / "bin" / name
    if installed.is_file():
        return {"command": str(installed), "args": list(args)}
    if uvx := shutil.which("uvx"):
        return {"command": uvx, "args": [name, *args]}
    raise Unavailable(f"The demo needs {name}, which is not installed.", remedy=INSTALL_REMEDY)


def find_node_server(installed_in: Path, folder: Path) -> ServerEntry | None:
    """Return the entry of the filesystem server from npm, or None where there is no Node to run it."""
    installed = installed_in / "node" / "node_modules" / ".bin" / "mcp-server-filesystem"
    if shutil.which("node") is None:
        return None
    if installed.exists():
        return {"command": str(installed), "args": [str(folder)]}
    if npx := shutil.which("npx"):
        return {"command": npx, "args": ["-y", NODE_PACKAGE, str(folder)]}
    return None


def find_servers(
    repository: Path, reports: Path, installed_in: Path = INSTALL_FOLDER
) -> dict[str, ServerEntry]:
    """Return `mcpServers` for the demo: git, time and, where Node is present, files; raises `Unavailable`."""
    found = {
        "git": find_python_server(installed_in, "mcp-server-git", "--repository", str(repository)),
        "time": find_python_server(installed_in, "mcp-server-time"),
    }
    files = find_node_server(installed_in, reports)
    return {**found, "files": files} if files else found


def write_demo_settings(file: Path, config: Config, servers: Mapping[str, ServerEntry]) -> None:
    """Write settings for a server of the demo's own, with the user's sandbox; its client answers what code asks."""
    sandbox = config.sandbox.model_dump(mode="json", exclude_defaults=True)
    llm = {"broker": "caller"}
    tables = {"server": {"data_dir": "data"}, "sandbox": sandbox, "mcpServers": servers, "llm": llm}
    file.write_text(tomli_w.dumps(tables), encoding="utf-8")
