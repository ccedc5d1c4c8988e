"""The Python API: a server in this process or elsewhere, and what its clients get."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import pytest

import mcpruntime_server
from mcpruntime_server import (
    Config,
    RuntimeClient,
    connect_runtime,
    embed_runtime,
    load_config,
)
from mcpruntime_server.client.connecting import Approval
from mcpruntime_server.errors import InvalidRequest, NotFound, Unavailable
from tests.helpers.http_service import open_http_service
from tests.helpers.server_connection import TEST_TIMEOUT_S, server_parameters, write_settings
from tests.upstreams import own_server_entry

LOCAL_SANDBOX = {"backend": "local", "pool_size": 0}
ECHO = "from tools.lively import echo\necho(text='hello')"
SHOW_PICTURE = """\
import base64
png = base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==')
open('dot.png', 'wb').write(png)
show('dot.png')"""  # noqa: E501


def load_local_config(folder: Path) -> Config:
    settings = write_settings(
        folder,
        sandbox=LOCAL_SANDBOX,
        policy={"tools": {"lively.echo": "ask"}},
        mcpServers={
            "lively": own_server_entry("lively"),
            "counted": own_server_entry("counted", str(folder / "done")),
        },
    )
    return load_config(str(settings))


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[RuntimeClient]:
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with embed_runtime(load_local_config(tmp_path)) as client:
            yield client


async def test_a_session_keeps_its_variables_and_reports_its_failures(
    runtime: RuntimeClient,
) -> None:
    session = runtime.session("sums")
    assert (await session.run("x = 6 * 7")).value == 42
    failed = await session.run("print('so far')\nx / 0")
    assert (failed.ok, failed.is_finished, failed.stdout) == (False, True, "so far\n")
    assert failed.error is not None
    assert failed.error.type == "ZeroDivisionError"
    assert (await runtime.session("sums").run("x")).value == 42
    assert (await runtime.session().run("'x' in globals()")).value is False


async def test_output_arrives_while_the_code_runs(runtime: RuntimeClient) -> None:
    seen: list[str] = []
    code = "import time\nprint('first', flush=True)\ntime.sleep(1.2)\nprint('second')"
    outcome = await runtime.session().run(code, on_progress=seen.append)
    assert outcome.stdout == "first\nsecond\n"
    assert "first" in seen


async def test_pictures_and_files_are_bytes(runtime: RuntimeClient) -> None:
    session = runtime.session("pictures/of today")
    outcome = await runtime.session("pictures").run(SHOW_PICTURE)
    [picture] = outcome.media
    assert picture.mime_type == "image/png"
    assert picture.data == await runtime.session("pictures").read_file("dot.png")
    with pytest.raises(NotFound, match=r"no file 'absent\.png'"):
        await runtime.session("pictures").read_file("absent.png")
    with pytest.raises(InvalidRequest, match="cannot name a session"):
        await session.run("1")


async def test_steps_are_listed_rewound_forked_and_compared(runtime: RuntimeClient) -> None:
    session = runtime.session("travel")
    await session.run("x = 1")
    await session.run("x += 1\nx")
    fork = await session.fork(1, "other")
    assert (await fork.run("x += 10\nx")).value == 11
    difference = await session.diff(fork)
    assert difference["equal"] is False
    assert difference["steps"][0]["value"]["b"]["text"] == "11"
    assert "The same as recorded" in (await session.rerun()).note
    assert (await session.rerun(2, code="x * 5")).value == 5
    assert (await session.rewind(1))["step"] == 1
    assert (await session.run("x")).value == 1
    steps = await session.list_steps()
    assert [(each.step, each.is_abandoned) for each in steps] == [(1, False), (2, True), (2, False)]
    with pytest.raises(NotFound, match="There is no step 9"):
        await session.rewind(9)


async def test_a_background_run_is_awaited_or_cancelled(runtime: RuntimeClient) -> None:
    session = runtime.session()
    started = await session.start("import time\ntime.sleep(0.5)\n'done'")
    assert not started.is_finished
    assert (await runtime.wait(started.run)).value == "done"
    endless = await session.start("import threading\nthreading.Event().wait()")
    assert not (await runtime.wait(endless.run, wait_s=0.1)).is_finished
    assert (await runtime.cancel(endless.run)).status == "cancelled"


async def test_cancelling_the_task_that_waits_interrupts_the_run(runtime: RuntimeClient) -> None:
    session = runtime.session()
    async with anyio.create_task_group() as tasks:
        started = anyio.Event()
        code = "import threading\nprint('started', flush=True)\nthreading.Event().wait()"
        tasks.start_soon(partial(session.run, code, on_progress=lambda _: started.set()))
        await started.wait()
        tasks.cancel_scope.cancel()
    assert (await session.run("6 * 7")).value == 42
    assert [step.status for step in await session.list_steps()] == ["cancelled", "ok"]


async def test_two_programs_share_a_data_folder_but_no_session(tmp_path: Path) -> None:
    config = load_local_config(tmp_path)
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with embed_runtime(config) as first, embed_runtime(config) as second:
            await first.session("sums").run("x = 1")
            with pytest.raises(Unavailable, match="The session 'sums' is in use"):
                await second.session("sums").run("x")
        async with embed_runtime(config) as third:
            assert (await third.session("sums").run("x")).value == 1


async def test_code_becomes_a_skill(runtime: RuntimeClient) -> None:
    tripled = 'def run(number: int) -> int:\n    """Triple a number."""\n    return 3 * number'
    draft = await runtime.save_skill(code=tripled, name="triple")
    assert (draft.state, draft.signature) == ("draft", "(number: int) -> int")
    assert "It has no recorded case" in draft.reasons[0]
    tried = await runtime.session().run("from skills.triple.v1 import run\nrun(number=5)")
    assert tried.value == 15
    saved = await runtime.save_skill(tried.run)
    assert (saved.name, saved.version, saved.state) == ("triple", 2, "active")
    assert [skill["name"] for skill in await runtime.list_skills("triple")] == ["triple"]


async def test_a_run_waits_for_a_person_where_the_program_does_not_decide(
    runtime: RuntimeClient,
) -> None:
    outcome = await runtime.session().run(ECHO)
    assert outcome.status == "waiting"
    assert [question.kind for question in outcome.waiting_for] == ["approval"]


@pytest.mark.parametrize(("decision", "status"), [("allow", "ok"), ("deny", "error")])
async def test_a_program_decides_about_calls(
    tmp_path: Path, decision: Approval, status: str
) -> None:
    asked: list[str] = []

    async def approve(text: str) -> Approval:
        asked.append(text)
        return decision

    with anyio.fail_after(TEST_TIMEOUT_S):
        async with embed_runtime(load_local_config(tmp_path), approve=approve) as runtime:
            outcome = await runtime.session().run(ECHO)
    assert outcome.status == status
    assert "lively.echo" in asked[0]


async def test_a_plan_is_committed(runtime: RuntimeClient, tmp_path: Path) -> None:
    code = "from tools.counted import add\n[add(item=word) for word in ('a', 'b')]"
    planned = await runtime.session().run(code, dry_run=True)
    assert [question.kind for question in planned.waiting_for] == ["plan", "plan"]
    assert not (tmp_path / "done").exists()
    committed = await runtime.answer(planned.run, {"*": "allow"})
    assert committed.ok
    assert [(call.call, call.status) for call in committed.calls] == [
        ("counted.add(item='a')", "ok"),
        ("counted.add(item='b')", "ok"),
    ]
    assert (tmp_path / "done").read_text() == "add a\nadd b\n"


async def test_an_exception_of_the_program_leaves_the_server_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with embed_runtime(load_local_config(tmp_path)):
            raise KeyError("mine")
    assert list((tmp_path / "data" / "servers").glob("*.lock")) == []


def test_the_logging_of_a_program_is_its_own(tmp_path: Path) -> None:
    load_local_config(tmp_path)
    program = f"""
