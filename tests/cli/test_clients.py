"""The commands `import`, `install`, `uninstall` and `init`, in home folders of their own."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mcpruntime_server.client_files.client_kinds import CLIENTS
from tests.client_files.client_homes import SAMPLES, make_home
from tests.helpers.commands import CompletedCommand, run_command
from tests.helpers.server_connection import COMMAND, TEST_TIMEOUT_S
from tests.upstreams import own_server_entry

TOKEN = "ghp_A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8"


def run(home: Path, *words: str, **env: Any) -> CompletedCommand:
    return run_command(*words, HOME=str(home), **env)


def settings_of(home: Path) -> Path:
    return home / ".config/mcpruntime-server/server.toml"


def write_cursor(home: Path, **entries: Any) -> Path:
    file = home / ".cursor/mcp.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"mcpServers": entries}, indent=2) + "\n")
    return file


@pytest.fixture
def cursor(tmp_path: Path) -> Path:
    """The file of a client with a server that runs, and one that cannot."""
    lively = {**own_server_entry("lively"), "env": {"LIVELY_TOKEN": TOKEN}}
    return write_cursor(tmp_path, lively=lively, absent={"command": "/no/such/program"})


def test_servers_are_taken_over_and_their_tools_counted(cursor: Path, tmp_path: Path) -> None:
    before = cursor.read_bytes()
    done = run(tmp_path, "import", "cursor")
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert "tokens of tool definitions" in done.stdout
    assert "counted with cl100k_base" in done.stdout
    assert "not counted" in done.stdout
    assert "export LIVELY_TOKEN=" in done.stdout
    assert cursor.read_bytes() == before
    settings = tomllib.loads(settings_of(tmp_path).read_text())
    assert settings["mcpServers"]["lively"]["env"] == {"LIVELY_TOKEN": "${LIVELY_TOKEN}"}
    assert settings_of(tmp_path).stat().st_mode & 0o077 == 0


def test_replacing_leaves_a_backup(cursor: Path, tmp_path: Path) -> None:
    before = cursor.read_bytes()
    done = run(tmp_path, "import", "cursor", "--replace", "--no-count")
    assert done.returncode == 0, done.stderr
    assert json.loads(cursor.read_bytes()) == {"mcpServers": {}}
    (backup,) = cursor.parent.glob("mcp.json.backup-*")
    assert backup.read_bytes() == before
    assert f"~/.cursor/{backup.name}" in done.stdout


def test_a_dry_run_shows_the_changes_and_no_credential(cursor: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "import", "cursor", "--replace", "--dry-run", "--no-count")
    assert done.returncode == 0, done.stderr
    assert '+LIVELY_TOKEN = "${LIVELY_TOKEN}"' in done.stdout
    assert '"LIVELY_TOKEN": "********"' in done.stdout
    assert TOKEN not in done.stdout
    assert not settings_of(tmp_path).exists()
    assert list(cursor.parent.iterdir()) == [cursor]


def test_one_server_of_a_file_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "theirs.json"
    file.write_text('{"servers": {"a": {"command": "x"}, "b": {"command": "y"}}}')
    done = run(tmp_path, "import", str(file), "--server", "b")
    assert done.returncode == 0, done.stderr
    assert list(tomllib.loads(settings_of(tmp_path).read_text())["mcpServers"]) == ["b"]
    assert "tokens" not in done.stdout  # the programs of a file are not started


def test_what_is_in_the_settings_stays(tmp_path: Path) -> None:
    write_cursor(tmp_path, new={"command": "x"})
    settings = tmp_path / "mine.toml"
    settings.write_text('# mine\n[sandbox]\nbackend = "local"   # for now\n')
    settings.chmod(0o640)
    done = run(tmp_path, "--config", str(settings), "import", "cursor", "--no-count")
    assert done.returncode == 0, done.stderr
    assert settings.read_text() == (
        '# mine\n[sandbox]\nbackend = "local"   # for now\n\n[mcpServers.new]\ncommand = "x"\n'
    )
    assert settings.stat().st_mode & 0o777 == 0o640


def test_broken_settings_are_not_touched(cursor: Path, tmp_path: Path) -> None:
    settings = tmp_path / "mine.toml"
    settings.write_text("[sandbox\n")
    before = cursor.read_bytes()
    done = run(tmp_path, "--config", str(settings), "import", "cursor", "--replace")
    assert (done.returncode, done.stdout) == (2, "")
    assert "line 1" in done.stderr
    assert (settings.read_text(), cursor.read_bytes()) == ("[sandbox\n", before)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_client_is_registered_shown_and_reverted(name: str, tmp_path: Path) -> None:
    client = make_home(name, tmp_path)
    before = client.file.read_bytes()
    shown = run(tmp_path, "install", name, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert any(line.startswith("+") and "--stdio" in line for line in shown.stdout.splitlines())
    assert client.file.read_bytes() == before
    first = run(tmp_path, "install", name)
    assert first.returncode == 0, first.stderr
    assert "starts this server as 'runtime'" in first.stdout
    assert "has this server already" in run(tmp_path, "install", name).stdout
    done = run(tmp_path, "uninstall", name)
    assert done.returncode == 0, done.stderr
    assert client.file.read_bytes() == before


def test_the_registered_command_leads_to_the_same_settings(tmp_path: Path) -> None:
    words = ["--config", "own.toml", "--data-dir", "~/d", "--backend", "local"]
    run(tmp_path, *words, "install", "cursor", "--env", "A=b=c", "--env", "B", B="from here")
    entry = json.loads((tmp_path / ".cursor/mcp.json").read_text())["mcpServers"]["runtime"]
    assert Path(entry["command"]).name == "mcpruntime-server"
    assert Path(entry["command"]).is_file()
    assert entry["args"] == [
        *("--stdio", "--config", str(Path.cwd() / "own.toml")),
        *("--data-dir", str(tmp_path / "d"), "--backend", "local"),
    ]
    assert entry["env"] == {"A": "b=c", "B": "from here"}


def test_an_upstream_that_needs_a_variable_is_named(tmp_path: Path) -> None:
    settings_of(tmp_path).parent.mkdir(parents=True)
    settings_of(tmp_path).write_text(
        '[mcpServers.a]\ncommand = "x"\nenv = { T = "${NEEDED}", U = "${HAS:-default}" }\n'
    )
    done = run(tmp_path, "install", "cursor")
    assert "The settings need NEEDED." in done.stdout
    assert "mcpruntime-server install cursor --env NEEDED" in done.stdout
    assert "HAS" not in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "emacs"], "is neither a client nor a file"),
        (["import", "cursor"], "Cursor has no settings at"),
        (["import", "/etc", "--project"], "--project is for clients"),
        (["install", "emacs"], "is not one of"),
        (["install", "windsurf", "--project"], "has no settings of projects"),
        (["install", "cursor", "--env", "NOT_SET"], "is not set"),
        (["uninstall", "cursor"], "does not have this server"),
        (["init"], "Add --yes"),
    ],
)
def test_mistakes_are_explained_in_a_line(words: list[str], said: str, tmp_path: Path) -> None:
    done = run(tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert list(tmp_path.rglob("*.json")) == []


def test_everything_is_set_up_without_questions(cursor: Path, tmp_path: Path) -> None:
    make_home("codex", tmp_path)
    write_cursor(tmp_path, lively={**own_server_entry("lively"), "env": {"LIVELY_TOKEN": TOKEN}})
    done = run(tmp_path, "--backend", "local", "init", "--yes", "--replace", "--client", "cursor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    upstream lively" in done.stdout
    assert "ok    client cursor" in done.stdout
    (name,) = json.loads(cursor.read_bytes())["mcpServers"]
    entry = json.loads(cursor.read_bytes())["mcpServers"][name]
    assert entry["env"] == {"LIVELY_TOKEN": TOKEN}  # where it was before
    assert TOKEN not in settings_of(tmp_path).read_text() + done.stdout
    started = subprocess.run(
        [entry["command"], *entry["args"][1:], "tools", "lively"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **entry["env"]},
    )
    compile(started.stdout, "lively", "exec")


def test_without_replace_the_client_keeps_its_servers(cursor: Path, tmp_path: Path) -> None:
    before = json.loads(cursor.read_bytes())["mcpServers"]
    run(tmp_path, "--backend", "local", "init", "--yes")
    after = json.loads(cursor.read_bytes())["mcpServers"]
    assert after.pop("runtime")
    assert after == before


def test_a_person_is_asked_and_may_say_no(cursor: Path, tmp_path: Path) -> None:
    """On a real terminal: servers are taken over but stay in the client, which is left alone."""
    before = cursor.read_bytes()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "--backend", "local", "init"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    screen = b""
    for question, answer in [
        (b"through this one?", b"y"),
        (b"backup", b"n"),
        (b"start this", b"n"),
    ]:
        while question not in screen:
            screen += os.read(ours, 4096)
        screen = b""
        os.write(ours, answer + b"\n")
    try:
        while piece := os.read(ours, 4096):
            screen += piece
    except OSError:  # how a terminal ends
        pass
    os.close(ours)
    assert process.wait(TEST_TIMEOUT_S) in (1, 2)  # the variable is not set, one server is absent
    assert cursor.read_bytes() == before
    assert "lively" in settings_of(tmp_path).read_text()


def test_clients_are_completed() -> None:
    done = run_command(
        _MCPRUNTIME_SERVER_COMPLETE="bash_complete",
        COMP_WORDS="mcpruntime-server install c",
        COMP_CWORD="2",
    )
    assert done.stdout.split() == [f"plain,{name}" for name in CLIENTS if name.startswith("c")]


def test_a_registration_whose_program_is_gone_is_a_warning(tmp_path: Path) -> None:
    write_cursor(tmp_path, runtime={"command": "/gone/mcpruntime-server", "args": ["--stdio"]})
    done = run(tmp_path, "--backend", "local", "doctor")
    assert done.returncode == 0, done.stdout
    assert "warn  client cursor: " in done.stdout
    assert "mcpruntime-server install cursor" in done.stdout
