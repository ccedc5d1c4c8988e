"""Skills that ask models: kept, proved and replayed with the answers that were recorded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import skills_ref

from bench import fake_llm
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings

from .test_model_requests import SMALL, settings


@pytest.fixture(scope="module")
def model() -> Iterator[fake_llm.ModelServer]:
    with fake_llm.start_model_server() as server:
        yield server


@pytest.fixture(scope="module")
async def server(
    tmp_path_factory: pytest.TempPathFactory, model: fake_llm.ModelServer
) -> AsyncIterator[ServerConnection]:
    async with connect_server(settings(tmp_path_factory.mktemp("skills"), model)) as connection:
        yield connection


@pytest.fixture(autouse=True)
def _unscripted(model: fake_llm.ModelServer) -> None:
    model.set_script()


async def kept(server: ServerConnection, code: str, name: str) -> dict[str, Any]:
    """Run code, have it kept, and return what is told of that."""
    run = await server.run(code, session=name)
    assert run.data.get("status") == "ok", run.text
    saved = await server.client.call_tool("save_skill", {"run": run.run, "name": name})
    assert not saved.is_error, saved
    return dict(saved.structured_content or {})


async def source(server: ServerConnection, name: str) -> str:
    told = await server.client.call_tool("list_skills", {"name": name})
    return str((told.structured_content or {})["source"])


PLACE = """
from dataclasses import dataclass

@dataclass
class Place:
    name: str
    size: float

text = "Oslo has 700000 people"
place = ask_llm("Which place?", text, schema=Place)
[place.name, place.size * 2]
"""
CASES = {
    "ask": ((
        "text = 'Oslo lies by a fjord'\nanswer = ask_llm('Which city?', text)\nanswer.upper()"
    ), "text"),
    "literal": ("answer = ask_llm('Which city?', 'Oslo lies by a fjord')\nanswer.upper()", "data"),
    "question": ("answer = ask_llm('What is the capital of Norway?')\nanswer.upper()", "prompt"),
    "inside": ((
        "city = 'Oslo'\nanswer = ask_llm(f'How large is {city}, really?')\nanswer.upper()"
    ), "city"),
    "awaited": ((
        "city = 'Oslo'\nanswer = await aask_llm('How large?', city)\nanswer.upper()"
    ), "city"),
    "schema": (
        "city = 'Oslo'\n"
        "schema = {'type': 'object', 'properties': {'n': {'type': 'integer'}}, 'required': "
        "['n']}\n"
        "found = ask_llm('How large?', city, schema=schema, model='json')\n[city, found['n']]",
        "city",
    ),
    "several": (
        (
            "names = ['Oslo', 'Rome']\nslots = ask_llm_batch('Where?', names)\n"
            "[s.value.upper() for s in slots]"
        ),
        "names",
    ),
    "caught": (
        "city = 'Oslo'\ntry:\n    found = ask_llm('x', city, schema=int, model='never-json')\n"
        "except LlmAnswerError as error:\n    found = error.kind\n[city, found]",
        "city",
    ),
    "aliased": ((
        "from llm import ask_llm as ask\ncity = 'Oslo'\nfound = ask('How large?', city)\nfound"
    ), "city"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_a_run_with_model_requests_becomes_a_skill_proved_with_recorded_answers(
    server: ServerConnection, model: fake_llm.ModelServer, name: str
) -> None:
    code, parameter = CASES[name]
    told = await kept(server, code, f"{name}_city")
    asked = model.read_counts()["calls"]
    assert (told["state"], told["reasons"]) == ("active", [])
    assert parameter in told["signature"].partition(":")[0]
    assert "schema" not in told["signature"]
    assert "from llm import " in await source(server, f"{name}_city")
    again = await server.run(
        f"from skills.{name}_city import run\nresult = run()\n" + AWAITED, session=f"{name} again"
    )
    assert again.data["status"] == "ok", again.text
    assert model.read_counts()["calls"] > asked  # the gate has asked nobody; the skill does


AWAITED = "import inspect\nawait result if inspect.isawaitable(result) else result"


async def test_types_of_answers_are_part_of_the_skill(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script({"match": "Oslo", "reply": {"name": "Oslo", "size": 700000}})
    told = await kept(server, PLACE, "place_of")
    assert (told["state"], told["reasons"]) == ("active", [])
    model.set_script({"match": "Rome", "reply": {"name": "Rome", "size": 2.5}})
    assert await server.evaluate("from skills.place_of import run\nrun(text='Rome is old')") == [
        "Rome",
        5.0,
    ]
    data = (
        await server.client.call_tool("list_skills", {"name": "place_of"})
    ).structured_content or {}
    assert data["uses"] == ["llm.ask"]


async def test_a_question_that_no_parameter_reaches_says_so(server: ServerConnection) -> None:
    code = (
        "def run(text: str, city: str) -> str:\n    return ask_llm('Which?', text).upper()\n"
        "run('by a fjord', 'Oslo')"
    )
    told = await kept(server, code, "idle_one")
    assert told["state"] == "draft"
    assert told["reasons"] == ["Parameter `city` never reaches a call or the result."]


async def test_a_skill_with_model_requests_gets_its_missing_imports(
    server: ServerConnection,
) -> None:
    code = (
        '"""Sort."""\n\ndef kind_of(text: str) -> str:\n    """Say what it is."""\n'
        '    return ask_llm("Kind?", text)\n'
    )
    draft = (await server.client.call_tool("save_skill", {"code": code})).structured_content or {}
    assert draft["state"] == "draft"
    assert (await source(server, "kind_of@1")).splitlines()[1] == "from llm import ask_llm"
    told = await kept(
        server, "from skills.kind_of.v1 import run\nrun(text='A letter to Ann')", "kind_of"
    )
    assert (told["version"], told["state"]) == (2, "active")


async def test_replays_of_skills_that_ask_models_ask_nobody(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    await kept(server, CASES["ask"][0].replace("fjord", "sea"), "replayed")
    await server.run(
        "from skills.replayed import run\nrun('Rome lies by a river')", session="replays"
    )
    asked = model.read_counts()["calls"]
    again = await server.replay("rerun", "replays")
    assert "The same as recorded" in again.text
    assert model.read_counts()["calls"] == asked


async def test_its_folder_says_that_a_model_is_asked(server: ServerConnection) -> None:
    await kept(server, CASES["ask"][0].replace("fjord", "lake"), "told_so")
    folder = server.data_dir.parent / "skills_store" / "told-so"
    assert skills_ref.validate(folder) == []
    assert "It asks a model, with `ask_llm`." in (folder / "SKILL.md").read_text()
    assert "It calls" not in (folder / "SKILL.md").read_text()
    assert "llm" not in (folder / "skill.toml").read_text()


async def test_answers_of_the_clients_model_are_part_of_a_case(tmp_path: Path) -> None:
    async with connect_server(
        write_settings(tmp_path, sandbox=SMALL, llm={"broker": "caller"})
    ) as server:
        run = await server.run(
            "text = 'by a fjord'\ncity = ask_llm('Which city?', text)\ncity.upper()"
        )
        [question] = run.data["waiting_for"]
        done = await server.client.call_tool(
            "run_code", {"run": run.run, "answers": {question["id"]: "Oslo"}}
        )
        assert (done.structured_content or {})["value"] == "OSLO"
        saved = await server.client.call_tool("save_skill", {"run": run.run, "name": "city_in"})
        assert (saved.structured_content or {}).get("state") == "active", saved
        used = await server.run("from skills.city_in import run\nrun('by a river')")
        assert used.data["status"] == "waiting"
