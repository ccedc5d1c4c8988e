"""Sub-agents that code starts, with the real server, own sessions and a deterministic model."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import anyio
import pytest

from bench import fake_llm
from tests.helpers.commands import run_command
from tests.helpers.server_connection import (
    ServerConnection,
    ToolAnswer,
    connect_server,
    parse_answer,
    write_settings,
)
from tests.server.conftest import upstream_entry
from tests.server.test_resume import until

from .conftest import LOCAL_SANDBOX, program_answer, write_model_settings


async def attach(server: ServerConnection, run: str, **more: object) -> ToolAnswer:
    return parse_answer(await server.client.call_tool("run_code", {"run": run, **more}))


async def test_an_agent_corrects_a_failed_program_and_submits(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\nCount the words", "reply": program_answer("words = CONTEXT.splt()")},
        {
            "match": "AttributeError.*splt",
            "reply": program_answer("words = CONTEXT.split()\nlen(words)"),
        },
        {
            "match": "Step 2 of 20: ok\n<data \\w+>\nvalue: 3",
            "reply": program_answer("SUBMIT(len(words))"),
        },
    )
    assert await server.evaluate("sub_agent('Count the words', 'one two three')") == 3
    assert model.read_counts()["calls"] == 3


async def test_a_value_of_the_wrong_type_is_rejected_and_the_next_one_is_converted(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    code = """
from dataclasses import dataclass
@dataclass
class Found:
    name: str
    lines: list[int]
found = sub_agent('Find it', {'rows': [1, 2]}, schema=Found)
[type(found).__name__, found.name, found.lines]
"""
    model.set_script(
        {
            "match": "Find it.*Submit: a value.*lines",
            "reply": program_answer("SUBMIT({'name': 7, 'lines': CONTEXT['rows']})"),
        },
        {
            "match": "Step 1 of 20: not submitted\n.*name: 7 is not of type",
            "reply": program_answer(
                "import dataclasses\nSUBMIT({'name': 'x', 'lines': tuple(CONTEXT['rows'])})"
            ),
        },
    )
    assert await server.evaluate(code) == ["Found", "x", [1, 2]]


async def test_a_submitted_list_is_accepted_and_an_object_is_refused(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\nList", "reply": program_answer("SUBMIT(object())")},
        {
            "match": "TypeError: object is not JSON data",
            "reply": program_answer("SUBMIT({3, 1, 2})"),
        },
    )
    assert await server.evaluate("sub_agent('List', schema=list[int])") == [1, 2, 3]


async def test_a_program_of_an_agent_ends_with_the_time_of_its_budget(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script({"match": "Task:\nFor ever", "reply": program_answer("while True: pass")})
    code = """
try:
    sub_agent('For ever', budget={'wall_s': 1})
except BudgetExceeded as error:
    told = str(error)
told"""
    with anyio.fail_after(
        100
    ):  # the limit of the program itself is the session's, and 20 steps might follow
        assert "1 seconds from its first request" in await server.evaluate(code)


async def test_an_agent_that_never_submits_has_failed_and_says_where_it_worked(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script({"match": "", "reply": "The answer is 42.", "times": 9})
    code = """
try:
    sub_agent('Never', budget={'steps': 2})
except AgentFailed as error:
    told = [error.kind, error.data['last'], error.data['session'][:2], str(error)[:50]]
told"""
    assert await server.evaluate(code) == [
        "agent_failed",
        "The answer is 42.",
        "s_",
        "The agent submitted no valid value in 2 steps. Giv",
    ]
    assert model.read_counts()["calls"] == 2


async def test_a_budget_that_is_used_up_midway_ends_the_agent(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "(Task|Step)", "reply": program_answer("ask_llm('a')\nask_llm('b')"), "times": 9}
    )
    code = """
try:
    sub_agent('Ask', budget={'calls': 4})
except BudgetExceeded as error:
    told = [error.data['level'], error.data['limit']]
