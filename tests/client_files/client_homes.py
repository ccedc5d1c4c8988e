"""Home folders with the configurations of clients, as people have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mcpruntime_server.client_files.client_kinds import CLIENTS, ClientKind, UserPlaces

CONFIGURATIONS = Path(__file__).parent / "configurations"
SAMPLES = {  # the file of each client in `configurations`
    "claude-desktop": "claude_desktop_config.json",
    "claude-code": "claude.json",
    "cursor": "cursor_mcp.json",
    "vscode": "vscode_mcp.json",
    "codex": "codex_config.toml",
    "gemini": "gemini_settings.json",
    "opencode": "opencode.jsonc",
    "windsurf": "windsurf_mcp_config.json",
    "zed": "zed_settings.json",
}


@dataclass(frozen=True)
class ClientHome:
    """One client with a configuration in a home folder of its own."""

    kind: ClientKind
    places: UserPlaces

    @property
    def file(self) -> Path:
        return self.kind.locate(self.places)

    def write(self, data: bytes) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(data)


def make_places(home: Path, platform: str = "linux", **environ: str) -> UserPlaces:
    return UserPlaces(home, platform, environ, Path("/home/ann/shop"))


def make_home(name: str, home: Path, platform: str = "linux", **environ: str) -> ClientHome:
    """Return a client with its sample."""
    client = ClientHome(CLIENTS[name], make_places(home, platform, **environ))
    client.write((CONFIGURATIONS / SAMPLES[name]).read_bytes())
    return client
