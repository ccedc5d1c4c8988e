"""The rows about the outside world: web requests beside httpx on the host, and cached packages.

Both sides ask one server in a process of its own, in turns. Code inside uses the standard library,
which every image has.
"""

from __future__ import annotations

import os
import ssl
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import httpx
from anyio.to_thread import run_sync

from .harness import BenchmarkRow, TestServer, sample_in_turns, start_server
from .rows import BenchContext, unique_numbers
from .servers.download_server import RunningServer, start_download_server

REQUESTS = 50  # one after another, for one sample
AT_ONCE = 64
LARGE_MB = 500
WAIT_S = 110.0  # enough for a busy machine
MB = 1 << 20
RATE = 1_000_000  # web requests a minute: the limit is not what is measured
CONNECT_CODE = """\
import http.client, os, ssl, time, urllib.request
from concurrent.futures import ThreadPoolExecutor
context = ssl.create_default_context()
def connect():
    host, _, port = U.removeprefix('https://').partition(':')
    proxy = os.environ['https_proxy'].removeprefix('http://').split(':')
    found = http.client.HTTPSConnection(*proxy, context=context)
    found.set_tunnel(host, int(port))
    return found
def get(connection):
    connection.request('GET', '/small')
    connection.getresponse().read()
def get_anew(_=0):
    urllib.request.urlopen(U + '/small').read()
"""
KEPT_CODE = f"""\
connection = connect()
get(connection)
started = time.perf_counter()
for _ in range({REQUESTS}): get(connection)
1e3 * (time.perf_counter() - started) / {REQUESTS}"""
NEW_CODE = f"""\
started = time.perf_counter()
for _ in range({REQUESTS}): get_anew()
1e3 * (time.perf_counter() - started) / {REQUESTS}"""
AT_ONCE_CODE = f"""\
started = time.perf_counter()
with ThreadPoolExecutor({AT_ONCE}) as pool: list(pool.map(get_anew, range({AT_ONCE})))
1e3 * (time.perf_counter() - started)"""
INSTALL_CODE = """\
import time
started = time.perf_counter()
packages.install('benched')
took = time.perf_counter() - started
import benched
1e3 * took"""
LARGE_CODE = f"""\
import shutil
started = time.perf_counter()
with urllib.request.urlopen(U + '/large/{LARGE_MB}') as answer, open('large.bin', 'wb') as file:
    shutil.copyfileobj(answer, file, 1 << 18)
took = time.perf_counter() - started
assert os.path.getsize('large.bin') == {LARGE_MB} << 20
os.remove('large.bin')
took"""


