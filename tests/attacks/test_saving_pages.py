"""Steps that are saved as skills, on the pages and by clients, cost nobody else anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

import anyio
import pytest

from ..helpers.event_streams import ApiClient
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import ServerConnection, write_settings
from .bystander import observe

NUMBERS = count()
MAX_PAGE_BYTES = 5_000_000
LITERALS = ", ".join(map(str, range(30_000)))
STEPS = {
    "many literals": f"numbers = [{LITERALS}]\nlen(numbers)",
    "many variables": "\n".join(f"v{n} = v{n - 1} + 1" if n else "v0 = 1" for n in range(8_000)),
    "many functions": "\n".join(f"def f{n}(): return f{n - 1}()" for n in range(1, 5_000))
    + "\nf0 = 1\nf0",
    "a long sum": "+".join(["1"] * 90_000),
    "a deep expression": "[" * 90 + "1" + "]" * 90,
    "many brackets": "\n".join(["[[[[[[[[[[1]]]]]]]]]]"] * 8_000),
    "a long text": "'" + "x" * 190_000 + "'",
    "a long name": "x" * 190_000 + " = 1",
    "many strings": "\n".join(f"s{n} = 's{n}' * {n}" for n in range(7_000)),
    "many comments": "#\n" * 90_000 + "1",
    "many imports": "\n".join(["import os, sys, re, json"] * 7_000) + "\n1",
    "much code": "x = 1\n" * 400_000,
    "text like paths": "'" + "/a/" * 60_000 + "'",
    "many escapes": "'" + "\\x1b" * 45_000 + "'",
    "comparisons": "\n".join(["1 < 2 < 3 < 4 < 5 < 6 < 7 < 8 < 9 < 10"] * 4_500),
}


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    settings = write_settings(
        tmp_path_factory.mktemp("server"),
        http={"requests_per_minute": 100_000, "runs_per_minute": 10_000},
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def api(service: HttpService) -> AsyncIterator[ApiClient]:
    """A client of the API that has logged in to the pages, and may change things there."""
    token, base = service.create_token("mallory"), service.url.removesuffix("/mcp")
    async with service.http(Origin=base) as http:
        response = await http.post(f"{base}/login", data={"token": token})
        cookie = response.headers["set-cookie"].partition(";")[0]
        page = (await http.get(f"{base}/", headers={"Cookie": cookie})).text
    csrf = page.partition('name="csrf-token" content="')[2].partition('"')[0]
    own = {"Authorization": f"Bearer {token}", "Cookie": cookie, "X-CSRF-Token": csrf}
    async with service.http(Origin=base, **own) as http:
        yield ApiClient(service, http)


async def execute(api: ApiClient, code: str, session: str) -> str:
    """Execute a step; return the address of its page."""
    done = (await api.post("/execute", {"code": code, "session": session, "timeout_s": 30})).json()
    return f"/s/{done['session']}/{done['run']}"


@pytest.mark.parametrize("name", STEPS)
async def test_a_step_is_shown_and_saved_or_refused(
    api: ApiClient, bystander: ServerConnection, name: str
) -> None:
    page = await execute(api, STEPS[name], f"step {name}")
    async with observe(bystander):
        for _ in range(2):
            shown = await api.get(f"{page}/skill")
            assert shown.status_code < 500, shown.text[:300]
            assert len(shown.content) < MAX_PAGE_BYTES
        saved = await api.post(f"{page}/skill", {"name": f"s{next(NUMBERS)}"})
        assert saved.status_code < 500, saved.text[:300]
        assert (await api.get("/skills")).status_code == 200


async def test_a_step_after_many_others(api: ApiClient, bystander: ServerConnection) -> None:
    for number in range(100):
        page = await execute(api, f"total = {number}\n" + "total += 1\n" * 300 + "total", "many")
    async with observe(bystander):
        assert (await api.get(f"{page}/skill")).status_code < 500
        assert (await api.post(f"{page}/skill", {"name": "many"})).status_code < 500


async def test_steps_that_are_saved_at_once(api: ApiClient, bystander: ServerConnection) -> None:
    page = await execute(api, "total = 3\nfor n in range(5): total += n\ntotal", "at once")

    async def save(number: int) -> None:
        answer = await api.post(f"{page}/skill", {"name": f"once{number}"})
        assert answer.status_code < 500

    async with observe(bystander), anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(save, number)


async def test_tests_of_skills_that_browsers_leave(
    api: ApiClient, bystander: ServerConnection
) -> None:
    page = await execute(api, "import time\ntime.sleep(0.5)\ntotal = 3\ntotal", "left")
    async with observe(bystander):
        for number in range(10):
            with anyio.move_on_after(0.1):
                await api.post(f"{page}/skill", {"name": f"left{number}"})
        assert (await api.get(f"{page}/skill")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"name": "n" * 1_000_000},
        {"name": "../../x"},
        {"name": "\x1b[2J\u2028"},
        {"name": "x", "summary": "s" * 1_000_000},
        {"name": "x", "summary": "\u202e\x1b]0;x\x07" * 40},
        {"name": [["x"]] * 50_000},
    ],
    ids=lambda body: str(body)[:24],
)
async def test_a_name_of_anything(
    api: ApiClient, bystander: ServerConnection, body: dict[str, object]
) -> None:
    page = await execute(api, "total = 3\nfor n in range(5): total += n\ntotal", "names")
    async with observe(bystander):
        for _ in range(5):
            answer = await api.post(f"{page}/skill", body)
            assert answer.status_code < 500
            assert len(answer.content) < 20_000


async def test_many_large_skills_are_searched_and_compared(
    service: HttpService, bystander: ServerConnection
) -> None:
    async with service.connect(service.create_token("collector")) as client:
        for number in range(40):
            lines = "\n".join(f"    x{n} = {n} + {number}" for n in range(6_000))
            code = f"def run(a: int) -> int:\n{lines}\n    return a\n"
            arguments = {"code": code, "name": f"large{number}"}
            await client.client.call_tool("save_skill", arguments)
        async with observe(bystander):
            for number in range(5):
                code = f"def run(b: int) -> int:\n    return b + {number}\n"
                await client.client.call_tool("save_skill", {"code": code})
                await client.client.call_tool("list_skills", {"query": "large x1"})
