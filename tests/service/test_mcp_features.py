"""What works over stdio works over HTTP: tasks, pictures, files, prompts, and models of clients."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import MCPError
from mcp.types import (
    AudioContent,
    BlobResourceContents,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from tests.upstreams.painter import RED_PIXEL, make_silence

from ..helpers.http_service import ERAS, HttpService, open_http_service
from ..helpers.server_connection import (
    TEST_TIMEOUT_S,
    ServerConnection,
    parse_answer,
    write_local_settings,
)
from ..server.conftest import upstream_entry
from ..server.test_approvals import ASK, choose
from ..server.test_tasks_extension import (
    ALLOW,
    IMPORT,
    INVALID_PARAMS,
    Created,
    Declared,
    Gate,
    Taker,
)

MAKE_PICTURE = """\
import os, struct, zlib
def png(side):
    def chunk(kind, data):
        check = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + check
    rows = zlib.compress(b''.join(b'\\0' + os.urandom(side) for _ in range(side)), 0)
    header = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
    start = b'\\x89PNG\\r\\n\\x1a\\n'
    return start + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
"""
SEVERAL = "[s.value for s in ask_llm_batch([f'{n}?' for n in range(20)])]"


class Model:
    """The model of a client: it repeats the first line of what it is asked, in capitals."""

    def __init__(self) -> None:
        self.asked: list[CreateMessageRequestParams] = []

    async def answer(self, _: Any, asked: CreateMessageRequestParams) -> CreateMessageResult:
        self.asked.append(asked)
        content = asked.messages[0].content
        assert isinstance(content, TextContent)
        return message(content.text.partition("\n")[0].upper())


def message(text: str, **more: Any) -> CreateMessageResult:
    content = TextContent(type="text", text=text)
    return CreateMessageResult(role="assistant", model="mine", content=content, **more)


async def cut(_: Any, asked: CreateMessageRequestParams) -> CreateMessageResult:
    return message("It is half a", stop_reason="maxTokens")


async def nobody(_: Any, asked: ElicitRequestParams) -> ElicitResult:
    raise AssertionError(f"a person was asked: {asked}")


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    folder = tmp_path_factory.mktemp("features")
    (folder / "docs").mkdir()
    (folder / "docs" / "office.md").write_text("# Office\n\nThe door code is kept by the porter.\n")
    settings = write_local_settings(
        folder,
        mcpServers={
            "counted": upstream_entry("counted", str(folder / "done")),
            "painter": upstream_entry("painter"),
        },
        knowledge={"handbook": {"path": str(folder / "docs")}},
        llm={"broker": "sampling"},
        policy=ASK,
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def ann(service: HttpService) -> str:
    return service.create_token("ann")


@pytest.fixture(scope="module")
async def bob(service: HttpService) -> str:
    return service.create_token("bob")


@pytest.fixture(params=ERAS)
async def client(
    service: HttpService, ann: str, request: pytest.FixtureRequest
) -> AsyncIterator[ServerConnection]:
    async with service.connect(ann, request.param) as connection:
        yield connection


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


# what results contain -----------------------------------------------------------------------------


async def test_pictures_and_sounds_reach_the_client(client: ServerConnection) -> None:
    code = "from tools.painter import paint, play\nshow(play())\npaint()"
    result = await client.client.call_tool("run_code", {"code": code})
    [picture] = [each for each in result.content if isinstance(each, ImageContent)]
    assert base64.b64decode(picture.data) == RED_PIXEL
    [heard] = [each for each in result.content if isinstance(each, AudioContent)]
    assert base64.b64decode(heard.data) == make_silence()


async def test_a_picture_that_no_event_holds_is_named_and_the_others_are_shown(
    service: HttpService, ann: str
) -> None:
    """The SDK's clients would refuse the whole answer."""

    async def ignore(progress: float, total: float | None, message: str | None) -> None:
        pass

    code = f"{MAKE_PICTURE}show(png(300), png(1100), png(400))\n'shown'"
    for era in ERAS:
        async with service.connect(ann, era) as client:
            result = await client.client.call_tool(
                "run_code", {"code": code}, progress_callback=ignore
            )
        assert [each.type for each in result.content] == ["text", "image", "text", "image"]
        left_out = result.content[2]
        assert isinstance(left_out, TextContent)
        assert left_out.text == "[image 2 is left out: over HTTP, a result shows at most 0.7 MB]"
        assert "[image 2: PNG 1100x1100]" in parse_answer(result).text


async def test_changed_files_are_resources(client: ServerConnection) -> None:
    code = "open('a b.txt', 'w').write('text')\nopen('x.bin', 'wb').write(b'\\x00\\xff')"
    result = await client.client.call_tool("run_code", {"code": code})
    uris = [each.uri for each in result.content if isinstance(each, ResourceLink)]
    contents = [(await client.client.read_resource(uri)).contents[0] for uri in uris]
    assert [each.mime_type for each in contents] == ["text/plain", "application/octet-stream"]
    assert isinstance(contents[1], BlobResourceContents)
    assert contents[1].blob == "AP8="
    listed = {each.uri for each in (await client.client.list_resources()).resources}
    assert set(uris) <= listed


