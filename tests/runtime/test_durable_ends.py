"""What is said of the end of a run whose files a server with `durability = "disk"` does not get."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from .test_call_durability import finish, running

# More than the buffers between sandbox and server hold, so that most of it comes after the end.
CODE = "import os\nopen('big', 'wb').write(os.urandom(20 << 20))\nos.getppid()"


async def test_an_end_is_recorded_when_its_files_are(tmp_path: Path) -> None:
    async with running(tmp_path, "disk") as (runtime, _):
        run = await finish(runtime, CODE)
        assert await run.wait_until_recorded() == ""
        files, lost = await runtime.journal.load_files_at(run.id)
        assert (files["big"]["size"], lost) == (20 << 20, [])


async def test_an_end_whose_files_do_not_arrive_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, "disk") as (runtime, _):
        run = await finish(runtime, CODE)
        assert run.report.value is not None
        os.kill(json.loads(run.report.value["text"]), signal.SIGKILL)  # the supervisor
        note = await run.wait_until_recorded()
        assert note == (
            "The files of this run could not be recorded: The sandbox did not send them in time."
        )
