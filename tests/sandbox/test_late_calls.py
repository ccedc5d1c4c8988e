"""A call that a background thread makes after its run is answered with an error."""

from __future__ import annotations

import anyio

from .conftest import SandboxDriver

START = """
import threading
from mcpruntime_sandbox.sandboxed.library.tools import host, HostError
said, go, over = [], threading.Event(), threading.Event()
def work(wait):
    if wait: go.wait()
    try: host.call('test.nap', {'seconds': 0 if wait else 600})
    except HostError as error: said.append(error.kind)
    over.set()
"""


async def test_a_call_that_outlives_its_run_is_answered(run: SandboxDriver) -> None:
    await run(
        START + "thread = threading.Thread(target=work, args=(False,)); thread.start()\n"
        "import time; time.sleep(0.2)"
    )
    assert [call.target for call in run.recorder.calls] == ["test.nap"]
    with anyio.fail_after(20):
        assert await run.evaluate("thread.join(); said") == '["cancelled"]'


async def test_a_call_between_two_runs_is_answered(run: SandboxDriver) -> None:
    await run(START + "thread = threading.Thread(target=work, args=(True,)); thread.start()")
    await run("threading.Timer(0.05, go.set).start()")
    with anyio.fail_after(20):
        await anyio.sleep(0.3)  # nothing outside tells when the thread has called
        assert await run.evaluate("thread.join(); said") == '["cancelled"]'
    assert run.recorder.calls == []


async def test_a_late_reply_to_a_killed_interpreter_is_ignored_by_the_next(
    run: SandboxDriver,
) -> None:
    done = await run(
        START + "import os\nthreading.Thread(target=work, args=(False,)).start()\n"
        "import time; time.sleep(0.2); os._exit(1)"
    )
    assert done.status == "died"
    assert (
        await run.evaluate(
            "from mcpruntime_sandbox.sandboxed.library.tools import host\n"
            "host.call('test.echo', {'a': 1})['a']"
        )
        == "1"
    )
