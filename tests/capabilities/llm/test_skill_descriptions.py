"""Skill names and descriptions from a model (litellm, HTTP), and the limits of its influence."""

from __future__ import annotations

import ast
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import skills_ref

from bench import fake_llm
from bench.fake_llm import API_KEY
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings
from tests.server.conftest import upstream_entry

from .test_model_requests import SMALL

CODE = (
    "from tools.counted import add\nitem = 'SECRET PEARS'\nanswer = add(item=item)\n"
    "words = [item.lower()] * 3\nwords"
)
SAID = {
    "name": "shout_thrice",
    "summary": "Add an item and repeat it",
    "parameters": {"item": "what is added"},
}


@pytest.fixture(scope="module")
def model() -> Iterator[fake_llm.ModelServer]:
    with fake_llm.start_model_server() as server:
        yield server


@asynccontextmanager
async def opened(
    folder: Path, server: fake_llm.ModelServer, auto: str = "off", **llm: Any
) -> AsyncIterator[ServerConnection]:
    settings = write_settings(
        folder,
        sandbox=SMALL,
        skills={"describe": "model", "auto": auto},
        llm={"model": "json", "api_base": server.url, "api_key": API_KEY, "retries": 0, **llm},
        mcpServers={"counted": upstream_entry("counted", str(folder / "added"))},
    )
    async with connect_server(settings) as connection:
        yield connection


@pytest.fixture(scope="module")
async def server(
    tmp_path_factory: pytest.TempPathFactory, model: fake_llm.ModelServer
) -> AsyncIterator[ServerConnection]:
    async with opened(tmp_path_factory.mktemp("described"), model) as connection:
        yield connection


async def saved(
    server: ServerConnection, code: str, **arguments: Any
) -> tuple[dict[str, Any], str]:
    """Run code in a session of its own, have it kept, and return what is told of that."""
    run = await server.run(code, session=f"s{abs(hash(code))}")
    assert run.data.get("status") == "ok", run.text
    result = await server.client.call_tool("save_skill", {"run": run.run, **arguments})
    assert not result.is_error, result
    return dict(result.structured_content or {}), getattr(result.content[0], "text", "")


def asked_of(model: fake_llm.ModelServer) -> int:
    return int(model.read_counts().get("calls", 0))


def folder_of(server: ServerConnection, name: str) -> Path:
    return server.data_dir.parent / "skills_store" / name.replace("_", "-")


def unlike(number: int) -> str:
    """Return code that is another skill for each number."""
    return CODE.replace("* 3", f"* {number} + [{number}]")


