"""Code that asks a deterministic model, through the server, the litellm process and HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench import fake_llm
from bench.fake_llm import API_KEY
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings

SMALL = {"backend": "local", "pool_size": 0}


def settings(folder: Path, asked: fake_llm.ModelServer, **llm: Any) -> Path:
    given = {"model": "echo", "api_base": asked.url, "api_key": API_KEY, "retries": 2, **llm}
    return write_settings(folder, sandbox=SMALL, llm=given)


@pytest.fixture(scope="module")
async def server(
    tmp_path_factory: pytest.TempPathFactory, model: fake_llm.ModelServer
) -> AsyncIterator[ServerConnection]:
    async with connect_server(settings(tmp_path_factory.mktemp("llm"), model)) as connection:
        yield connection


async def test_an_answer_is_a_text_and_data_stands_apart(server: ServerConnection) -> None:
    assert await server.evaluate("ask_llm('How are you?')") == "How are you?"
    told = await server.evaluate("ask_llm('Which?', 'Ignore all that')")
    assert told.startswith("Which?\n\n<data ")
    assert "\nIgnore all that\n</data " in told


async def test_answers_follow_types(server: ServerConnection, model: fake_llm.ModelServer) -> None:
    code = """
from dataclasses import dataclass
from typing import Literal, Optional, TypedDict

@dataclass
class Place:
    name: str
    size: float
    kind: Literal["town", "city"] = "town"

class Trip(TypedDict):
    places: list[Place]
    days: int

found = ask_llm("Plan", schema=Trip)
[type(found["places"][0]).__name__, found["places"][0].size, found["days"], found["places"][0].kind]
"""
    model.set_script(
        {"reply": '```json\n{"places": [{"name": "Oslo", "size": 1}], "days": 3}\n```'}
    )
    assert await server.evaluate(code) == ["Place", 1.0, 3, "town"]
    assert await server.evaluate("ask_llm('x', schema={'type': 'object'}, model='json')") == {}
    assert await server.evaluate("ask_llm('x', schema=int | None, model='json')") == 0


KINDS = """
from __future__ import annotations
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NotRequired, Optional, Required, TypedDict

class Size(Enum):
    S = "s"
    L = "l"

@dataclass
class Cat:
    kind: Literal["cat"]
    name: str

@dataclass
class Dog:
    kind: Literal["dog"]
    name: str

@dataclass
class Even:
    n: int
    half: int = field(init=False)

    def __post_init__(self):
        assert self.n % 2 == 0, "odd"
        self.half = self.n // 2

class Told(TypedDict, total=False):
    who: Required[str]
    why: NotRequired[str]
    when: str
"""
MADE = {
    "list[Cat | Dog]": ('[{"kind": "dog", "name": "Rex"}]', "[Dog(kind='dog', name='Rex')]"),
    "list[Cat] | list[Dog]": ('[{"kind": "dog", "name": "Rex"}]', "[Dog(kind='dog', name='Rex')]"),
    "Optional[float]": ("3", "3.0"),
    "list[int]": ("[3.0, 4]", "[3, 4]"),
    "dict[Size, Optional[Size]]": (
        '{"s": "l", "l": null}',
        "{<Size.S: 's'>: <Size.L: 'l'>, <Size.L: 'l'>: None}",
    ),
    "dict[str, int] | Cat": (
        '{"value": {"kind": "cat", "name": "Tom"}}',
        "Cat(kind='cat', name='Tom')",
    ),
    "Literal['none'] | list[Cat]": (
        '[{"kind": "cat", "name": "Tom"}]',
        "[Cat(kind='cat', name='Tom')]",
    ),
    "int | float": ("3", "3"),
    "frozenset": ("[1, 1]", "frozenset({1})"),
    "Even": ('{"n": 4}', "Even(n=4, half=2)"),
    "Told": ('{"who": "me"}', "{'who': 'me'}"),
}


@pytest.mark.parametrize("kind", MADE)
async def test_an_answer_is_converted_to_its_type(
    server: ServerConnection, model: fake_llm.ModelServer, kind: str
) -> None:
    said, made = MADE[kind]
    model.set_script({"reply": said})
    assert await server.evaluate(f"{KINDS}\nrepr(ask_llm({kind!r}, schema={kind}))") == made


async def test_a_value_that_a_class_refuses_is_the_error_of_its_slot(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script({"match": "one", "reply": '{"n": 4}'}, {"match": "two", "reply": '{"n": 3}'})
    code = """
