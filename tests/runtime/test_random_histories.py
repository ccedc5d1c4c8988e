"""Random histories of sessions against a plain model: variables and files after runs, deaths, moves and losses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcpruntime_server.runtime import history, timeline
from mcpruntime_server.runtime.session import Session
from mcpruntime_server.runtime.sessions import Runtime

from .test_journaled_runs import finish, running

SOON = 120.0  # seconds; only a history that fails takes so long
STATE = """
import os
def state():
    files = {}
    for folder, _, names in os.walk('.'):
        if '.mcpruntime' not in folder:
            for name in names:
                path = os.path.join(folder, name)[2:]
                files[path] = open(path).read()
    return [x, files]
"""
DEATHS = {
    "exit": "os._exit(3)",
    "kill": "os.kill(os.getpid(), 9)",
    "segfault": "import ctypes; ctypes.string_at(0)",
}

paths = st.sampled_from(["a", "b", "d/a", "d/e/f"])
changes = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 99)),
    st.tuples(st.just("write"), paths, st.text("xyz", max_size=3)),
    st.tuples(st.just("remove"), paths),
)
steps = st.lists(changes, min_size=1, max_size=3)
deeds = st.one_of(
    st.tuples(st.just("run"), steps),
    st.tuples(st.just("run"), steps),
    st.tuples(st.just("fail"), steps),
    st.tuples(st.just("die"), steps, st.sampled_from(sorted(DEATHS))),
    st.tuples(st.just("rewind"), st.integers(0, 50)),
    st.tuples(st.just("fork"), st.integers(0, 50)),
    st.tuples(st.just("switch"), st.integers(0, 9)),
    st.tuples(st.just("lose sandbox")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("copy elsewhere")),
)


@dataclass(frozen=True)
class State:
    """What the model says of the end of a run."""

    x: tuple[int, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def after(self, step: Sequence[Any]) -> State:
        x, files = self.x, dict(self.files)
        for change in step:
            if change[0] == "append":
                x = (*x, change[1])
            elif change[0] == "write":
                files[change[1]] = change[2]
            else:
                files.pop(change[1], None)
        return State(x, files)


def code_of(step: Sequence[Any]) -> str:
    lines = []
    for change in step:
        if change[0] == "append":
            lines.append(f"x.append({change[1]})")
        elif change[0] == "write":
            folder = f"os.makedirs(os.path.dirname({change[1]!r}) or '.', exist_ok=True)"
            lines.append(f"{folder}\nwith open({change[1]!r}, 'w') as file: file.write({change[2]!r})")
        else:
            lines.append(f"if os.path.exists({change[1]!r}): os.remove({change[1]!r})")
    return "\n".join(lines)


class Player:
    """Does the same to real sessions and to the model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handles = ["s"]
        self.current = 0
        self.at: dict[str, str] = {}  # session -> its tip
        self.states: dict[str, State] = {}  # run -> the state at its end
        self._stack = AsyncExitStack()
        self.runtime: Runtime

    async def start(self) -> None:
        self.runtime, _ = await self._stack.enter_async_context(running(self.folder))

    async def stop(self) -> None:
        await self._stack.aclose()

    async def session(self) -> Session:
        return await self.runtime.session(self.handles[self.current], "me")

    async def play(self, history_: Sequence[Any]) -> None:
        with anyio.fail_after(SOON):
            await self.start()
            try:
                await self.run([("write", "a", "first")], prologue=f"{STATE}x = []\n")
                for deed in history_:
                    await self.do(deed)
                    await self.check()
            finally:
                await self.stop()

    async def do(self, deed: Sequence[Any]) -> None:
        handle = self.handles[self.current]
        match deed:
            case ("run", step):
                await self.run(step)
            case ("fail", step):
                await self.run(step, end="\n1 / 0", status="error")
            case ("die", step, how):
                run = await finish(await self.session(), f"{code_of(step)}\n{DEATHS[how]}")
                assert (run.report.status, run.undone) == ("crashed", True)
            case ("rewind", number):
                target = list(self.states)[number % len(self.states)]
                row = await self.runtime.journal.run(target)
                session = await self.session()
                if row.session == session.id:
                    await timeline.rewind(self.runtime, session, None, target, cancel=False)
                    self.at[handle] = target
            case ("fork", number):
                target = list(self.states)[number % len(self.states)]
                row = await self.runtime.journal.run(target)
                origin = await history.find_session(self.runtime.journal, row.session)
                name = f"s{len(self.handles)}"
                await timeline.fork(self.runtime, origin, None, target, name, "me")
                self.handles.append(name)
                self.at[name] = target
                self.current = len(self.handles) - 1
            case ("switch", number):
                self.current = number % len(self.handles)
            case ("lose sandbox",):
                session = await self.session()
                if session.home is not None:
                    session.home.link.fail("the test has taken it away")
            case ("restart",):
                await self.stop()
                await self.start()
            case ("copy elsewhere",):
                await self.stop()
                moved = self.folder.with_name(self.folder.name + "x")
                shutil.move(self.folder, moved)
                self.folder = moved
                await self.start()

    async def run(self, step: Sequence[Any], prologue: str = "", end: str = "", status: str = "ok") -> None:
        handle = self.handles[self.current]
        before = self.states[self.at[handle]] if handle in self.at else State()
        run = await finish(await self.session(), prologue + code_of(step) + end)
        assert run.report.status == status, run.report
        self.states[run.id] = before.after(step)
        self.at[handle] = run.id

    async def check(self) -> None:
        """Look at the current session; looking is a step, too."""
        handle = self.handles[self.current]
        expected = self.states[self.at[handle]]
        run = await finish(await self.session(), "state()")
        assert run.report.status == "ok", run.report
        assert run.report.value is not None
        assert json.loads(run.report.value["text"]) == [list(expected.x), dict(expected.files)], run.report
        self.states[run.id] = expected
        self.at[handle] = run.id


def test_any_history_leaves_the_state_that_a_plain_model_says(tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(deeds, min_size=1, max_size=8))
    def try_history(deeds_: list[Any]) -> None:
        anyio.run(Player(tmp_path_factory.mktemp("history") / "data").play, deeds_)

    try_history()