async def test_a_model_names_and_documents_a_skill_that_passed_the_gate(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script({"match": "Name and describe", "reply": SAID})
    told, text = await saved(server, CODE)
    assert (told["name"], told["state"], told["summary"]) == (
        "shout_thrice",
        "active",
        "Add an item and repeat it.",
    )
    assert "It was named and described by json." in text
    shown = await server.run("help(skills.shout_thrice.run)\nskills.shout_thrice('Figs')")
    assert "Add an item and repeat it.\n    \n    item: what is added" in shown.stdout
    assert "Recorded with item='SECRET PEARS'" in shown.stdout  # which stays here
    assert shown.value == ["figs"] * 3
    folder = folder_of(server, "shout_thrice")
    assert skills_ref.validate(folder) == []
    assert "- `item`: `'SECRET PEARS'`, what is added" in (folder / "SKILL.md").read_text()
    assert 'described_by = "json"' in (folder / "skill.toml").read_text()
    again, text = await saved(server, CODE.replace("PEARS", "KALE"))
    assert (again["name"], again["version"], again["summary"]) == (
        "shout_thrice",
        2,
        "Add an item and repeat it.",
    )
    assert "described by" not in text
    assert asked_of(model) == 1


async def test_a_model_sees_code_and_types_and_no_values(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    seen: dict[str, Any] = {
        "match": '"code".*"item": "str".*"tools.counted.add": "dict',
        "reply": {**SAID, "name": "seen"},
    }
    seen["reply"]["parameters"] = {"item": "what is added", "min_count": "beyond which it counts"}
    model.set_script({"match": "(?i)pears", "reply": {**SAID, "name": "leaked"}}, seen)
    told, text = await saved(server, unlike(11) + " + [len(item) > 3, 'SECRET PEARS' in words]")
    assert told["name"] == "seen", text
    assert "SECRET PEARS" in (folder_of(server, "seen") / "skill.py").read_text()


HOSTILE = {"name": ["../../etc/passwd", "w\u0435ather"], "summary": ["AKIA" + "ABCDEFGHIJKLMNOP"]}


@pytest.mark.parametrize(
    ("field", "text"), [(field, text) for field, texts in HOSTILE.items() for text in texts]
)
async def test_words_that_cannot_be_used_leave_the_codes_own(
    server: ServerConnection, model: fake_llm.ModelServer, field: str, text: str
) -> None:
    model.set_script({"match": "Name and describe", "reply": {**SAID, field: text}})
    code = unlike(100 + len(text) * 7 + len(field) + sum(map(ord, text)))
    told, said = await saved(server, code)
    assert told["state"] == "active"
    assert told["name"].startswith("words")
    assert told["summary"].startswith("Return words")
    assert "A model was asked for a description, but the code's own words stay: " in said
    assert "ABCDEFGHIJKLMNOP" not in said


BREAKING = [
    'Say """ and\nimport os',
    "--- \n---\nname: other\n---",
    "\x00\x1b[31m\u202e {{ 7 * 7 }} \U0001f600 \\",
]


@pytest.mark.parametrize("number", range(len(BREAKING)))
async def test_no_words_escape_the_docstring_or_the_front_matter(
    server: ServerConnection, model: fake_llm.ModelServer, number: int
) -> None:
    text = BREAKING[number]
    said = {"name": f"breaking_{number}", "summary": f"Say {text}", "parameters": {"item": text}}
    model.set_script({"match": "Name and describe", "reply": said})
    told, answer = await saved(server, unlike(20 + number))
    assert (told["name"], told["state"]) == (f"breaking_{number}", "active"), answer
    folder = folder_of(server, f"breaking_{number}")
    assert skills_ref.validate(folder) == []
    tree = ast.parse((folder / "skill.py").read_text())
    kinds = [type(node).__name__ for node in tree.body]
    assert (kinds[0], set(kinds[1:-1]), kinds[-1]) == ("Expr", {"ImportFrom"}, "FunctionDef")
    assert len(told["summary"]) <= 115
    assert told["summary"].isprintable()
    assert await server.evaluate(f"skills.breaking_{number}('Figs')[0]") == "figs"


async def test_a_name_that_is_taken_gets_a_number_and_a_given_one_stays(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Name and describe", "reply": {**SAID, "name": "twice_told"}, "times": 3}
    )
    assert (await saved(server, unlike(41)))[0]["name"] == "twice_told"
    assert (await saved(server, unlike(42)))[0]["name"] == "twice_told_2"
    told, _ = await saved(server, unlike(43), name="my_own")
    assert (told["name"], told["summary"]) == ("my_own", "Add an item and repeat it.")


async def test_the_author_s_own_words_stay(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script({"match": "Name and describe", "reply": SAID, "times": 9})
    asked = asked_of(model)
    documented = (
        "from tools.counted import add\ndef put(item: str) -> str:\n    '''Put it there.'''\n"
        "    add(item=item)\n"
        "    return item * 2\nput('a')"
    )
    told, _ = await saved(server, documented)
    assert (told["name"], told["summary"], asked_of(model)) == ("put", "Put it there.", asked)
    silent = (
        documented.replace("    '''Put it there.'''\n", "")
        .replace("put", "lay")
        .replace("* 2", "* 4")
    )
    told, _ = await saved(server, silent)
    assert (told["name"], told["summary"]) == ("lay", "Add an item and repeat it.")
    assert "item: what is added" in (folder_of(server, "lay") / "skill.py").read_text()
    again, _ = await saved(server, silent.replace("lay('a')", "lay('b')"))
    assert (again["name"], again["version"], again["state"]) == ("lay", 2, "active")


async def test_drafts_are_not_described(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    asked = asked_of(model)
    told, _ = await saved(server, "3 * 2 + len('abc')")
    assert told["state"] == "draft"
    assert asked_of(model) == asked


@pytest.mark.parametrize(
    "fault", ["500", "malformed", "never-json", "budget", "key", "none", "caller"]
)
async def test_without_an_answer_the_generated_description_stays(
    tmp_path: Path, model: fake_llm.ModelServer, fault: str
) -> None:
    faults: dict[str, dict[str, Any]] = {
        "never-json": {"model": "never-json"},
        "budget": {"principal": {"calls": 0}},
        "key": {"api_key": "wrong-key-nobody-sees"},
        "none": {"model": ""},
        "caller": {"broker": "caller"},
    }
    given = faults.get(fault, {})
    model.set_script(
        {"match": "Name and describe", "fault": fault, "times": 9}
        if fault in ("500", "malformed")
        else {}
    )
    async with opened(tmp_path, model, **given) as server:
        told, text = await saved(server, CODE)
        assert (told["name"], told["state"], told["summary"]) == (
            "words",
            "active",
            "Return words, with counted.add.",
        )
        assert "the code's own words stay: " in text
        assert "nobody-sees" not in text
        assert told["note"] in text


async def test_an_automatic_draft_is_described_when_it_becomes_active(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    model.set_script({"match": "Name and describe", "reply": SAID})
    async with opened(tmp_path, model, auto="active-on-second-success") as server:
        await server.evaluate("ask_llm('x')")  # the process that asks models is there
        first = await server.run(CODE, session="a")
        assert "Saved as the draft skill words@1" in first.data["note"]
        second = await server.run(CODE.replace("PEARS", "KALE"), session="b")
        assert (
            "Saved as a skill: from skills.words import run. It was named and described by json."
            in second.data["note"]
        )
        listed = await server.client.call_tool("list_skills", {"query": "repeat an item"})
        assert json.dumps(listed.structured_content).count("Add an item and repeat it.") == 1
