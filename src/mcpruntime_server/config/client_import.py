"""Upstream servers as other MCP clients' own settings name them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mcpruntime_server.errors import ConfigError

from .diagnostics import SettingLocations, dotted_key
from .interpolation import interpolate_upstream
from .models import Config, SettingKey, UpstreamSettings


def import_client_json(
    path: Path, environ: Mapping[str, str] | None = None
) -> Mapping[str, UpstreamSettings]:
    """Return the servers of a client's JSON file: `{"mcpServers": {...}}`, or `{"servers": {...}}` as VS Code has it.

    Keys that only the client knows are left out. Raises `ConfigError`, which lists everything that is wrong.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []

    def complain(key: SettingKey, what: str) -> None:
        problems.append(f"- {dotted_key(key)} {what}")

    servers = {
        name: interpolate_upstream(name, given, environ, complain)
        for name, given in _read_server_entries(path).items()
    }
    found: Mapping[str, UpstreamSettings] = {}
    try:
        found = Config.model_validate({"mcpServers": servers}).mcpServers
    except ValidationError as exc:
        places = SettingLocations(None, "", {})
        problems += [f"- {places.describe_error(error)}" for error in exc.errors(include_url=False)]
    if problems:
        raise ConfigError("\n".join((f"The servers in {path} are not usable:", *problems)))
    return found


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
