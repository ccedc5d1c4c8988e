"""Read upstream servers from the settings of other MCP clients."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcpruntime_server.errors import ConfigError

from .diagnostics import SettingKey, dotted_key
from .interpolation import interpolate_upstream
from .models import Config, UpstreamSettings
from .validation import parse_table


def import_client_json(
    path: Path, environ: Mapping[str, str] | None = None
) -> Mapping[str, UpstreamSettings]:
    """Return the servers of a JSON file: `{"mcpServers": {...}}`, or VS Code's `{"servers": ...}`.

    Keys that only the client knows are ignored. Raises `ConfigError`, which lists every mistake.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []

    def report(key: SettingKey, problem: str) -> None:
        problems.append(f"- {dotted_key(key)} {problem}")

    servers = {
        name: interpolate_upstream(name, entry, environ, report)
        for name, entry in _read_server_entries(path).items()
    }
    config = parse_table(Config, {"mcpServers": servers}, (), report)
    if config is None or problems:
        raise ConfigError("\n".join((f"The servers in {path} are not usable:", *problems)))
    return config.mcpServers


def _read_server_entries(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8-sig"))
    except OSError as exc:
        raise ConfigError(f"The file {path} cannot be read: {exc.strerror}.") from exc
    except json.JSONDecodeError as exc:
        raise ConfigError(
            f"The file {path} is not JSON: line {exc.lineno}, column {exc.colno}: {exc.msg}."
        ) from exc
    except (UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"The file {path} is not JSON text.") from exc
    for key in ("mcpServers", "servers"):
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            return dict(document[key])
    raise ConfigError(
        f"The file {path} names no MCP servers.",
        remedy='Expected is {"mcpServers": {"name": {"command": ...}}}.',
    )