[told, llm_usage()['run']['calls'], llm_usage()['run']['agents'][0]['calls']]"""
    assert await server.evaluate(code) == [["agent 1", 4], 4, 4]


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        ({"calls": -1}, "calls is -1; it must be a number of at least 0"),
        ({"wishes": 3}, "wishes is not a setting. Allowed are: calls,"),
        ({"steps": 10_000}, "it must be a number of at most 1000"),
        ({"usd": "much"}, "usd is 'much'; it must be a number"),
        ([1], "The budget must be a dict."),
        ({"x" * 3_000: 1}, "A budget has at most 2,000 characters as JSON."),
    ],
)
async def test_an_invalid_budget_is_refused(
    server: ServerConnection, budget: object, problem: str
) -> None:
    failed = await server.run(f"sub_agent('x', budget={budget!r})")
    assert problem in failed.text


@pytest.mark.parametrize(
    "call",
    [
        "sub_agent(3)",
        "sub_agent(' ')",
        "sub_agent('x', object())",
        "sub_agent('x', schema={'type': 'no'})",
    ],
)
async def test_invalid_requests_are_refused_before_they_are_sent(
    server: ServerConnection, model: fake_llm.ModelServer, call: str
) -> None:
    failed = await server.run(call)
    assert failed.status == "error"
    assert model.read_counts() == {}


async def test_agents_start_agents_three_levels_deep_and_no_deeper(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    deepest = """
try:
    sub_agent('level 4')
except BudgetExceeded as error:
    SUBMIT([3, str(error)])"""
    model.set_script(
        {"match": "Task:\nlevel 1", "reply": program_answer("SUBMIT([1] + sub_agent('level 2'))")},
        {"match": "Task:\nlevel 2", "reply": program_answer("SUBMIT([2] + sub_agent('level 3'))")},
        {"match": "Task:\nlevel 3", "reply": program_answer(deepest)},
    )
    told = await server.evaluate("sub_agent('level 1')")
    assert told[:3] == [1, 2, 3]
    assert (
        "The run budget allows agents 3 levels deep, and this one would be at level 4." in told[3]
    )
    assert model.read_counts()["calls"] == 3


async def test_a_depth_can_be_narrowed(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\nnarrow", "reply": program_answer("sub_agent('more')")},
        {
            "match": "BudgetExceeded: The agent 1 budget allows agents 0 levels",
            "reply": program_answer("SUBMIT('refused')"),
        },
    )
    assert await server.evaluate("sub_agent('narrow', budget={'depth': 0})") == "refused"


async def test_twenty_agents_at_once_keep_their_order(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    reply = program_answer("SUBMIT(CONTEXT['n'] * 2)")
    model.set_script({"match": "Task:\nDouble", "reply": reply, "times": 20, "latency_s": 0.5})
    code = """
