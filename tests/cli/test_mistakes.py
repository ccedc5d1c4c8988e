"""Mistakes in command lines: one line that says what is wrong and what to do, and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mcpruntime_server import APP_NAME
from mcpruntime_server.cli.command_line import command_line
from tests.helpers.commands import CompletedCommand, run_command
from tests.helpers.server_connection import write_settings

OWN_EXIT_CODES = (1, 2, 3)  # of the table in docs/reference/command-line.md, for what went wrong
ABSENT = "no-such-thing"
NEEDS_NO_NAME = {  # commands whose arguments may be anything: a path to write, a text, a new name
    ("agent",),
    ("backup",),
    ("config", "init"),
    ("token", "create"),
}
OPTIONS_THAT_MUST_BE_GIVEN: dict[tuple[str, ...], list[str]] = {
    ("replay", "delete"): ["--yes"],
    ("replay", "rewind"): ["1"],
    ("replay", "fork"): ["1"],
    ("replay", "rerun"): ["1"],
}


def walk(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command that does something."""
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=APP_NAME)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(found, (*words, name))
    else:
        yield words


def find(words: tuple[str, ...]) -> click.Command:
    command: click.Command = command_line
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


COMMANDS = sorted(walk(command_line))
NAMED = [
    words
    for words in COMMANDS
    if words not in NEEDS_NO_NAME
    and any(isinstance(each, click.Argument) and each.required for each in find(words).params)
]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write_settings(tmp_path, sandbox={"backend": "local"})


def run(settings: Path, *words: str) -> CompletedCommand:
    return run_command("--config", settings, *words, HOME=str(settings.parent))


def check_mistake(done: CompletedCommand) -> None:
    """Check that a mistake is one line with a remedy on stderr, and a code of the table."""
    assert done.returncode in OWN_EXIT_CODES, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith(APP_NAME)
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    sentences = lines[0].partition(": ")[2].split(". ")
    assert len(sentences) >= 2 or "`" in lines[0], f"no remedy: {lines[0]}"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_unknown_option_is_a_line_that_leads_to_the_help(
    settings: Path, words: tuple[str, ...]
) -> None:
    done = run(settings, *words, "--dance")
    check_mistake(done)
    assert done.returncode == 2
    assert "--dance" in done.stderr
    assert f"See `{APP_NAME} {' '.join(words)} --help`." in done.stderr


@pytest.mark.parametrize("words", NAMED, ids=" ".join)
def test_a_missing_argument_is_named(settings: Path, words: tuple[str, ...]) -> None:
    done = run(settings, *words)
    check_mistake(done)
    assert done.returncode == 2
    assert "Missing argument" in done.stderr


@pytest.mark.parametrize("words", NAMED, ids=" ".join)
def test_a_name_that_does_not_exist_is_a_line_with_a_remedy(
    settings: Path, words: tuple[str, ...]
) -> None:
    required = [
        each for each in find(words).params if isinstance(each, click.Argument) and each.required
    ]
    values = [ABSENT] * len(required)
    check_mistake(run(settings, *words, *values, *OPTIONS_THAT_MUST_BE_GIVEN.get(words, [])))


@pytest.mark.parametrize("words", [["dance"], ["--backend", "podman", "doctor"], ["--port"]])
def test_a_mistake_before_the_command_is_a_line(settings: Path, words: list[str]) -> None:
    done = run(settings, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(APP_NAME)
