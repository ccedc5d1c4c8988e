"""Tools that the settings declare as reading: plans call them, and no crash puts them in doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..helpers.server_connection import connect_server, write_settings
from ..helpers.server_killing import start_ready_server
from .conftest import upstream_entry
from .test_resume import until

READS = ["counted.a*"]  # the tool `add` has no annotations


def settings(folder: Path, **policy: Any) -> Path:
    return write_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
        sandbox={"backend": "local", "pool_size": 0},
        policy=policy,
    )


@pytest.mark.parametrize("reads", [READS, []])
async def test_a_dry_run_goes_on_after_a_declared_read(tmp_path: Path, reads: list[str]) -> None:
    code = (
        "from tools.counted import add, put\n"
        "n = add(item='looked').result\nput(item=f'{n} found')\nn"
    )
    async with connect_server(settings(tmp_path, reads=reads)) as server:
        plan = await server.run(code, dry_run=True)
        listed = await server.evaluate("[(t.name, t.effect) for t in tools.list('counted')]")
    calls = [wait["call"] for wait in plan.waiting_for]
    if reads:
        assert calls == ["counted.put(item='0 found')"]
        assert (tmp_path / "done").read_text() == "add looked\n"
        assert dict(listed)["counted.add"] == "read"
    else:
        assert calls == ["counted.add(item='looked')"]
        assert not (tmp_path / "done").exists()


async def test_a_declared_read_is_repeated_after_a_crash_without_a_question(tmp_path: Path) -> None:
    path, done = settings(tmp_path, reads=READS), tmp_path / "done"
    done.with_suffix(".hold").touch()
    code = "from tools.counted import add\nadd(item='x', hold='after').result"
    async with start_ready_server(path) as server:
        run = (await server.call_run_code({"code": code, "session": "s", "wait_s": 0}, {}))["run"]
        await until(lambda: done.exists() and "add x" in done.read_text())
        server.kill()
    done.with_suffix(".hold").unlink()
    async with start_ready_server(path) as server:
        told = await server.wait_run(run)
        assert (told["status"], told["value"]) == ("ok", 1), told
    assert done.read_text() == "add x\nadd x\n"


async def test_a_declared_read_has_the_verdict_of_reads_unless_a_rule_says_otherwise(
    tmp_path: Path,
) -> None:
    code = (
        "from tools.counted import add\n"
        "try: add(item='x'); r = 'ok'\nexcept tools.ToolDeniedError: r = 'denied'\nr"
    )
    async with connect_server(settings(tmp_path, reads=READS, write="deny")) as server:
        assert await server.evaluate(code) == "ok"
    path = settings(tmp_path, reads=READS, tools={"counted.add": "deny"})
    async with connect_server(path) as server:
        assert await server.evaluate(code) == "denied"