slots = sub_agent_batch('Double', [{'n': n} for n in range(20)], max_concurrency=20)
[[slot.value if slot.ok else str(slot.error) for slot in slots], llm_usage()['run']['calls']]"""
    assert await server.evaluate(code) == [[2 * n for n in range(20)], 20]
    assert model.read_counts()["most at once"] > 1


async def test_agents_are_begun_from_asyncio_and_submit_there(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    inner = "import asyncio\nawait asyncio.sleep(0)\nSUBMIT(7)"
    model.set_script({"match": "Task:\n[ab]$", "reply": program_answer(inner), "times": 2})
    code = "import asyncio\nawait asyncio.gather(asub_agent('a'), asub_agent('b'))"
    answer = await server.run(code)
    assert answer.value == [7, 7], answer.text
    submitted = await server.run("import asyncio\nawait asyncio.sleep(0)\nSUBMIT([1])")
    assert (submitted.status, submitted.value, submitted.submitted) == ("ok", [1], True)
    assert "stderr" not in submitted.data


async def test_submit_ends_a_run_even_if_code_catches_everything(server: ServerConnection) -> None:
    code = (
        "try:\n    SUBMIT({'a': 1})\nexcept BaseException:\n    pass\nprint('more')\n"
        "'another value'"
    )
    answer = await server.run(code)
    assert (answer.value, answer.submitted, answer.stdout) == ({"a": 1}, True, "more\n")
    again = await server.run("'nothing'")
    assert "submitted" not in again.data
    failed = await server.run("try:\n    SUBMIT(1)\nfinally:\n    1 / 0")
    assert failed.status == "error"
    assert "submitted" not in failed.data


async def test_nested_agents_finish_with_a_single_run_slot(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    path = write_model_settings(tmp_path, model, {"max_runs": 1, "max_runs_per_principal": 1})
    async with connect_server(path) as server:
        code = (
            "slots = sub_agent_batch('outer', [None] * 2)\nfirst = sub_agent('inner', 9)\n"
            "[slots[0].value, first]"
        )
        model.set_script(
            {
                "match": "Task:\nouter",
                "reply": program_answer(
                    "SUBMIT([s.value for s in sub_agent_batch('inner', [1, 2, 3])])"
                ),
                "times": 2,
            },
            {"match": "Task:\ninner", "reply": program_answer("SUBMIT(CONTEXT)"), "times": 9},
        )
        assert await server.evaluate(code) == [[1, 2, 3], 9]


async def test_without_a_free_session_the_call_fails(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\ndeep", "reply": program_answer("SUBMIT(sub_agent('deeper'))")},
        {"match": "Unavailable|busy", "reply": program_answer("SUBMIT('told')")},
    )
    async with connect_server(write_model_settings(tmp_path, model, {"max_sessions": 2})) as server:
        assert await server.evaluate("sub_agent('deep')") == "told"


async def test_its_time_does_not_count_while_an_agent_works(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\nslow", "reply": program_answer("SUBMIT('done')"), "latency_s": 3.0}
    )
    answer = await server.run("sub_agent('slow')", timeout_s=2)
    assert (answer.status, answer.data.get("value")) == ("ok", "done"), answer.text


async def test_a_rerun_answers_from_the_journal_and_starts_no_agent(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script({"match": "Task:\nonce", "reply": program_answer("SUBMIT({'n': 1})")})
    first = await server.run("sub_agent('once')['n'] + 1")
    again = await server.replay("rerun", run=first.run)
    assert "The same as recorded" in again.text
    assert model.read_counts()["calls"] == 1


async def test_a_dry_run_plans_an_agent(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    planned = await server.run(
        "found = sub_agent('plan me')\nprint('next')\nfound", session="planned", dry_run=True
    )
    assert planned.status == "waiting"
    assert planned.waiting_for[0]["call"].startswith("agent.run(task='plan me'")
    assert model.read_counts() == {}


async def test_cancelling_the_run_ends_its_agents(
    server: ServerConnection, model: fake_llm.ModelServer, tmp_path: Path
) -> None:
    hang = f"""
import time
from pathlib import Path
Path({str(tmp_path / "here")!r}).touch()
try:
    time.sleep(600)