@asynccontextmanager
async def open_web(**sandbox: int) -> AsyncIterator[tuple[TestServer, RunningServer]]:
    """Run a web server, and a server whose code may ask it."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-web-") as folder,
        start_download_server(Path(folder)) as web,
    ):
        network = {
            "allow": [web.url],
            "ca_file": str(web.authority),
            "requests_per_minute": RATE,
        }
        journal = {"run_mb": 4 * LARGE_MB, "session_mb": 20 * LARGE_MB}
        server_table = {"data_dir": "data", "wait_s": WAIT_S}
        sections = {"server": server_table, "network": network, "journal": journal}
        async with start_server(None, sections, **sandbox) as server:
            await server.run_code(f"U = {web.url!r}\n{CONNECT_CODE}", "web")
            yield server, web


async def web_requests(bench: BenchContext) -> list[BenchmarkRow]:
    """Small requests of code, with a connection that is kept, with new ones, and many at once."""
    kept = BenchmarkRow(
        "web-kept", "a small HTTPS request, connection kept", "httpx on the host", "ratio", 2.0
    )
    new = BenchmarkRow(
        "web-new", "the same, with a new connection", "httpx on the host", "ratio", 2.0
    )
    at_once = BenchmarkRow(
        "web-at-once", f"{AT_ONCE} of them at once", "httpx on the host", "ratio", None
    )
    rows = [
        (kept, KEPT_CODE, ask_kept),
        (new, NEW_CODE, ask_anew),
        (at_once, AT_ONCE_CODE, ask_all),
    ]
    async with open_web() as (server, web):
        for row, code, ask in rows:
            await sample_in_turns(
                row,
                partial(evaluate, server, code),
                partial(run_sync, ask, web),
                bench.samples(20, 5),
            )
    return [kept, new, at_once]


async def web_download(bench: BenchContext) -> list[BenchmarkRow]:
    """A large download into a workspace file, and what the server grows by."""
    took = BenchmarkRow(
        "web-download",
        f"a download of {LARGE_MB} MB into a file",
        "httpx on the host",
        "ratio",
        None,
    )
    growth = BenchmarkRow(
        "web-download-memory", "what the server grows by meanwhile", "", "value", 20.0, "MB"
    )
    limits = {"workspace_mb": 2 * LARGE_MB, "timeout_s": 300}
    async with open_web(**limits) as (server, web):

        async def download() -> float:
            before = server.containers.server_memory_mb()
            seconds = await evaluate(server, LARGE_CODE)
            growth.ours.append(server.containers.peak_memory_mb() - before)
            return seconds * 1e3

        await sample_in_turns(
            took,
            download,
            partial(run_sync, download_directly, web),
            bench.samples(3, 1),
            warm_up=0,
        )
    return [took, growth]


async def cached_package(bench: BenchContext) -> BenchmarkRow:
    """An install in a session of a package that another session has installed."""
    row = BenchmarkRow("package-cached", "packages.install of a cached package", "", "value", 100.0)
    with tempfile.TemporaryDirectory(prefix="bench-index-") as name:
        write_wheel(Path(name))
        variables = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": name}
        with mock.patch.dict(os.environ, variables):
            async with start_server(packages_on_demand="allow") as server:
                await server.run_code(INSTALL_CODE, "first")
                for _ in range(bench.samples(20, 5)):
                    session = f"next-{next(unique_numbers)}"
                    row.ours.append(float((await server.run_code(INSTALL_CODE, session))["value"]))
    return row


WEB_ROWS = (web_requests, web_download, cached_package)


async def evaluate(server: TestServer, code: str) -> float:
    """Return the number that code measures."""
    return float((await server.run_code(code, "web", read_timeout_seconds=600.0))["value"])


def make_context(web: RunningServer) -> ssl.SSLContext:
    """Return what verifies the web server."""
    return ssl.create_default_context(cafile=str(web.authority))


def time_requests(count: int, get: Callable[[], object]) -> float:
    """Return the milliseconds of each of so many calls."""
    started = time.perf_counter()
    for _ in range(count):
        get()
    return 1e3 * (time.perf_counter() - started) / count


def ask_kept(web: RunningServer) -> float:
    """Send small requests over one connection."""
    with httpx.Client(verify=make_context(web)) as client:
        client.get(f"{web.url}/small")
        return time_requests(REQUESTS, lambda: client.get(f"{web.url}/small"))


def ask_anew(web: RunningServer) -> float:
    """Send small requests, each over a connection of its own."""
    with httpx.Client(verify=make_context(web), headers={"Connection": "close"}) as client:
        return time_requests(REQUESTS, lambda: client.get(f"{web.url}/small"))


def ask_all(web: RunningServer) -> float:
    """Send small requests at once."""
    with httpx.Client(verify=make_context(web)) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        started = time.perf_counter()
        list(pool.map(client.get, [f"{web.url}/small"] * AT_ONCE))
        return 1e3 * (time.perf_counter() - started)


def download_directly(web: RunningServer) -> float:
    """Download the large file into a temporary one."""
    started = time.perf_counter()
    with (
        httpx.Client(verify=make_context(web)) as client,
        client.stream("GET", f"{web.url}/large/{LARGE_MB}") as answer,
        tempfile.TemporaryFile() as file,
    ):
        for chunk in answer.iter_bytes(1 << 18):
            file.write(chunk)
    return 1e3 * (time.perf_counter() - started)


def write_wheel(folder: Path) -> None:
    """Write the wheel of a small package."""
    info = "benched-1.0.dist-info"
    files = {
        "benched.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: benched\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / "benched-1.0-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
