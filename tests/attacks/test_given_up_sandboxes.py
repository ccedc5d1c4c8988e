"""A sandbox that is given up is ended by the engine, without its help and without a next run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from anyio import to_thread
from docker.errors import NotFound

from mcpruntime_server.sandbox.docker_engine import DockerEngine
from tests.helpers.forged_messages import find_container, run_compromised, signal_supervisor
from tests.helpers.loop_watch import IS_MEASURED
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings

from .bystander import BystanderWaited, observe

RUN_S = 1.0
REMOVAL_S = 5.0  # after the limit of a run; checked where nothing else works on the machine
WAIT_S = 60.0
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
        started = anyio.current_time()
        if attack in SIGNALS:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(signal_supervisor, container, SIGNALS[attack])
                answer = await server.run(SPIN, attack, timeout_s=RUN_S)
        else:
            answer = await run_compromised(server, attack, SAID[attack], SPIN, timeout_s=RUN_S)
        assert answer.status in ("timeout", "crashed"), answer.text
        with anyio.fail_after(WAIT_S):
            while await is_there(container):  # noqa: ASYNC110 - the engine sends no event here
                await anyio.sleep(0.1)
        stood_s = anyio.current_time() - started
        if IS_MEASURED and stood_s > RUN_S + REMOVAL_S:
            raise BystanderWaited(f"the container stood for {stood_s:.1f} s")
    assert await server.evaluate("1+1", attack) == 2
