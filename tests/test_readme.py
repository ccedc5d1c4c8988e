"""The documents are true: commands are understood, settings load, limits hold, rooms exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from mcpruntime_server import APP_NAME, errors
from mcpruntime_server.cli.command_line import COMMAND_MODULES, command_line
from mcpruntime_server.config import Config, load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SERVICE = (ROOT / "docs/service.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
COMMAND = re.compile(r"(?:^|`)(mcpruntime-server [^`#\n]+)", re.MULTILINE)
COMMANDS = sorted({*COMMAND.findall(README), *COMMAND.findall(SERVICE)})


def blocks(language: str, document: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document, re.MULTILINE | re.DOTALL)


def parse_command(line: str) -> dict[str, Any]:
    """Return the parameters that a command line gets; raises `click.UsageError`."""
    command: click.Command | None = command_line
    words = shlex.split(line)[1:]
    context = command_line.make_context(APP_NAME, words)
    parameters = dict(context.params)
    while isinstance(command, click.Group) and (words := [*context._protected_args, *context.args]):
        name, command, words = command.resolve_command(context, words)
        assert command is not None
        context = command.make_context(name, words, parent=context)
        parameters |= context.params
    return parameters


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_documents_is_understood(command: str) -> None:
    parse_command(command)


def test_every_command_is_in_the_readme() -> None:
    assert [name for name in COMMAND_MODULES if f"{APP_NAME} {name}" not in README] == []


def test_the_settings_in_the_documents_load(tmp_path: Path) -> None:
    servers, providers = set(), set()
    for number, text in enumerate([*blocks("toml"), *blocks("toml", SERVICE)]):
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
    assert parse_command(shlex.join([entry["command"], *entry["args"]]))["stdio"]


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


def test_the_limits_in_security_md_are_the_defaults() -> None:
    security = (ROOT / "SECURITY.md").read_text("utf-8")
    rows = re.findall(r"^\|[^|]*\|([^|]*`\[(\w+)\] [^|]*)\|([^|]*)\|$", security, re.MULTILINE)
    assert rows
    for names, section, defaults in rows:
        for name in re.findall(r"(\w+)`", names):
            value = getattr(getattr(Config(), section), name, None)
            shown = f"{value:,g}" if isinstance(value, int | float) else str(value or "")
            assert shown in defaults, (section, name)


def test_every_room_in_architecture_md_exists() -> None:
    drawn = re.search(r"## Rooms\n```\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert drawn is not None
    named = [line.split()[0] for line in drawn[1].splitlines()]
    source = ROOT / "src" / "mcpruntime_server"
    assert [name for name in named if not (source / name).exists()] == []
    there = {path.name for path in source.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert there - {name.rstrip("/") for name in named} - {"__init__.py", "__pycache__"} == set()
