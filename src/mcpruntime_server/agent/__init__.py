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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Config, Limits, load
from ..errors import McpRuntimeError

if TYPE_CHECKING:
    from .reference import Agent

__all__ = ["create_agent"]

STEPS = 20  # programs of one task, unless somebody says otherwise


@asynccontextmanager
async def create_agent(
    config: Config | None = None,
    *,
    target: Any = None,
    model: str = "",
    recursive: bool = False,
    steps: int = STEPS,
    usd: float | None = None,
    keeps: bool = True,
    roots: Sequence[Path] = (),
    on_wait: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Agent]:
    """Yield an agent with a server of its own on the same settings, or one that is a client of `target`.

    `model` stands in for the settings' one. `recursive` has every task done by programs, in so many `steps` at most.
    `usd` is what all tasks together may cost. `keeps`: runs that used tools and submitted become skills. Files below
    `roots` can be given to a server of its own (`Files`). `on_wait` is told what a run waits for. Raises
    `McpRuntimeError`: `CallFailed` (`no_model`) if no model can drive an agent.
    """
    from ..llm.asker import Asker  # this room is part of the server's start, and the rest of an agent is not
    from ..llm.budget import Budget
    from ..llm.litellm import opened
    from ..llm.service import broker_of
    from .client import Server, connected, package_names
    from .reference import Agent

    config = load() if config is None else config
    llm = config.llm.model_copy(update={"model": model}) if model else config.llm
    failure: Exception | None = None
    async with opened(llm) as litellm:
        try:
            asker = Asker(llm, broker_of(llm, litellm))
            asker.check_drives("")
            async with connected(config, target, model, roots, usd) as client:
                made = Agent(
                    asker,
                    lambda: Server(client, on_wait),
                    Budget("the agent", Limits(usd=usd)),
                    window=await litellm.window(llm.model),
                    packages=await package_names(client),
                    recursive=recursive,
                    steps=steps,
                    keeps=keeps,
                )
                try:
                    yield made
                except Exception as exc:  # noqa: BLE001 - raised below, out of the groups of what is open here
                    failure = exc
        except McpRuntimeError as exc:
            failure = exc
    if failure is not None:
        raise failure
