"""The rows about the outside world: web requests beside the same on this machine, and packages.

Both sides execute the programs of `web_programs` and ask one server in a process of its own, in
turns.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from anyio.to_thread import run_sync

from . import web_programs
from .harness import SERVER_COMMAND, BenchmarkRow, TestServer, sample_in_turns, start_server
from .rows import BenchContext, unique_numbers
from .servers.download_server import RunningServer, start_download_server

LARGE_MB = 500
WAIT_S = 110.0  # enough for a busy machine
RATE = 1_000_000  # web requests a minute: the limit is not what is measured
PACKAGES = ["numpy", "pandas", "matplotlib", "requests", "httpx", "aiohttp"]  # as tests have it
PROGRAMS = Path(web_programs.__file__).read_text()
INSTALL_CODE = """\
import time
started = time.perf_counter()
packages.install('benched')
took = time.perf_counter() - started
import benched
1e3 * took"""


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
        server_table = {"data_dir": "data", "wait_s": WAIT_S}
        sections = {"server": server_table, "network": network}
        await run_sync(build_image)
        async with start_server(None, sections, packages=PACKAGES, **sandbox) as server:
            await server.run_code(PROGRAMS, "web")
            yield server, web


def build_image() -> None:
    """Build the image that has httpx, unless it exists."""
    with tempfile.TemporaryDirectory(prefix="bench-image-") as folder:
        settings = Path(folder, "server.toml")
        settings.write_text(f"[sandbox]\npackages = {PACKAGES!r}\n")
        command = [SERVER_COMMAND, "--config", str(settings), "image", "build"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


async def web_requests(bench: BenchContext) -> list[BenchmarkRow]:
    """Small requests, with a client that is kept, with new ones, and many at once."""
    kept = BenchmarkRow(
        "web-kept", "a small HTTPS request, connection kept", "httpx on the host", "ratio", 2.0
    )
    new = BenchmarkRow("web-new", "the same, with a new client", "httpx on the host", "ratio", 2.0)
    at_once = BenchmarkRow(
        "web-at-once", f"{web_programs.AT_ONCE} of them at once", "httpx on the host", "ratio", None
    )
    rows = [
        (kept, web_programs.time_kept),
        (new, web_programs.time_new),
        (at_once, web_programs.time_at_once),
    ]
    async with open_web() as (server, web):
        url = f"{web.url}/small"
        for row, program in rows:
            await sample_in_turns(
                row,
                partial(evaluate, server, f"{program.__name__}({url!r})"),
                partial(run_directly, web, program, url),
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
            session = f"download-{next(unique_numbers)}"  # one may record two of them
            code = f"{PROGRAMS}\ntime_download({url!r}, '.')"
            milliseconds = await evaluate(server, code, session)
            growth.ours.append(server.containers.peak_memory_mb() - before)
            return milliseconds

        url = f"{web.url}/large/{LARGE_MB}"
        with tempfile.TemporaryDirectory(prefix="bench-download-") as folder:
            directly = partial(run_directly, web, web_programs.time_download, url, folder)
            samples = bench.samples(3, 1)
            await sample_in_turns(took, download, directly, samples, warm_up=0)
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


async def evaluate(server: TestServer, code: str, session: str = "web") -> float:
    """Return the number that code measures."""
    return float((await server.run_code(code, session, read_timeout_seconds=600.0))["value"])


async def run_directly(web: RunningServer, program: Callable[..., float], *args: str) -> float:
    """Return what a program measures on this machine."""
    with mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(web.authority)}):
        return await run_sync(program, *args)


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
