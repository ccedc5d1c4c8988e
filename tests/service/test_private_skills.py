"""Skills over HTTP: each principal has its own, and sees of the others what they share."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from mcp import MCPError
from mcp.types import PaginatedRequestParams, Request, Result

from ..helpers.commands import run_command
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import ServerConnection, connect_server, write_local_settings
from ..server.conftest import upstream_entry

SECRET = "quarterly figures of ann"
CODE = """\
from tools.counted import add
def run(word: str) -> str:
    \"\"\"Say a word.\"\"\"
    add(item=word)
    return word[:3] + 'TAIL'
run('WORD')
"""


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("private")
    settings = write_local_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def clients(service: HttpService) -> AsyncIterator[dict[str, ServerConnection]]:
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(service.connect(service.create_token(name)))
            for name in ("ann", "bob")
        }


@pytest.fixture
def ann(clients: dict[str, ServerConnection]) -> ServerConnection:
    return clients["ann"]


@pytest.fixture
def bob(clients: dict[str, ServerConnection]) -> ServerConnection:
    return clients["bob"]


async def save(client: ServerConnection, name: str, tail: str = "", word: str = "abc") -> Any:
    code = CODE.replace("TAIL", tail).replace("WORD", word)
    run = await client.run(code, f"making-{name}{tail}")
    assert run.status == "ok", run.text
    saved = await client.client.call_tool("save_skill", {"run": run.run, "name": name})
    assert (saved.structured_content or {}).get("state") == "active", saved
    return saved.structured_content


async def use_skills_cli(service: HttpService, *words: str) -> str:
    """Return what the command prints, or its error."""

    def run() -> str:
        done = run_command("--config", service.settings, "skills", *words)
        return done.stdout if done.returncode == 0 else done.stderr or done.stdout

    return await anyio.to_thread.run_sync(run)


async def text_of(client: ServerConnection, tool: str, **arguments: Any) -> str:
    result = await client.client.call_tool(tool, arguments)
    return getattr(result.content[0], "text", "")


async def read_resource(client: ServerConnection, uri: str) -> str:
    try:
        return (await client.client.read_resource(uri)).model_dump_json()
    except MCPError as exc:
        return str(exc)


async def get_skill(client: ServerConnection, uri: str) -> str:
    class SkillRequest(Request[dict[str, Any], str]):
        method: str
        params: dict[str, Any]

    try:
        request = SkillRequest(method="skills/get", params={"uri": uri})
        return (await client.client.session.send_request(request, Result)).model_dump_json()
    except MCPError as exc:
        return str(exc)


async def list_extension(client: ServerConnection) -> str:
    class Listed(Result):
        skills: tuple[dict[str, Any], ...] = ()

    class ListRequest(Request[PaginatedRequestParams, str]):
        method: str
        params: PaginatedRequestParams

    request = ListRequest(method="skills/list", params=PaginatedRequestParams())
    return (await client.client.session.send_request(request, Listed)).model_dump_json()


async def error_of(client: ServerConnection, code: str) -> str:
    """Return what a run is answered, without its own name."""
    text = (await client.run(code, "trying")).text
    return re.sub(r"step [0-9]+|run r_\S+", "", text)


Probe = Callable[[ServerConnection, str], Coroutine[Any, Any, str]]
PROBES: dict[str, Probe] = {
    "show": lambda client, name: text_of(client, "list_skills", name=name),
    "show a version": lambda client, name: text_of(client, "list_skills", name=f"{name}@1"),
    "search": lambda client, name: text_of(client, "list_skills", query=f"{name} say a word"),
    "search in code": lambda client, name: error_of(client, f"skills.search('say {name}')"),
    "names in code": lambda client, name: error_of(client, f"'{name}' in skills.list()"),
    "import": lambda client, name: error_of(client, f"from skills.{name} import run"),
    "import a version": lambda client, name: error_of(client, f"from skills.{name}.v1 import run"),
    "files": lambda client, name: error_of(
        client,
        "import sys\nhost = sys.modules['mcpruntime_sandbox.sandboxed.library.tools'].host\n"
        f"host.call('skills.files', {{'skill': '{name}'}})",
    ),
    "read": lambda client, name: read_resource(client, f"skill://{name}/SKILL.md"),
    "read a case": lambda client, name: read_resource(client, f"skill://{name}/cases/0001.json"),
    "get": lambda client, name: get_skill(client, f"skill://{name}/SKILL.md"),
}


@pytest.mark.parametrize("what", PROBES)
async def test_a_private_skill_is_not_found_like_one_that_does_not_exist(
    ann: ServerConnection, bob: ServerConnection, what: str
) -> None:
    if "hidden" not in await text_of(ann, "list_skills", query="hidden"):
        await save(ann, "hidden", word=SECRET)
    await bob.run("1", "trying")
    of_hidden, of_absent = [await PROBES[what](bob, name) for name in ("hidden", "absent")]
    assert of_hidden.replace("hidden", "absent") == of_absent
    assert SECRET not in of_hidden
    assert "hidden" in await PROBES["search"](ann, "hidden")


async def test_nothing_that_is_listed_for_others_names_a_private_skill(
    ann: ServerConnection, bob: ServerConnection
) -> None:
    await save(ann, "unlisted")
    for text in (
        await list_extension(bob),
        (await bob.client.list_resources()).model_dump_json(),
        (await bob.client.get_prompt("with_skills", {"task": "unlisted"})).model_dump_json(),
        await error_of(bob, "skills.__doc__"),
        bob.client.instructions or "",
    ):
        assert "skill://unlisted" not in text
        assert "- unlisted" not in text
        assert "unlisted," not in text
    assert "skill://unlisted" in await list_extension(ann)


async def test_one_name_is_another_skill_for_each_principal(
    service: HttpService, ann: ServerConnection, bob: ServerConnection
) -> None:
    await save(ann, "same", "ann")
    saved = await save(bob, "same", "bob")
    assert saved["version"] == 1
    for client, word in ((ann, "ann"), (bob, "bob")):
        assert await client.evaluate("skills.same('xyz')", "using") == f"xyz{word}"
    assert "no skill" in await use_skills_cli(service, "show", "same")
    retired = await use_skills_cli(service, "retire", "same", "--principal", "bob")
    assert "same@1 is retired" in retired
    assert "same@1" in await use_skills_cli(service, "list", "--principal", "ann")
    assert await ann.evaluate("from skills.same import run\nrun('q')", "later") == "qann"


async def test_a_shared_skill_is_used_by_all_and_changed_by_its_owner_alone(
    service: HttpService, ann: ServerConnection, bob: ServerConnection
) -> None:
    await save(ann, "common", "1", word=SECRET)
    told = await use_skills_cli(service, "share", "common", "--principal", "ann")
    assert told.startswith("common@1 is shared: all principals can import it and read its code.")
    assert await bob.evaluate("from skills.common import run\nrun('xyz')", "using") == "xyz1"
    shown = await text_of(bob, "list_skills", name="common")
    assert shown.startswith("common@1 is in use; ann shares it; runs that used it: 1")
    assert "common@1" in await use_skills_cli(service, "list")
    for what in ("show", "search", "read", "get", "read a case"):
        assert SECRET not in await PROBES[what](bob, "common")
    assert "has no file" in await PROBES["read a case"](bob, "common")

    again = await bob.run("from skills.common import run\nrun(word='other')", "using")
    kept = await text_of(bob, "save_skill", run=again.run)
    assert kept.startswith("common@1 is in use already.")
    assert "recorded cases: 1" in await text_of(ann, "list_skills", name="common")

    await save(bob, "common", "mine")  # one of his own, which hides the shared one from him alone
    assert await bob.evaluate("from skills.common import run\nrun('q')", "own") == "qmine"
    assert await ann.evaluate("from skills.common import run\nrun('q')", "own") == "q1"

    for verb in ("retire", "share", "promote", "check"):
        refused = await use_skills_cli(service, verb, "common")
        assert "ann shares common. Add --principal ann." in refused
    assert "recorded cases" not in await use_skills_cli(service, "show", "common")
    await use_skills_cli(service, "unshare", "common", "--principal", "ann")
    assert "common" not in await use_skills_cli(service, "list")


async def test_code_that_does_the_same_as_a_shared_skill_is_that_skill(
    service: HttpService, ann: ServerConnection, bob: ServerConnection
) -> None:
    await save(ann, "echoing", "E")
    await use_skills_cli(service, "share", "echoing", "--principal", "ann")
    run = await bob.run(CODE.replace("TAIL", "E").replace("WORD", "mine"), "making")
    answer = await text_of(bob, "save_skill", run=run.run)
    assert answer.startswith("echoing@1 is in use already.")
    assert "recorded cases: 1" in await text_of(ann, "list_skills", name="echoing")


async def test_the_local_user_shares_skills_too(
    service: HttpService, bob: ServerConnection
) -> None:
    assert "no active skill" in await read_resource(bob, "skill://local-one/SKILL.md")
    async with connect_server(service.settings) as local:
        await save(local, "local_one", "0")
        assert "local_one" in await text_of(local, "list_skills", query="local one")
        assert "hidden" not in await text_of(local, "list_skills", query="hidden")
    assert "local_one" not in await text_of(bob, "list_skills", query="local one")
    await use_skills_cli(service, "share", "local_one")
    assert await bob.evaluate("skills.local_one('abc')", "fresh") == "abc0"


async def test_a_replay_has_the_version_that_the_run_had(
    service: HttpService, ann: ServerConnection, bob: ServerConnection
) -> None:
    await save(ann, "moving", "1")
    await use_skills_cli(service, "share", "moving", "--principal", "ann")
    run = await bob.run("from skills.moving import run\nrun('xyz')", "replayed")
    assert run.value == "xyz1"
    await save(ann, "moving", "2")
    await save(bob, "moving", "bob")
    again = await bob.replay("rerun", "replayed")
    assert "xyz1" in json.dumps(again.data)
    await use_skills_cli(service, "unshare", "moving", "--principal", "ann")
    again = await bob.replay("rerun", "replayed")
    assert "xyz1" in json.dumps(again.data)
    assert await bob.evaluate("from skills.moving import run\nrun('xyz')", "new") == "xyzbob"


async def test_a_changed_tool_quarantines_a_shared_skill_for_its_owner_alone(
    service: HttpService, ann: ServerConnection, bob: ServerConnection
) -> None:
    await save(ann, "guarded", "1")
    await use_skills_cli(service, "share", "guarded", "--principal", "ann")
    [manifest] = (service.settings.parent / "skills_store" / "_principals").glob(
        "ann-*/guarded/versions/1/skill.toml"
    )
    text = manifest.read_text()
    line = next(each for each in text.splitlines() if each.startswith('"counted.add"'))
    manifest.write_text(text.replace(line.split('"')[3], "sha256:" + "0" * 64))
    assert "counted.add has changed" in await error_of(bob, "from skills.guarded import run")
    assert 'state = "active"' in manifest.read_text()
    assert "counted.add has changed" in await error_of(ann, "from skills.guarded import run")
    assert 'state = "quarantined"' in manifest.read_text()
    shown = await text_of(bob, "list_skills", name="guarded")
    assert shown == (await text_of(bob, "list_skills", name="absent")).replace("absent", "guarded")
