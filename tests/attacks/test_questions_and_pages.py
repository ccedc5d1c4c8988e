"""Questions about recorded steps, pages and their streams cost nobody else anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import anyio
import pytest

from ..helpers.event_streams import ApiClient
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.loop_watch import IS_MEASURED
from ..helpers.server_connection import ServerConnection, write_settings
from .bystander import observe

SIZE = 200 if IS_MEASURED else 20
HELD_S = 3.0 if IS_MEASURED else 0.5
SESSION = "attacked"
# The steps that are looked into, by what each is for.
STEPS = {
    "loop": "total = 0\nfor n in range(200_000):\n    total += n\ntotal",
    "output": "for n in range(150_000): print('\\x1b[3%dm' % (n % 8), 'row', n, 'a' * 20)",
    "line": "print('a' * 3_000_000 + '\\x1b[31m' * 100_000)",
    "value": "[{'name': 'a' * 50, 'n': n} for n in range(20_000)]",
    "variables": "class Bad:\n    def __repr__(self): return 'x' * 50_000_000\n"
    "    def __len__(self): return 10 ** 30\n"
    "    def __class_getitem__(cls, key): raise SystemExit\n"
    "globals().update({f'v{n}': Bad() for n in range(5_000)})",
    "files": "import os\nopen('large', 'wb').write(os.urandom(20_000_000))\n"
    "open('lines', 'w').write('a\\n' * 3_000_000)\n"
    "open('mixed', 'w').write('\\n'.join(f'{n}\\nx{n}' for n in range(30_000)))",
    "files again": "open('lines', 'w').write('b\\n' * 3_000_000)\n"
    "open('mixed', 'w').write('\\n'.join(f'{n}\\ny{n}' for n in range(30_000)))",
    "failure": "y = [1]\n" * 400_000 + "1 / 0",
    "state": "rows = [1]",
}
QUESTIONS = {
    "a question that never ends": "while True: pass",
    "a question that takes memory": "b'x' * 10 ** 10",
    "a question that fills memory": "kept = []\nwhile True: kept.append(bytearray(10 ** 7))",
    "a question that prints 200 MB": "for _ in range(200): print('y\\n' * 500_000)",
    "a question that prints bytes": "import os\nfor _ in range(200): "
    "os.write(1, bytes(range(128, 256)) * 8192)",
    "a question that forks": "import os\nwhile True: os.fork()",
    "a question that leaves a process": "import os, time\nif os.fork() == 0:\n"
    "    os.setsid()\n    while True: pass",
    "a question that ends its worker": "import os\nos._exit(3)",
    "a question that stops its worker": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "a question of many objects": "[{}] * 3_000_000",
    "a question that nests": "value = []\nfor _ in range(100_000): value = [value]\nvalue",
}
EXPRESSIONS = {
    "a probe of each turn": "n",
    "a probe that never ends": "all(iter(int, 1)) or [None for _ in iter(int, 1)]",
    "a probe that takes memory": "bytearray(10 ** 10)",
    "a probe of large values": "'x' * 1_000_000",
    "a probe that prints": "print('y' * 100_000)",
    "a probe that forks": "__import__('os').fork()",
    "a probe that nests": "[" * 90 + "]" * 90,
    "a probe that ends its worker": "__import__('os')._exit(0)",
}
PATTERNS = (
    "(a+)+$",
    "%" * 200,
    "_" * 200,
    "a" * 200,
    '"' * 200,
    "NEAR(" * 40,
    "*",
    "\x00a",
    "-" * 9,
)
PAGES = {
    "searches": ["/?q=" + "".join(f"%{ord(char):02x}" for char in text) for text in PATTERNS] * 4,
    "windows of output": [f"/s/{{output}}/output?line={n}" for n in (1, 9**9, 150_000, 75_000)] * 8,
    "a page of a long line": ["/s/{line}", "/s/{line}/output", "/s/{line}/panel"] * 4,
    "a page of a large value": ["/s/{value}", "/s/{value}/panel"] * 6,
    "tables of a large value": ["/ui/api/runs/{value run}/value.csv"] * 6,
    "exported pages": [f"/ui/api/runs/{{{step} run}}/page.html" for step in ("output", "value")]
    * 4,
    "exported notebooks": [f"/ui/api/sessions/{SESSION}/notebook.ipynb"] * 4,
    "differences of files": ["/s/{files again}/diff?path=lines"] * 6,
    "differences of mixed lines": ["/s/{files again}/diff?path=mixed"] * 6,
    "differences of runs": ["/ui/api/runs/{output run}/diff?other={line run}"] * 6,
    "a long failure": ["/s/{failure}/sources", "/s/{failure}/panel"] * 6,
    "odd offsets": [f"/?offset={offset}" for offset in ("-1", "9" * 4_000, "1e9", "%00")] * 8,
    "odd paths": [
        "/s/{state}/file?path=../../../etc/passwd",
        "/s/{state}/file?path=%2fetc%2fpasswd",
        "/s/" + "x" * 30_000,
        "/skills/" + "%2e%2e%2f" * 50,
    ]
    * 5,
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
async def login(service: HttpService) -> dict[str, str]:
    """The headers of somebody with a token who has logged in to the pages."""
    token, base = service.create_token("mallory"), service.url.removesuffix("/mcp")
    async with service.http(Origin=base) as http:
        response = await http.post(f"{base}/login", data={"token": token})
    cookie = response.headers["set-cookie"].partition(";")[0]
    return {"Authorization": f"Bearer {token}", "Cookie": cookie}


@asynccontextmanager
async def connect_attacker(service: HttpService, login: dict[str, str]) -> AsyncIterator[ApiClient]:
    """Be a client of the API and a browser on the pages."""
    async with service.http(**login) as http:
        yield ApiClient(service, http)


@pytest.fixture(scope="module")
async def runs(service: HttpService, login: dict[str, str]) -> dict[str, str]:
    """The ids of the runs that are looked into, and the ends of the addresses of their pages."""
    found: dict[str, str] = {}
    async with connect_attacker(service, login) as api:
        for name, code in STEPS.items():
            response = await api.post("/execute", {"code": code, "session": SESSION})
            assert response.status_code == 200, response.text
            done = response.json()
            found |= {f"{name} run": done["run"], name: f"{done['session']}/{done['run']}"}
    return found


@pytest.fixture
async def api(service: HttpService, login: dict[str, str]) -> AsyncIterator[ApiClient]:
    async with connect_attacker(service, login) as client:
        yield client


@pytest.mark.parametrize("name", QUESTIONS)
async def test_a_question_costs_its_own_answer_at_most(
    api: ApiClient, bystander: ServerConnection, runs: dict[str, str], name: str
) -> None:
    path = f"/runs/{runs['state run']}/ask"
    async with observe(bystander):
        response = await api.post(path, {"code": QUESTIONS[name], "timeout_s": 5})
        assert response.status_code in (200, 409, 503), response.text[:500]
        assert len(response.content) < 2_000_000
        again = await api.post(path, {"code": "rows"})
    assert again.json()["value"] == [1], again.text[:500]


@pytest.mark.parametrize("name", EXPRESSIONS)
async def test_a_probe_costs_its_own_answer_at_most(
    api: ApiClient, bystander: ServerConnection, runs: dict[str, str], name: str
) -> None:
    body = {"line": 3, "expression": EXPRESSIONS[name], "max_hits": 500}
    async with observe(bystander):
        response = await api.post(f"/runs/{runs['loop run']}/probe", body)
        assert response.status_code in (200, 409, 503), response.text[:500]
        assert len(response.content) < 2_000_000
        body = {"line": 3, "expression": "n", "max_hits": 1}
        again = await api.post(f"/runs/{runs['loop run']}/probe", body)
    assert again.json()["hit_count"] == 200_000, again.text[:500]


async def test_variables_that_lie_about_themselves_are_listed(
    api: ApiClient, bystander: ServerConnection, runs: dict[str, str]
) -> None:
    async with observe(bystander):
        response = await api.post(f"/runs/{runs['variables run']}/variables")
        assert response.status_code in (200, 409, 503), response.text[:500]
        assert len(response.content) < 4_000_000


async def test_questions_at_once_are_answered_one_after_the_other(
    api: ApiClient, bystander: ServerConnection, runs: dict[str, str]
) -> None:
    statuses = []

    async def ask(number: int) -> None:
        response = await api.post(f"/runs/{runs['state run']}/ask", {"code": f"rows, {number}"})
        statuses.append(response.status_code)

    async with observe(bystander), anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(ask, number)
    assert set(statuses) <= {200, 409, 429, 503}
    assert 200 in statuses


@pytest.mark.parametrize("name", PAGES)
async def test_pages_cost_others_nothing(
    api: ApiClient, bystander: ServerConnection, runs: dict[str, str], name: str
) -> None:
    paths = [path.format_map(runs) if "{" in path else path for path in PAGES[name]]

    async def load(path: str) -> None:
        async with api.http.stream("GET", api.base + path) as response:
            size = 0
            async for part in response.aiter_raw():
                size += len(part)
            assert response.status_code < 500, path
            assert size < 30_000_000

    async with observe(bystander), anyio.create_task_group() as tasks:
        for path in paths:
            tasks.start_soon(load, path)


async def test_pages_of_much_code_cost_others_nothing(
    api: ApiClient, bystander: ServerConnection
) -> None:
    """What is shown of code is as large as the code, or larger."""
    pages = []
    for number in range(16):
        code = (
            f"_ = {number}, '{'<' * 3_000_000}'" if number % 2 else f"x={number};" + "a=1;" * 4_900
        )
        body = {"code": code, "session": "coded"}
        done = (await api.post("/execute", body)).json()
        pages.append(f"/s/{done['session']}/{done['run']}")
    async with observe(bystander):
        for path in pages * 2:
            response = await api.http.get(api.base + path)
            assert response.status_code == 200, path


def list_unread(runs: dict[str, str]) -> dict[str, str]:
    """Return addresses whose answers nobody reads, by name."""
    session = runs["state"].partition("/")[0]
    return {
        "changes": f"/s/{session}/changes",
        "approvals": "/approvals/changes",
        "events": f"/ui/api/runs/{runs['output run']}/events",
        "a file": f"/s/{runs['files']}/file?path=large",
        "an exported page": f"/ui/api/runs/{runs['output run']}/page.html",
    }


@pytest.mark.parametrize("name", ["changes", "approvals", "events", "a file", "an exported page"])
async def test_browsers_that_stop_reading_cost_others_nothing(
    service: HttpService,
    api: ApiClient,
    bystander: ServerConnection,
    login: dict[str, str],
    runs: dict[str, str],
    name: str,
) -> None:
    address = urlsplit(service.url)
    lines = f"GET {list_unread(runs)[name]} HTTP/1.1", f"Host: {address.netloc}"
    head = "\r\n".join([*lines, f"Cookie: {login['Cookie']}", "", ""]).encode()
    async with observe(bystander), AsyncExitStack() as stack:
        for _ in range(SIZE):
            stream = await anyio.connect_tcp(address.hostname or "", address.port or 0)
            await stack.enter_async_context(stream)
            await stream.send(head)
        for number in range(5):
            await api.post("/execute", {"code": f"rows, {number}", "session": SESSION})
        await anyio.sleep(HELD_S)


async def test_logins_that_are_guessed_cost_others_nothing(
    service: HttpService, bystander: ServerConnection
) -> None:
    base = service.url.removesuffix("/mcp")
    bodies: list[Callable[[int], bytes]] = [
        lambda number: f"token=mcprt_{number:08x}_guess".encode(),
        lambda number: b"token=" + b"x" * 500_000,
        lambda number: b"&".join([b"token=a"] * 20_000),
    ]

    async def guess(build: Callable[[int], bytes]) -> None:
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": base}
        async with service.http(**headers) as http:
            for number in range(SIZE // 4):
                response = await http.post(f"{base}/login", content=build(number))
                assert response.status_code < 500

    async with observe(bystander), anyio.create_task_group() as tasks:
        for build in bodies:
            tasks.start_soon(guess, build)