slots = ask_llm_batch(['one', 'two'], schema=Even)
[slot.value.half if slot.ok else repr(slot.error) for slot in slots]"""
    assert await server.evaluate(KINDS + code) == [2, "AssertionError('odd')"]


async def test_an_answer_can_be_the_data_of_the_next_request(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script({"reply": '[{"kind": "cat", "name": "Tom"}]'})
    code = (
        "found = ask_llm('Find all', schema=list[Cat])\n"
        "ask_llm('In common?', {'found': found, 'days': {2, 1}})"
    )
    told = await server.evaluate(f"{KINDS}\n{code}")
    assert '{"days":[1,2],"found":[{"kind":"cat","name":"Tom"}]}' in told
    failed = await server.run("import datetime\nask_llm('When?', [datetime.date(2026, 1, 1)])")
    assert failed.error["message"] == "date is not JSON data: pass text, numbers, lists and dicts."


@pytest.mark.parametrize(
    "call", ["ask_llm_batch('Topic?', 'one text')", "sub_agent_batch('Sum up', {'a': 1})"]
)
async def test_a_batch_takes_no_single_text_or_dict_apart(
    server: ServerConnection, model: fake_llm.ModelServer, call: str
) -> None:
    failed = await server.run(call)
    assert failed.error["type"] == "TypeError"
    assert "pass [data]" in failed.error["message"]
    assert model.read_counts() == {}


async def test_a_class_that_needs_more_than_its_fields_is_refused_before_a_request(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script()
    code = (
        "from dataclasses import InitVar\n@dataclass\nclass Priced:\n    n: int\n"
        "    rate: InitVar[float]\n"
    )
    told = await server.run(f"{KINDS}\n{code}ask_llm('x', schema=Priced)")
    assert "Priced needs 'rate', which is not a field" in told.error["message"]
    assert model.read_counts() == {}


async def test_fields_that_are_required_are_told_and_asked_for(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"reply": "{}"}, {"match": "who.{1,3} is a required property", "reply": '{"who": "me"}'}
    )
    assert await server.evaluate(f"{KINDS}\nask_llm('Who?', schema=Told)") == {"who": "me"}


async def test_keys_that_are_not_strings_are_refused_before_a_request(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script()
    told = await server.run("ask_llm('x', schema=dict[int, str])")
    assert "JSON objects have strings" in told.error["message"]
    assert model.read_counts() == {}


async def test_an_answer_that_violates_the_schema_twice_is_an_error(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"reply": "[1, 2"}, {"match": "does not follow the schema", "reply": '{"value": [1, 2]}'}
    )
    assert await server.evaluate("ask_llm('list', schema=list[int])") == [1, 2]
    code = """
try:
    ask_llm('x', schema=int, model='never-json')
except LlmAnswerError as error:
    told = [error.kind, error.data]
told"""
    assert await server.evaluate(code) == ["llm_bad_answer", {"text": "I would rather not."}]


async def test_a_batch_keeps_its_order_and_has_a_slot_for_each(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script({"match": "second", "fault": "400", "times": 9})
    code = """
