"""Commands for a person's shell that work on the settings of this server."""

from __future__ import annotations

import shlex
from pathlib import Path

from .. import APP_NAME
from .loader import default_settings_file
from .models import Config

DATA_DIR_KEY = ("server", "data_dir")


def format_command(config: Config, *words: str) -> str:
    """Return `mcpruntime-server WORDS` with the options that lead to the same settings and data."""
    options: list[str] = []
    file = config.sources.file
    if file is not None and file != default_settings_file():
        options += ["--config", str(Path.cwd() / file)]
    if config.sources.origins.get(DATA_DIR_KEY, "file") != "file":
        options += ["--data-dir", str(Path.cwd() / config.server.data_dir)]
    return shlex.join((APP_NAME, *options, *words))
