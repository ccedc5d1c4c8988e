"""Runs that wait for a credential: a person is shown the page, whatever the client speaks."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.types import ElicitRequestParams, ElicitRequestURLParams, ElicitResult

from bench import fake_llm

from ..capabilities.agent.conftest import program_answer
from ..helpers.commands import run_command
from ..helpers.event_streams import ApiClient, ReceivedEvent, connect_api
from ..helpers.http_service import ERAS, HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S
from ..server.test_tasks_extension import Declared, Taker
from .test_principal_credentials import WHO, digest, give, prepare

KINDS = """\
import tools
kinds = []
for _ in range(2):
    try:
        from tools.keyed import whoami
    except Exception as e:
        kinds.append(e.kind)
kinds
"""


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, model: fake_llm.ModelServer
) -> AsyncIterator[HttpService]:
    llm = {"model": "echo", "api_base": model.url, "api_key": fake_llm.API_KEY, "retries": 0}
    async with open_http_service(prepare(tmp_path_factory.mktemp("asking"), llm=llm)) as opened:
        yield opened


@pytest.fixture(scope="module")
def model() -> Iterator[fake_llm.ModelServer]:
    with fake_llm.start_model_server() as server:
        yield server


async def store(service: HttpService, url: str, token: str, secret: str) -> None:
    """Fill in the page, as a person does in a browser."""
    async with service.http() as http:
        stored = await http.post(url, data={"token": token, "credential": secret})
        assert stored.status_code == 200, stored.text


class PageVisitor:
    """A person whose client shows pages: stores a credential there, or does something else."""

    def __init__(self, service: HttpService, token: str, secret: str, action: str = "accept"):
        self._service = service
        self._token = token
        self._secret = secret
        self._action: Any = action
        self.messages: list[str] = []

    async def visit(self, context: Any, params: ElicitRequestParams) -> ElicitResult:
        assert isinstance(params, ElicitRequestURLParams), params
        self.messages.append(params.message)
        if self._secret:
            await store(self._service, params.url, self._token, self._secret)
        return ElicitResult(action=self._action)


@pytest.mark.parametrize("era", ERAS)
async def test_a_run_waits_until_a_person_has_stored_the_credential(
    service: HttpService, era: str
) -> None:
    token = service.create_token(f"zoe-{era}")
    person = PageVisitor(service, token, f"secret-of-zoe-{era}")
    async with service.connect(token, era, elicitation_callback=person.visit) as client:
        result = await client.run(WHO, wait_s=60)
        assert result.status == "ok", result.text
        assert result.value["digest"] == digest(f"secret-of-zoe-{era}")
    [message] = person.messages
    assert f"keyed needs a credential of 'zoe-{era}'" in message


@pytest.mark.parametrize("era", ERAS)
async def test_a_person_who_declines_lets_the_call_fail_and_is_not_asked_again(
    service: HttpService, era: str
) -> None:
    token = service.create_token(f"kim-{era}")
    person = PageVisitor(service, token, "", "decline")
    async with service.connect(token, era, elicitation_callback=person.visit) as client:
        assert (await client.run(KINDS, wait_s=60)).value == ["credential_missing"] * 2
    assert len(person.messages) == 1


async def test_a_run_goes_on_when_the_credential_is_stored_elsewhere(service: HttpService) -> None:
    token = service.create_token("lou")
    person = PageVisitor(service, token, "", "accept")
    async with service.connect(token, elicitation_callback=person.visit) as client:
        result = await client.run(WHO, wait_s=2)
        assert result.status == "waiting", result.text
        [question] = result.waiting_for
        assert question["kind"] == "credential"
        assert "credentials set keyed --principal lou" in question["hints"][1]
        asked = run_command("--config", service.settings, "approvals", "--principal", "lou")
        assert "A credential is missing." in asked.stdout
        give(service.settings, "keyed", "lou", "secret-of-lou-1")
        result = await client.run_request(result.run, wait_s=60)
        assert result.value["digest"] == digest("secret-of-lou-1")
    assert len(person.messages) == 1


async def test_a_resumed_run_still_waits_for_its_credential(tmp_path: Path) -> None:
    settings = prepare(tmp_path)
    async with open_http_service(settings) as first:
        token = first.create_token("eve")
        person = PageVisitor(first, token, "", "accept")
        async with first.connect(token, elicitation_callback=person.visit) as client:
            waiting = await client.run(WHO, wait_s=2)
            assert waiting.status == "waiting", waiting.text
        first.signal(signal.SIGKILL)
        with anyio.fail_after(60):
            await first.process.wait()
    async with open_http_service(settings) as second, second.connect(token) as client:
        resumed = await client.run_request(waiting.run, wait_s=60)
        assert resumed.status == "waiting", resumed.text
        result = await client.run_request(waiting.run, answers={"q1": "decline"}, wait_s=60)
        assert "keyed needs a credential of 'eve'" in result.text


# the HTTP API ------------------------------------------------------------------------------------


async def read_until_waiting(
    api: ApiClient, code: str
) -> tuple[list[ReceivedEvent], ReceivedEvent]:
    """Execute code and return its events until it waits, and the last of them."""
    body, seen = {"code": code, "shows_pages": True}, []
    async with api.stream("POST", "/execute/stream", json=body) as events:
        async for event in events:
            seen.append(event)
            if event.type == "waiting":
                break
    return seen, seen[-1]


async def test_an_event_has_the_page_and_the_run_goes_on_when_it_is_filled_in(
    service: HttpService,
) -> None:
    token = service.create_token("ida")
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(service, token) as api:
            seen, waiting = await read_until_waiting(api, WHO)
            run = waiting.data["run"]
            assert waiting.data["kind"] == "credential"
            assert waiting.data["url"].endswith("/credentials/keyed")
            assert "keyed needs a credential of 'ida'" in waiting.data["hints"][0]
            [question] = (await api.get(f"/runs/{run}")).json()["waiting_for"]
            assert (question["url"], question["run"]) == (waiting.data["url"], run)
            wrong = await api.post(f"/runs/{run}/answers", {"answers": {"q1": "stored"}})
            assert (wrong.status_code, "'decline'" in wrong.text) == (400, True), wrong.text
            await store(service, waiting.data["url"], token, "secret-of-ida-1")
            rest = await api.read_events(run, seen[-1].id)
            [answered] = [event.data for event in rest if event.type == "answered"]
            assert answered["decision"] == "stored"
            assert rest[-1].data["value"]["digest"] == digest("secret-of-ida-1")


async def test_an_answer_declines_and_the_call_fails(service: HttpService) -> None:
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(service, service.create_token("ole")) as api:
            asked = await api.post("/execute", {"code": KINDS, "shows_pages": True})
            run = asked.json()["run"]
            assert (asked.status_code, asked.json()["status"]) == (202, "waiting")
            declined = await api.post(f"/runs/{run}/answers", {"answers": {"q1": "decline"}})
            assert declined.status_code in (200, 202), declined.text
            end = (await api.read_events(run))[-1]
            assert end.data["value"] == ["credential_missing"] * 2


async def test_who_shows_no_pages_gets_the_error(service: HttpService) -> None:
    async with connect_api(service, service.create_token("pia")) as api:
        run = (await api.post("/execute", {"code": KINDS})).json()
    assert (run["status"], run["value"]) == ("ok", ["credential_missing"] * 2)


# sub-agents and tasks ----------------------------------------------------------------------------


async def test_the_page_of_a_sub_agent_is_shown_to_the_client_of_its_run(
    service: HttpService, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\nWho am I", "reply": program_answer(f"{WHO[:-8]}SUBMIT(whoami())")}
    )
    token = service.create_token("una")
    person = PageVisitor(service, token, "secret-of-una-1")
    async with service.connect(token, elicitation_callback=person.visit) as client:
        result = await client.run("sub_agent('Who am I?')", wait_s=60)
    assert result.value["digest"] == digest("secret-of-una-1"), result.text
    assert len(person.messages) == 1


async def test_a_document_has_what_the_sub_agents_of_a_run_wait_for(
    service: HttpService, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\nWho am I", "reply": program_answer(f"{WHO[:-8]}SUBMIT(whoami())")}
    )
    token = service.create_token("ulf")
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(service, token) as api:
            body = {"code": "sub_agent('Who am I?')", "shows_pages": True, "wait_s": 0}
            path = f"/runs/{(await api.post('/execute', body)).json()['run']}"
            while not (asked := (await api.get(path)).json()["waiting_for"]):  # noqa: ASYNC110
                await anyio.sleep(0.05)
            assert f"/runs/{asked[0]['run']}" != path
            await store(service, asked[0]["url"], token, "secret-of-ulf-1")
            end = (await api.read_events(path.rpartition("/")[2]))[-1]
            assert end.data["value"]["digest"] == digest("secret-of-ulf-1")


async def test_the_stream_of_a_run_has_what_its_sub_agents_wait_for(
    service: HttpService, model: fake_llm.ModelServer
) -> None:
    inner = program_answer("SUBMIT(sub_agent('Who am I?'))")
    model.set_script(
        {"match": "Task:\nAsk another", "reply": inner},
        {"match": "Task:\nWho am I", "reply": program_answer(f"{WHO[:-8]}SUBMIT(whoami())")},
    )
    token = service.create_token("eva")
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(service, token) as api:
            body = {"code": "sub_agent('Ask another')", "shows_pages": True, "wait_s": 0}
            run = (await api.post("/execute", body)).json()["run"]
            async with api.stream("GET", f"/runs/{run}/events") as events:
                async for event in events:
                    if event.type == "waiting":
                        assert event.data["run"] == run != event.data["asking_run"]
                        assert event.data["kind"] == "credential"
                        asking = (await api.get(f"/runs/{event.data['asking_run']}")).json()
                        [asked] = asking["waiting_for"]
                        assert asked["id"] == event.data["question"]
                        await store(service, event.data["url"], token, "secret-of-eva-1")
            kinds = [each.type for each in await api.read_events(run)]
    assert kinds.count("waiting") == kinds.count("answered") == 1
    assert kinds[-1] == "run_finished"


@pytest.mark.parametrize("action", ["accept", "decline", "cancel"])
async def test_a_task_shows_the_page(service: HttpService, action: str) -> None:
    token, secret = service.create_token(f"task-{action}"), f"secret-of-task-{action}"
    person = PageVisitor(service, token, "")
    options: Any = {"extensions": [Declared()], "elicitation_callback": person.visit}
    async with service.connect(token, **options) as connection:
        client = Taker(connection)
        task = await client.begin(KINDS if action == "decline" else WHO)
        asking = await client.until(task, "input_required")
        [(name, request)] = (asking.input_requests or {}).items()
        assert request["params"]["mode"] == "url"
        await client.update(task, {"another": {"action": "accept"}, name: {"action": action}})
        if action == "accept":
            assert (await client.get(task)).status == "working"
            await store(service, request["params"]["url"], token, secret)
        answer = (await client.until(task, "completed")).answer
        if action == "accept":
            assert answer.value["digest"] == digest(secret)
        elif action == "decline":
            assert answer.value == ["credential_missing"] * 2
        else:
            assert answer.status == "waiting"
    assert person.messages == []
