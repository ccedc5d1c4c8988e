"""The command line: what each command prints, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import run_command, start_command
from tests.helpers.server_connection import COMMAND, write_settings
from tests.upstreams import own_server_entry

from .conftest import RunCommand, lively_entry, parse_json

COMPARISON_AND_QUESTIONS = [
    "mcpruntime_server.runtime.pending_questions",
    "mcpruntime_server.runtime.run_diff",
]


def test_without_a_command_the_help_is_printed() -> None:
    done = run_command()
    assert (done.returncode, "doctor" in done.stdout) == (2, True)


def test_the_version_is_printed() -> None:
    assert start_command("--version").stdout.startswith("mcpruntime-server ")


def test_the_shell_completes_commands() -> None:
    done = run_command(
        _MCPRUNTIME_SERVER_COMPLETE="bash_complete",
        COMP_WORDS="mcpruntime-server replay re",
        COMP_CWORD="2",
    )
    assert done.stdout.split() == ["plain,rerun", "plain,rewind"]


@pytest.mark.parametrize(
    ("words", "slow"),
    [
        (["--version"], ["anyio", "asyncio", "rich", "sqlite3", "mcpruntime_server.config"]),
        (["sessions"], ["mcp", "pydantic", *COMPARISON_AND_QUESTIONS]),
        (["runs", "report"], ["mcp", "pydantic", *COMPARISON_AND_QUESTIONS]),
        (["replay", "show", "report:2"], ["mcp", "pydantic", *COMPARISON_AND_QUESTIONS]),
    ],
)
def test_a_command_imports_nothing_slow_that_it_does_not_need(
    used: Path, words: list[str], slow: list[str]
) -> None:
    code = (
        "import sys\nfrom mcpruntime_server.cli import main\n"
        f"main(['--config', {str(used)!r}, *{words}])\n"
        f"print(sys.modules.keys() & {set(slow)})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_an_unknown_command_is_refused() -> None:
    done = run_command("dance")
    assert (done.returncode, done.stdout) == (2, "")
    assert "dance" in done.stderr


@pytest.mark.parametrize("words", [["--stdio"], ["doctor"], ["sessions"], ["config", "show"]])
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[sandbox]\nmemory_mb = 'much'\n", "memory_mb"),
        ("[sandbox]\nmemroy_mb = 5\n", "memory_mb"),
        ("[sandbox\n", "line 1"),
        ("[mcpServers.x]\n", "command"),
        ("[server]\nresult_chars = 0\n", "result_chars"),
    ],
)
def test_broken_settings_are_explained_and_nothing_is_printed(
    tmp_path: Path, words: list[str], text: str, word: str
) -> None:
    path = tmp_path / "server.toml"
    path.write_text(text)
    done = run_command("--config", path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(path) in done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    done = run_command("--config", tmp_path / "absent.toml", "--stdio")
    assert (done.returncode, done.stdout) == (2, "")
    assert "absent.toml" in done.stderr


def test_sessions_and_runs_are_listed_for_people_and_for_programs(run: RunCommand) -> None:
    assert "report" in run("sessions").stdout
    assert run("sessions").stdout == run("replay", "list").stdout
    sessions = {row["name"]: row for row in parse_json(run("sessions", "--json"))}
    assert {name: row["run_count"] for name, row in sessions.items()} == {"report": 5, "try": 1}
    assert run("runs", "report").stdout == run("replay", "list", "report").stdout
    assert parse_json(run("runs", sessions["report"]["id"], "--json")) == parse_json(
        run("replay", "list", "report", "--json")
    )


def test_a_run_is_shown_event_by_event(run: RunCommand) -> None:
    lines = run("runs", "report", "2", "--json").stdout.splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds[0] == "RunStarted"
    assert {"RunFinished", "FilesChanged"} <= set(kinds)
    assert kinds.count("CallStarted") == kinds.count("CallFinished") >= 1
    shown = run("runs", "report", "1").stdout
    assert "print('hello')" in shown
    assert "hello" in shown


@pytest.mark.parametrize(
    "words", [["runs", "nobody"], ["runs", "report", "r_none"], ["runs", "report", "9"]]
)
def test_unknown_sessions_and_runs_are_refused(run: RunCommand, words: list[str]) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_tools_and_their_module_are_listed(used: Path) -> None:
    assert "tools.lively.echo(" in run_command("--config", used, "tools").stdout
    listed = json.loads(run_command("--config", used, "tools", "--json").stdout)
    assert "echo" in [tool["tool"] for tool in listed["tools"]]
    module = run_command("--config", used, "tools", "lively").stdout
    compile(module, "lively", "exec")
    absent = run_command("--config", used, "tools", "livly")
    assert absent.returncode != 0
    assert "Did you mean 'lively'?" in absent.stderr


def test_doctor_finds_nothing_wrong_or_names_the_remedy(used: Path, tmp_path: Path) -> None:
    well = run_command("--config", used, "doctor")
    assert well.returncode == 0, well.stdout + well.stderr
    assert "WITHOUT isolation" in well.stdout
    broken = write_settings(
        tmp_path / "broken", sandbox={"backend": "docker"}, mcpServers={"x": {"command": "/no"}}
    )
    ill = run_command("--config", broken, "doctor", DOCKER_HOST="unix:///nonexistent.sock")
    assert ill.returncode == 1
    failing = [line for line in ill.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failing) == ill.stdout.count("      -> ") >= 2
    listed = json.loads(
        run_command(
            "--config", broken, "doctor", "--json", DOCKER_HOST="unix:///nonexistent.sock"
        ).stdout
    )
    assert {"name", "is_ok", "detail", "remedy"} <= set(listed[0])


def test_settings_are_shown_with_their_origin_and_without_secrets(tmp_path: Path) -> None:
    server = {**lively_entry(), "env": {"TOKEN": "${SECRET_TOKEN}"}}
    path = write_settings(tmp_path, mcpServers={"lively": server})
    done = run_command("--config", path, "config", "show", SECRET_TOKEN="hunter2")
    assert done.returncode == 0, done.stderr
    assert "memory_mb" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", ["config show", "replay report", "runs report 1 --json"])
def test_a_reader_that_leaves_early_is_no_error(used: Path, words: str) -> None:
    script = f"{COMMAND} --config {used} {words} | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    closed = subprocess.run(
        ["bash", "-c", f"{COMMAND} --config {used} {words} | true"],
        capture_output=True,
        check=False,
    )
    assert closed.stderr == b""


def test_doctor_names_policy_rules_without_a_server(tmp_path: Path) -> None:
    settings = tmp_path / "server.toml"
    settings.write_text(
        f'[server]\ndata_dir = "{tmp_path / "data"}"\n[sandbox]\nbackend = "local"\n'
        '[policy.tools]\n"nowhere.*" = "deny"\n'
    )
    done = run_command("--config", settings, "doctor")
    assert done.returncode == 0
    assert "warn  policy: The rule nowhere.* matches no server." in done.stdout


def test_doctor_quotes_the_stderr_of_an_upstream_that_died(tmp_path: Path) -> None:
    settings = write_settings(
        tmp_path, sandbox={"backend": "local"}, mcpServers={"dies": own_server_entry("raw", "dies")}
    )
    done = run_command("--config", settings, "doctor")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    [place] = [n for n, line in enumerate(lines) if line.startswith("FAIL  upstream dies: ")]
    assert "it exited before it was ready" in lines[place]
    log = tmp_path / "data" / "logs" / "upstream-dies.log"
    assert f"Its stderr is in {log} and ends with 'I cannot go on'." in lines[place + 1]


def test_doctor_lists_tools_that_declare_nothing(tmp_path: Path) -> None:
    hinted = own_server_entry("hinted")

    def lines(*reads: str) -> list[str]:
        settings = write_settings(
            tmp_path,
            sandbox={"backend": "local"},
            mcpServers={"hinted": hinted},
            policy={"reads": [*reads]},
        )
        done = run_command("--config", settings, "doctor")
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    shown = lines()
    warning = (
        "warn  upstream hinted: 3 of 8 tools have no annotations on effects and count as writing: "
        "nothing, no_hints, open"
    )
    assert shown[shown.index(warning) + 1] == (
        '      -> Name those that only read: [policy] reads = ["hinted.nothing", ...].'
    )
    assert any(": 1 of 8 tools" in line and line.endswith(": open") for line in lines("hinted.no*"))
    assert not any("annotations" in line for line in lines("hinted"))
    assert "warn  policy: The rule nowhere.get_* matches no server." in lines("nowhere.get_*")
