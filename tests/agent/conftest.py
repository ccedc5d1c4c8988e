"""A deterministic model, and servers that ask it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.client import Connection, connect, write_settings

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import fake_llm
from fake_llm import KEY

SMALL = {"backend": "local", "pool_size": 0}


@pytest.fixture(scope="session")
def model() -> Iterator[fake_llm.Server]:
    with fake_llm.serving() as server:
        yield server


@pytest.fixture(autouse=True)
def _unscripted(model: fake_llm.Server) -> None:
    model.script()


def settings(folder: Path, asked: fake_llm.Server, server: dict[str, Any] | None = None, **llm: Any) -> Path:
    """Write the settings of a server whose questions the model answers."""
    given = {"model": "echo", "api_base": asked.url, "api_key": KEY, "retries": 0, **llm}
    return write_settings(folder, sandbox=SMALL, llm=given, server=server or {})


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, model: fake_llm.Server) -> AsyncIterator[Connection]:
    async with connect(settings(tmp_path_factory.mktemp("agents"), model)) as connection:
        yield connection


def program(code: str, said: str = "Next.") -> str:
    """Return an answer with a program in it."""
    return f"{said}\n```python\n{code}\n```"
