"""The demo's upstream servers, and the settings that name them.

They are real servers: those that `scripts/test-upstreams` installed in a checkout, else `uvx` and
`npx` run them.
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
INSTALL_REMEDY = (
    "Run `scripts/test-upstreams` in a checkout, or install uv, whose `uvx` runs Python servers "
    "without installing them."
)

ServerEntry = Mapping[str, Any]


def find_python_server(installed_in: Path, name: str, *args: str) -> ServerEntry:
    """Return the entry of a server from PyPI; raises `Unavailable` if nothing can run it."""
    installed = installed_in / name / "bin" / name
    if installed.is_file():
        return {"command": str(installed), "args": list(args)}
    if uvx := shutil.which("uvx"):
        return {"command": uvx, "args": [name, *args]}
    raise Unavailable(f"The demo needs {name}, which is not installed.", remedy=INSTALL_REMEDY)


def find_node_server(installed_in: Path, folder: Path) -> ServerEntry | None:
    """Return the entry of the filesystem server from npm; None without Node."""
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
    """Return `mcpServers` for the demo: git, time and, with Node, files.

    Raises `Unavailable` if git or time cannot be run.
    """
    found = {
        "git": find_python_server(installed_in, "mcp-server-git", "--repository", str(repository)),
        "time": find_python_server(installed_in, "mcp-server-time"),
    }
    files = find_node_server(installed_in, reports)
    return {**found, "files": files} if files else found


def write_demo_settings(file: Path, config: Config, servers: Mapping[str, ServerEntry]) -> None:
    """Write settings with the user's sandbox; the client answers model requests of code."""
    sandbox = config.sandbox.non_default_values()
    llm = {"broker": "caller"}
    # A client ends a server that takes long to stop with a signal, which is logged as information.
    server = {"data_dir": "data", "log_level": "warning"}
    tables = {"server": server, "sandbox": sandbox, "mcpServers": servers, "llm": llm}
    file.write_text(tomli_w.dumps(tables), encoding="utf-8")
