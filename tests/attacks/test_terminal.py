"""What strangers say cannot control the terminal of a person who reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.commands import CompletedCommand, run_command
from tests.helpers.server_connection import write_settings
from tests.upstreams import own_server_entry

Run = Callable[..., CompletedCommand]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command on a terminal, with an upstream whose texts have control characters."""
    upstreams = {"hostile": own_server_entry("hostile"), "gone\x1b[2J": {"command": "/nowhere"}}
    settings: Path = write_settings(tmp_path_factory.mktemp("server"), mcpServers=upstreams)
    return lambda *words: run_command("--config", settings, *words, is_terminal=True, NO_COLOR="1")


@pytest.mark.parametrize("words", [["tools"], ["tools", "hostile"], ["doctor"], ["config", "show"]])
def test_no_control_character_reaches_the_terminal(run: Run, words: list[str]) -> None:
    done = run(*words)
    printed = done.stdout + done.stderr
    assert "hostile" in printed
    assert [char for char in set(printed) if not char.isprintable()] == ["\n"]