async def test_a_large_answer_arrives_whole(client: ServerConnection) -> None:
    code = "open('f', 'wb').write(bytes(700_000))\nprint('x' * 15_000)"
    result = await client.client.call_tool("run_code", {"code": code})
    assert "x" * 15_000 in parse_answer(result).text
    [link] = [each for each in result.content if isinstance(each, ResourceLink)]
    [data] = (await client.client.read_resource(link.uri)).contents
    assert isinstance(data, BlobResourceContents)
    assert len(base64.b64decode(data.blob)) == 700_000


async def test_knowledge_is_resources_and_a_prompt(client: ServerConnection) -> None:
    prompts = [each.name for each in (await client.client.list_prompts()).prompts]
    assert prompts == ["with_skills", "grounded"]
    with anyio.fail_after(TEST_TIMEOUT_S):
        found = ""
        while "porter" not in found:  # until the folder is indexed
            result = await client.client.get_prompt("grounded", {"task": "Who has the door code?"})
            found = getattr(result.messages[0].content, "text", "")
    [page] = (await client.client.read_resource("knowledge://handbook/office.md")).contents
    assert isinstance(page, TextResourceContents)
    assert "porter" in page.text
    for uri in ("knowledge://handbook/none.md", "workspace://none/f", "skill://none"):
        with pytest.raises(MCPError) as caught:
            await client.client.read_resource(uri)
        assert caught.value.error.code == INVALID_PARAMS


async def test_a_cancelled_request_cancels_its_run(
    service: HttpService, ann: str, gate: Gate
) -> None:
    for era in ERAS:
        async with service.connect(ann, era) as client:
            session = f"cancelled-{era}"
            async with anyio.create_task_group() as tasks:

                async def run_until_cancelled(
                    client: ServerConnection = client, session: str = session
                ) -> None:
                    await client.run(gate.code, session)

                tasks.start_soon(run_until_cancelled)
                await wait_for_status(client, session, "running")
                tasks.cancel_scope.cancel()
        async with service.connect(ann, era) as client:
            assert await wait_for_status(client, session, "cancelled", "running")


async def wait_for_status(client: ServerConnection, session: str, *statuses: str) -> str:
    """Return the status of the first run of a session, once it is one of `statuses`."""
    with anyio.fail_after(TEST_TIMEOUT_S):
        while True:
            listed = await client.replay("list", session)
            steps = [] if listed.is_error else listed.data.get("steps", [])
            if steps and steps[0]["status"] in statuses:
                return str(steps[0]["status"])
            await anyio.sleep(0.05)


@pytest.mark.parametrize("era", ERAS)
async def test_an_unknown_prompt_is_an_invalid_parameter(
    service: HttpService, ann: str, era: str
) -> None:
    async with service.connect(ann, era) as client:
        for name, text in (("other", "There is no prompt 'other'."), ("grounded", "needs task")):
            with pytest.raises(MCPError, match=text) as caught:
                await client.client.get_prompt(name)
            assert caught.value.error.code == INVALID_PARAMS


# the client's model and the person ----------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
async def test_the_client_model_answers(service: HttpService, ann: str, era: str) -> None:
    model = Model()
    async with service.connect(
        ann, era, sampling_callback=model.answer, elicitation_callback=nobody
    ) as client:
        assert (await client.run("ask_llm('is it?', 'data')")).value == "IS IT?"
        assert (await client.run(SEVERAL)).value == [f"{n}?" for n in range(20)]
        told = parse_answer(await client.client.call_tool("ask_llm", {"prompt": "And you?"}))
        assert told.value == "AND YOU?"
    assert len(model.asked) == 22


@pytest.mark.parametrize("era", ERAS)
async def test_a_truncated_answer_of_the_model_is_none(
    service: HttpService, ann: str, era: str
) -> None:
    async with service.connect(ann, era, sampling_callback=cut) as client:
        asked = await client.run("ask_llm('is it?')")
        assert asked.status == "waiting"
        answers = {asked.waiting_for[0]["id"]: "yes"}
        told = await client.client.call_tool("run_code", {"run": asked.run, "answers": answers})
        assert parse_answer(told).value == "yes"


@pytest.mark.parametrize("era", ERAS)
async def test_each_client_is_asked_what_its_own_runs_wait_for(
    service: HttpService, ann: str, bob: str, era: str
) -> None:
    models = {"ann": Model(), "bob": Model()}
    tokens = {"ann": ann, "bob": bob}

    async def ask(name: str) -> None:
        async with service.connect(
            tokens[name], era, sampling_callback=models[name].answer
        ) as client:
            assert (await client.run(f"ask_llm('{name}?')")).value == f"{name.upper()}?"

    async with anyio.create_task_group() as tasks:
        for name in models:
            tasks.start_soon(ask, name)
    assert {name: len(model.asked) for name, model in models.items()} == {"ann": 1, "bob": 1}


