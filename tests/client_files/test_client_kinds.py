"""Where each client keeps its servers, on each platform."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mcpruntime_server.client_files.client_kinds import CLIENTS, find_client, is_in_use
from mcpruntime_server.errors import NotFound

from .client_homes import SAMPLES, make_home, make_places

HOME = Path("/home/ann")
MAC = "Library/Application Support"
PATHS = [
    ("claude-desktop", "linux", ".config/Claude/claude_desktop_config.json"),
    ("claude-desktop", "darwin", f"{MAC}/Claude/claude_desktop_config.json"),
    ("claude-desktop", "win32", "AppData/Roaming/Claude/claude_desktop_config.json"),
    ("claude-code", "linux", ".claude.json"),
    ("claude-code", "darwin", ".claude.json"),
    ("claude-code", "win32", ".claude.json"),
    ("cursor", "linux", ".cursor/mcp.json"),
    ("cursor", "darwin", ".cursor/mcp.json"),
    ("cursor", "win32", ".cursor/mcp.json"),
    ("vscode", "linux", ".config/Code/User/mcp.json"),
    ("vscode", "darwin", f"{MAC}/Code/User/mcp.json"),
    ("vscode", "win32", "AppData/Roaming/Code/User/mcp.json"),
    ("codex", "linux", ".codex/config.toml"),
    ("codex", "darwin", ".codex/config.toml"),
    ("codex", "win32", ".codex/config.toml"),
    ("gemini", "linux", ".gemini/settings.json"),
    ("gemini", "darwin", ".gemini/settings.json"),
    ("gemini", "win32", ".gemini/settings.json"),
    ("opencode", "linux", ".config/opencode/opencode.json"),
    ("opencode", "darwin", ".config/opencode/opencode.json"),
    ("opencode", "win32", ".config/opencode/opencode.json"),
    ("windsurf", "linux", ".codeium/windsurf/mcp_config.json"),
    ("windsurf", "darwin", ".codeium/windsurf/mcp_config.json"),
    ("windsurf", "win32", ".codeium/windsurf/mcp_config.json"),
    ("zed", "linux", ".config/zed/settings.json"),
    ("zed", "darwin", ".config/zed/settings.json"),
    ("zed", "win32", "AppData/Roaming/Zed/settings.json"),
]


@pytest.mark.parametrize(("name", "platform", "path"), PATHS)
def test_the_file_of_a_client_is_where_the_platform_has_it(
    name: str, platform: str, path: str
) -> None:
    assert CLIENTS[name].locate(make_places(HOME, platform)) == HOME / path


def test_every_client_has_a_path_for_each_platform_and_a_sample() -> None:
    assert {name for name, _, _ in PATHS} == set(CLIENTS) == set(SAMPLES)
    assert len(PATHS) == 3 * len(CLIENTS)


@pytest.mark.parametrize(
    ("name", "variable", "path"),
    [
        ("claude-desktop", "XDG_CONFIG_HOME", "Claude/claude_desktop_config.json"),
        ("claude-code", "CLAUDE_CONFIG_DIR", ".claude.json"),
        ("codex", "CODEX_HOME", "config.toml"),
        ("opencode", "XDG_CONFIG_HOME", "opencode/opencode.json"),
        ("zed", "XDG_CONFIG_HOME", "zed/settings.json"),
    ],
)
def test_a_variable_of_the_client_moves_its_file(name: str, variable: str, path: str) -> None:
    places = make_places(HOME, **{variable: "/elsewhere"})
    assert CLIENTS[name].locate(places) == Path("/elsewhere") / path


def test_the_folder_of_windows_programs_is_the_one_that_its_variable_names() -> None:
    places = make_places(HOME, "win32", APPDATA="/roaming")
    assert CLIENTS["zed"].locate(places) == Path("/roaming/Zed/settings.json")


def test_the_file_of_opencode_that_exists_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / ".config/opencode"
    folder.mkdir(parents=True)
    (folder / "opencode.jsonc").touch()
    assert CLIENTS["opencode"].locate(make_places(tmp_path)) == folder / "opencode.jsonc"


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_that_has_been_started_is_found(name: str, tmp_path: Path) -> None:
    assert not is_in_use(CLIENTS[name], make_places(tmp_path))
    assert is_in_use(CLIENTS[name], make_home(name, tmp_path).places)


def test_a_client_without_settings_of_projects_says_so() -> None:
    with pytest.raises(NotFound, match="Windsurf has no settings of projects"):
        CLIENTS["windsurf"].find_file(make_places(HOME), is_project=True)
    found = CLIENTS["vscode"].find_file(make_places(HOME), is_project=True)
    assert found == Path("/home/ann/shop/.vscode/mcp.json")


def test_an_unknown_client_is_refused_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"emacs.*cursor"):
        find_client("emacs")


def test_every_client_is_on_its_page_with_its_key() -> None:
    page = (Path(__file__).parents[2] / "docs/clients.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\| `(\w+)`[^|]*\|$", page, re.MULTILINE))
    assert rows == {name: kind.key[0] for name, kind in CLIENTS.items()}
