"""The settings: what they are, where they come from, and what is said when one is wrong.

Precedence: command-line flag > environment (`MCPRUNTIME_SANDBOX__MEMORY_MB=512`) > file > default.
`os.environ` is read nowhere else in the package.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from .errors import ConfigError

APP = "mcpruntime-server"
ENV_PREFIX = "MCPRUNTIME_"

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Base of every table: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(Settings):
    """`[server]`: sessions, results, where data lives."""

    data_dir: Path = Path()  # the platform's own data folder unless given
    shims_dir: Path = Path()  # `tool_shims` beside the settings file, else in the data folder
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    max_sessions: Positive = 32
    session_idle_s: Seconds = 900
    result_chars: Positive = 20_000
    result_items: Positive = 200


class SandboxSettings(Settings):
    """`[sandbox]`: what code may use, and what it runs in."""

    backend: Literal["auto", "docker", "local"] = "auto"
    image: str = ""  # empty: the image that `image build` makes from the settings below
    base_image: str = "python:3.12-slim"
    packages: tuple[str, ...] = ("numpy", "pandas", "matplotlib")
    runtime: str = ""  # empty: the engine's default; e.g. "runsc"
    memory_mb: Positive = 512
    cpus: Annotated[float, Field(gt=0)] = 1.0
    pids: Positive = 128
    tmp_mb: Positive = 64
    workspace_mb: Positive = 256
    output_mb: Positive = 16
    timeout_s: Seconds = 120.0
    pool_size: Annotated[int, Field(ge=0)] = 1
    mounts: tuple[str, ...] = ()  # "/host/folder:/sandbox/folder[:rw]", read-only unless it says rw


class UpstreamSettings(Settings):
    """One entry of `mcpServers`, in the form that the ecosystem's clients use."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # clients keep keys of their own here

    command: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, SecretStr] = {}
    cwd: Path | None = None
    url: str | None = None
    headers: Mapping[str, SecretStr] = {}
    timeout_s: Seconds = 60.0
    max_concurrency: Positive = 64
    disabled: bool = False

    @model_validator(mode="after")
    def _one_transport(self) -> UpstreamSettings:
        if (self.command is None) == (self.url is None):
            raise ValueError("give either `command` (a stdio server) or `url` (a streamable HTTP server)")
        return self


class Config(Settings):
    """All settings of one server."""

    server: ServerSettings = ServerSettings()
    sandbox: SandboxSettings = SandboxSettings()
    mcpServers: Mapping[str, UpstreamSettings] = {}  # noqa: N815 - the ecosystem's own name