@pytest.mark.parametrize("era", ERAS)
async def test_a_form_for_a_person_and_a_question_to_the_model_in_one_run(
    service: HttpService, ann: str, era: str
) -> None:
    model, person = Model(), choose("allow")
    async with service.connect(
        ann, era, sampling_callback=model.answer, elicitation_callback=person
    ) as client:
        code = f"{IMPORT}a = ask_llm('go?')\nadd(item='both-{era}')\na + ask_llm('gone?')"
        answer = await client.run(code)
    assert answer.value == "GO?GONE?", answer.text
    assert f"add both-{era}" in (service.settings.parent / "done").read_text()
    assert (len(model.asked), len(person.shown)) == (2, 1)


# tasks --------------------------------------------------------------------------------------------


@asynccontextmanager
async def taking(service: HttpService, token: str, **options: Any) -> AsyncIterator[Taker]:
    async with service.connect(token, extensions=[Declared()], **options) as connection:
        yield Taker(connection)


async def test_a_long_run_is_a_task_that_ends_with_its_result(
    service: HttpService, ann: str, gate: Gate
) -> None:
    async with taking(service, ann) as client:
        created = await client.call(code=f"print('early')\n{gate.code}3", wait_s=0.3)
        assert isinstance(created, Created), created
        assert (await client.get(created.task_id)).status == "working"
    async with taking(service, ann) as client:  # another connection
        gate.open()
        done = await client.until(created.task_id, "completed")
        assert (done.answer.value, done.answer.stdout) == (3, "early\n")


async def test_many_tasks_at_once(service: HttpService, ann: str, bob: str, gate: Gate) -> None:
    values: list[int] = []

    async def follow(token: str, number: int) -> None:
        async with taking(service, token) as client:
            task = await client.begin(f"{gate.code}{number}", session=f"many-{number}")
            if number == 5:
                gate.open()
            values.append((await client.until(task, "completed")).answer.value)

    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(follow, (ann, bob)[number % 2], number)
    assert sorted(values) == list(range(6))


async def test_a_task_asks_a_person_who_may_come_over_another_connection(
    service: HttpService, ann: str
) -> None:
    async with taking(service, ann, elicitation_callback=choose("cancel")) as client:
        task = await client.begin(f"{IMPORT}add(item='task').result")
        asking = await client.until(task, "input_required")
    async with taking(service, ann, elicitation_callback=choose("cancel")) as client:
        forms = (await client.get(task)).input_requests or asking.input_requests or {}
        assert forms
        await client.update(task, dict.fromkeys(forms, ALLOW))
        done = await client.until(task, "completed")
        assert done.answer.status == "ok", done.answer.text
    assert "add task" in (service.settings.parent / "done").read_text()


async def test_a_task_is_cancelled(service: HttpService, ann: str, gate: Gate) -> None:
    async with taking(service, ann) as client:
        task = await client.begin(gate.code)
        await client.about("tasks/cancel", task)
        assert (await client.until(task, "cancelled")).result is None


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
async def test_the_tasks_of_another_principal_are_unknown(
    service: HttpService, ann: str, bob: str, gate: Gate, method: str
) -> None:
    async with taking(service, ann) as owner, taking(service, bob) as other:
        task = await owner.begin(gate.code)
        refusals = []
        for name in (task, "r_unknown"):
            with pytest.raises(MCPError) as caught:
                await other.about(method, name)
            refusals.append((caught.value.error.code, caught.value.error.message.replace(name, "")))
        assert refusals[0] == refusals[1]
        assert refusals[0][0] == INVALID_PARAMS
        gate.open()
        assert (await owner.until(task, "completed")).answer.status == "ok"


async def test_a_client_of_the_older_protocols_gets_no_task(
    service: HttpService, ann: str, gate: Gate
) -> None:
    async with service.connect(ann, "legacy") as client:
        told = await client.run(f"{gate.code}1", background=True)
        assert told.status in ("running", "queued")
        gate.open()
        result = await client.client.call_tool("run_code", {"run": told.run})
        assert parse_answer(result).value == 1


async def test_a_task_continues_in_the_next_server(tmp_path: Path, gate: Gate) -> None:
    settings = write_local_settings(tmp_path)
    async with open_http_service(settings) as first:
        token = first.create_token("ann")
        async with taking(first, token) as client:
            task = await client.begin(f"{gate.code}'resumed'")
    gate.open()
    async with open_http_service(settings) as second, taking(second, token) as client:
        assert (await client.until(task, "completed")).answer.value == "resumed"
