"""Budgets hold at every instant, under real concurrency, random schedules and real HTTP."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import fake_llm
from mcpruntime_server.capabilities.llm.budget import Budget
from mcpruntime_server.capabilities.model_requests import ModelUsage
from mcpruntime_server.config import BudgetLimits
from mcpruntime_server.errors import CallFailed
from tests.helpers.server_connection import connect_server
from tests.server.test_resume import until

from .test_model_requests import settings

NAMES = ("calls", "tokens_in", "tokens_out", "usd")
limits = st.builds(
    BudgetLimits,
    calls=st.none() | st.integers(0, 12),
    tokens_in=st.none() | st.integers(0, 300),
    tokens_out=st.none() | st.integers(0, 300),
    usd=st.none() | st.integers(0, 20).map(lambda cents: cents / 100),
    concurrency=st.none() | st.integers(1, 4),
)
questions = st.lists(
    st.fixed_dictionaries(
        {
            "run": st.integers(0, 3),
            "asks": st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 3)),
            "share": st.floats(0, 1),
            "steps": st.integers(0, 5),
            "ends": st.sampled_from(["answered", "failed", "cancelled"]),
        }
    ),
    max_size=30,
)


@given(tree=st.tuples(limits, limits, limits, limits), asked=questions)
async def test_no_level_is_ever_above_a_limit_and_nothing_stays_reserved(
    tree: Any, asked: list[dict[str, Any]]
) -> None:
    top = Budget("principal", tree[0])
    session = Budget("session", tree[1], top)
    runs = [
        Budget("run", tree[2], session),
        Budget("run", tree[3], session),
        Budget("run", tree[2], top),
    ]
    runs.append(runs[0].add_agent_budget(tree[3]))
    levels = list(dict.fromkeys(level for run in runs for level in run.levels()))
    cost = {level: ModelUsage() for level in levels}
    under_way = dict.fromkeys(levels, 0)

    def check() -> None:
        for level in levels:
            for name, limit in level._limits.counted_limits().items():
                taken = getattr(level.used, name) + getattr(level.reserved, name)
                assert limit is None or taken <= limit + 1e-9
            assert under_way[level] <= (level._limits.concurrency or 99)

    async def ask(question: dict[str, Any], scope: anyio.CancelScope) -> None:
        run, (tokens_in, tokens_out, cents) = runs[question["run"]], question["asks"]
        amount = ModelUsage(1, tokens_in, tokens_out, cents / 100)
        share = question["share"] if question["ends"] == "answered" else 0
        used = ModelUsage(1, int(tokens_in * share), int(tokens_out * share), cents / 100 * share)
        with scope:
            async with run.request_slot():
                try:
                    reserved = run.reserve(amount)
                except CallFailed:
                    return
                for level in run.levels():
                    under_way[level] += 1
                try:
                    for _ in range(question["steps"]):
                        check()
                        await anyio.lowlevel.checkpoint()
                    if question["ends"] == "cancelled":
                        scope.cancel()
                        await anyio.lowlevel.checkpoint()
                finally:
                    reserved.settle(used)
                    for level in run.levels():
                        under_way[level] -= 1
                        cost[level] += used
                    check()

    async with anyio.create_task_group() as tasks:
        for question in asked:
            tasks.start_soon(ask, question, anyio.CancelScope())
    for level in levels:
        assert level.reserved == ModelUsage()
        assert [getattr(level.used, name) for name in NAMES] == [
            getattr(cost[level], name) for name in NAMES
        ]


async def test_sums_of_money_are_exact_at_the_limit() -> None:
    budget = Budget("run", BudgetLimits(usd=0.3))
    for _ in range(3):
        budget.reserve(ModelUsage(1, usd=0.1)).settle(ModelUsage(1, usd=0.1))
    with pytest.raises(CallFailed, match=r"0\.3 USD"):
        budget.reserve(ModelUsage(1, usd=0.000001))


async def test_a_run_limits_its_agents_and_their_depth() -> None:
    run = Budget("run", BudgetLimits(calls=2, depth=2))
    child = run.add_agent_budget(BudgetLimits())
    grandchild = child.add_agent_budget(BudgetLimits(calls=9))
    with pytest.raises(CallFailed, match="2 levels deep"):
        grandchild.add_agent_budget(BudgetLimits())
    grandchild.reserve(ModelUsage(1)).settle(ModelUsage(1))
    child.reserve(ModelUsage(1)).settle(ModelUsage(1))
    with pytest.raises(CallFailed, match="The run budget is 2 model requests"):
        grandchild.reserve(ModelUsage(1))


STOPS = {
    "a batch": (
        "slots = ask_llm_batch([f'{n}' for n in range(10_000)])\nasked = sum(s.ok for s in slots)"
    ),
    "threads": "slots = tools.map(ask_llm, [f'{n}' for n in range(300)], max_concurrency=20)\n"
    "asked = sum(s.ok for s in slots)",
    "asyncio": "import asyncio\n"
    "found = await asyncio.gather(*(aask_llm(f'{n}') for n in range(300)), "
    "return_exceptions=True)\n"
    "asked = sum(type(each) is str for each in found)",
}


@pytest.mark.parametrize("way", STOPS)
async def test_however_code_asks_it_stops_at_its_budget_to_the_call(
    tmp_path: Path, model: fake_llm.ModelServer, way: str
) -> None:
    async with connect_server(
        settings(tmp_path, model, run={"calls": 57, "concurrency": 8})
    ) as server:
        assert await server.evaluate(f"{STOPS[way]}\n[asked, llm_usage()['run']['calls']]") == [
            57,
            57,
        ]
        assert model.read_counts()["calls"] == 57
        assert model.read_counts()["most at once"] <= 8


async def test_through_http_with_faults_everything_is_counted_and_given_back(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    limits = {"calls": 80, "tokens_in": 20_000, "tokens_out": 3_000, "concurrency": 6}
    path = settings(tmp_path, model, run=limits, timeout_s=1, retries=1, max_tokens=100)
    async with connect_server(path) as server:
        model.set_script(
            {"match": "[27]$", "fault": "503", "times": 6},
            {"match": "[5]$", "fault": "malformed", "times": 4},
            {"match": "9$", "latency_s": 5, "times": 2},
        )
        code = """