import anyio, logging
from mcpruntime_server import embed_runtime, load_config
async def main():
    async with embed_runtime(load_config({str(tmp_path / "server.toml")!r})):
        print(logging.getLogger().handlers, logging.getLogger().level == logging.WARNING)
        logging.getLogger("mcpruntime_server.runtime").warning("not shown")
anyio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("[] True\n", "")


async def test_a_started_server_has_the_same_client(tmp_path: Path) -> None:
    load_local_config(tmp_path)
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_runtime(server_parameters(tmp_path / "server.toml")) as runtime:
            assert (await runtime.session().run("6 * 7")).value == 42


async def test_a_server_over_http_has_the_same_client(tmp_path: Path) -> None:
    load_local_config(tmp_path)
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with open_http_service(tmp_path / "server.toml") as service:
            token = service.create_token("ann")
            async with connect_runtime(service.url, token=token) as runtime:
                seen: list[str] = []
                outcome = await runtime.session("sums").run(
                    "print('x')\n6 * 7", on_progress=seen.append
                )
                assert (outcome.value, outcome.stdout) == (42, "x\n")
            with pytest.raises(Unavailable, match="could not be reached"):
                async with connect_runtime(service.url, token="wrong"):
                    raise AssertionError
        with pytest.raises(Unavailable, match="could not be reached"):
            async with connect_runtime(service.url):
                raise AssertionError


def test_the_package_exports_its_names_without_importing_them() -> None:
    for name in mcpruntime_server.__all__:
        assert getattr(mcpruntime_server, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        mcpruntime_server.unknown  # noqa: B018
    code = "import sys, mcpruntime_server; print('mcp' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
