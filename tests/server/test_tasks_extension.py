"""The MCP extension for tasks: long runs are tasks of a client that declares it, over stdio."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from mcp import MCPError
from mcp.client import ClaimContext, ClientExtension, ResultClaim
from mcp.types import CallToolResult, Request, RequestParams, Result

from ..helpers.server_connection import TEST_TIMEOUT_S, ServerConnection, ToolAnswer, parse_answer
from .test_approvals import World, choose

TASKS = "io.modelcontextprotocol/tasks"
IMPORT = "import tools\nfrom tools.counted import add, put\n"
INVALID_PARAMS, MISSING_CAPABILITY, METHOD_NOT_FOUND = -32602, -32021, -32601
METHODS = ["tasks/get", "tasks/update", "tasks/cancel"]
NOBODY = choose("cancel")  # a client that shows forms, but for those of tasks
ALLOW, DENY = ({"action": "accept", "content": {"decision_1": word}} for word in ("allow", "deny"))
PUT_ASIDE = {"action": "cancel"}


class Params(RequestParams):
    task_id: str
    input_responses: Any = None


class AboutTask(Request[Params, str]):
    method: str
    params: Params
    name_param = "taskId"


class Created(Result):
    """What a call is answered with in place of its result."""

    result_type: Literal["task"] = "task"
    task_id: str
    status: str
    created_at: datetime
    last_updated_at: datetime
    ttl_ms: int | None
    poll_interval_ms: int


class Task(Created):
    """What `tasks/get` tells."""

    result_type: Literal["complete"]  # type: ignore[assignment] # the same fields with another mark
    status_message: str = ""
    input_requests: dict[str, Any] | None = None
    result: dict[str, Any] | None = None

    @property
    def answer(self) -> ToolAnswer:
        return parse_answer(CallToolResult.model_validate(self.result, by_name=False))


class Declared(ClientExtension):
    """Declares that the client takes tasks, and leaves them to the test."""

    identifier = TASKS

    def claims(self) -> list[ResultClaim[Any]]:
        async def resolve(created: Created, context: ClaimContext) -> CallToolResult:
            raise AssertionError("a test asks for its tasks itself")

        return [ResultClaim(result_type="task", model=Created, resolve=resolve)]


class Taker:
    """A client that takes tasks."""

    def __init__(self, connection: ServerConnection) -> None:
        self.session = connection.client.session
        self.connection = connection

    async def call(self, **arguments: Any) -> Any:
        """Use `run_code`: `Answer`, or `Created`."""
        result = await self.session.call_tool(
            "run_code", arguments, allow_claimed=True, allow_input_required=True
        )
        return parse_answer(result) if isinstance(result, CallToolResult) else result

    async def begin(self, code: str, **more: Any) -> str:
        """Return the task that this code becomes at once."""
        created = await self.call(code=code, background=True, **more)
        assert isinstance(created, Created), created
        assert created.status == "working"
        return created.task_id

    async def get(self, task: str) -> Task:
        return await self.session.send_request(
            AboutTask(method="tasks/get", params=Params(task_id=task)), Task
        )

    async def until(self, task: str, status: str) -> Task:
        """Ask for a task as often as it says, until it has this status."""
        with anyio.fail_after(TEST_TIMEOUT_S):
            while (found := await self.get(task)).status != status:
                assert found.status in ("working", "input_required"), found
                await anyio.sleep(found.poll_interval_ms / 1e3)
        return found

    async def update(self, task: str, forms: dict[str, Any]) -> None:
        await self.about("tasks/update", task, forms)

    async def about(self, method: str, task: str, forms: Any = None) -> None:
        """Send a request that is answered with nothing."""
        responses = forms or {} if method == "tasks/update" else None
        params = Params(task_id=task, input_responses=responses)
        answer = await self.session.send_request(AboutTask(method=method, params=params), Result)
        assert (answer.model_extra or {}).keys() <= {"resultType"}


class Gate:
    """A file that code waits for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.code = f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.01)\n"

    def open(self) -> None:
        self.path.touch()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@asynccontextmanager
async def taking(world: World, **options: Any) -> AsyncIterator[Taker]:
    async with world.client(extensions=[Declared()], **options) as connection:
        await connection.client.session.call_tool(
            "run_code", {"code": "x = 1", "wait_s": TEST_TIMEOUT_S}
        )
        yield Taker(connection)


# calls --------------------------------------------------------------------------------------------


async def test_a_call_whose_run_ends_in_time_is_answered_with_its_result(
    world: World, gate: Gate
) -> None:
    async with taking(world) as client:
        told = await client.call(code="import time\ntime.sleep(1)\nx + 1")
        assert (told.status, told.value) == ("ok", 2)
        assert (await client.call(code="1 +")).error["type"] == "SyntaxError"
        assert (await client.call(cod="1")).text.startswith("[invalid_request] ")


