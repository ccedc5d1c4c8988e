"""What a new user meets first: the version, a settings file, completion in a shell, make."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp_types.version import SUPPORTED_PROTOCOL_VERSIONS

from mcpruntime_server import __version__
from mcpruntime_server.cli.progress import show_progress
from mcpruntime_server.config import Config, load_config
from mcpruntime_server.config.loader import choose_settings_file
from mcpruntime_server.config.template import make_settings_text, read_template
from tests.helpers.commands import run_command, run_on_terminal, start_command
from tests.helpers.server_connection import COMMAND, TEST_TIMEOUT_S, write_settings

from .conftest import lively_entry

ROOT = Path(__file__).parents[2]


def test_the_version_names_the_revisions_of_the_protocol() -> None:
    revisions = ", ".join(SUPPORTED_PROTOCOL_VERSIONS)
    assert start_command("--version").stdout == (
        f"mcpruntime-server {__version__} (MCP {revisions})\n"
    )


# settings -----------------------------------------------------------------------------------------


def test_the_settings_file_to_start_from_says_nothing_but_the_defaults(tmp_path: Path) -> None:
    done = run_command("config", "init", HOME=str(tmp_path))
    file = tmp_path / ".config/mcpruntime-server/server.toml"
    assert (done.returncode, done.stdout) == (0, f"wrote {file}\n")
    assert file.stat().st_mode & 0o077 == 0
    config, default = load_config(file, environ={}), load_config(environ={})
    for section in vars(Config()):
        if section not in ("server", "skills", "sources"):  # paths beside the file
            assert getattr(config, section) == getattr(default, section), section
    assert config.sources.origins == {
        key: "file" for key in config.sources.origins if len(key) == 1
    }


def test_every_line_can_be_put_in_force_by_removing_its_mark(tmp_path: Path) -> None:
    text = make_settings_text(read_template())
    setting = re.compile(r"^# (\[[a-z.]+\]|[a-z_]+ = )", re.MULTILINE)
    uncommented = setting.sub(r"\1", text).partition("# The MCP servers")[0]
    assert uncommented.count("\n[") > 10
    file = tmp_path / "all.toml"
    file.write_text(uncommented)
    template = tmp_path / "template.toml"
    template.write_text(read_template().partition("# The MCP servers")[0])
    found, wanted = load_config(file, environ={}), load_config(template, environ={})
    assert (found.sandbox, found.llm, found.policy) == (wanted.sandbox, wanted.llm, wanted.policy)


def test_a_settings_file_that_exists_stays(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("# mine\n")
    done = run_command("config", "init", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "exists" in done.stderr
    assert run_command("config", "init", file, "--if-none").returncode == 0
    assert run_command("--config", file, "config", "init", "--if-none").returncode == 0
    assert file.read_text() == "# mine\n"


def test_the_settings_file_is_the_one_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_settings_file(Path("a.toml"), {}) == tmp_path / "a.toml"
    assert choose_settings_file(None, {"MCPRUNTIME_CONFIG": "b.toml"}) == tmp_path / "b.toml"


# completion ---------------------------------------------------------------------------------------


class BashScreen:
    """A real, interactive bash on a terminal of its own."""

    def __init__(self, home: Path) -> None:
        self._ours, theirs = pty.openpty()
        self._shown = ""
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={
                "PATH": f"{Path(COMMAND).parent}:/usr/bin:/bin",
                "HOME": str(home),
                "TERM": "dumb",
                "PS1": "READY>",
            },
            start_new_session=True,
        )
        os.close(theirs)

    def wait_for(self, text: str) -> None:
        """Wait until the shell has shown a text, behind what was waited for before."""
        while text not in self._shown:
            readable, _, _ = select.select([self._ours], [], [], TEST_TIMEOUT_S)
            assert readable, f"bash shows {self._shown!r}"
            self._shown += os.read(self._ours, 4096).decode()
        self._shown = self._shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def close(self) -> None:
        self._process.kill()
        self._process.wait(TEST_TIMEOUT_S)
        os.close(self._ours)


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[BashScreen]:
    """A shell that has loaded the script of `completion`."""
    screen = BashScreen(tmp_path)
    try:
        screen.wait_for("READY>")
        screen.type("eval \"$(mcpruntime-server completion bash)\"; echo LOADED''.\n")
        screen.wait_for("LOADED.")
        screen.wait_for("READY>")
        yield screen
    finally:
        screen.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("mcpruntime-server doc", "tor "), ("mcpruntime-server install claude-d", "esktop ")],
)
def test_a_real_bash_completes_words(typed: str, completed: str, bash: BashScreen) -> None:
    bash.type(f"{typed}\t")
    bash.wait_for(typed + completed)


@pytest.mark.parametrize(("shell", "word"), [("zsh", "compdef"), ("fish", "complete --no-files")])
def test_other_shells_get_a_script(shell: str, word: str) -> None:
    done = run_command("completion", shell)
    assert done.returncode == 0
    assert word in done.stdout


# progress -----------------------------------------------------------------------------------------


def test_what_takes_long_is_shown_on_a_terminal_and_not_in_a_pipe(tmp_path: Path) -> None:
    """The test's own server is so slow to start that the display appears."""
    slow = {"command": "sh", "args": ["-c", "sleep 1.5; exit 1"]}
    settings = write_settings(
        tmp_path, sandbox={"backend": "local"}, mcpServers={"slow": slow, "lively": lively_entry()}
    )
    shown = run_on_terminal(settings, "doctor")
    assert "Checking engine, image and MCP servers" in shown
    assert "ok    upstream lively" in shown
    piped = run_command("--config", settings, "doctor")
    assert "Checking" not in piped.stdout + piped.stderr


def test_lines_of_a_display_that_is_not_shown_are_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_progress("Working") as progress:
        progress.print_line("a step\x1b[2J")
        progress.update("Working on")
    assert capsys.readouterr().out == "a step\\x1b[2J\n"


# make ---------------------------------------------------------------------------------------------


def test_make_help_explains_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    listed = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert listed is not None
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    explained = set(re.findall(r"^make ([a-z-]+) +\S", done.stdout, re.MULTILINE))
    assert explained == set(listed[1].split())
    assert max(map(len, done.stdout.splitlines())) <= 100
