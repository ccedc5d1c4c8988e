"""Agents: models that write programs, see what comes of them, and submit an answer.

`loop` is how one works, `conversation` what is said; `sub_agents` are those that code begins, on the server. The
reference agent is a client of the server:

    async with create_agent(load(path), model="...") as agent:
        result = await agent.execute_task("Which commits broke the build?")
        async for event in agent.stream("And who wrote them?", context=log):
            ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...capabilities.agent import DEFAULT_STEPS
from ...config import BudgetLimits, Config, load_config
from ...errors import McpRuntimeError

if TYPE_CHECKING:
    from .reference_agent import ReferenceAgent

__all__ = ["create_agent"]


@asynccontextmanager
async def create_agent(
    config: Config | None = None,
    *,
    target: Any = None,
    model: str = "",
    recursive: bool = False,
    steps: int = DEFAULT_STEPS,
    usd: float | None = None,
    saves_skills: bool = True,
    roots: Sequence[Path] = (),
    on_wait: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[ReferenceAgent]:
    """Yield an agent with a server of its own on the same settings, or one that is a client of `target`.

    `model` stands in for the settings' one. `recursive` has every task done by programs, in so many `steps` at most.
    `usd` is what all tasks together may cost. `keeps`: runs that used tools and submitted become skills. Files below
    `roots` can be given to a server of its own (`Files`). `on_wait` is told what a run waits for. Raises
    `McpRuntimeError`: `CallFailed` (`no_model`) if no model can drive an agent.
    """
    from ...capabilities.llm.budget import Budget
    from ...capabilities.llm.budgeted_model import (
        BudgetedModel,
    )  # this room is part of the server's start, and the rest of an agent is not
    from ...capabilities.llm.model_process import open_model_process
    from ...capabilities.llm.model_service import select_backend
    from .reference_agent import ReferenceAgent
    from .session_client import SessionClient, connect, list_package_names

    config = load_config() if config is None else config
    llm = replace(config.llm, model=model) if model else config.llm
    failure: Exception | None = None
    async with open_model_process(llm) as litellm:
        try:
            asker = BudgetedModel(llm, select_backend(llm, litellm))
            asker.check_can_drive_agents("")
            async with connect(config, target, model, roots, usd) as client:
                made = ReferenceAgent(
                    asker,
                    lambda: SessionClient(client, on_wait),
                    Budget("the agent", BudgetLimits(usd=usd)),
                    max_input_tokens=await litellm.max_input_tokens(llm.model),
                    packages=await list_package_names(client),
                    recursive=recursive,
                    steps=steps,
                    saves_skills=saves_skills,
                )
                try:
                    yield made
                except Exception as exc:  # noqa: BLE001 - raised below, out of the groups of what is open here
                    failure = exc
        except McpRuntimeError as exc:
            failure = exc
    if failure is not None:
        raise failure
