"""A sandbox that is given up is ended by the engine, without its help and without a next run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from anyio import to_thread
from docker.errors import NotFound

from mcpruntime_server.sandbox.docker_engine import DockerEngine
from tests.helpers.forged_messages import find_container, run_compromised, signal_supervisor
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings

from .bystander import observe

WAIT_S = 60.0  # the bound asked for is 5 s after the limit; a loaded machine needs longer
SPIN = "while True: pass"
SAID = {
    "a broken protocol": "say_outside(frame('Call', b'[]'))",
    "garbage": "say_outside(b'\\xff' * 99)",
}
SIGNALS = {"a stopped supervisor": "SIGSTOP", "a killed supervisor": "SIGKILL"}


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServerConnection]:
    """A server with Docker sandboxes."""
    settings = write_settings(tmp_path_factory.mktemp("server"))
    async with connect_server(settings) as connection:
        yield connection


async def is_there(container: str) -> bool:
    """Return whether the engine still has a container."""
    engine = DockerEngine()
    try:
        await engine.call_api(lambda client: client.inspect_container(container))
    except NotFound:
        return False
    finally:
        await to_thread.run_sync(engine.close)
    return True


@pytest.mark.parametrize("attack", [*SAID, *SIGNALS])
async def test_the_container_is_gone_before_anybody_asks_for_it(
    server: ServerConnection, attack: str
) -> None:
    container = await find_container(server, attack)
    assert await is_there(container)
    async with observe(server):
        if attack in SIGNALS:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(signal_supervisor, container, SIGNALS[attack])
                answer = await server.run(SPIN, attack, timeout_s=1)
        else:
            answer = await run_compromised(server, attack, SAID[attack], SPIN, timeout_s=1)
        assert answer.status in ("timeout", "crashed"), answer.text
        with anyio.fail_after(WAIT_S):
            while await is_there(container):  # noqa: ASYNC110 - the engine sends no event here
                await anyio.sleep(0.1)
    assert await server.evaluate("1+1", attack) == 2