finally:
    Path({str(tmp_path / "gone")!r}).touch()"""
    model.set_script(
        {"match": "Task:\nhang", "reply": program_answer("sub_agent('hang deeper')")},
        {"match": "deeper", "reply": program_answer(hang)},
    )
    started = await server.run("sub_agent('hang')", session="hangs", background=True)
    await until((tmp_path / "here").exists)
    ended = await attach(server, started.run, cancel=True)
    assert ended.status == "cancelled"
    await until((tmp_path / "gone").exists)


async def test_a_crash_in_the_middle_leaves_the_call_in_doubt_and_restarts_nothing(
    model: fake_llm.ModelServer, tmp_path: Path
) -> None:
    wrote = tmp_path / "wrote"
    inner = f"from pathlib import Path\nPath({str(wrote)!r}).open('a').write('x')\nask_llm('wait')"
    model.set_script(
        {"match": "Task:\ncrash", "reply": program_answer(inner), "times": 2},
        {"match": "^echo\nwait", "latency_s": 600},
    )
    path = write_model_settings(tmp_path, model)
    async with connect_server(path) as server:
        started = await server.run(
            "[sub_agent('crash'), 'after']", session="crashes", background=True
        )
        await until(wrote.exists)
        [pid] = server.server_pids
        os.kill(pid, signal.SIGKILL)
        await until(
            lambda: (
                not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
            )
        )
    async with connect_server(path) as server:
        asked = await attach(server, started.run, wait_s=30)
        assert asked.status == "waiting", asked.text
        assert asked.waiting_for[0]["kind"] == "in_doubt"
        told = await attach(server, started.run, answers={"q1": {"result": "by hand"}})
        assert told.value == ["by hand", "after"]
        assert wrote.read_text() == "x"


async def test_a_question_of_an_agent_is_named_where_its_run_is_looked_at_and_can_be_answered(
    model: fake_llm.ModelServer, tmp_path: Path
) -> None:
    model.set_script(
        {
            "match": "Task:\nAct",
            "reply": program_answer("from tools.counted import add\nadd(item='tea')"),
        },
        {"match": "Step 1 of 20: ok", "reply": program_answer("SUBMIT('placed')")},
    )
    llm = {"model": "echo", "api_base": model.url, "api_key": fake_llm.API_KEY}
    policy = {"approver": "model", "tools": {"counted": "ask"}}
    upstreams = {"counted": upstream_entry("counted", str(tmp_path / "done"))}
    path = write_settings(
        tmp_path, sandbox=LOCAL_SANDBOX, llm=llm, policy=policy, mcpServers=upstreams
    )
    async with connect_server(path) as server:
        asked = await server.run("sub_agent('Act')")
        assert asked.status == "running"
        found = re.search(r"Run (r_\S+) of a sub-agent waits for an answer", asked.text)
        assert found is not None, asked.text
        child = await attach(server, found[1], wait_s=1)
        assert "counted.add(item" in child.text
        await attach(server, found[1], answers={"q1": "allow"})
        assert (await attach(server, asked.run)).value == "placed"


@pytest.mark.parametrize(
    ("llm", "why"),
    [
        ({}, "The client's own model answers requests but cannot drive agents."),
        ({"broker": "caller"}, "The client's own model answers requests but cannot drive agents."),
        ({"broker": "off", "model": "echo"}, "No model is configured."),
    ],
)
async def test_without_a_driving_model_the_error_names_the_remedy(
    tmp_path: Path, llm: dict[str, str], why: str
) -> None:
    async with connect_server(write_settings(tmp_path, sandbox=LOCAL_SANDBOX, llm=llm)) as server:
        failed = await server.run("sub_agent('x')")
        assert "LlmError: " in failed.text
        assert f"{why} Set [llm] model to a model of a provider" in failed.text


async def test_the_key_is_in_nothing_that_an_agent_leaves(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    wrong = "wrong-key-that-nobody-may-see"
    async with connect_server(write_model_settings(tmp_path, model, api_key=wrong)) as server:
        failed = await server.run("sub_agent('x')")
        assert "refused the key" in failed.text
    for file in (tmp_path / "data").rglob("*"):
        assert not file.is_file() or wrong.encode() not in file.read_bytes()


async def test_agents_are_shown_as_a_tree_of_sessions(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {
            "match": "Task:\nabove",
            "reply": program_answer("SUBMIT(sub_agent_batch('below', [1, 2])[1].value)"),
        },
        {"match": "Task:\nbelow", "reply": program_answer("SUBMIT(CONTEXT)"), "times": 2},
    )
    path = write_model_settings(tmp_path, model)
    async with connect_server(path) as server:
        assert await server.evaluate("sub_agent('above')", session="mine") == 2
        own = await server.replay("list", "mine")
        assert len(own.steps) == 1
    listed = told(path, "replay", "list")
    assert "… and 3 agents, which --all lists" in listed
    assert "agent of mine:1" in told(path, "replay", "list", "--all")
    assert "[tip, 1 agent]" in told(path, "replay", "list", "mine")
    shown = told(path, "replay", "show", "mine", "1")
    tree = shown.partition("  agents\n")[2].partition("  value")[0]
    assert [re.sub(" +", " ", line).split(" ok")[0].strip() for line in tree.splitlines()] == [
        *("└─ " + re.findall(r"s_\S+", tree)[0], "step 1"),
        *("├─ " + re.findall(r"s_\S+", tree)[1], "│ step 1", "│ step 2"),
        *("└─ " + re.findall(r"s_\S+", tree)[2], "step 1", "step 2"),
    ]
    found = json.loads(told(path, "replay", "show", "mine", "1", "--json"))
    [above] = found[0]["agents"] if isinstance(found, list) else found["agents"]
    assert [len(below["runs"]) for below in above["runs"][0]["agents"]] == [2, 2]
    told(path, "replay", "export", above["session"], str(tmp_path / "agent.zip"))
    assert "agent.zip" not in told(path, "replay", "import", str(tmp_path / "agent.zip"))


def told(path: Path, *words: str) -> str:
    """Return what the command line says."""
    done = run_command("--config", path, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_code_that_waits_no_more_for_an_agent_ends_it(
    server: ServerConnection, model: fake_llm.ModelServer, tmp_path: Path
) -> None:
    hang = (
        "import time\ntry:\n    time.sleep(600)\nfinally:\n"
        f"    open({str(tmp_path / 'gone')!r}, 'w')"
    )
    model.set_script({"match": "Task:\nlinger", "reply": program_answer(hang)})
    code = """