@pytest.mark.parametrize(
    "arguments", [{"wait_s": 0.3}, {"wait_s": 0}, {"background": True}, {"run": None, "wait_s": 0}]
)
async def test_a_run_that_outlasts_its_request_is_a_task_that_ends_with_its_result(
    world: World, gate: Gate, arguments: dict[str, Any]
) -> None:
    async with taking(world) as client:
        created = await client.call(
            code=f"print('early', flush=True)\n{gate.code}print('late')\nNone, x", **arguments
        )
        assert created.ttl_ms == 90 * 86_400_000
        assert created.poll_interval_ms >= 100
        working = await client.get(created.task_id)
        assert (working.status, working.result, working.created_at) == (
            "working",
            None,
            created.created_at,
        )
        gate.open()
        done = await client.until(created.task_id, "completed")
        told = done.answer
        assert (told.run, told.status, told.value) == (created.task_id, "ok", [None, 1])
        assert told.stdout == "early\nlate\n"
        assert (await client.get(created.task_id)).result == done.result
        assert await client.connection.evaluate("2") == 2


async def test_a_run_is_a_task_after_the_wait_of_the_settings(world: World, gate: Gate) -> None:
    settings = world.settings.read_text()
    world.settings.write_text(settings.replace("[server]", "[server]\nwait_s = 0.3"))
    async with taking(world) as client:
        created = await client.call(code=gate.code)
        assert isinstance(created, Created)
        gate.open()
        assert (await client.until(created.task_id, "completed")).answer.status == "ok"


async def test_the_end_of_a_task_has_its_notes_and_failures(world: World, tmp_path: Path) -> None:
    async with taking(world) as client:
        task = await client.begin("import time\ntime.sleep(60)", timeout_s=1.0)
        told = (await client.until(task, "completed")).answer
        assert told.status == "timeout"
        assert "Stopped after 1 s" in told.note


async def test_a_task_is_there_after_a_restart(world: World, gate: Gate) -> None:
    async with taking(world) as client:
        gate.open()
        over = await client.begin("import time\ntime.sleep(0.5)\n'over'", session="a")
        before = await client.until(over, "completed")
    gate.path.unlink()
    async with taking(world) as client:
        again = await client.get(over)
        assert (again.created_at, again.last_updated_at) == (
            before.created_at,
            before.last_updated_at,
        )
        assert (again.answer.value, again.answer.session) == ("over", "a")
        task = await client.begin(f"{gate.code}'resumed'")
        [pid] = client.connection.server_pids
        assert (await client.get(task)).status == "working"
    gate.open()
    async with taking(world) as client:
        assert client.connection.server_pids != [pid]
        assert (await client.until(task, "completed")).answer.value == "resumed"


async def test_a_cancelled_task_stops_and_stays_so(world: World, gate: Gate) -> None:
    async with taking(world) as client:
        running = await client.begin(gate.code, session="s")
        queued = await client.begin("'next'", session="s")
        for task in (queued, running):
            await client.about("tasks/cancel", task)
            stopped = await client.until(task, "cancelled")
            assert stopped.result is None
            await client.about("tasks/cancel", task)
            assert (await client.get(task)).status == "cancelled"
    async with taking(world) as client:
        assert (await client.get(running)).status == "cancelled"


async def test_a_result_that_a_request_got_is_not_repeated_by_the_task(
    world: World, gate: Gate
) -> None:
    async with taking(world) as client:
        task = await client.begin(f"print('early', flush=True)\n{gate.code}print('late')\n3")
        early = await client.call(run=task, wait_s=0.1)
        while "stdout" not in early.data:
            early = await client.call(run=task, wait_s=0.1)
        assert early.stdout == "early\n"
        answers: list[ToolAnswer] = []

        async def wait() -> None:
            answers.append(await client.call(run=task))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            while not (await client.get(task)).status_message:
                pass
            gate.open()
            brief = (await client.until(task, "completed")).answer
        assert (answers[0].value, answers[0].stdout) == (3, "late\n")
        assert brief.data.keys() == {"run", "session", "step", "status", "note"}
        assert brief.status == "ok"
        assert f"delivered to the call with run={task!r}" in brief.note
        again = await client.call(run=task)
        assert (again.value, again.stdout) == (3, "early\nlate\n")
        assert (await client.get(task)).answer == brief


