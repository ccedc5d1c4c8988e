"""What README.md and ARCHITECTURE.md say is true: commands parse, settings load, codes and modules exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from mcpruntime_server import cli, errors
from mcpruntime_server.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
COMMANDS = sorted(set(re.findall(r"(?:^|`)(mcpruntime-server [^`#\n]+)", README, re.MULTILINE)))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_readme_is_understood(command: str) -> None:
    options = cli.create_parser().parse_args(shlex.split(command)[1:])
    assert options.stdio or options.verb is not None


def test_every_verb_is_in_the_readme() -> None:
    verbs = re.search(r"^  \{(.*?)\}", cli.create_parser().format_help(), re.MULTILINE)
    listed = (
        verbs[1].split(",")
        if verbs
        else re.findall(r"^    (\w+) ", cli.create_parser().format_help(), re.MULTILINE)
    )
    assert listed
    assert [verb for verb in listed if f"mcpruntime-server {verb}" not in README] == []


def test_the_settings_in_the_readme_load(tmp_path: Path) -> None:
    servers, providers = set(), set()
    for number, text in enumerate(blocks("toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(text, "utf-8")
        config = load_config(file, environ={"TRACKER_TOKEN": "secret"})
        servers |= set(config.mcpServers)
        providers |= set(config.knowledge)
    assert servers == {"git", "tracker"}
    assert providers == {"handbook", "shop", "modules"}


def test_the_client_configuration_in_the_readme_starts_this_program() -> None:
    (text,) = blocks("json")
    entry = json.loads(text)["mcpServers"]["runtime"]
    assert entry["command"] == "mcpruntime-server"
    assert cli.create_parser().parse_args(entry["args"]).stdio


def test_the_examples_in_the_readme_are_python() -> None:
    examples = blocks("python")
    assert examples
    for text in examples:
        compile(text, "README.md", "exec")


def test_every_error_code_is_in_the_readme() -> None:
    classes: list[type[errors.McpRuntimeError]] = errors.McpRuntimeError.__subclasses__()
    codes = {cls.code for cls in classes}
    assert {code for code in codes if f"`{code}`" not in README} == set()


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert {
        target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)
    } == set()


def test_every_room_in_architecture_md_exists() -> None:
    drawn = re.search(r"## Rooms\n```\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert drawn is not None
    named = [line.split()[0] for line in drawn[1].splitlines()]
    source = ROOT / "src" / "mcpruntime_server"
    assert [name for name in named if not (source / name).exists()] == []
    there = {path.name for path in source.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert there - {name.rstrip("/") for name in named} - {"__init__.py", "__pycache__"} == set()
