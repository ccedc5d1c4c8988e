"""What the scopes of a token allow over MCP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from mcp import MCPError
from mcp.client.client import Client
from mcp.server.mcpserver import MCPServer

from mcpruntime_server.server.permissions import (
    METHOD_SCOPES,
    REPLAY_SCOPES,
    TOOL_SCOPES,
    required_scopes,
)

from ..helpers.commands import run_command
from ..helpers.http_service import ERAS, HttpService, open_http_service
from ..helpers.server_connection import parse_answer, write_local_settings
from ..server.conftest import upstream_entry
from ..server.test_approvals import ASK, choose

ACCEPT = {"Accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
async def service(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("scopes")
    settings = write_local_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
        policy=ASK,
    )
    async with open_http_service(settings) as opened:
        yield opened


def create_token(service: HttpService, *scopes: str, name: str = "ann") -> str:
    return service.create_token(name, *(f"--scope={scope}" for scope in scopes))


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


async def post(service: HttpService, token: str, body: Any) -> httpx2.Response:
    """Send a body that is JSON already, or becomes it."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with service.http(token) as http:
        headers = {**ACCEPT, "Content-Type": "application/json"}
        return await http.post(service.url, content=content, headers=headers)


REQUESTS: dict[str, list[dict[str, Any]]] = {
    "run": [
        call("run_code", code="1"),
        call("save_skill", run="r_x"),
        call("ask_llm", prompt="?"),
        *(call("replay", action=action) for action in ("rewind", "fork", "rerun")),
        {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"taskId": "r_x"}},
        {"jsonrpc": "2.0", "id": 1, "result": {"role": "assistant", "content": []}},
    ],
    "read": [
        call("list_skills"),
        *(call("replay", action=action) for action in ("list", "show", "diff")),
        {"jsonrpc": "2.0", "id": 1, "method": "resources/list"},
        {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": "skill://x"}},
        {"jsonrpc": "2.0", "id": 1, "method": "prompts/get", "params": {"name": "x"}},
    ],
    "approve": [
        {"jsonrpc": "2.0", "id": 1, "result": {"action": "accept", "content": {}}},
        {"jsonrpc": "2.0", "id": 1, "method": "tasks/update", "params": {"taskId": "r_x"}},
    ],
}


@pytest.mark.parametrize("granted", REQUESTS)
async def test_a_request_needs_its_scope_and_no_other(service: HttpService, granted: str) -> None:
    token = create_token(service, granted)
    for needed, requests in REQUESTS.items():
        for request in requests:
            response = await post(service, token, request)
            if needed == granted:
                assert response.status_code != 403, request
                continue
            assert response.status_code == 403, request
            challenge = response.headers["WWW-Authenticate"]
            assert 'error="insufficient_scope"' in challenge
            assert f'scope="{needed}"' in challenge
            assert response.json()["code"] == "insufficient_scope"


@pytest.mark.parametrize("era", ERAS)
async def test_a_token_that_only_reads_sees_and_changes_nothing(
    service: HttpService, era: str
) -> None:
    async with service.connect(create_token(service, "run", "read"), era) as client:
        made = await client.run("x = 41", f"shown-{era}")
    async with service.connect(create_token(service, "read"), era) as client:
        assert made.run in (await client.replay("list", session=f"shown-{era}")).text
        with pytest.raises((MCPError, httpx2.HTTPStatusError)):
            await client.run("x + 1", f"shown-{era}")
    async with service.connect(create_token(service, "run", "read"), era) as client:
        assert len((await client.replay("list", session=f"shown-{era}")).data["steps"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":'
        b'{"name":"run_code","arguments":{"code":"1"}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list_skills",'
        b'"name":"run_code","arguments":{"code":"1"}}}',
        b'[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"run_code"}}]',
        b'{"jsonrpc":"2.0","id":1,"method":"tools\\u002fcall","params":{"name":"run_code"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"no/such"}',
        b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":["tools/call"]}',
        b"[" * 200_000,
        b"\xff",
    ],
)
async def test_no_spelling_of_a_request_evades_the_scopes(
    service: HttpService, body: bytes
) -> None:
    response = await post(service, create_token(service, "read"), body)
    assert 400 <= response.status_code < 500
    async with service.connect(create_token(service, "read")) as client:
        assert "run_code" not in (await client.replay("list")).text


