"""What agents of runs ask a person, through a client that shows forms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import fake_llm
from tests.helpers.server_connection import connect_server, write_settings
from tests.server.conftest import upstream_entry
from tests.server.test_approvals import ERAS, attach, choose
from tests.server.test_tasks_extension import ALLOW, NOBODY, PUT_ASIDE, Declared, Taker

from .conftest import LOCAL_SANDBOX, program_answer

CODE = "x = 1\nsub_agent('Act')"


def asking(tmp_path: Path, model: fake_llm.ModelServer) -> Path:
    """Have an agent add tea, of which a person is asked; the path is that of the settings."""
    model.set_script(
        {
            "match": "Task:\nAct",
            "reply": program_answer("from tools.counted import add\nadd(item='tea')"),
        },
        {"match": "Step 1 of 20: ok", "reply": program_answer("SUBMIT('placed')")},
        {
            "match": "Step 1 of 20: error.*ToolDeniedError",
            "reply": program_answer("SUBMIT('refused')"),
        },
    )
    llm = {"model": "echo", "api_base": model.url, "api_key": fake_llm.API_KEY}
    upstreams = {"counted": upstream_entry("counted", str(tmp_path / "done"))}
    return write_settings(
        tmp_path,
        sandbox=LOCAL_SANDBOX,
        llm=llm,
        policy={"tools": {"counted": "ask"}},
        mcpServers=upstreams,
    )


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("word", "value"), [("allow", "placed"), ("deny", "refused")])
async def test_the_client_shows_an_approval_that_an_agent_needs(
    model: fake_llm.ModelServer, tmp_path: Path, era: str, word: str, value: str
) -> None:
    person = choose(word)
    async with connect_server(
        asking(tmp_path, model), mode=era, elicitation_callback=person
    ) as server:
        told = await server.run(CODE, session="mine")
        assert (told.status, told.value) == ("ok", value), told.text
    [form] = person.shown
    assert re.match(
        r'A sub-agent \(run r_\S+\) of code in the session "mine" \(run r_\S+\) wants', form.message
    )
    assert '{"item": "tea"} (line 2)' in form.message


@pytest.mark.parametrize("era", ERAS)
async def test_a_dismissed_form_of_an_agent_returns_with_the_next_request(
    model: fake_llm.ModelServer, tmp_path: Path, era: str
) -> None:
    person = choose("cancel", "allow")
    async with connect_server(
        asking(tmp_path, model), mode=era, elicitation_callback=person
    ) as server:
        told = await server.run(CODE)
        assert told.status == "running"
        assert "of a sub-agent waits for an answer" in told.text
        assert (await attach(server.client, told.run)).value == "placed"
    assert len(person.shown) == 2


async def test_a_task_passes_on_the_approvals_of_its_agent(
    model: fake_llm.ModelServer, tmp_path: Path
) -> None:
    async with connect_server(
        asking(tmp_path, model), extensions=[Declared()], elicitation_callback=NOBODY
    ) as server:
        client = Taker(server)
        task = await client.begin(CODE)
        [(name, request)] = (
            (await client.until(task, "input_required")).input_requests or {}
        ).items()
        assert request["params"]["message"].startswith("A sub-agent (run r_")
        await client.update(task, {"never asked": ALLOW, name: ALLOW})
        assert (await client.until(task, "completed")).answer.value == "placed"


async def test_a_dismissed_form_of_an_agent_ends_the_task_and_says_so(
    model: fake_llm.ModelServer, tmp_path: Path
) -> None:
    async with connect_server(
        asking(tmp_path, model), extensions=[Declared()], elicitation_callback=NOBODY
    ) as server:
        client = Taker(server)
        task = await client.begin(CODE)
        forms = (await client.until(task, "input_required")).input_requests or {}
        await client.update(task, dict.fromkeys(forms, PUT_ASIDE))
        told = (await client.get(task)).answer
        assert told.status == "running"
        assert "of a sub-agent waits for an answer" in told.text
