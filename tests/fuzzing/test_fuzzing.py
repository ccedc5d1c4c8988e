"""Readers of what strangers send raise nothing but their own errors, soon, with bounded output."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random

import pytest
from anyio import to_thread

from ..helpers.sizes import choose_size
from .__main__ import FINDS, execute, fuzz
from .targets import TARGETS

EXECUTIONS = choose_size("EXECUTIONS", short=100, long=300)
LIMIT_S = 60.0


def find_id(path: Path) -> str:
    return f"{path.parent.name} {path.name}"


@pytest.mark.parametrize("find", sorted(FINDS.glob("*/*")), ids=find_id)
async def test_what_was_found_stays_mended(find: Path) -> None:
    data = await to_thread.run_sync(find.read_bytes)
    if find.suffix == ".gz":
        data = gzip.decompress(data)
    await execute(TARGETS[find.parent.name], data)


@pytest.mark.parametrize("name", TARGETS)
async def test_changed_inputs_break_nothing(name: str) -> None:
    progress = await fuzz(TARGETS[name], Random(f"{name} 1"), LIMIT_S, EXECUTIONS)
    assert progress.finds == {}
    assert len(progress.outcomes) > 3
