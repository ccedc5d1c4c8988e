"""The deterministic model server, for all tests about models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import fake_llm

KEY = fake_llm.API_KEY


@pytest.fixture(scope="session")
def model() -> Iterator[fake_llm.ModelServer]:
    with fake_llm.start_model_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _unscripted(model: fake_llm.ModelServer) -> None:
    model.set_script()
