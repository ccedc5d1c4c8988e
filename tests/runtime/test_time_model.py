"""Random histories of sessions, on real sandboxes and a real journal, match a simple model."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mcpruntime_server.sandbox import link
from tests.helpers.sizes import choose_size

from .time_model import (
    DEATH_CODE,
    VARIABLE_NAMES,
    Action,
    CrashDuringRun,
    CrashServer,
    DeletePath,
    DeleteVariable,
    ForkSession,
    GrowVariable,
    KillWorker,
    LoseSandbox,
    ModelPlayer,
    RestartServer,
    RewindSession,
    RunCode,
    RunTogether,
    SetVariable,
    WriteFile,
)

PATHS = ("a", "b", "d/a", "d/e/f", "d")
at = st.integers(0, 7)
names = st.sampled_from(VARIABLE_NAMES)
paths = st.sampled_from(PATHS)
texts = st.sampled_from(("", "one", "two", "x" * 70_000))
changes = st.lists(
    st.one_of(
        st.builds(SetVariable, names, st.integers(0, 9)),
        st.builds(GrowVariable, names),
        st.builds(DeleteVariable, names),
        st.builds(WriteFile, paths, texts, st.sampled_from((0o644, 0o600, 0o755))),
        st.builds(DeletePath, paths),
    ),
    max_size=4,
).map(tuple)
deeds: st.SearchStrategy[Action] = st.one_of(
    st.builds(RunCode, at, changes, st.booleans()),
    st.builds(RunCode, at, changes),
    st.builds(RewindSession, at, at),
    st.builds(ForkSession, at, at),
    st.builds(RunTogether, st.tuples(at, at), changes),
    st.builds(KillWorker, at, changes, st.sampled_from(sorted(DEATH_CODE))),
    st.builds(LoseSandbox, at),
    st.builds(RestartServer),
    st.builds(CrashServer),
    st.builds(CrashDuringRun, at, changes, changes),
)
PAST: list[Action] = [  # so that there is somewhere to go from the beginning
    RunCode(0, (SetVariable("x", 1), WriteFile("a", "one", 0o644))),
    RunCode(0, (GrowVariable("x"), WriteFile("d/a", "two", 0o600))),
    RunCode(0, (SetVariable("y", 2), DeletePath("a"))),
]
histories = st.lists(deeds, min_size=1, max_size=12).map(lambda history: PAST + history)


@pytest.fixture(autouse=True, scope="module")
def impatience() -> Any:
    """Code that ignores an interrupt is killed sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "INTERRUPT_GRACE_S", 0.3)
        yield


def play(backend: str, history: list[Action]) -> None:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        anyio.run(ModelPlayer(Path(folder), backend).play, history)


QUIET = list(HealthCheck)  # examples are slow, and there is nothing to be done about it
LONG_HISTORIES = pytest.mark.filterwarnings("ignore:Generating overly large repr")


@settings(
    max_examples=choose_size("HISTORIES", short=15, long=500),
    suppress_health_check=QUIET,
    print_blob=True,
)
@LONG_HISTORIES
@given(histories)
def test_local_sessions_behave_like_a_simple_model(history: list[Action]) -> None:
    play("local", history)


@settings(
    max_examples=choose_size("CONTAINED_HISTORIES", short=3, long=60),
    suppress_health_check=QUIET,
    print_blob=True,
    phases=[Phase.generate],
)
@LONG_HISTORIES
@given(histories)
def test_contained_sessions_behave_like_a_simple_model(history: list[Action]) -> None:
    play("docker", history)