async def test_the_result_of_a_task_stays_and_can_be_asked_for_again(
    world: World, gate: Gate
) -> None:
    async with taking(world) as client:
        task = await client.begin(f"{gate.code}3")
        gate.open()
        done = await client.until(task, "completed")
        assert done.answer.value == 3
        assert (await client.call(run=task)).value == 3
        assert (await client.get(task)).result == done.result


# people -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "value", "done"), [(ALLOW, 0, ["add a"]), (DENY, "refused", [])])
async def test_a_task_asks_a_person_and_continues_with_the_answer(
    world: World, form: dict[str, Any], value: Any, done: list[str]
) -> None:
    code = (
        f"{IMPORT}r = 'refused'\ntry: r = add(item='a').result\n"
        "except tools.ToolDeniedError: pass\nr"
    )
    async with taking(world, elicitation_callback=NOBODY) as client:
        task = await client.begin(code)
        asking = await client.until(task, "input_required")
        assert (await client.get(task)).input_requests == asking.input_requests
        [(name, request)] = (asking.input_requests or {}).items()
        assert request["method"] == "elicitation/create"
        assert '{"item": "a"} (line 4)' in request["params"]["message"]
        await client.update(task, {"never asked": ALLOW})
        with pytest.raises(MCPError, match="at most 100 answers"):
            await client.update(task, {name: form} | {f"never {n}": ALLOW for n in range(100)})
        assert world.done == []
        await client.update(task, {name: form})
        assert (await client.until(task, "completed")).answer.value == value
        await client.update(task, {name: form})
    assert world.done == done


async def test_a_question_that_a_task_shows_is_not_asked_by_requests(world: World) -> None:
    person = choose("allow")
    async with taking(world, elicitation_callback=person) as client:
        task = await client.begin(f"{IMPORT}add(item='a').result")
        asking = await client.until(task, "input_required")
        told = await client.connection.client.call_tool("run_code", {"run": task, "wait_s": 0.5})
        assert (parse_answer(told).status, person.shown) == ("waiting", [])
        await client.update(task, dict.fromkeys(asking.input_requests or {}, ALLOW))
        assert (await client.until(task, "completed")).answer.value == 0
    assert world.done == ["add a"]


async def test_each_form_has_a_name_of_its_own_and_allows_what_it_showed(world: World) -> None:
    code = (
        f"{IMPORT}import os, threading, time\n"
        "def later():\n    while not os.path.exists('go'): time.sleep(0.01)\n"
        "    add(item='unseen')\n"
        "thread = threading.Thread(target=later)\nthread.start()\nadd(item='seen')\n"
        "thread.join()\n'end'"
    )
    async with taking(world, elicitation_callback=NOBODY) as client:
        task = await client.begin(
            code.replace("'go'", repr(str(world.upstream.with_suffix(".go"))))
        )
        [(first, request)] = (
            (await client.until(task, "input_required")).input_requests or {}
        ).items()
        world.upstream.with_suffix(".go").touch()
        with anyio.fail_after(TEST_TIMEOUT_S):
            while (forms := (await client.get(task)).input_requests or {}).keys() == {first}:
                pass
        assert "unseen" in json.dumps(forms)
        assert "unseen" not in json.dumps(request)
        await client.update(task, {first: ALLOW})
        [(second, request)] = (
            (await client.until(task, "input_required")).input_requests or {}
        ).items()
        with anyio.fail_after(TEST_TIMEOUT_S):
            while not world.done:  # noqa: ASYNC110 - it is another process
                await anyio.sleep(0.01)
        assert world.done == ["add seen"]
        assert second not in (first, *forms)
        await client.update(task, {first: ALLOW})
        assert world.done == ["add seen"]
        await client.update(task, {second: ALLOW})
        assert (await client.until(task, "completed")).answer.value == "end"
    assert world.done == ["add seen", "add unseen"]


async def test_a_form_that_is_put_aside_ends_the_task_and_the_model_can_have_it_asked_again(
    world: World,
) -> None:
    async with taking(world, elicitation_callback=choose("allow")) as client:
        task = await client.begin(f"{IMPORT}add(item='a').result")
        asking = await client.until(task, "input_required")
        await client.update(task, dict.fromkeys(asking.input_requests or {}, PUT_ASIDE))
        told = (await client.get(task)).answer
        assert (told.status, [wait["kind"] for wait in told.waiting_for]) == (
            "waiting",
            ["approval"],
        )
        again = await client.connection.client.call_tool("run_code", {"run": task})
        assert parse_answer(again).value == 0


