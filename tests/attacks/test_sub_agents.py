"""Agents that code starts, with a model that says anything, cost nobody else anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import anyio
import pytest

from bench import fake_llm
from tests.upstreams import own_server_entry

from ..helpers.event_streams import ApiClient, connect_api
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import ServerConnection, write_settings
from .bystander import observe

LONG = 3_500_000
NUMBERS = count()
ANSWERS = {
    "a long fence": "~" * LONG + "`",
    "many fences": "```python\n(\n```\n" * (LONG // 16),
    "many blocks": "```python\n1\n```\n" * (LONG // 16),
    "an opening of spaces": "~~~" + " " * LONG + "`",
    "a long program": "```python\n" + "x = 1\n" * (LONG // 6) + "```",
    "a program of brackets": "```python\n" + "[" * LONG + "\n```",
    "a program of numbers": "```python\n[" + "1," * (LONG // 2) + "]\n```",
    "a program without a fence": "SUBMIT(" + "1+" * (LONG // 2) + "1)",
    "a long line": "x" * LONG,
}
PROGRAMS = {
    "prints much": "for _ in range(100): print('y\\n' * 500_000)",
    "prints bytes": "import os\nfor _ in range(60): os.write(1, bytes(range(128, 256)) * 8192)",
    "submits much": "SUBMIT('z' * 900_000)",
    "submits many objects": "SUBMIT([{}] * 40_000)",
    "submits often": "for n in range(300):\n    try: SUBMIT([n] * 5_000)\n"
    "    except BaseException: pass",
    "takes memory": "kept = []\nwhile True: kept.append(bytearray(10 ** 7))",
    "forks": "import os\nwhile True: os.fork()",
    "ends its worker": "import os\nos._exit(3)",
    "asks a person": "from tools.lively import echo\nfor n in range(50): echo(text='z' * 2_000)",
    "starts agents": "sub_agent('Go on', budget={'steps': 3})",
    "writes files": "for n in range(2_000): open(f'f{n}', 'w').write('x' * 5_000)",
}
ONCE = "try: said = sub_agent('Go on', budget={'steps': 3})\n"
ONCE += "except Exception as exc: said = str(exc)\nlen(str(said))"
STARTS = {
    "many agents": "from concurrent.futures import ThreadPoolExecutor\n"
    "def begin(n):\n    try: return sub_agent(f'Task {n}', budget={'steps': 2})\n"
    "    except Exception as exc: return str(exc)\n"
    "with ThreadPoolExecutor(60) as pool: said = list(pool.map(begin, range(200)))\nlen(said)",
    "a long task": "for n in range(20):\n    try: sub_agent('z' * 3_000_000)\n"
    "    except Exception as exc: said = str(exc)",
    "much material": "for n in range(4):\n"
    "    try: sub_agent('Go on', 'z' * 3_500_000, budget={'steps': 1})\n"
    "    except Exception as exc: said = str(exc)",
    "material of many objects": "try: sub_agent('Go on', [{}] * 60_000, budget={'steps': 1})\n"
    "except Exception as exc: said = str(exc)",
    "odd budgets": "odd = 'x' * 10 ** 6\nfor budget in ({'steps': 10 ** 30}, "
    "{'usd': float('inf')}, {'steps': odd}, {odd: 1}, {'depth': -1}, [[]]):\n"
    "    try: sub_agent('Go on', budget=budget)\n    except Exception as exc: said = str(exc)",
    "a schema of many parts": "schema = {'type': 'object', 'properties': "
    "{f'p{n}': {'type': 'string'} for n in range(1_200)}}\n"
    "for _ in range(10):\n    try: sub_agent('Go on', schema=schema, budget={'steps': 1})\n"
    "    except Exception as exc: said = str(exc)",
}


@pytest.fixture(scope="module")
def model() -> Iterator[fake_llm.ModelServer]:
    with fake_llm.start_model_server() as server:
        yield server


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, model: fake_llm.ModelServer
) -> AsyncIterator[HttpService]:
    settings = write_settings(
        tmp_path_factory.mktemp("server"),
        llm={"model": "echo", "api_base": model.url, "api_key": fake_llm.API_KEY, "retries": 0},
        mcpServers={"lively": own_server_entry("lively")},
        policy={"tools": {"lively.echo": "ask"}},
        http={"requests_per_minute": 100_000, "runs_per_minute": 10_000},
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture
async def api(service: HttpService) -> AsyncIterator[ApiClient]:
    async with connect_api(service, service.create_token(f"mallory{next(NUMBERS)}")) as client:
        yield client


def script(model: fake_llm.ModelServer, reply: str) -> None:
    """Let the model answer everything with the same words."""
    model.set_script({"match": "", "reply": reply, "times": 1_000_000})


async def execute(api: ApiClient, code: str) -> dict[str, Any]:
    """Run code for 20 s at most, and let nothing wait; return its document."""
    body = {"code": code, "session": "agents", "timeout_s": 20, "wait_s": 20}
    done = (await api.post("/execute", body)).json()
    if done["status"] in ("waiting", "running"):
        await api.post(f"/runs/{done['run']}/cancel")
    return dict(done)


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_model_that_answers_anything(
    api: ApiClient, bystander: ServerConnection, model: fake_llm.ModelServer, name: str
) -> None:
    script(model, ANSWERS[name])
    async with observe(bystander):
        done = await execute(api, ONCE)
        assert done["status"] in ("ok", "error", "timeout"), done
        assert len(str(done)) < 60_000


@pytest.mark.parametrize("name", PROGRAMS)
async def test_an_agent_that_does_anything(
    api: ApiClient, bystander: ServerConnection, model: fake_llm.ModelServer, name: str
) -> None:
    script(model, f"```python\n{PROGRAMS[name]}\n```")
    async with observe(bystander):
        done = await execute(api, ONCE)
        assert done["status"] in ("ok", "error", "timeout", "waiting", "running"), done
        assert len(str(done)) < 60_000


@pytest.mark.parametrize("name", STARTS)
async def test_agents_that_are_started_in_any_way(
    api: ApiClient, bystander: ServerConnection, model: fake_llm.ModelServer, name: str
) -> None:
    script(model, "```python\nSUBMIT(1)\n```")
    async with observe(bystander):
        done = await execute(api, STARTS[name])
        assert done["status"] in ("ok", "error", "timeout", "running"), done


async def test_streams_of_the_events_of_agents_that_nobody_reads(
    api: ApiClient, bystander: ServerConnection, model: fake_llm.ModelServer
) -> None:
    script(model, f"```python\n{PROGRAMS['prints much']}\n```")
    async with observe(bystander), anyio.create_task_group() as tasks:
        started = (await api.post("/execute", {"code": ONCE, "wait_s": 0})).json()["run"]

        async def follow(path: str) -> None:
            async with api.http.stream("GET", api.base + path) as response:
                assert response.status_code in (200, 429)
                await anyio.sleep(4)

        for _ in range(40):
            tasks.start_soon(follow, f"/runs/{started}/events")
        await anyio.sleep(1)
        sessions = (await api.get("/sessions")).json()
        assert len(str(sessions)) < 100_000
    await api.post(f"/runs/{started}/cancel")