slots = ask_llm_batch([f'question {n}' for n in range(60)])
slots += tools.map(ask_llm, [f'another {n}' for n in range(60)])
[sum(s.ok for s in slots), [type(s.error).__name__ for s in slots if not s.ok], llm_usage()]
"""
        answered, errors, usage = await server.evaluate(code, "mine")
        stats = model.read_counts()
        assert set(errors) <= {"BudgetExceeded", "LlmError"}
        assert "BudgetExceeded" in errors
        assert answered == stats["calls"]
        attempts = stats["calls"] + sum(
            count for name, count in stats.items() if name.startswith("fault")
        )
        assert (
            usage["run"]["calls"] == attempts + 2 == usage["session"]["calls"]
        )  # two were cut off
        assert all(
            usage["run"][name] <= limit for name, limit in limits.items() if name != "concurrency"
        )
        assert stats["most at once"] <= 6
        model.set_script()
        more = await server.evaluate("llm_usage()['session']", "mine")
        assert more["calls"] == attempts + 2


async def test_the_end_of_the_time_interrupts_requests(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    async with connect_server(settings(tmp_path, model, run={"wall_s": 1.0})) as server:
        await server.evaluate("ask_llm('ready?')")
        model.set_script({"match": "slow", "latency_s": 30, "times": 9})
        code = """
import time
try:
    ask_llm('slow')
except BudgetExceeded as error:
    told = str(error)
try:
    ask_llm('quick')
except BudgetExceeded as error:
    again = str(error)
[told == again, told]"""
        same, told = await server.evaluate(code)
        assert same
        assert "1 seconds from its first request" in told


async def test_time_cuts_off_the_wait_for_a_provider_that_is_busy(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    async with connect_server(settings(tmp_path, model, run={"wall_s": 1.0})) as server:
        model.set_script({"fault": "429", "retry_after": 50})
        with anyio.fail_after(40):
            failed = await server.run("ask_llm('well?')")
        assert failed.error["type"] == "llm.BudgetExceeded"


async def test_neither_a_crash_nor_being_forgotten_gives_a_new_budget(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    path = settings(tmp_path, model, session={"calls": 10}, run={"calls": 8})
    loop = """
asked = 0
try:
    while True:
        ask_llm(f'{NAME} {asked}')
        asked += 1
except BudgetExceeded:
    pass
asked"""
    async with connect_server(path) as server:
        assert await server.evaluate(f"NAME = 'a'{loop}", "mine") == 8
        [pid] = server.server_pids
        os.kill(pid, signal.SIGKILL)
        await until(
            lambda: (
                not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
            )
        )
    async with connect_server(path) as server:
        assert await server.evaluate(f"NAME = 'b'{loop}", "mine") == 2
        assert (await server.evaluate("llm_usage()", "mine"))["session"]["calls"] == 10
        assert await server.evaluate(f"NAME = 'c'{loop}", "other") == 8


async def test_usage_is_available_right_after_an_error(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    async with connect_server(settings(tmp_path, model, retries=2)) as server:
        model.set_script({"fault": "503", "times": 9})
        code = """
try:
    ask_llm('busy')
except LlmError:
    pass
llm_usage()['run']['calls']"""
        assert await server.evaluate(code) == 3  # each time that it is put before a model counts


async def test_concurrent_equal_requests_are_sent_once(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    async with connect_server(settings(tmp_path, model)) as server:
        model.set_script({"match": "same", "latency_s": 0.3})
        assert await server.evaluate(
            "set(s.value for s in ask_llm_batch(['same'] * 500)) == {'same'}"
        )
        assert model.read_counts()["calls"] == 1
        assert await server.evaluate("llm_usage()['run']['calls']") == 0


async def test_time_cuts_off_waiting_to_ask_again(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    async with connect_server(settings(tmp_path, model, run={"wall_s": 2.0}, retries=2)) as server:
        await server.evaluate("ask_llm('ready?')")
        model.set_script({"match": "busy", "fault": "429", "retry_after": 20, "times": 9})
        code = (
            "import time\nstarted = time.monotonic()\ntry: ask_llm('busy')\n"
            "except BudgetExceeded: pass\n"
        )
        assert await server.evaluate(f"{code}time.monotonic() - started") < 15


async def test_a_provider_that_wants_us_to_wait_is_waited_for_or_said_to(
    tmp_path: Path, model: fake_llm.ModelServer
) -> None:
    async with connect_server(settings(tmp_path, model, retries=2)) as server:
        model.set_script({"match": "soon", "fault": "429", "retry_after": 2})
        code = (
            "import time\nstarted = time.monotonic()\nask_llm('soon')\ntime.monotonic() - started"
        )
        assert await server.evaluate(code) >= 2
        model.set_script({"match": "late", "fault": "429", "retry_after": 3600, "times": 9})
        told = await server.run("ask_llm('late')")
        assert "The provider asks for a wait of 3,600 s." in told.text
        assert model.read_counts()["fault 429"] == 1
