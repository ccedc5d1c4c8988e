"""Changes to skills while a server runs: by hand, by other servers, and in their dependencies."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.helpers.commands import run_command

from ..helpers.server_connection import ServerConnection, connect_server, write_settings
from ..helpers.shared_skills import OwnSessions, remove_skills
from .conftest import upstream_entry

IMPORT = "from tools.counted import add\n"
SMALL = {"backend": "local", "pool_size": 0}


def settings(folder: Path, **sections: Any) -> Path:
    upstreams = {
        "counted": upstream_entry("counted", str(folder / "added")),
        "lively": upstream_entry("lively"),
    }
    return write_settings(folder, sandbox=SMALL, **{"mcpServers": upstreams, **sections})


@pytest.fixture(scope="module")
async def shared_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[ServerConnection]:
    async with connect_server(settings(tmp_path_factory.mktemp("harm"))) as server:
        yield server


@pytest.fixture
def server(shared_server: ServerConnection, request: pytest.FixtureRequest) -> ServerConnection:
    remove_skills(store_folder(shared_server))
    return OwnSessions(shared_server, request.node.name)


async def save_run(server: ServerConnection, code: str, name: str) -> dict[str, Any]:
    """Run code in its own session, save it, and return the answer: its data, or an error."""
    run = await server.run(code, session=f"s{abs(hash(code))}")
    assert run.data.get("status") == "ok", run.text
    result = await server.client.call_tool("save_skill", {"run": run.run, "name": name})
    return (
        {"error": getattr(result.content[0], "text", "")}
        if result.is_error
        else result.structured_content or {}
    )


def store_folder(server: ServerConnection) -> Path:
    return server.data_dir.parent / "skills_store"


async def error_of(server: ServerConnection, code: str) -> str:
    """Return the error that code ends with, in a session of its own."""
    run = await server.run(code, session="p" + os.urandom(4).hex())
    assert run.data.get("status") == "error", run.text
    return run.text


async def test_two_servers_saving_one_name_concurrently_make_separate_versions(
    tmp_path: Path,
) -> None:
    store = {"folder": str(tmp_path / "store")}
    versions: list[int] = []
    async with (
        connect_server(settings(tmp_path / "a", skills=store)) as a,
        connect_server(settings(tmp_path / "b", skills=store)) as b,
    ):

        async def save(server: ServerConnection, number: int) -> None:
            answer = await save_run(
                server, f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '{number}'", "same"
            )
            assert answer["state"] == "active", answer
            versions.append(answer["version"])

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(save, (a, b)[number % 2], number)
        assert sorted(versions) == [1, 2, 3, 4, 5, 6]
        for server in (a, b):
            found = {
                await server.evaluate(f"skills.same.v{version}('x')", session=f"v{version}")
                for version in versions
            }
            assert found == {f"x{number}" for number in range(6)}
    listed = run_command(
        "--config", tmp_path / "a" / "server.toml", "skills", "list", "--all", "--json"
    )
    assert (len(json.loads(listed.stdout)), listed.stderr) == (6, "")


async def test_cases_that_are_too_large_are_refused(server: ServerConnection) -> None:
    code = "from tools.lively import echo\ntext = 'x' * 600_000\nlen(str(echo(text=text)))"
    answer = await save_run(server, code, "large")
    assert "The recorded case has 1," in answer["error"]
    assert "Run it on less data" in answer["error"]
    assert not any(store_folder(server).rglob("skill.py"))


async def test_a_skill_whose_dependency_is_missing_names_it(server: ServerConnection) -> None:
    await save_run(server, f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", "one")
    two = await save_run(
        server, "from skills.one import run as one\nword = 'b'\none(item=word) + '2'", "two"
    )
    assert two["state"] == "active"
    shutil.rmtree(store_folder(server) / "one")
    text = await error_of(server, "from skills.two import run\nrun('x')")
    assert "ModuleNotFoundError" in text
    assert "There is no skill 'one'" in text
    checked = run_command(
        "--config", store_folder(server).parent / "server.toml", "skills", "check", "two"
    )
    assert checked.returncode == 1
    assert "two@1 is quarantined." in checked.stdout
    assert "There is no skill 'one'" in checked.stdout
    assert (
        "two@1"
        not in run_command("--config", store_folder(server).parent / "server.toml", "skills").stdout
    )


async def test_a_skill_whose_server_is_missing_names_it(tmp_path: Path) -> None:
    async with connect_server(settings(tmp_path)) as server:
        await save_run(server, f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", "one")
    async with connect_server(
        settings(tmp_path, mcpServers={"lively": upstream_entry("lively")})
    ) as server:
        assert "counted" in await error_of(server, "from skills.one import run\nrun('x')")
        assert (await server.client.call_tool("list_skills", {"name": "one"})).is_error is False


async def test_cycles_made_by_hand_are_not_activated(server: ServerConnection) -> None:
    await save_run(server, f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", "one")
    await save_run(
        server, "from skills.one import run as one\nword = 'b'\none(item=word) + '2'", "two"
    )
    path = store_folder(server) / "one" / "skill.py"
    path.write_text(
        path.read_text().replace("from tools", "from skills.two import run as two\nfrom tools")
    )
    config = store_folder(server).parent / "server.toml"
    checked = run_command("--config", config, "skills", "promote", "one@2")
    assert checked.returncode == 1
    assert "one would use itself, through one, two" in checked.stdout
    assert await server.evaluate("from skills.two import run\nrun('x')", session="new") == "x12"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("return", "    import os\n    os.environ\n    return".lstrip(), "reads the environment"),
        ("from tools", "print('at import')\nfrom tools", "does work when the skill is imported"),
        ("return", "open('/etc/passwd')\n    return", "absolute path"),
        ("return", "token = 'ghp_" + "a1B2" * 9 + "'\n    return", "looks like"),
    ],
)
async def test_edits_by_hand_are_checked_like_other_code(
    server: ServerConnection, old: str, new: str, why: str
) -> None:
    await save_run(server, f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", "tag")
    path = store_folder(server) / "tag" / "skill.py"
    path.write_text(path.read_text().replace(old, new, 1))
    checked = run_command(
        "--config", store_folder(server).parent / "server.toml", "skills", "promote", "tag@2"
    )
    assert checked.returncode == 1
    assert "tag@2 is a draft.\n    Line " in checked.stdout
    assert why in checked.stdout
    assert await server.evaluate("skills.tag('x')", session="new") == "x1"


async def test_damage_to_one_skill_while_the_server_runs_affects_no_other(
    server: ServerConnection,
) -> None:
    for name in ("cut", "emptied", "linked", "removed", "whole"):
        answer = await save_run(
            server, f"{IMPORT}item = 'a'\nadd(item=item)\nitem + ' {name}'", name
        )
        assert answer["state"] == "active"
    store = store_folder(server)
    manifest = store / "cut" / "versions" / "1" / "skill.toml"
    manifest.write_bytes(manifest.read_bytes()[:40])  # as if its writer had died
    (store / "emptied" / "versions" / "1" / "skill.py").write_bytes(b"")
    shutil.move(store / "linked" / "versions" / "1", store.parent / "elsewhere")
    (store / "linked" / "versions" / "1").symlink_to(store.parent / "elsewhere")
    shutil.rmtree(store / "removed")
    (store / ".new-left").mkdir()
    (store / "deep").mkdir()
    (store / "deep" / "skill.py").write_text(f"def run(a={'-' * 900}1):\n    return a\n")
    assert await server.evaluate("skills.whole('x')", session="new") == "x whole"
    for name in ("cut", "emptied", "removed"):
        assert name in await error_of(server, f"from skills.{name} import run")
    listed = await server.client.call_tool("list_skills", {})
    assert "whole" in str(listed.structured_content)
    listing = run_command("--config", store.parent / "server.toml", "skills", "list")
    assert (listing.returncode, "whole@1" in listing.stdout) == (0, True)
    for name in ("cut", "emptied", "deep"):
        assert f"problem: {name}" in listing.stderr
    again = await save_run(
        server, f"{IMPORT}item = 'a'\nadd(item=item)\nitem + ' cut again'", "cut"
    )
    assert (again["state"], again["version"] > 1) == ("active", True)


async def test_an_unusable_store_is_reported_and_runs_continue(tmp_path: Path) -> None:
    (tmp_path / "skills_store").write_text("no folder")
    async with connect_server(settings(tmp_path)) as server:
        assert await server.evaluate("1 + 1") == 2
        answer = await save_run(server, f"{IMPORT}item = 'a'\nadd(item=item)\nitem + '1'", "one")
        assert answer["error"].startswith("[unavailable] ")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "x/../y",
        "class",
        "match",
        "list",
        "print",
        "v2",
        "w\u0435ather",
        "\u202ex",
        "a" * 65,
    ],
)
async def test_invalid_names_are_refused_before_anything_is_written(
    server: ServerConnection, name: str
) -> None:
    for tool, arguments in (
        ("save_skill", {"code": "def run(a: int) -> int:\n    return a\n", "name": name}),
        ("list_skills", {"name": name}),
    ):
        result = await server.client.call_tool(tool, arguments)
        assert result.is_error
        assert "cannot name a skill" in getattr(result.content[0], "text", "")
    assert not any(store_folder(server).rglob("skill.*"))
