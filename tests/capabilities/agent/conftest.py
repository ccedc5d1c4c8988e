"""A deterministic model, and servers that ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import fake_llm
from bench.fake_llm import API_KEY
from tests.helpers.server_connection import ServerConnection, connect_server, write_settings

LOCAL_SANDBOX = {"backend": "local", "pool_size": 0}


@pytest.fixture(scope="session")
def model() -> Iterator[fake_llm.ModelServer]:
    with fake_llm.start_model_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _unscripted(model: fake_llm.ModelServer) -> None:
    model.set_script()


def write_model_settings(
    folder: Path,
    model_server: fake_llm.ModelServer,
    server: dict[str, Any] | None = None,
    **llm: Any,
) -> Path:
    """Write settings of a server whose model requests this model server answers."""
    given = {"model": "echo", "api_base": model_server.url, "api_key": API_KEY, "retries": 0, **llm}
    return write_settings(folder, sandbox=LOCAL_SANDBOX, llm=given, server=server or {})


@pytest.fixture(scope="module")
async def server(
    tmp_path_factory: pytest.TempPathFactory, model: fake_llm.ModelServer
) -> AsyncIterator[ServerConnection]:
    async with connect_server(
        write_model_settings(tmp_path_factory.mktemp("agents"), model)
    ) as connection:
        yield connection


def program_answer(code: str, said: str = "Next.") -> str:
    """Return an answer with a program in it."""
    return f"{said}\n```python\n{code}\n```"