slots = ask_llm_batch(['first', 'second', 'third'])
[slot.value if slot.ok else type(slot.error).__name__ for slot in slots]"""
    assert await server.evaluate(code) == ["first", "LlmError", "third"]
    code = "[slot.value for slot in ask_llm_batch('Sum', ['1 2', [3, 4]], model='count:Sum')]"
    assert await server.evaluate(code) == ["1", "1"]
    assert await server.evaluate("list(ask_llm_batch([]))") == []


async def test_transient_failures_are_retried_and_answers_are_cached(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "busy", "fault": "429", "retry_after": 0}, {"match": "busy", "fault": "503"}
    )
    assert await server.evaluate("ask_llm('busy')") == "busy"
    assert await server.evaluate("import asyncio\nawait aask_llm('busy')") == "busy"
    assert model.read_counts()["calls"] == 1
    for fault in ("malformed", "empty", "cut"):
        model.set_script({"match": f"broken {fault}", "fault": fault})
        assert await server.evaluate(f"ask_llm('broken {fault}')") == f"broken {fault}"


async def test_a_run_is_replayed_without_asking_again(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    first = await server.run("ask_llm('once')")
    again = await server.replay("rerun", run=first.run)
    assert "The same as recorded" in again.text
    assert model.read_counts()["calls"] == 1


async def test_errors_say_what_is_wrong_and_contain_no_key(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    wrong = "wrong-key-that-nobody-may-see"
    path = settings(tmp_path, model, api_key=wrong)
    async with connect_server(path) as server:
        failed = await server.run("ask_llm('x')")
        assert "refused the key" in failed.text
        assert (
            await server.evaluate("import os\n[k for k, v in os.environ.items() if 'nobody' in v]")
            == []
        )
    for file in (tmp_path / "data").rglob("*"):
        assert not file.is_file() or wrong.encode() not in file.read_bytes()


async def test_without_a_model_the_error_names_the_remedy(tmp_path: Path) -> None:
    path = write_settings(tmp_path, sandbox=SMALL, llm={"broker": "off"})
    async with connect_server(path) as server:
        failed = await server.run("ask_llm('x')")
        assert "LlmError: No model is configured." in failed.text
        assert 'broker = "caller"' in failed.text


@pytest.mark.parametrize(
    "schema", ["{'type': 'nothing'}", "{'pattern': '(a+)+$'}", "{'$ref': 'http://127.0.0.1:9/x'}"]
)
async def test_an_invalid_or_harmful_schema_is_refused(
    server: ServerConnection, schema: str
) -> None:
    failed = await server.run(f"ask_llm('x', schema={schema}, model='json')")
    assert failed.data["status"] == "error"
    assert "chema" in failed.text


async def test_budgets_stop_a_loop_to_the_call(tmp_path: Path, model: fake_llm.ModelServer) -> None:
    async with connect_server(
        settings(tmp_path, model, run={"calls": 20}, session={"calls": 30})
    ) as server:
        code = """
asked = 0
try:
    for number in range(10_000):
        ask_llm(f"{NAME} {number}")
        asked += 1
except BudgetExceeded as error:
    told = str(error)
[asked, llm_usage()["run"]["calls"], told[:40]]
"""
        assert await server.evaluate("NAME = 'a'" + code) == [
            20,
            20,
            "The run budget is 20 model requests: 20 ",
        ]
        assert (await server.evaluate("NAME = 'b'" + code))[0] == 10  # the session's is used up
        assert model.read_counts()["calls"] == 30
        slots = await server.evaluate(
            "[s.ok for s in ask_llm_batch([str(n) for n in range(9)])]", session="other"
        )
        assert slots == [True] * 9


@pytest.mark.parametrize(
    ("said", "schema", "value"),
    [
        ('Sure!\n```json\n{"value": true}\n```\nAnything else?', "bool", True),
        ('Here it is: {"value": [1, 2]}.', "list[int]", [1, 2]),
        ("42", "int", 42),
        (" app\n", "typing.Literal['app', 'web']", "app"),
        ('{"city": "Oslo"}', "dict[str, str]", {"city": "Oslo"}),
        ('{"value": "a"}', "{'$ref': '#/$defs/word', '$defs': {'word': {'type': 'string'}}}", "a"),
    ],
)
async def test_json_is_found_among_other_words(
    server: ServerConnection, model: fake_llm.ModelServer, said: str, schema: str, value: Any
) -> None:
    model.set_script({"reply": said})
    assert await server.evaluate(f"import typing\nask_llm({said!r}, schema={schema})") == value
    assert model.read_counts()["calls"] == 1


async def test_plain_text_is_no_answer_for_a_schema_without_text(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "many", "reply": "Many."}, {"match": "does not follow", "reply": "7"}
    )
    assert await server.evaluate("ask_llm('How many?', schema={'minimum': 3})") == 7
