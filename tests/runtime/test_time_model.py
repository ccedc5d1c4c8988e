"""Random histories of sessions, on real sandboxes and a real journal, against a plain model of what their state is."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mcpruntime_server.sandbox import link

from .time_model import (
    DEATHS,
    NAMES,
    Crash,
    CrashIn,
    Deed,
    Delete,
    Die,
    Forget,
    Fork,
    Go,
    Grow,
    LoseSandbox,
    Player,
    Restart,
    Rewind,
    Set,
    Together,
    Write,
)

PATHS = ("a", "b", "d/a", "d/e/f", "d")
at = st.integers(0, 7)
names = st.sampled_from(NAMES)
paths = st.sampled_from(PATHS)
texts = st.sampled_from(("", "one", "two", "x" * 70_000))
changes = st.lists(
    st.one_of(
        st.builds(Set, names, st.integers(0, 9)),
        st.builds(Grow, names),
        st.builds(Forget, names),
        st.builds(Write, paths, texts, st.sampled_from((0o644, 0o600, 0o755))),
        st.builds(Delete, paths),
    ),
    max_size=4,
).map(tuple)
deeds: st.SearchStrategy[Deed] = st.one_of(
    st.builds(Go, at, changes, st.booleans()),
    st.builds(Go, at, changes),
    st.builds(Rewind, at, at),
    st.builds(Fork, at, at),
    st.builds(Together, st.tuples(at, at), changes),
    st.builds(Die, at, changes, st.sampled_from(sorted(DEATHS))),
    st.builds(LoseSandbox, at),
    st.builds(Restart),
    st.builds(Crash),
    st.builds(CrashIn, at, changes, changes),
)
PAST: list[Deed] = [  # so that there is somewhere to go from the beginning
    Go(0, (Set("x", 1), Write("a", "one", 0o644))),
    Go(0, (Grow("x"), Write("d/a", "two", 0o600))),
    Go(0, (Set("y", 2), Delete("a"))),
]
histories = st.lists(deeds, min_size=1, max_size=12).map(lambda history: PAST + history)


@pytest.fixture(autouse=True, scope="module")
def impatience() -> Any:
    """Code that ignores an interrupt is killed sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "INTERRUPT_S", 0.3)
        yield


def play(backend: str, history: list[Deed]) -> None:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        anyio.run(Player(Path(folder), backend).play, history)


QUIET = list(HealthCheck)  # examples are slow, and there is nothing to be done about it


@settings(max_examples=int(os.environ.get("HISTORIES", "60")), suppress_health_check=QUIET, print_blob=True)
@given(histories)
def test_local_sessions_are_what_a_plain_model_says(history: list[Deed]) -> None:
    play("local", history)


@settings(max_examples=12, suppress_health_check=QUIET, print_blob=True, phases=[Phase.generate])
@given(histories)
def test_contained_sessions_are_what_a_plain_model_says(history: list[Deed]) -> None:
    play("docker", history)
