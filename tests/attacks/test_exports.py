"""Recorded runs that are exported, as pages, notebooks and tables, cost nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from ..helpers.event_streams import ApiClient, connect_api
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import ServerConnection, write_settings
from .bystander import observe

MAX_EXPORT_BYTES = 300_000_000
TABLES = {
    "a name for each row": "[{f'k{n}': n} for n in range(12_000)]",
    "many names": "{f'k{n}': [n] for n in range(12_000)}",
    "empty rows": "[[]] * 80_000",
    "empty objects": "[{}] * 80_000",
    "a long cell": "[['=' * 200_000]]",
    "nested cells": "value = 1\nfor _ in range(90): value = [value]\n[[value]] * 1_000",
    "rows of one cell": "list(range(40_000))",
}
FRAME = """
import os
class DataFrame:
    def __repr__(self): return 'frame'
    def to_csv(self, file, **more):
        with open(file, 'wb') as out:
{lines}
DataFrame()
"""
FRAMES = {
    "a row without an end": "for _ in range(20): out.write(b'x,' * 500_000)",
    "a quotation without an end": "out.write(b'\"')\n"
    "for _ in range(20): out.write(b'a\\n' * 500_000)",
    "many short rows": "for _ in range(20): out.write(b'=1\\n' * 300_000)",
    "many quotation marks": 'for _ in range(20): out.write(b\'""""\\n\' * 200_000)',
    "many empty cells": "for _ in range(20): out.write((b',' * 249_000) + b'\\n')",
    "bytes that are no text": "for _ in range(20): out.write(bytes(range(128, 256)) * 4_000)",
    "zeros": "out.write(b'\\0' * 20_000_000)",
    "a disk": "for _ in range(200): out.write(b'1,2\\n' * 250_000)",
    "a table that never ends": "while True: pass",
    "a table that forks": "while True: os.fork()",
    "a link": "os.remove(file); os.symlink('/etc/passwd', file)",
    "a folder": "os.remove(file); os.mkdir(file)",
}
RUNS = {
    "much markup": "print('<' * 12_000_000)",
    "many lines": "print('&\\n' * 6_000_000)",
    "many pictures": "import base64\nclass P:\n    def _repr_png_(self): "
    "return b'\\x89PNG\\r\\n\\x1a\\n' + b'x' * 200_000\nfor _ in range(60): show(P())",
    "many calls": "from tools import search\nfor _ in range(1_500): search('<b>')",
    "many files": "for n in range(3_000): open(f'<b>{n}', 'w').write('x')",
    "a long traceback": "def fail(n):\n    if n: fail(n - 1)\n"
    "    raise ValueError('<' * 3_000_000)\nfail(900)",
    "long code": "x = '" + "<" * 2_000_000 + "'",
    "code of many lines": "x = 1\n" * 60_000,
}
STEP_COUNT = 60


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpService]:
    settings = write_settings(
        tmp_path_factory.mktemp("server"),
        http={"requests_per_minute": 100_000, "runs_per_minute": 10_000},
        sandbox={"output_mb": 16, "workspace_mb": 256, "memory_mb": 512},
    )
    async with open_http_service(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def api(service: HttpService) -> AsyncIterator[ApiClient]:
    async with connect_api(service, service.create_token("mallory")) as client:
        yield client


async def execute(api: ApiClient, code: str, session: str) -> str:
    """Execute a step to its end, whatever that is; return its run."""
    done = await api.post("/execute", {"code": code, "session": session, "timeout_s": 30})
    assert done.status_code == 200, done.text[:500]
    return str(done.json()["run"])


async def download(api: ApiClient, path: str) -> int:
    """Read an export to its end and return the status; it is bounded."""
    async with api.http.stream("GET", api.base + path) as response:
        size = 0
        async for part in response.aiter_raw():
            size += len(part)
    assert size <= MAX_EXPORT_BYTES
    return response.status_code


@pytest.mark.parametrize("name", TABLES)
async def test_a_table_is_written_or_refused(
    api: ApiClient, bystander: ServerConnection, name: str
) -> None:
    run = await execute(api, TABLES[name], f"table {name}")
    async with observe(bystander), anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(download, api, f"/runs/{run}/value.csv")


@pytest.mark.parametrize("name", FRAMES)
async def test_a_frame_that_writes_anything_is_copied_or_refused(
    api: ApiClient, bystander: ServerConnection, name: str
) -> None:
    lines = "\n".join(f"            {line}" for line in FRAMES[name].split("\n"))
    run = await execute(api, FRAME.replace("{lines}", lines), f"frame {name}")
    async with observe(bystander):
        with anyio.move_on_after(15):  # a table that never ends is left by its client
            assert await download(api, f"/runs/{run}/value.csv") in (200, 409, 503)


@pytest.mark.parametrize("name", RUNS)
async def test_pages_and_notebooks_of_large_runs(
    api: ApiClient, bystander: ServerConnection, name: str
) -> None:
    session = f"run {name}"
    run = await execute(api, RUNS[name], session)
    async with observe(bystander):
        assert await download(api, f"/runs/{run}/page.html") == 200
        assert await download(api, f"/sessions/{session}/notebook.ipynb") == 200


async def test_a_notebook_of_many_large_steps(api: ApiClient, bystander: ServerConnection) -> None:
    for _ in range(STEP_COUNT):
        await execute(api, "print('\\u2028' * 300_000)", "many steps")
    async with observe(bystander):
        assert await download(api, "/sessions/many steps/notebook.ipynb") == 200


async def test_exports_at_once_are_written_one_after_the_other(
    api: ApiClient, bystander: ServerConnection
) -> None:
    run = await execute(api, RUNS["much markup"], "at once")
    statuses = []

    async def load(path: str) -> None:
        statuses.append(await download(api, path))

    async with observe(bystander), anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(load, f"/runs/{run}/page.html")
            tasks.start_soon(load, "/sessions/at once/notebook.ipynb")
    assert set(statuses) <= {200, 429}
    assert 200 in statuses


async def test_exports_that_clients_leave_hold_nothing(
    service: HttpService, api: ApiClient, bystander: ServerConnection
) -> None:
    run = await execute(api, RUNS["much markup"], "left")
    async with observe(bystander):
        for _ in range(20):
            with anyio.move_on_after(0.1):
                await download(api, f"/runs/{run}/page.html")
        assert await download(api, f"/runs/{run}/value.csv") == 409
    assert await anyio.to_thread.run_sync(list, (service.data_dir / "blobs").rglob("*.csv")) == []