import asyncio
try:
    await asyncio.wait_for(asub_agent('linger'), 3)
except asyncio.TimeoutError:
    told = 'waited no more'
told"""
    assert await server.evaluate(code) == "waited no more"
    await until((tmp_path / "gone").exists)


async def test_a_planned_agent_works_when_the_plan_is_committed(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script({"match": "Task:\ncommit", "reply": program_answer("SUBMIT(5)")})
    planned = await server.run(
        "found = sub_agent('commit')\nfound", session="commits", dry_run=True
    )
    assert planned.status == "waiting"
    done = await attach(server, planned.run, answers={"*": "allow"})
    assert done.value == 5


async def test_the_model_learns_that_a_program_crashed_or_timed_out(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\nDie", "reply": program_answer("kept = 1\nimport os\nos._exit(3)")},
        {"match": "Step 1 of 20: crashed", "reply": program_answer("import time\ntime.sleep(60)")},
        {"match": "Step 2 of 20: timeout", "reply": program_answer("SUBMIT('kept' in globals())")},
    )
    path = write_model_settings(tmp_path, model)
    path.write_text(path.read_text().replace("[sandbox]", "[sandbox]\ntimeout_s = 2.0"))
    async with connect_server(path) as server:
        assert await server.evaluate("sub_agent('Die')") is False


async def test_a_conversation_that_is_too_long_is_shortened(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    too_long = {"fault": "400", "message": "This model's maximum context length is 10 tokens"}
    model.set_script(
        {"match": "Task:\nLong", "reply": program_answer("'x' * 5000")},
        {"match": "Step 1 of 20: ok", **too_long, "times": 2},
        {"match": "Step 1 of 20: ok", "reply": program_answer("SUBMIT('fits')")},
    )
    assert await server.evaluate("sub_agent('Long')") == "fits"


async def test_a_large_value_is_returned_whole(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    model.set_script(
        {"match": "Task:\nLarge", "reply": program_answer("SUBMIT(['row ' * 20] * len(CONTEXT))")}
    )
    code = (
        "found = sub_agent('Large', 'x' * 20_000)\n"
        "[len(found), len(set(found)), found[-1] == 'row ' * 20]"
    )
    assert await server.evaluate(code) == [20_000, 1, True]


async def test_a_slice_of_an_input_is_the_context_of_an_agent_that_reads_it(
    server: ServerConnection, model: fake_llm.ModelServer
) -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    model.set_script(
        {
            "match": (
                "CONTEXT: an input: rows [0-9:]+ [(][0-9,]+ bytes[)]. It is not a str.*begins\n"
                "<data \\w+>\nline 500"
            ),
            "reply": program_answer("hits = CONTEXT.grep('line 7')\nlen(hits)"),
        },
        {"match": "value: 100", "reply": program_answer("SUBMIT([hits[0].text, len(CONTEXT)])")},
    )
    code = (
        "half = CONTEXT.lines(500, 1000)\n"
        "sub_agent('Find', CONTEXT.slice(half[0].start, half[-1].end))"
    )
    found = await server.run(code, "halves", context=[{"text": text, "name": "rows"}])
    assert found.data["status"] == "ok", found.text
    hit, size = found.value
    assert (hit.strip(), size) == ("line 700", 4499)
    [call] = [each for each in found.calls if each["call"].startswith("agent.run")]
    assert "line 600" not in call["call"]  # it was a reference that was sent


async def test_a_forged_reference_is_refused(server: ServerConnection) -> None:
    code = """
class Forged:
    def to_argument(self):
        return {"$slice": {"input": "0" * 16, "start": 0, "end": 9}}
sub_agent("Read", Forged())"""
    refused = await server.run(code, "forger")
    assert "has never had the input of this slice" in refused.text
