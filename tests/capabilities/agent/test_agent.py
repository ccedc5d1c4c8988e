"""The reference agent: a client of the real server over stdio, and a model over HTTP."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from bench import fake_llm
from mcpruntime_server import connect_runtime, create_agent
from mcpruntime_server.capabilities.agent.agent_loop import AnswerRejected, ProgramFinished
from mcpruntime_server.client.reference_agent.reference_agent import (
    ReferenceAgent,
    RouteChosen,
    SkillsFound,
    TaskFinished,
)
from mcpruntime_server.config import load_config
from mcpruntime_server.errors import CallFailed, Unavailable
from tests.helpers.commands import CompletedCommand, run_command
from tests.helpers.server_connection import server_parameters
from tests.server.conftest import upstream_entry

from .conftest import program_answer, write_model_settings

LATE_S = 400.0  # limit of a failing test; a model process takes seconds to start
SQUARES = [
    {
        "match": "Task:\n\x1b\\[1mcompute",
        "reply": program_answer("x = [n * n for n in range(5)]\nx[9]", "\x1b[2JI compute."),
    },
    {"match": "IndexError", "reply": program_answer("ask_llm('How?')\nsub_agent('Say hello')")},
    {"match": "Task:\nSay hello", "reply": program_answer("SUBMIT('hello')")},
    {"match": "How", "reply": "so"},
    {"match": "Step 2 of", "reply": program_answer("SUBMIT({'squares': x, 'end': '\\x1b[0m'})")},
]


@asynccontextmanager
async def agent(
    folder: Path, asked: fake_llm.ModelServer, **options: Any
) -> AsyncIterator[ReferenceAgent]:
    with anyio.fail_after(LATE_S):
        async with create_agent(
            load_config(write_model_settings(folder, asked)), **options
        ) as made:
            yield made


def run(path: Path, *arguments: str) -> CompletedCommand:
    return run_command("--config", path, "agent", *arguments)


def test_large_files_become_inputs_that_only_programs_read(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    log, other = tmp_path / "given" / "day.log", tmp_path / "given" / "other.log"
    log.parent.mkdir()
    log.write_text(
        "".join(
            f"{number} {'ERROR' if number % 1000 == 0 else 'ok'}\n" for number in range(200_000)
        )
    )
    other.write_text("nothing")
    model.set_script(
        {
            "match": (
                "CONTEXT: 2 inputs: day.log [(][0-9,]+ bytes[)], other.log [(]7 bytes[)]. It is "
                "not a str.*\n0 ERROR"
            ),
            "reply": program_answer(
                "SUBMIT([len(CONTEXT.grep('ERROR')), CONTEXT_DATA['other.log'].text])"
            ),
        },
    )
    told = run(
        write_model_settings(tmp_path, model),
        "Count errors",
        "--json",
        "--context",
        str(log),
        "--context",
        str(other),
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["value"] == [200, "nothing"]


@pytest.mark.parametrize(
    ("cut", "value"), [(0, 100), (9, "The gzip file 'day.log.gz' is truncated")]
)
def test_packed_files_are_read_by_programs_however_small_they_are(
    tmp_path: Path, model: fake_llm.ModelServer, cut: int, value: object
) -> None:
    log = tmp_path / "given" / "day.log.gz"
    log.parent.mkdir()
    packed = gzip.compress(b"all is well\n" * 100)
    log.write_bytes(packed[: len(packed) - cut])
    count = (
        "try:\n    found = CONTEXT.line_count()\nexcept InputError as error:\n"
        "    found = str(error).split(' after')[0]"
    )
    model.set_script(
        {
            "match": "It begins\n<data .*>\nall is well\nall",
            "reply": program_answer(f"{count}\nSUBMIT(found)"),
        }
    )
    told = run(
        write_model_settings(tmp_path, model), "What does it say?", "--json", "--context", str(log)
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["value"] == value


# on the command line ------------------------------------------------------------------------------


def test_the_command_shows_every_step_and_the_cost(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    model.set_script(*SQUARES)
    told = run(write_model_settings(tmp_path, model), "\x1b[1mcompute squares")
    assert told.returncode == 0, told.stderr
    assert "\x1b" not in told.stdout
    assert "\\x1b[1mcompute squares" in told.stdout
    for line in (
        "x = [n * n for n in range(5)]",
        "IndexError: list index out of range",
        '"end": "\\u001b[0m"',
    ):
        assert line in told.stdout
    cost = told.stdout.partition("── cost ")[2]
    assert [re.sub(" +", " ", line.partition("request")[0]) for line in cost.splitlines()[1:]] == [
        " the agent 3 ",
        " ├─ ask_llm in its programs 1 ",
        " └─ 1 sub-agent 1 ",
        " in all 5 ",
    ]
    assert fake_llm.API_KEY not in told.stdout + told.stderr


def test_for_programs_the_end_is_json(tmp_path: Path, model: fake_llm.ModelServer) -> None:
    model.set_script(
        {"match": "Task:\nsay", "reply": program_answer("SUBMIT({'end': '\\x1b[0m'})")}
    )
    told = run(write_model_settings(tmp_path, model), "say", "--json")
    found = json.loads(told.stdout)
    assert found["value"] == {"end": "\x1b[0m"}
    assert (found["steps"], found["agents"], found["cost"]["total"]["calls"]) == (1, 0, 1)


def test_an_agent_that_fails_says_why_after_its_cost(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    model.set_script({"match": "", "reply": "I would rather talk.", "times": 99})
    told = run(write_model_settings(tmp_path, model), "anything", "--max-steps", "2")
    assert told.returncode == 1
    assert "The agent submitted no valid value in 2 steps." in told.stderr
    assert re.search("the agent +2 requests", told.stdout)


def test_questions_that_fail_are_in_the_cost(tmp_path: Path, model: fake_llm.ModelServer) -> None:
    model.set_script({"reply": "", "usage": {"prompt_tokens": 1000}}, {"fault": "500"})
    told = run(write_model_settings(tmp_path, model, retries=1), "anything")
    assert told.returncode == 1
    assert re.search("the agent +2 requests +1,000 tokens in", told.stdout)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([" "], "The task is empty."),
        (["x", "--budget-usd", "inf"], "must be greater than 0"),
        (["x", "--context", "/dev/zero"], "/dev/zero holds more than 1,000,000 bytes"),
        (["x", "--max-steps", "0"], "must be greater than 0"),
        (["x", "--budget-usd", "nan"], "must be greater than 0"),
        (["x", "--context", "/nowhere/at/all"], "/nowhere/at/all cannot be read"),
        (["x", "--schema", "/nowhere/at/all"], "is not a JSON schema"),
    ],
)
def test_invalid_arguments_are_refused(
    tmp_path: Path, model: fake_llm.ModelServer, arguments: list[str], problem: str
) -> None:
    told = run(write_model_settings(tmp_path, model), *arguments)
    assert told.returncode == 2
    assert problem in told.stderr
    assert model.read_counts() == {}


@pytest.mark.parametrize(
    "none", [{"model": "", "api_base": ""}, {"model": ""}, {"model": "", "broker": "caller"}]
)
def test_without_a_driving_model_the_command_names_the_remedy(
    tmp_path: Path, model: fake_llm.ModelServer, none: dict[str, Any]
) -> None:
    told = run(write_model_settings(tmp_path, model, **none), "x")
    assert "Set [llm] model to a model of a provider whose key is in the environment" in told.stderr
    assert "caller" not in told.stderr


# in Python ----------------------------------------------------------------------------------------


async def test_one_question_does_where_the_material_fits(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Who wrote it\\?\n\n<data ", "reply": "Ann"},
        {"match": "schema", "reply": '{"name": "Ann"}'},
    )
    async with agent(tmp_path, model) as made:
        events = [event async for event in made.stream("Who wrote it?", "Written by Ann.")]
        assert [type(event) for event in events] == [RouteChosen, TaskFinished]
        assert isinstance(events[0], RouteChosen)
        assert events[0].route.method == "request"
        finished = await made.execute_task(
            "Who wrote it?", "By Ann.", schema={"type": "object", "required": ["name"]}
        )
        assert finished.value == {"name": "Ann"}
        assert made.cost.own.calls == 3


async def test_material_that_the_model_cannot_read_at_once_is_left_to_programs(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    too_long = {
        "fault": "400",
        "code": "context_length_exceeded",
        "message": "This model's maximum context length is 10 tokens",
    }
    model.set_script(
        {"match": "<data \\w+>\nWritten", **too_long},
        {"match": "CONTEXT: a text of 15", "reply": program_answer("SUBMIT(CONTEXT.split()[-1])")},
    )
    async with agent(tmp_path, model) as made:
        finished = await made.execute_task("Who wrote it?", "Written by Ann.")
        assert (finished.value, finished.steps) == ("Ann.", 1)


async def test_a_value_that_violates_the_schema_is_rejected(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\nHow many", "reply": program_answer("SUBMIT('many')")},
        {"match": "not submitted", "reply": program_answer("SUBMIT(3)")},
    )
    async with agent(tmp_path, model, recursive=True) as made:
        events = [
            event async for event in made.stream("How many?", [1, 2, 3], schema={"type": "integer"})
        ]
        assert any(isinstance(event, AnswerRejected) for event in events)
        assert isinstance(events[-1], TaskFinished)
        assert events[-1].value == 3


async def test_a_finished_task_becomes_a_skill_for_the_next_one(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    path = write_model_settings(tmp_path, model)
    upstream = upstream_entry("counted", str(tmp_path / "done"))
    with path.open("a") as file:
        file.write(
            f"\n[mcpServers.counted]\ncommand = {upstream['command']!r}\n"
            f"args = {upstream['args']!r}\n"
        )
    code = (
        "from tools.counted import count\nitem = 'apples'\nfound = count(item=item)\n"
        "SUBMIT({item: found['result']})"
    )
    model.set_script({"match": "Task:\nCount the apples", "reply": program_answer(code)})
    async with create_agent(load_config(path)) as made:
        first = await made.execute_task("Count the apples in stock")
        assert first.value == {"apples": 0}
        assert "saved as the skill" in first.skill_note, first.skill_note
        name = first.skill_note.split()[4]
        model.set_script(
            {
                "match": f"Skills: these may help.\n<data \\w+>\n{name}: ",
                "reply": program_answer(f"SUBMIT(skills.{name}())"),
            }
        )
        events = [event async for event in made.stream("Count the apples in stock again")]
        assert any(isinstance(event, SkillsFound) for event in events)
        assert isinstance(events[-1], TaskFinished)
        assert events[-1].value == {"apples": 1}


async def test_an_error_leaves_the_agent_as_it_is(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    with pytest.raises(CallFailed, match="A schema must be a JSON schema"):
        async with agent(tmp_path, model) as made:
            await made.execute_task("x", schema=[])  # type: ignore[arg-type]


async def test_the_budget_ends_a_task(tmp_path: Path, model: fake_llm.ModelServer) -> None:
    model.set_script({"match": "", "reply": program_answer("1"), "times": 99})
    async with agent(tmp_path, model, model="gpt-4o", usd=0.06, recursive=True) as made:
        with pytest.raises(CallFailed, match=r"The agent budget is 0\.06 USD"):
            await made.execute_task("Spend")
        assert 0 < made.cost.total.usd <= 0.06


async def test_one_program_cannot_cost_more_than_the_task_may(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    spend = "for i in range(1000): ask_llm(f'{i}', 'x' * 400, max_tokens=100)"
    model.set_script(
        {"match": "Task:\nSpend", "reply": program_answer(spend)},
        {
            "match": "budget_exceeded|BudgetExceeded",
            "reply": program_answer("SUBMIT(llm_usage()['run']['usd'])"),
        },
        {"match": "", "reply": "ok", "times": 2000},
    )
    async with agent(tmp_path, model, model="gpt-4o", usd=0.2, recursive=True, steps=2) as made:
        with pytest.raises(CallFailed, match=r"The agent budget is 0\.2 USD"):
            await made.execute_task("Spend")
        assert 0.1 < made.cost.programs.usd <= 0.2
        assert made.cost.total.calls < 1000


async def test_a_server_that_does_not_start_is_reported(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    path = write_model_settings(tmp_path, model)
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(Unavailable, match=r"The data folder .* cannot be used"):
        async with create_agent(load_config(path)):
            raise AssertionError


async def test_the_death_of_the_server_is_reported(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    code = "import os, signal\nos.kill(int(open(CONTEXT).read()), signal.SIGKILL)"
    model.set_script({"match": "Task:\nKill", "reply": program_answer(code)})
    config = load_config(write_model_settings(tmp_path, model))
    server = server_parameters(tmp_path / "server.toml")
    async with (
        connect_runtime(server) as runtime,
        create_agent(config, runtime=runtime, recursive=True) as made,
    ):
        [lock] = (tmp_path / "data" / "servers").glob("*.lock")
        with pytest.raises(Unavailable, match="The server does not answer"):
            await made.execute_task("Kill it", str(lock))


async def test_tasks_are_done_at_once_in_sessions_of_their_own(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\n[ab]\n", "reply": program_answer("SUBMIT(CONTEXT)"), "times": 2}
    )
    ended: list[TaskFinished] = []
    async with agent(tmp_path, model, recursive=True) as made:

        async def work(task: str) -> None:
            ended.append(await made.execute_task(task, task))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, "a")
            tasks.start_soon(work, "b")
    assert {each.value for each in ended} == {"a", "b"}
    assert len({each.session_id for each in ended}) == 2


async def test_output_that_arrives_in_pieces_is_joined(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    code = "import time\nprint('first', flush=True)\ntime.sleep(2)\nprint('second')\n1"
    model.set_script(
        {"match": "Task:\nWait", "reply": program_answer(code)},
        {"match": "first\nsecond", "reply": program_answer("SUBMIT(2)")},
    )
    path = write_model_settings(tmp_path, model, {"wait_s": 0.5})
    async with create_agent(load_config(path)) as made:
        events = [event async for event in made.stream("Wait")]
        [result, _] = [event.result for event in events if isinstance(event, ProgramFinished)]
        assert result["stdout"] == "first\nsecond\n"


async def test_a_truncated_value_is_not_submitted(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\nMuch", "reply": program_answer("SUBMIT(list(range(60_000)))")},
        {"match": "it was not submitted: submit less", "reply": program_answer("SUBMIT('less')")},
    )
    async with agent(tmp_path, model) as made:
        assert (await made.execute_task("Much")).value == "less"
