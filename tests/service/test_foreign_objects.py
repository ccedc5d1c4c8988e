"""Whatever names something of another principal over MCP: it is refused in the very words that
something gets which does not exist."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from mcp import MCPError
from mcp.types import Result

from ..helpers.http_service import ERAS, HttpService, open_http_service
from ..helpers.server_connection import ServerConnection, write_local_settings
from ..server.conftest import upstream_entry
from ..server.test_approvals import ASK, choose
from ..server.test_tasks_extension import METHODS, AboutTask, Declared, Params

CODE = "open('f', 'w').write('secret')\nsecret = 'secret'"
NO_RUN, NO_SESSION = "r_" + "0" * 20, "s_" + "0" * 20


@dataclass(frozen=True)
class Owned:
    """What one principal has: a finished run, a run that waits, and their sessions."""

    run: str
    session: str
    waiting: str
    waiting_session: str


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("foreign")
    settings = write_local_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
        policy=ASK,
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def anns(service: HttpService) -> Owned:
    async with service.connect(service.create_token("ann")) as client:
        done = await client.run(CODE)
        waits = await client.run("from tools.counted import add\nadd(item='x')", wait_s=1)
        assert (done.status, waits.status) == ("ok", "waiting")
        assert done.session.startswith("s_")
        return Owned(done.run, done.session, waits.run, waits.session)


@pytest.fixture(scope="module")
def bob(service: HttpService) -> str:
    return service.create_token("bob")


def requests(run: str, session: str) -> list[tuple[str, dict[str, Any]]]:
    """Return every tool call that can name a run or a session."""
    actions = ("list", "show", "rewind", "fork", "rerun", "diff")
    calls: list[dict[str, Any]] = [
        {"run": run},
        {"run": run, "wait_s": 0},
        {"run": run, "cancel": True},
        {"run": run, "answers": {"*": "allow"}},
        {"run": run, "answers": {"q1": "allow"}},
        {"code": "secret", "session": session},
        {"code": "secret", "session": session, "dry_run": True, "background": True},
        {"code": "1", "session": session, "context": ["f"]},
    ]
    replays: list[dict[str, Any]]
    replays = [{"action": action, "session": session} for action in actions]
    replays += [{"action": action, "run": run} for action in actions]
    replays += [{"action": action, "session": session, "run": run} for action in actions]
    replays += [{"action": action, "session": session, "step": 1} for action in actions]
    return [
        *(("run_code", each) for each in calls),
        *(("replay", each) for each in replays),
        ("save_skill", {"run": run, "name": "theirs"}),
    ]


def addresses(run: str, session: str) -> list[str]:
    return [
        f"workspace://{session}/f",
        f"workspace://{session}/",
        f"workspace://{session}/../{session}/f",
        f"workspace://{session}/%66",
    ]


async def outcome(work: Callable[[], Awaitable[Any]]) -> str:
    """Return all that a client learns from a request."""
    try:
        result = await work()
    except MCPError as exc:
        return repr((exc.error.code, exc.error.message, exc.error.data))
    assert result.is_error, result
    return json.dumps(result.model_dump(mode="json"))


@pytest.mark.parametrize("era", ERAS)
async def test_every_tool_refuses_what_is_anothers_like_what_does_not_exist(
    service: HttpService, anns: Owned, bob: str, era: str
) -> None:
    async with service.connect(bob, era) as client:
        for run, session in ((anns.run, anns.session), (anns.waiting, anns.waiting_session)):
            pairs = zip(requests(run, session), requests(NO_RUN, NO_SESSION), strict=True)
            for (tool, theirs), (_, none) in pairs:
                found = await outcome(lambda: client.client.call_tool(tool, theirs))  # noqa: B023
                expected = await outcome(lambda: client.client.call_tool(tool, none))  # noqa: B023
                same = found.replace(run, NO_RUN).replace(session, NO_SESSION)
                assert same == expected, (tool, theirs)
                assert "secret" not in found.replace("'secret'", "")


@pytest.mark.parametrize("era", ERAS)
async def test_every_resource_of_another_does_not_exist(
    service: HttpService, anns: Owned, bob: str, era: str
) -> None:
    async with service.connect(bob, era) as client:
        listed = (await client.client.list_resources()).resources
        assert not any(anns.session in str(each.uri) for each in listed)
        pairs = zip(addresses(anns.run, anns.session), addresses(NO_RUN, NO_SESSION), strict=True)
        for theirs, none in pairs:
            found = await outcome(lambda: client.client.read_resource(theirs))  # noqa: B023
            expected = await outcome(lambda: client.client.read_resource(none))  # noqa: B023
            assert found.replace(anns.session, NO_SESSION) == expected


async def test_every_request_about_a_task_of_another_is_refused(
    service: HttpService, anns: Owned, bob: str
) -> None:
    async with service.connect(
        bob, extensions=[Declared()], elicitation_callback=choose("allow")
    ) as client:
        for method in METHODS:
            forms = {"x": {"action": "accept"}} if method == "tasks/update" else None
            for run in (anns.run, anns.waiting):
                found = await outcome(lambda: about(client, method, run, forms))  # noqa: B023
                expected = await outcome(lambda: about(client, method, NO_RUN, forms))  # noqa: B023
                assert found.replace(run, NO_RUN) == expected
                assert "not_found" in found


async def about(client: ServerConnection, method: str, task: str, forms: Any) -> Any:
    params = Params(task_id=task, input_responses=forms)
    return await client.client.session.send_request(AboutTask(method=method, params=params), Result)


async def test_a_form_of_another_cannot_be_filled_in(service: HttpService, bob: str) -> None:
    ann = service.create_token("ann")
    code = "from tools.counted import add\nadd(item='form')"
    arguments = {"code": code, "wait_s": 5}
    form = await call(service, ann, arguments)
    assert form["resultType"] == "input_required"
    answers = {"approval": {"action": "accept", "content": {"decision_1": "allow"}}}
    more = {"requestState": form["requestState"], "inputResponses": answers}
    refused = await call(service, bob, arguments, **more)
    assert refused["error"]["data"] == {"reason": "invalid_request_state"}
    done = service.settings.parent / "done"
    assert not done.exists() or "form" not in done.read_text()
    allowed = await call(service, ann, arguments, **more)
    assert allowed["structuredContent"]["status"] == "ok", allowed
    assert "add form" in done.read_text()


async def call(
    service: HttpService, token: str, arguments: dict[str, Any], **params: Any
) -> dict[str, Any]:
    """Use `run_code` in the newest protocol, as a client that shows forms."""
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {
            "name": "run_code",
            "arguments": arguments,
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": {"name": "plain", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}},
            },
            **params,
        },
    }
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": "run_code",
    }
    async with service.http(token, **headers) as http:
        response: httpx2.Response = await http.post(service.url, json=body)
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    message = json.loads(lines[-1].removeprefix("data: ")) if lines else response.json()
    answer: dict[str, Any] = message.get("result", message)
    return answer
