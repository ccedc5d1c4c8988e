"""The revisions of MCP that this program speaks."""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path


def list_revisions() -> tuple[str, ...]:
    """Return the revisions that the SDK supports, the oldest first.

    Only the module with their names is executed: importing the SDK's types takes half a second.
    """
    package = find_spec("mcp_types")
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        spec = spec_from_file_location("mcp_revisions", Path(folder, "version.py"))
        if spec and spec.loader:
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            return tuple(module.SUPPORTED_PROTOCOL_VERSIONS)
    raise AssertionError("the package mcp needs mcp_types")
