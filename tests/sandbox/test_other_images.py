"""Sandboxes in images of others: bare Debian, with an older and a newer Python than usual."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from mcpruntime_server.sandbox.bundle import KERNEL_ARGV, KERNEL_ENV
from mcpruntime_server.sandbox.docker_backend import DockerBackend
from mcpruntime_server.sandbox.docker_engine import DockerEngine
from mcpruntime_server.sandbox.image import look_up_image
from mcpruntime_server.sandbox.link import open_link

from .conftest import SMALL_LIMITS, SandboxDriver, make_setup

IMAGES = {"mcpruntime-test:bullseye": (3, 9), "mcpruntime-test:trixie": (3, 13)}


@cache
def has_image(tag: str) -> bool:
    engine = DockerEngine()
    try:
        return engine.call_api_blocking(lambda client: look_up_image(client, tag)) is not None
    finally:
        engine.close()


@pytest.fixture(params=IMAGES)
async def sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SandboxDriver]:
    """A driver of a sandbox in each of the images."""
    if not has_image(request.param):
        pytest.skip(f"there is no image {request.param}: run `make engines`")
    backend = DockerBackend(
        replace(SMALL_LIMITS, image=request.param),
        tmp_path,
        KERNEL_ARGV,
        KERNEL_ENV,
        "tester",
        lambda owner: owner == "tester",
    )
    async with open_link(backend, make_setup(backend)) as link:
        yield SandboxDriver(link)


async def test_code_runs_on_the_python_of_the_image(
    sandbox: SandboxDriver, request: pytest.FixtureRequest
) -> None:
    major, minor = IMAGES[request.node.callspec.params["sandbox"]]
    shown = await sandbox.evaluate("import sys; list(sys.version_info[:2])")
    assert shown == f"[{major}, {minor}]"


async def test_variables_and_files_persist(sandbox: SandboxDriver) -> None:
    await sandbox("x = 20\nopen('kept.txt', 'w').write('text')")
    assert await sandbox.evaluate("(x + 1, open('kept.txt').read())") == '[21, "text"]'


async def test_calls_and_top_level_await_work(sandbox: SandboxDriver) -> None:
    code = (
        "from mcpruntime_sandbox.sandboxed.library.tools import host\n"
        "(await host.acall('test.echo', {'n': 1}), host.call('test.echo', {'n': 2}))"
    )
    assert await sandbox.evaluate(code) == '[{"n": 1}, {"n": 2}]'


async def test_errors_show_the_line(sandbox: SandboxDriver) -> None:
    done = await sandbox("y = 1\ny / 0")
    assert done.error is not None
    assert (done.error["type"], done.error["line"]) == ("ZeroDivisionError", 2)


async def test_an_interpreter_that_dies_is_replaced(sandbox: SandboxDriver) -> None:
    assert (await sandbox("import os; os._exit(3)")).status == "died"
    assert await sandbox.evaluate("'new'") == '"new"'


async def test_the_sandbox_is_as_closed_as_ever(sandbox: SandboxDriver) -> None:
    code = (
        "import os\n"
        "caps = [line.split()[1] for line in open('/proc/self/status') if line[:6] == 'CapEff']\n"
        "os.getuid() > 1000, caps, os.access('/etc', os.W_OK), os.listdir('/sys/class/net')"
    )
    assert await sandbox.evaluate(code) == '[true, ["0000000000000000"], false, ["lo"]]'
