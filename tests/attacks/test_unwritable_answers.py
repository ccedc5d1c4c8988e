"""Text, numbers and nesting that no JSON can hold end neither the server nor another session."""

from __future__ import annotations

import json
import zipfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mcp.types import JSONRPCResponse

from mcpruntime_server.capabilities.skills.guides import parse_front_matter
from mcpruntime_server.errors import SkillRefused
from mcpruntime_server.server.stdio_transport import encode_client_message
from tests.helpers.commands import run_command
from tests.helpers.forged_messages import FORGE
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings
from tests.upstreams import own_server_entry

from .bystander import observe

HALF = rb"\uD800"  # of a surrogate pair, as JSON spells it; readers often know only lower case
DEEP = b"[" * 960 + b"]" * 960
LONG_NUMBER = b"9" * 4_200
ERROR = (
    b'{"run_number":2,"status":"error","error":'
    b'{"type":"E%s","message":"m%s","traceback":"%s","line":1}}'
)
ANSWER = (
    b'{"run_number":2,"status":"ok","value":{"kind":"%s","text":"%s","type":"T%s","cut":false}}'
)
CLOCKS = b'{"run_number":2,"status":"ok","clock_readings":{"t%s":["%s"]}}'
CALL = b'{"call_id":9,"run_number":2,"target":"%s","args":{"text":%s}}'
ECHO = b"tools.lively.echo"
FORGED = {
    "an error": ("RunDone", ERROR % (HALF, HALF, HALF)),
    "a value": ("RunDone", ANSWER % (b"repr", HALF, HALF)),
    "a JSON value": ("RunDone", ANSWER % (b"json", rb"\"\\uD800\"", b"")),
    "a long number": ("RunDone", ANSWER % (b"json", b"9" * 12_000, b"")),
    "a deep value": ("RunDone", ANSWER % (b"json", DEEP, b"")),
    "clock readings": ("RunDone", CLOCKS % (HALF, HALF)),
    "a tool": ("Call", CALL % (ECHO + HALF, b'"x"')),
    "an argument": ("Call", CALL % (ECHO, b'"%s"' % HALF)),
    "a long argument": ("Call", CALL % (ECHO, LONG_NUMBER)),
    "a deep argument": ("Call", CALL % (ECHO, DEEP)),
    "an argument that is NaN": ("Call", CALL % (ECHO, b"[NaN,Infinity]")),
    "a report of a skill": ("Call", CALL % (b"skills.used", DEEP)),
}


@pytest.fixture(scope="module", params=["legacy", "auto"])
async def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ServerConnection]:
    """A server with an upstream, used in the protocol of either era."""
    upstreams = {"lively": own_server_entry("lively")}
    settings = write_settings(tmp_path_factory.mktemp("server"), mcpServers=upstreams)
    async with connect_server(settings, mode=request.param) as connection:
        yield connection


@pytest.mark.parametrize("forged", FORGED)
async def test_a_forged_message_ends_at_most_its_sandbox(
    server: ServerConnection, forged: str
) -> None:
    name, body = FORGED[forged]
    async with observe(server):
        await server.run("kept = 1\nopen('file', 'w').write('kept')", forged)
        code = f"{FORGE}say(frame({name!r}, {body!r}))\ntime.sleep(0.1)"
        answer = await server.run(code, forged, timeout_s=5)
        assert answer.status in ("ok", "error", "crashed"), answer.text
        await server.run("1", forged)  # which may hear what the forger says belatedly
        assert await server.evaluate("open('file').read()", forged) == "kept"
        shown = await server.replay("show", forged)
        assert not shown.is_error, shown.text
    found = await server.client.call_tool("list_skills", {"query": "x"})
    assert not found.is_error


async def test_arguments_that_are_nested_too_deeply_get_a_clear_error(
    server: ServerConnection,
) -> None:
    code = (
        "from tools.lively import echo\nx = 0\nfor _ in range(150): x = [x]\n"
        "try: echo(text=x)\nexcept Exception as exc: said = str(exc)\nsaid"
    )
    assert "nested more than 100 deep" in await server.evaluate(code, "deep")


async def test_an_archive_with_half_a_character_can_be_shown_by_a_restarted_server(
    tmp_path: Path,
) -> None:
    settings = write_settings(tmp_path)
    async with connect_server(settings) as server:
        await server.run("text = 'MARK'", "strange")
    archive, changed = tmp_path / "session.zip", tmp_path / "changed.zip"
    command = partial(run_command, "--config", settings, "replay")
    assert command("export", "strange", archive).returncode == 0
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(changed, "w") as target:
        for member in source.namelist():
            target.writestr(member, source.read(member).replace(b"MARK", HALF))
    imported = command("import", changed, "--json")
    assert imported.returncode == 0, imported.stderr
    for _ in range(2):
        async with connect_server(settings) as server:
            shown = await server.replay("show", json.loads(imported.stdout)["id"])
            assert "\\ud800" in shown.text
            assert await server.evaluate("1+1", "other") == 2


@pytest.mark.parametrize(
    "text",
    [
        "description: &a [x, x]\nmore: *a",
        "description: !!binary 2AA=",
        "description: !!python/object:os.system x",
        f"description: {'[' * 30}{']' * 30}",
    ],
)
def test_front_matter_is_plain(text: str) -> None:
    with pytest.raises(SkillRefused, match="not YAML"):
        parse_front_matter(f"---\nname: a\n{text}\n---\n")


def test_front_matter_has_no_half_characters() -> None:
    with pytest.raises(SkillRefused, match="invalid Unicode"):
        parse_front_matter('---\nname: a\ndescription: "x\\uD800"\n---\n')


@pytest.mark.parametrize("unwritable", ["\ud800", {"a": ["\udfff"]}])
def test_an_answer_that_cannot_be_written_is_an_error_to_its_request(unwritable: Any) -> None:
    message = JSONRPCResponse(jsonrpc="2.0", id=7, result={"value": unwritable})
    written = json.loads(encode_client_message(message))
    assert (written["id"], "cannot be written" in written["error"]["message"]) == (7, True)