async def test_a_client_that_cannot_ask_gets_what_the_run_waits_for(world: World) -> None:
    async with taking(world) as client:
        told = await client.call(code=f"{IMPORT}add(item='a').result")
        while isinstance(told, Created):
            told = (await client.until(told.task_id, "completed")).answer
        assert (told.status, [wait["kind"] for wait in told.waiting_for]) == (
            "waiting",
            ["approval"],
        )
        with pytest.raises(MCPError) as caught:
            await client.about("tasks/update", "r_unknown")
        assert caught.value.error.code == INVALID_PARAMS
        assert (await client.get(told.run)).answer.waiting_for == told.waiting_for


async def test_a_task_waits_for_its_person_across_a_restart(world: World) -> None:
    async with taking(world, elicitation_callback=NOBODY) as client:
        task = await client.begin(f"{IMPORT}add(item='a').result")
        asking = await client.until(task, "input_required")
    async with taking(world, elicitation_callback=NOBODY) as client:
        again = await client.until(task, "input_required")
        assert again.input_requests == asking.input_requests
        await client.update(task, dict.fromkeys(asking.input_requests or {}, ALLOW))
        assert (await client.until(task, "completed")).answer.value == 0
    assert world.done == ["add a"]


async def test_a_plan_is_the_result_of_its_task(world: World) -> None:
    world.settings.write_text(world.settings.read_text().replace('"counted.put" = "deny"\n', ""))
    async with taking(world) as client:
        task = await client.begin(
            f"{IMPORT}import time\ntime.sleep(0.5)\nput(item='a')", dry_run=True
        )
        told = (await client.until(task, "completed")).answer
        assert (told.status, [wait["kind"] for wait in told.waiting_for]) == ("waiting", ["plan"])
        assert (await client.call(run=told.run, answers={"*": "allow"})).status == "ok"
    assert world.done == ["put a"]


# wrong requests -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Taker]:
    """A client of a server that no test changes."""
    async with taking(World(tmp_path_factory.mktemp("tasks"))) as client:
        yield client


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["r_unknown", "", "\x00", "../../x", "ü" * 10_000])
async def test_unknown_tasks_are_refused(shared: Taker, method: str, task: str) -> None:
    with pytest.raises(MCPError) as caught:
        await shared.about(method, task)
    assert caught.value.error.code == INVALID_PARAMS
    assert len(caught.value.error.message) < 300


async def test_what_is_no_form_is_refused_and_what_was_not_asked_passed_over(world: World) -> None:
    async with taking(world, elicitation_callback=NOBODY) as client:
        task = await client.begin(f"{IMPORT}add(item='a').result")
        [name] = (await client.until(task, "input_required")).input_requests or {}
        for wrong in (1, {name: 1}, {name: {"action": "perhaps"}}, {name: {"ignored": True}}):
            with pytest.raises(MCPError) as caught:
                await client.about("tasks/update", task, wrong)
            assert caught.value.error.code == INVALID_PARAMS
        await client.update(task, {"x": 1, "y": {"ignored": True}})
        assert list((await client.get(task)).input_requests or {}) == [name]
        await client.update(
            task, {name: {"action": "accept", "content": {"decision_1": "everything"}}}
        )
        assert (await client.get(task)).answer.status == "waiting"
    assert world.done == []


async def test_the_tasks_of_another_principal_are_unknown(world: World) -> None:
    async with taking(world) as client:
        task = await client.begin("import time\ntime.sleep(0.5)")
        await client.until(task, "completed")
    with (
        closing(sqlite3.connect(world.settings.parent / "data" / "journal.db")) as database,
        database,
    ):
        database.execute("UPDATE sessions SET principal = 'somebody else'")
    async with taking(world) as client:
        for method in METHODS:
            with pytest.raises(MCPError) as caught:
                await client.about(method, task)
            assert caught.value.error.code == INVALID_PARAMS


@pytest.mark.parametrize(
    ("era", "code"), [("auto", MISSING_CAPABILITY), ("legacy", METHOD_NOT_FOUND)]
)
async def test_a_client_that_takes_no_tasks_is_given_none(
    world: World, gate: Gate, era: str, code: int
) -> None:
    async with world.client(mode=era) as connection:
        client = Taker(connection)
        told = await client.call(code="import time\ntime.sleep(0.5)\n'over'")
        assert told.value == "over"
        for method in METHODS:
            with pytest.raises(MCPError) as caught:
                await client.about(method, told.run)
            assert caught.value.error.code == code


async def test_there_are_no_other_requests_about_tasks(world: World) -> None:
    async with taking(world) as client:
        assert TASKS in (client.connection.client.server_capabilities.extensions or {})
        for method in ("tasks/list", "tasks/result"):
            with pytest.raises(MCPError) as caught:
                await client.about(method, "r_unknown")
            assert caught.value.error.code == METHOD_NOT_FOUND
