"""The MCP clients that are known: where each keeps its servers, and in which form."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import NotFound

Syntax = Literal["json", "toml"]
References = Literal["none", "braces", "prefixed", "shell", "opencode"]
KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class UserPlaces:
    """Where a user's files are on a machine; `platform` is as in `sys.platform`."""

    home: Path
    platform: str
    environ: Mapping[str, str]
    folder: Path  # the project that the user is in

    @classmethod
    def find(cls) -> UserPlaces:
        """Return those of the user who runs this process."""
        return cls(Path.home(), sys.platform, os.environ, Path.cwd())

    @property
    def dot_config(self) -> Path:
        """The folder for settings as the XDG specification has it."""
        return self._named_folder("XDG_CONFIG_HOME") or self.home / ".config"

    @property
    def settings(self) -> Path:
        """The folder in which desktop programs of the platform keep their settings."""
        if self.platform == "darwin":
            return self.home / "Library" / "Application Support"
        if self.platform == "win32":
            return self._named_folder("APPDATA") or self.home / "AppData" / "Roaming"
        return self.dot_config

    def _named_folder(self, variable: str) -> Path | None:
        value = self.environ.get(variable, "")
        return Path(value) if value else None

    def folder_or(self, variable: str, default: str) -> Path:
        """Return the folder that a variable names, else one in the home folder."""
        return self._named_folder(variable) or self.home / default


@dataclass(frozen=True)
class ClientKind:
    """One client."""

    name: str
    title: str
    locate: Callable[[UserPlaces], Path]
    key: KeyPath = ("mcpServers",)
    syntax: Syntax = "json"
    references: References = "none"  # how it writes variables in values
    project_files: Sequence[str] = ()  # of a project, the preferred one first
    reload_hint: str = "Restart it."

    def find_file(self, places: UserPlaces, *, is_project: bool = False) -> Path:
        """Return the file of the user, or of the project; raises `NotFound` without one."""
        if not is_project:
            return self.locate(places)
        if not self.project_files:
            raise NotFound(f"{self.title} has no settings of projects.", remedy="Omit --project.")
        return choose_file(places.folder, self.project_files)


def choose_file(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of some files that exists, else the first of all."""
    paths = [folder / name for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


def locate_opencode(places: UserPlaces) -> Path:
    """Return the settings file of OpenCode, which has the same folder on all platforms."""
    if named := places.environ.get("OPENCODE_CONFIG"):
        return Path(named)
    return choose_file(places.dot_config / "opencode", ("opencode.json", "opencode.jsonc"))


def locate_zed(places: UserPlaces) -> Path:
    """Return the settings file of Zed, which uses `~/.config` on macOS, too."""
    if places.platform == "win32":
        return places.settings / "Zed" / "settings.json"
    return places.dot_config / "zed" / "settings.json"


CLIENTS: Mapping[str, ClientKind] = {
    kind.name: kind
    for kind in (
        ClientKind(
            "claude-desktop",
            "Claude Desktop",
            lambda places: places.settings / "Claude" / "claude_desktop_config.json",
            reload_hint="Quit Claude Desktop and start it again.",
        ),
        ClientKind(
            "claude-code",
            "Claude Code",
            lambda places: places.folder_or("CLAUDE_CONFIG_DIR", "") / ".claude.json",
            references="braces",
            project_files=(".mcp.json",),
            reload_hint="Start a new session; `/mcp` shows the servers.",
        ),
        ClientKind(
            "cursor",
            "Cursor",
            lambda places: places.home / ".cursor" / "mcp.json",
            references="prefixed",
            project_files=(".cursor/mcp.json",),
            reload_hint="Cursor notices the change; its settings list the servers under MCP.",
        ),
        ClientKind(
            "vscode",
            "VS Code",
            lambda places: places.settings / "Code" / "User" / "mcp.json",
            key=("servers",),
            references="prefixed",
            project_files=(".vscode/mcp.json",),
            reload_hint="Run `MCP: List Servers` in VS Code, and start it.",
        ),
        ClientKind(
            "codex",
            "Codex",
            lambda places: places.folder_or("CODEX_HOME", ".codex") / "config.toml",
            key=("mcp_servers",),
            syntax="toml",
            project_files=(".codex/config.toml",),
            reload_hint="Start a new session; `/mcp` shows the servers.",
        ),
        ClientKind(
            "gemini",
            "Gemini CLI",
            lambda places: places.home / ".gemini" / "settings.json",
            references="shell",
            project_files=(".gemini/settings.json",),
            reload_hint="Start a new session; `/mcp` shows the servers.",
        ),
        ClientKind(
            "opencode",
            "OpenCode",
            locate_opencode,
            key=("mcp",),
            references="opencode",
            project_files=("opencode.json", "opencode.jsonc"),
            reload_hint="Start OpenCode again.",
        ),
        ClientKind(
            "windsurf",
            "Windsurf",
            lambda places: places.home / ".codeium" / "windsurf" / "mcp_config.json",
            references="prefixed",
            reload_hint="Refresh the MCP servers in the Cascade panel.",
        ),
        ClientKind(
            "zed",
            "Zed",
            locate_zed,
            key=("context_servers",),
            project_files=(".zed/settings.json",),
            reload_hint="Zed notices the change; the agent panel's settings list the servers.",
        ),
    )
}
UNKNOWN_KINDS = (  # what a file of no known client may be, by its key
    ClientKind("file", "the file", lambda places: places.folder, references="prefixed"),
    ClientKind("file", "the file", CLIENTS["vscode"].locate, ("servers",), "json", "prefixed"),
    ClientKind("file", "the file", CLIENTS["zed"].locate, ("context_servers",)),
    ClientKind("file", "the file", CLIENTS["opencode"].locate, ("mcp",), "json", "opencode"),
    ClientKind("file", "the file", CLIENTS["codex"].locate, ("mcp_servers",), "toml"),
)


def find_client(name: str) -> ClientKind:
    """Return the client of a name; raises `NotFound`."""
    if name in CLIENTS:
        return CLIENTS[name]
    raise NotFound(f"There is no client {name!r:.80}.", remedy=f"Known are: {', '.join(CLIENTS)}.")


def is_in_use(kind: ClientKind, places: UserPlaces) -> bool:
    """Return whether the client has left traces on this machine."""
    file = kind.locate(places)
    return file.is_file() or (file.parent != places.home and file.parent.is_dir())
