"""What strangers say cannot control the terminal of a person who reads it.

Every command of the command line is run on data whose names and texts are hostile. The commands are
found in the parser, so a new one fails here until it is covered.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import click
import pytest
from mcp.types import Implementation

from bench import fake_llm
from mcpruntime_server import cli
from mcpruntime_server.capabilities.skills.store import SkillStore
from mcpruntime_server.cli.command_line import command_line
from mcpruntime_server.cli.demo.demo_console import DemoConsole
from mcpruntime_server.cli.terminal_text import EscapingFormatter, print_json, print_text
from tests.capabilities.agent.conftest import program_answer
from tests.helpers.commands import CompletedCommand, Output, run_command, run_on_terminal
from tests.helpers.server_connection import connect_server, write_settings
from tests.helpers.server_killing import start_ready_server
from tests.upstreams import own_server_entry

FOREIGN_STYLE = "\x1b[35;7m"  # which no command uses
HOSTILE = (
    f"{FOREIGN_STYLE}a\x1b]0;title\x07\x1b[2J\x1b[1A\x1bc\x9b2J\x9d0;x\x9c\rb\x08\x08c\x7f\x00"
    "\u202ed\u2066e\u200bf\u200dg\ufeffh\u2028i\u2029j\x85k\x0bl\x0cm\x1cn\U000e0041"
)
CLIENT_FILE = ".cursor/mcp.json"
FILE_NAME = HOSTILE.replace("\0", "").replace("/", "")[:40]
LONG_LINE = f"{HOSTILE}" + "x" * 1_000_000
OWN_STYLES = re.compile(r"\x1b\[[0-9;]*m")
# The line that shows progress is rewritten, and the cursor is hidden meanwhile.
OWN_PROGRESS = re.compile(r"\r(?:\x1b\[1A)?\x1b\[2K|\x1b\[\?25[lh]")
MODES: dict[str, dict[str, Any]] = {
    "a terminal": {"is_terminal": True, "TERM": "xterm-256color"},
    "a terminal without colours": {"is_terminal": True, "NO_COLOR": "1"},
    "a pipe": {},
}
CODE = f"""\
from tools import lively
h = {HOSTILE!r}
lively.echo(text=h)
print(h + 'x' * 10_000, h, sep='\\n')
open({FILE_NAME!r}, 'w').write(h)
h
"""
FAILURE = """\
import sys
sys.stderr.write(h + '\\udcff')
try: lively.fail(text=h)
except Exception: pass
raise type(h.replace('\\0', ''), (Exception,), {})(h + '\\ud800')
"""
SKILL = f'''def run(a: int) -> int:
    """{HOSTILE.encode("unicode_escape").decode()}"""
    return a
'''
WAITING = f"from tools import asked\nasked.echo(text={HOSTILE!r})"
# The words of each command; names in braces are those of `Prepared`.
COMMANDS: dict[tuple[str, ...], list[str]] = {
    ("agent",): ["agent {hostile} --max-steps 2"],
    ("approvals",): ["approvals", "approvals {waiting} all allow", "approvals {hostile}"],
    ("backup",): ["backup {folder}/backup.tar", "backup {folder}/{hostile}/x"],
    ("completion",): [],  # its texts are this program's own
    ("config", "init"): ["config init {folder}/{hostile}/x", "config init {broken}"],
    ("config", "show"): ["config show"],
    ("credentials", "encrypt-again"): ["credentials encrypt-again"],
    ("credentials", "list"): ["credentials list"],
    ("credentials", "new-key"): ["credentials new-key"],
    ("credentials", "remove"): ["credentials remove {hostile} --principal {hostile}"],
    ("credentials", "set"): ["credentials set {hostile} --principal {hostile}"],
    ("demo",): [],  # runs its own programs on its own data; `DemoConsole` is tested below
    ("doctor",): ["doctor"],
    ("files",): ["files report", "files report get *", "files report get {hostile}"],
    ("gc",): ["gc --dry-run"],
    ("image", "build"): ["image build"],
    ("import",): ["import {client_file} --count --dry-run", "import {broken}"],
    ("init",): ["init --yes --client cursor --no-import"],
    ("install",): ["install cursor --dry-run --name {hostile}", "install cursor --env {hostile}"],
    ("packages", "prune"): ["packages", "packages prune --days 0"],
    ("replay", "ask"): ["replay ask report:1 h", "replay ask {hostile} 1"],
    ("replay", "cancel"): ["replay cancel report:1", "replay cancel {hostile}"],
    ("replay", "diff"): ["replay diff report:1 report:2", "replay diff report {fork}"],
    ("replay", "export"): ["replay export report {folder}/out.zip --force"],
    ("replay", "fork"): ["replay fork report 1", "replay fork report {hostile}"],
    ("replay", "import"): ["replay import {archive}", "replay import {broken}"],
    ("replay", "list"): ["replay list", "replay list --all", "replay list report"],
    ("replay", "delete"): ["replay delete no{hostile} --yes"],
    ("replay", "pin"): ["replay pin report:1 --reason {hostile}"],
    ("replay", "probe"): ["replay probe report:1 5 h", "replay probe {hostile} 1 h"],
    ("replay", "rerun"): ["replay rerun report 1"],
    ("replay", "rewind"): ["replay rewind {fork} 1", "replay rewind {hostile} 1"],
    ("replay", "show"): ["replay show report", "replay show {fork}", "replay show {hostile}x"],
    ("replay", "unpin"): ["replay unpin report:2"],
    ("replay", "variables"): ["replay variables report:1", "replay variables {hostile}"],
    ("restore",): ["restore {broken}", "restore {folder}/{hostile}"],
    ("runs",): ["runs report", "runs report 1", "runs report 2"],
    ("sessions",): ["sessions", "sessions --all"],
    ("skills", "check"): ["skills check shout", "skills check {hostile}"],
    ("skills", "diff"): ["skills diff shout@1 shout@2"],
    ("skills", "export"): ["skills export shout {folder}/skill.zip --force"],
    ("skills", "import"): ["skills import {folder}/skill.zip", "skills import {broken}"],
    ("skills", "list"): ["skills list --all"],
    ("skills", "promote"): ["skills promote shout"],
    ("skills", "retire"): ["skills retire shout@1"],
    ("serve",): ["serve --host {hostile}"],
    ("skills", "show"): ["skills show shout", "skills show {hostile}"],
    ("skills", "share"): ["skills share shout", "skills share {hostile}"],
    ("skills", "unshare"): ["skills unshare shout", "skills unshare {hostile}"],
    ("skills", "sign"): ["skills sign shout --key {folder}/key"],
    ("token", "create"): ["token create {hostile}", "token create ann"],
    ("token", "list"): ["token list"],
    ("token", "revoke"): ["token revoke {hostile}"],
    ("uninstall",): ["uninstall cursor", "uninstall cursor --name {hostile}"],
    ("view",): ["view --port {hostile}"],  # its pages are tested in a browser
    ("tools",): ["tools", "tools hostile", "tools {hostile}"],
}
SLOW = {
    "agent",
    "doctor",
    "image build",
    "import",
    "init",
    "replay fork",
    "replay rerun",
    "skills check",
    "tools",
}
CLI = Path(cli.__file__).parent
# The last one holds code for a sandbox.
WRITERS = {"terminal_text.py", "console.py", "demo_console.py", "programs.py"}
PRINTING = re.compile(r"(?<![\w.])print\(|click\.secho\(|std(?:out|err)\.write\(|rich\.print")
CASES = [(path, line) for path, lines in COMMANDS.items() for line in lines]


@dataclass(frozen=True)
class Prepared:
    """A data folder in which everything that a stranger may choose is hostile."""

    settings: Path
    fork: str  # the id of a session with a hostile name
    waiting: str  # a run that waits for an approval

    def complete(self, line: str) -> list[str]:
        """Return the words of a command line with the names filled in."""
        folder = self.settings.parent
        names = {
            "hostile": HOSTILE.replace("\0", ""),
            "fork": self.fork,
            "waiting": self.waiting,
            "folder": str(folder),
            "archive": str(folder / "changed.zip"),
            "broken": str(folder / f"broken{FILE_NAME}.zip"),
            "client_file": str(folder / CLIENT_FILE),
        }
        return [word.format_map(names) for word in line.split()]

    def run(self, words: list[str], **mode: Any) -> CompletedCommand:
        """Run a command; the client `cursor` of its home folder has hostile servers."""
        home = str(self.settings.parent)
        return run_command("--config", self.settings, *words, HOME=home, **mode)


@pytest.fixture(scope="module")
def model() -> Iterator[fake_llm.ModelServer]:
    """A model whose programs and answers are hostile."""
    with fake_llm.start_model_server() as server:
        program = program_answer(f"print({HOSTILE!r})\nSUBMIT({HOSTILE!r})", HOSTILE)
        server.set_script({"match": ".*", "reply": program})
        yield server


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, model: fake_llm.ModelServer) -> Prepared:
    """The data of a server that strangers have used."""
    folder = tmp_path_factory.mktemp("hostile")
    settings = write_settings(
        folder,
        sandbox={"backend": "local", "pool_size": 0},
        llm={"model": "echo", "api_base": model.url, "api_key": fake_llm.API_KEY, "retries": 0},
        policy={"tools": {"asked.echo": "ask"}},
        mcpServers={
            "hostile": own_server_entry("hostile"),
            "lively": own_server_entry("lively"),
            "asked": own_server_entry("lively"),
            "gone\x1b[2J": {"command": "/nowhere\x1b[2J"},
        },
    )
    waiting = anyio.run(use_server, settings)
    prepared = Prepared(settings, make_names_hostile(folder), waiting)
    change_archive(prepared)
    write_client_file(folder)
    return prepared


def write_client_file(folder: Path) -> None:
    """Write the configuration of a client whose servers have hostile names and values."""
    servers = {
        HOSTILE: {"command": HOSTILE, "args": [HOSTILE], "env": {HOSTILE: HOSTILE}},
        "theirs": {**own_server_entry("hostile"), "env": {"API_TOKEN": HOSTILE.replace("\0", "")}},
        "remote": {"url": f"https://example.com/{HOSTILE}", "headers": {HOSTILE: HOSTILE}},
    }
    (folder / CLIENT_FILE).parent.mkdir()
    (folder / CLIENT_FILE).write_text(json.dumps({"mcpServers": servers}))


async def use_server(settings: Path) -> str:
    """Do what a hostile client and its code may do; return a run that waits."""
    client = Implementation(name=HOSTILE, version=HOSTILE)
    async with connect_server(settings, client_info=client) as server:
        first = await server.run(CODE, "report")
        assert first.status == "ok", first.text
        assert (await server.run(FAILURE, "report")).status == "error"
        forked = await server.replay("fork", "report", step=1, name="try")
        assert not forked.is_error, forked.text
        await server.run("print(h * 2)", "try")
        await server.run("print('\\x1b[2J' + 'x' * 1_000_000)", "long")
        for number in (1, 2):
            code = SKILL.replace("return a", f"return a + {number}")
            saved = await server.client.call_tool("save_skill", {"code": code, "name": "shout"})
            assert not saved.is_error, saved
        waiting = await server.run(WAITING, "asking")
        assert waiting.status == "waiting", waiting.text
    return str(waiting.run)


def make_names_hostile(folder: Path) -> str:
    """Write names that the server would not have accepted; return the session that has one."""
    text = HOSTILE.replace("\0", "")
    with closing(sqlite3.connect(folder / "data" / "journal.db")) as rows, rows:
        (fork,) = rows.execute("SELECT id FROM sessions WHERE name = 'try'").fetchone()
        rows.execute("UPDATE sessions SET name = ? WHERE id = ?", (text, fork))
        rows.execute("UPDATE runs SET status = ? WHERE session_id = ?", (text, fork))
    store = SkillStore(folder / "skills_store")
    skill = store.all_versions()["shout"][-1]
    store.record_event(skill, "tool_changed", (HOSTILE, "x" * 1_000_000))
    (folder / "skills_store" / FILE_NAME).mkdir()
    return str(fork)


def change_archive(prepared: Prepared) -> None:
    """Write an archive with a hostile text in each value, and a broken one with a hostile name."""
    folder = prepared.settings.parent
    done = prepared.run(["replay", "export", "report", str(folder / "whole.zip")])
    assert done.returncode == 0, done.stderr
    (folder / f"broken{FILE_NAME}.zip").write_bytes(HOSTILE.encode())
    hostile = json.dumps(HOSTILE)[1:-1].encode()
    with (
        zipfile.ZipFile(folder / "whole.zip") as whole,
        zipfile.ZipFile(folder / "changed.zip", "w") as changed,
    ):
        for name in whole.namelist():
            data = whole.read(name)
            if name == "events.jsonl":
                data = data.replace(b"<step", hostile + b"<step")
            changed.writestr(name, data)


def find_commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each command that does something itself."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from find_commands(command, (*path, name))
        else:
            yield *path, name


def find_command(path: tuple[str, ...]) -> click.Command:
    """Return the command with this path."""
    command: click.Command | None = command_line
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command is not None
    return command


def find_variants(path: tuple[str, ...]) -> list[list[str]]:
    """Return the options that change what a command prints, and none."""
    options = {option for each in find_command(path).params for option in each.opts}
    variants: list[list[str]] = [[]]
    return variants + [[each] for each in ("--json", "--full") if each in options]


def check_printed(text: str) -> None:
    """Assert that a text is printable lines, styled by this program alone."""
    assert FOREIGN_STYLE not in text
    plain = OWN_PROGRESS.sub("", OWN_STYLES.sub("", text))
    assert sorted({char for char in plain if not char.isprintable()} - {"\n"}) == []


def test_every_command_is_covered() -> None:
    assert set(find_commands(command_line)) == set(COMMANDS)


@pytest.mark.parametrize(("path", "line"), CASES, ids=[line for _, line in CASES])
def test_no_command_prints_control_characters(
    prepared: Prepared, path: tuple[str, ...], line: str
) -> None:
    is_slow = line.startswith(tuple(SLOW))
    modes = list(MODES.values())[: 1 if is_slow else None]
    for options in find_variants(path)[: 1 if is_slow else None]:
        for mode in modes:
            done = prepared.run([*prepared.complete(line), *options], **mode)
            assert done.stdout + done.stderr
            assert "Traceback" not in done.stderr
            check_printed(done.stdout + done.stderr)
            if not mode:
                assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "approvals",
        "config show",
        "files report",
        "replay list --all",
        "replay list report",
        "replay show report",
        "replay show {fork}",
        "runs report 1",
        "sessions",
        "skills show shout",
    ],
)
def test_what_is_hostile_is_spelled_out(prepared: Prepared, line: str) -> None:
    shown = prepared.run(prepared.complete(line)).stdout
    assert re.search(r"\\(x|u00)1b\[", shown)


@pytest.mark.parametrize("words", [["replay", "show", "report", "--full"], ["config", "show"]])
@pytest.mark.parametrize("no_color", ["", "1"], ids=["colours", "no colours"])
def test_a_real_terminal_gets_no_control_characters(
    prepared: Prepared, words: list[str], no_color: str
) -> None:
    shown = run_on_terminal(prepared.settings, *words, NO_COLOR=no_color)
    assert shown
    check_printed(shown.replace("\r\n", "\n"))
    assert ("\x1b" in shown) == (not no_color and words[0] == "replay")


@pytest.mark.parametrize("words", [["\x1b[2J"], ["tools", "a", "\x1b[2J"], ["--\x1b[2J"]])
def test_mistakes_in_pasted_commands_are_shown_harmlessly(words: list[str]) -> None:
    done = run_command(*words)
    assert done.returncode == 2
    check_printed(done.stderr)


async def test_the_log_has_no_control_characters(tmp_path: Path) -> None:
    settings = write_settings(tmp_path, sandbox={"image": f"none{HOSTILE}"})
    async with start_ready_server(settings) as server:
        call = {"name": "run_code", "arguments": {"code": "1"}}
        assert (await server.request("tools/call", call))["isError"]
        await server.send_message({"id": 99, "method": HOSTILE, "params": {HOSTILE: HOSTILE}})
        await server.send_message({"method": HOSTILE, "params": {HOSTILE: HOSTILE}})
        await server.close()
    for log in (settings.with_suffix(".log"), tmp_path / "data" / "logs" / "server.log"):
        text = await anyio.Path(log).read_text()
        assert "\\x1b[2J" in text
        check_printed(text)


def test_tracebacks_in_the_log_have_no_control_characters() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError as exc:
        record = logging.makeLogRecord({"msg": HOSTILE, "exc_info": (ValueError, exc, None)})
    check_printed(EscapingFormatter().format(record))


def test_the_demo_shows_foreign_text_harmlessly() -> None:
    out = Output(is_terminal=True)
    screen = DemoConsole(out)
    screen.write_heading(HOSTILE)
    screen.write_fact(HOSTILE, HOSTILE)
    screen.write_program(HOSTILE)
    screen.write_streamed(HOSTILE)
    screen.write_block(HOSTILE)
    screen.write_table(["text", "n"], [[HOSTILE, "1"]])
    check_printed(out.text)


def test_a_line_of_a_million_characters_is_escaped_and_cut(prepared: Prepared) -> None:
    shown = prepared.run(["replay", "show", "long"]).stdout
    assert max(map(len, shown.splitlines())) < 5_000
    out = io.StringIO()
    print_text(LONG_LINE + "\ud800", out)
    check_printed(out.getvalue())


def test_json_is_ascii_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({HOSTILE: [HOSTILE + "\ud800"]})
    printed = capsys.readouterr().out
    assert printed.isascii()
    check_printed(printed)
    assert json.loads(printed) == {HOSTILE: [HOSTILE + "\ud800"]}


def test_nothing_else_prints() -> None:
    for file in CLI.rglob("*.py"):
        if file.name not in WRITERS:
            assert not PRINTING.search(file.read_text()), file
