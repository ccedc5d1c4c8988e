"""The commands show what is the local user's, or what is of the principal that is named."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcpruntime_server.journal.principals import LOCAL_PRINCIPAL

from ..helpers.commands import run_command
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import write_settings
from ..server.conftest import upstream_entry
from ..server.test_approvals import ASK

OWNER = "ann"
ASKING_CODE = "from tools.counted import add\nadd(item='x')"


@pytest.fixture(scope="module")
async def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[HttpService, str, str]]:
    """Yield a service, the session of a user, and a run of it that waits for an approval."""
    folder = tmp_path_factory.mktemp("principals")
    settings = write_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
        sandbox={"backend": "local", "pool_size": 0},
        policy=ASK,
    )
    async with (
        open_http_service(settings) as service,
        service.connect(service.create_token(OWNER)) as client,
    ):
        done = await client.run("open('f', 'w').write('x')\n1", "theirs")
        waits = await client.run(ASKING_CODE, "asking", wait_s=1)
        assert (done.status, waits.status) == ("ok", "waiting")
        yield service, done.run, waits.run


def commands(run: str, asking: str, folder: Path) -> list[list[str]]:
    return [
        ["replay", "show", "theirs"],
        ["replay", "list", "theirs"],
        ["replay", "diff", run, "theirs:1"],
        ["replay", "export", "theirs", str(folder / "theirs.zip")],
        ["replay", "fork", "theirs", "1"],
        ["replay", "pin", run],
        ["replay", "unpin", run],
        ["runs", "theirs"],
        ["runs", "theirs", run],
        ["files", "theirs"],
        ["files", "theirs", "get", "f"],
        ["approvals", asking, "all", "deny"],
        ["replay", "cancel", asking],
    ]


async def test_nothing_of_others_is_shown_or_changed_unless_they_are_named(
    served: tuple[HttpService, str, str], tmp_path: Path
) -> None:
    service, run, asking = served
    config = ("--config", service.settings)
    assert "theirs" not in run_command(*config, "sessions", "--all").stdout
    assert json.loads(run_command(*config, "sessions", "--json").stdout) == []
    assert json.loads(run_command(*config, "approvals", "--json").stdout) == []
    named = run_command(*config, "sessions", "--principal", OWNER).stdout
    assert "theirs" in named
    assert "asking" in named
    command = [*map(str, config), "approvals", "--principal", OWNER]
    assert asking in run_command(*command).stdout
    for words in commands(run, asking, tmp_path):
        for principal in (LOCAL_PRINCIPAL, "bob", "https://id.example.org#ann"):
            refused = run_command(*config, *words, "--principal", principal)
            assert refused.returncode == 2, (words, refused.stdout)
            assert "x" not in refused.stdout
    for words in commands(run, asking, tmp_path):
        allowed = run_command(*config, *words, "--principal", OWNER)
        assert allowed.returncode == 0, (words, allowed.stderr)


async def test_a_run_of_others_is_refused_like_one_that_does_not_exist(
    served: tuple[HttpService, str, str],
) -> None:
    service, run, _ = served
    config = ("--config", service.settings)
    for words in (["replay", "diff"], ["replay", "pin"]):
        arguments = [run] if words[1] == "pin" else [run, run]
        theirs = run_command(*config, *words, *arguments)
        none = run_command(*config, *words, *["r_none" for _ in arguments])
        assert theirs.stderr.replace(run, "r_none") == none.stderr
        assert theirs.returncode == none.returncode == 2


async def test_the_command_that_approves_names_the_principal(
    served: tuple[HttpService, str, str],
) -> None:
    service, _, _ = served
    async with service.connect(service.create_token(OWNER)) as client:
        waits = await client.run(ASKING_CODE, "asking again", wait_s=1)
        refused = await client.client.call_tool(
            "run_code", {"run": waits.run, "answers": {"*": "allow"}}
        )
    assert f"approvals --principal {OWNER} {waits.run}" in str(refused.content)


@pytest.mark.parametrize("name", ["", "../x", "a b", "#x", "x#y", "https://x#y z"])
def test_an_archive_is_imported_for_principals_that_can_exist(tmp_path: Path, name: str) -> None:
    config = ("--config", write_settings(tmp_path))
    refused = run_command(*config, "replay", "import", "no.zip", "--principal", name)
    assert refused.returncode == 2
    assert "is not a principal" in refused.stderr
