"""Answers of a model, and prompts and schemas of code, cost nobody else anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

import pytest

from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import ServerConnection, write_settings
from .bystander import observe

ANSWER_CHARS = 2_600_000  # quoted, a little less than what is refused unread
NUMBERS = count()
OBJECTS = "{'type': 'array', 'items': {'type': 'object'}}"
ANSWERS = {
    "many objects": "[" + "{}," * (ANSWER_CHARS // 3) + "{}]",
    "many numbers": "[" + "1," * (ANSWER_CHARS // 2) + "1]",
    "many names": "{" + ",".join(f'"k{n}":1' for n in range(ANSWER_CHARS // 12)) + "}",
    "one name often": "{" + ",".join(['"k":1'] * (ANSWER_CHARS // 8)) + "}",
    "some objects": "[" + '{"k":1},' * 20_000 + "{}]",
    "nested lists": "[" * (ANSWER_CHARS // 2) + "]" * (ANSWER_CHARS // 2),
    "nested objects": '{"a":' * (ANSWER_CHARS // 8) + "1" + "}" * (ANSWER_CHARS // 8),
    "a long number": "9" * ANSWER_CHARS,
    "numbers that are too large": "[" + ",".join(["1e999"] * 9_000) + "]",
    "fences": "```\n" * (ANSWER_CHARS // 5),
    "braces": "{" * (ANSWER_CHARS // 2) + "}" * (ANSWER_CHARS // 2),
    "escapes": '"' + "\\u0000" * (ANSWER_CHARS // 8) + '"',
    "a long text": "x" * ANSWER_CHARS,
}
PROMPTS = {
    "long prompts": "for n in range(6):\n    try: ask_llm(str(n) * 3_000_000)\n"
    "    except Exception as exc: said = str(exc)",
    "much data": "for n in range(6):\n    try: ask_llm('q', [n] * 90_000)\n"
    "    except Exception as exc: said = str(exc)",
    "many prompts": "try: ask_llm_batch([f'q{n}' for n in range(9_000)])\n"
    "except Exception as exc: said = str(exc)",
    "a wide schema": "schema = {'type': 'object', 'properties': "
    "{f'p{n}': {'type': 'string'} for n in range(1_200)}}\n"
    "for n in range(20):\n    try: ask_llm('z' * 200_000, schema=schema)\n"
    "    except Exception as exc: said = str(exc)",
    "a schema that grows": "schema = {'$defs': {'d0': {'type': 'string'}}}\n"
    "for n in range(40):\n"
    "    schema['$defs'][f'd{n + 1}'] = {'allOf': [{'$ref': f'#/$defs/d{n}'}] * 3}\n"
    "schema['$ref'] = '#/$defs/d40'\n"
    "try: ask_llm('q', schema=schema)\nexcept Exception as exc: said = str(exc)",
    "a deep schema": "schema = {'type': 'string'}\n"
    "for _ in range(35): schema = {'type': 'array', 'items': schema, 'anyOf': [{}] * 30}\n"
    "for n in range(20):\n    try: ask_llm('z' * 200_000, schema=schema)\n"
    "    except Exception as exc: said = str(exc)",
}


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    """A server whose clients answer the questions of their code."""
    settings = write_settings(tmp_path_factory.mktemp("server"), llm={"broker": "caller"})
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture
async def attacker(service: HttpService) -> AsyncIterator[ServerConnection]:
    async with service.connect(service.create_token(f"mallory{next(NUMBERS)}")) as connection:
        yield connection


@pytest.mark.parametrize("schema", ["None", OBJECTS])
@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_taken_or_asked_for_again(
    bystander: ServerConnection, attacker: ServerConnection, schema: str, name: str
) -> None:
    code = f"try: answer = ask_llm('Which?', schema={schema})\n"
    code += "except Exception as exc: answer = str(exc)[:500]\nlen(answer)"
    asked = await attacker.run(code, "asker")
    async with observe(bystander):
        for _ in range(2):  # a wrong answer is asked for once more
            if asked.status == "waiting":
                answers = {each["id"]: ANSWERS[name] for each in asked.waiting_for}
                asked = await attacker.run_request(asked.run, answers=answers)
        assert asked.status in ("ok", "error"), asked.text[:500]
    assert await attacker.evaluate("1+1", "asker") == 2


@pytest.mark.parametrize("name", PROMPTS)
async def test_a_request_is_sent_or_refused(
    bystander: ServerConnection, attacker: ServerConnection, name: str
) -> None:
    async with observe(bystander):
        asked = await attacker.run(PROMPTS[name], "asker", wait_s=10)
        if asked.status in ("waiting", "running"):
            asked = await attacker.run_request(asked.run, cancel=True)
        assert asked.status in ("ok", "error", "cancelled"), asked.text[:500]
    assert await attacker.evaluate("1+1", "asker") == 2