@pytest.mark.parametrize("era", ERAS)
async def test_who_may_not_approve_is_not_asked(service: HttpService, era: str) -> None:
    asked: list[str] = []

    async def answer(*arguments: Any) -> Any:
        asked.append(era)
        return await choose("allow")(*arguments)

    code = f"from tools.counted import add\nadd(item='scoped {era}')"
    token = create_token(service, "run", "read")
    async with service.connect(token, era, elicitation_callback=answer) as client:
        waiting = await client.run(code, wait_s=1)
        assert waiting.status == "waiting"
        assert asked == []
        refused = parse_answer(
            await client.client.call_tool(
                "run_code", {"run": waiting.run, "answers": {"*": "allow"}}
            )
        )
        assert "[forbidden]" in refused.text
        assert not (service.settings.parent / "done").exists()
    approver = create_token(service, "run", "read", "approve")
    async with service.connect(approver, era, elicitation_callback=answer) as client:
        done = parse_answer(await client.client.call_tool("run_code", {"run": waiting.run}))
        assert (done.status, asked) == ("ok", [era])
    (service.settings.parent / "done").unlink()


def test_the_table_has_every_method_of_the_sdk() -> None:
    methods = MCPServer("x")._lowlevel_server._request_handlers
    assert "tools/call" in methods
    assert set(methods) - set(METHOD_SCOPES) - {"tools/call"} == set()


async def test_the_table_has_every_tool_and_action(service: HttpService) -> None:
    async with service.connect(create_token(service, "read")) as client:
        tools = {tool.name: tool for tool in (await client.client.list_tools()).tools}
    assert set(tools) - set(TOOL_SCOPES) == {"replay"}
    actions = tools["replay"].input_schema["properties"]["action"]["enum"]
    assert set(actions) == set(REPLAY_SCOPES)


@pytest.mark.parametrize("message", [None, 1, [], {}, {"method": 1}, {"method": "no/such"}])
def test_what_is_not_in_the_table_needs_everything(message: Any) -> None:
    expected = {"run"} if message == {} else {"run", "read", "approve"}
    assert required_scopes(message) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--scope", "root"), "root"), (("--scope", ""), "--scope")],
)
def test_a_token_has_only_scopes_that_exist(
    service: HttpService, options: tuple[str, ...], message: str
) -> None:
    done = run_command("--config", service.settings, "token", "create", "ann", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize("name", ["local", "LOCAL"])
def test_a_token_cannot_be_the_local_user_or_a_part_of_the_server(
    service: HttpService, name: str
) -> None:
    done = run_command("--config", service.settings, "token", "create", name)
    assert done.returncode == 2
    assert "cannot be the name" in done.stderr


async def test_a_file_that_was_edited_makes_nobody_the_local_user(service: HttpService) -> None:
    token = create_token(service, "run", "read", name="mallory")
    path = service.data_dir / "tokens.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["principal"] = "local" if row["principal"] == "mallory" else row["principal"]
    path.write_text(json.dumps(rows))
    assert (await post(service, token, call("replay", action="list"))).status_code == 401


def test_the_list_shows_the_scopes(service: HttpService) -> None:
    create_token(service, "approve", "read", name="lee")
    done = run_command("--config", service.settings, "token", "list", "--json")
    scopes = [row["scopes"] for row in json.loads(done.stdout) if row["name"] == "lee"]
    assert scopes == [["read", "approve"]]


async def test_the_sdk_client_can_connect_with_any_scope(service: HttpService) -> None:
    for era in ERAS:
        async with service.connect(create_token(service, "admin"), era) as client:
            assert isinstance(client.client, Client)
            assert (await client.client.list_tools()).tools
