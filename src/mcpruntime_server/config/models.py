"""What can be set: one frozen model for each table of the settings file.

These are the defaults too; `server.toml` in the repository lists them all with their reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Verdict = Literal["allow", "ask", "deny"]
Key = tuple[str | int, ...]  # ("sandbox", "memory_mb"): a setting's place in the tree


class Settings(BaseModel):
    """Base of every table: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(Settings):
    """`[server]`: sessions, results, where data lives."""

    data_dir: Path = Path()  # the platform's own data folder unless given
    shims_dir: Path = Path()  # `tool_shims` beside the settings file, else in the data folder
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    wait_s: Seconds = 45.0
    wait_progress_s: Seconds = 280.0
    max_runs: Positive = 32
    max_runs_per_principal: Positive = 16
    max_sessions: Positive = 32
    session_idle_s: Seconds = 900.0
    keep_days: Annotated[int, Field(ge=0)] = 90
    keep_mb: Annotated[int, Field(ge=0)] = 4096
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
    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    pids: Positive = 128
    tmp_mb: Positive = 64
    workspace_mb: Positive = 256
    output_mb: Positive = 16
    timeout_s: Seconds = 120.0
    pool_size: Annotated[int, Field(ge=0)] = 1
    checkpoints: Annotated[int, Field(ge=0)] = 16
    checkpoint_mb: Positive = 256
    mounts: tuple[str, ...] = ()  # "/host/folder:/sandbox/folder[:rw]", read-only unless it says rw


class PolicySettings(Settings):
    """`[policy]`: which calls of the user's MCP servers code may make, and who is asked."""

    read: Verdict = "allow"
    write: Verdict = "allow"
    destructive: Verdict = "ask"
    approver: Literal["person", "model"] = "person"
    expires_s: Seconds = 86_400.0
    tools: Mapping[str, Verdict] = {}  # by patterns of "server" or "server.tool"


class UpstreamSettings(Settings):
    """One entry of `mcpServers`, in the form that the ecosystem's clients use."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # clients keep keys of their own here

    command: str | None = None
    args: tuple[str, ...] = Field(default=(), repr=False)  # like `url`, may hold what was interpolated
    env: Mapping[str, SecretStr] = {}
    cwd: Path | None = None
    url: str | None = Field(default=None, repr=False)
    headers: Mapping[str, SecretStr] = {}
    timeout_s: Seconds = 60.0
    max_concurrency: Positive = 64
    disabled: bool = False

    @model_validator(mode="before")
    @classmethod
    def _known_transport(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "sse" in (given.get("type"), given.get("transport")):
            raise ValueError("the SSE transport was removed from MCP; use the server's streamable HTTP `url`")
        return given

    @model_validator(mode="after")
    def _one_transport(self) -> UpstreamSettings:
        if (self.command is None) == (self.url is None):
            raise ValueError("give either `command` (a stdio server) or `url` (a streamable HTTP server)")
        if self.command == "" or (self.url is not None and not self.url.startswith(("http://", "https://"))):
            raise ValueError("a `command` is not empty, and a `url` begins with http:// or https://")
        return self


class Config(Settings):
    """All settings of one server; made by `load`, it also knows where each came from."""

    server: ServerSettings = ServerSettings()
    sandbox: SandboxSettings = SandboxSettings()
    policy: PolicySettings = PolicySettings()
    mcpServers: Mapping[str, UpstreamSettings] = {}  # noqa: N815 - the ecosystem's own name

    _file: Path | None = PrivateAttr(default=None)
    _origins: Mapping[Key, str] = PrivateAttr(default={})  # of what is not a default
    _as_given: Mapping[str, Mapping[str, Any]] = PrivateAttr(default={})

    @property
    def file(self) -> Path | None:
        """The settings file that was read, if any."""
        return self._file

    @property
    def origins(self) -> Mapping[Key, str]:
        """Where each setting that is not a default was given."""
        return self._origins

    @property
    def as_given(self) -> Mapping[str, Mapping[str, Any]]:
        """The entries of `mcpServers` before their variables were filled in."""
        return self._as_given

    def with_sources(
        self, file: Path | None, origins: Mapping[Key, str], as_given: Mapping[str, Mapping[str, Any]]
    ) -> Config:
        """Return these settings with the knowledge of where they came from."""
        made = self.model_copy()
        made._file, made._origins, made._as_given = file, origins, as_given
        return made


SECTIONS: Mapping[str, type[Settings]] = {
    "server": ServerSettings,
    "sandbox": SandboxSettings,
    "policy": PolicySettings,
}
