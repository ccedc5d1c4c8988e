"""The coding agents that people use, run headless against a real server and a scripted model."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import tomli_w

from tests.helpers.server_connection import COMMAND

from .scripted_model import MODEL, ScriptedModel

FOLDER = Path(__file__).resolve().parents[2] / ".venvs" / "agents"
BIN = FOLDER / "node_modules" / ".bin"
SERVER = "runtime"  # the server's name in the settings of an agent
PROMPT = "Do the work with the tool run_code."
API_KEY = "test-key"
AGENT_TIMEOUT_S = 240.0  # only an agent that hangs takes so long


@dataclass(frozen=True)
class Launch:
    """How an agent is started: arguments and additional environment."""

    arguments: list[str]
    env: dict[str, str]


@dataclass(frozen=True)
class RemoteServer:
    """A server over HTTP."""

    url: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """The headers that its clients send."""
        return {"Authorization": f"Bearer {self.token}"}


Server = Sequence[str] | RemoteServer  # a command, or an address


@dataclass(frozen=True)
class CodingAgent:
    """An agent: its command, and how its settings are written for a server and a model."""

    name: str
    prepare: Callable[[Path, Server, ScriptedModel], Launch]

    @property
    def command(self) -> Path:
        """The installed command."""
        return BIN / self.name


def write_json(path: Path, data: Any) -> Path:
    """Write a settings file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def prepare_claude(home: Path, server: Server, model: ScriptedModel) -> Launch:
    """Claude Code: the server is named on the command line; its tools are loaded at once."""
    entry: dict[str, Any]
    if isinstance(server, RemoteServer):
        entry = {"type": "http", "url": server.url, "headers": server.headers}
    else:
        entry = {"type": "stdio", "command": server[0], "args": server[1:]}
    settings = write_json(home / "mcp.json", {"mcpServers": {SERVER: entry}})
    arguments = ["--print", PROMPT, "--mcp-config", str(settings), "--strict-mcp-config"]
    arguments += ["--allowedTools", f"mcp__{SERVER}", "--model", MODEL]
    env = {
        "ANTHROPIC_BASE_URL": model.base_url,
        "ANTHROPIC_API_KEY": API_KEY,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "ENABLE_TOOL_SEARCH": "false",
    }
    return Launch(arguments, env)


def prepare_codex(home: Path, server: Server, model: ScriptedModel) -> Launch:
    """Codex: settings in TOML, with a provider that speaks the Responses API."""
    provider = {
        "name": "scripted",
        "base_url": f"{model.base_url}/v1",
        "env_key": "SCRIPTED_API_KEY",
        "wire_api": "responses",
    }
    # Codex starts without the tools of a server that is slow, unless the server is required.
    entry: dict[str, Any] = {"startup_timeout_sec": 60, "required": True}
    env = {"SCRIPTED_API_KEY": API_KEY}
    if isinstance(server, RemoteServer):
        entry |= {"url": server.url, "bearer_token_env_var": "RUNTIME_TOKEN"}
        env["RUNTIME_TOKEN"] = server.token
    else:
        entry |= {"command": server[0], "args": server[1:]}
    settings = {
        "model": MODEL,
        "model_provider": "scripted",
        "approval_policy": "never",
        "sandbox_mode": "danger-full-access",
        "model_providers": {"scripted": provider},
        "mcp_servers": {SERVER: entry},
    }
    folder = home / ".codex"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(tomli_w.dumps(settings))
    arguments = ["exec", "--skip-git-repo-check", PROMPT]
    return Launch(arguments, {"CODEX_HOME": str(folder), **env})


def prepare_gemini(home: Path, server: Server, model: ScriptedModel) -> Launch:
    """Gemini CLI: settings in its folder of the home folder."""
    entry: dict[str, Any] = {"trust": True}
    if isinstance(server, RemoteServer):
        entry |= {"httpUrl": server.url, "headers": server.headers}
    else:
        entry |= {"command": server[0], "args": server[1:]}
    settings = {
        "mcpServers": {SERVER: entry},
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"disableAutoUpdate": True},
    }
    write_json(home / ".gemini" / "settings.json", settings)
    arguments = ["--prompt", PROMPT, "--yolo", "--skip-trust", "--model", "gemini-2.5-flash"]
    env = {"GEMINI_API_KEY": API_KEY, "GOOGLE_GEMINI_BASE_URL": model.base_url}
    return Launch(arguments, env)


def prepare_opencode(home: Path, server: Server, model: ScriptedModel) -> Launch:
    """Opencode: settings in its configuration folder, with a provider that speaks chat."""
    entry = {
        "name": MODEL,
        "tool_call": True,
        "attachment": True,
        "modalities": {"input": ["text", "image"], "output": ["text"]},
    }
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "scripted",
        "options": {"baseURL": f"{model.base_url}/v1", "apiKey": API_KEY},
        "models": {MODEL: entry},
    }
    connection: dict[str, Any] = {"type": "local", "command": server}
    if isinstance(server, RemoteServer):
        connection = {"type": "remote", "url": server.url, "headers": server.headers}
    settings = {
        "autoupdate": False,
        "share": "disabled",
        "model": f"scripted/{MODEL}",
        "small_model": f"scripted/{MODEL}",
        "provider": {"scripted": provider},
        "mcp": {SERVER: {"enabled": True, **connection}},
    }
    write_json(home / ".config" / "opencode" / "opencode.json", settings)
    env = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1"}
    return Launch(["run", PROMPT], env)


AGENTS = [
    CodingAgent("claude", prepare_claude),
    CodingAgent("codex", prepare_codex),
    CodingAgent("gemini", prepare_gemini),
    CodingAgent("opencode", prepare_opencode),
]


def stdio_server(settings: Path) -> Server:
    """Return the command of a server with these settings."""
    return [COMMAND, "--config", str(settings), "--stdio"]


async def run_agent(agent: CodingAgent, folder: Path, server: Server, model: ScriptedModel) -> str:
    """Run an agent to its end with a home folder of its own, and return what it printed."""
    home, project = folder / "home", folder / "project"
    home.mkdir()
    project.mkdir()
    launch = agent.prepare(home, server, model)
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(home), "NO_COLOR": "1", **launch.env}
    with anyio.fail_after(AGENT_TIMEOUT_S):
        result = await anyio.run_process(
            [str(agent.command), *launch.arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            cwd=project,
            env=env,
            check=False,
        )
    return result.stdout.decode(errors="replace")
