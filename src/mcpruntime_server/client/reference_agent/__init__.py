"""The reference agent: an MCP client whose model writes programs to do tasks.

async with create_agent(load_config(path), model="...") as agent:
    result = await agent.execute_task("Which commits broke the build?")
    async for event in agent.stream("And who wrote them?", context=log):
        ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...capabilities.agent import DEFAULT_STEPS
from ...config import BudgetLimits, Config, load_config

if TYPE_CHECKING:
    from ..runtime_client import RuntimeClient
    from .reference_agent import ReferenceAgent

__all__ = ["create_agent"]


def ignore_wait(message: str) -> None:
    """Report nothing."""


@asynccontextmanager
async def create_agent(
    config: Config | None = None,
    *,
    runtime: RuntimeClient | None = None,
    model: str = "",
    recursive: bool = False,
    steps: int = DEFAULT_STEPS,
    usd: float | None = None,
    saves_skills: bool = True,
    roots: Sequence[Path] = (),
    on_wait: Callable[[str], None] = ignore_wait,
) -> AsyncIterator[ReferenceAgent]:
    """Yield an agent with a new server in this process, or with the server of `runtime`.

    `model` replaces the configured model. With `recursive`, programs do every task. A task has at
    most `steps` programs. `usd` limits the cost of all tasks together. With `saves_skills`, runs
    that used tools and submitted a value are saved as skills. Files below `roots` can be inputs of
    a new server. `on_wait` receives a description of what a run waits for.

    Raises `McpRuntimeError`, such as `CallFailed` (`no_model`) if no model can drive an agent.
    """
    # The command line imports this module, but not the modules below, at every start.
    from ...capabilities.llm.budget import Budget
    from ...capabilities.llm.budgeted_model import BudgetedModel
    from ...capabilities.llm.model_process import open_model_process
    from ...capabilities.llm.model_service import select_backend
    from ..connecting import embed_runtime
    from .reference_agent import ReferenceAgent
    from .session_client import SessionClient, list_package_names

    config = load_config() if config is None else config
    if model:
        config = replace(config, llm=replace(config.llm, model=model))
    failure: Exception | None = None
    async with open_model_process(config.llm) as process:
        try:
            budgeted_model = BudgetedModel(config.llm, select_backend(config.llm, process))
            budgeted_model.check_can_drive_agents("")
            server_config = extend_settings(config, roots, usd)
            async with nullcontext(runtime) if runtime else embed_runtime(server_config) as client:
                yield ReferenceAgent(
                    budgeted_model,
                    lambda: SessionClient(client, on_wait),
                    Budget("agent", BudgetLimits(usd=usd)),
                    max_input_tokens=await process.max_input_tokens(config.llm.model),
                    packages=await list_package_names(client),
                    recursive=recursive,
                    steps=steps,
                    saves_skills=saves_skills,
                )
        except Exception as exc:  # noqa: BLE001 - raised below, outside the task groups
            failure = exc
    if failure is not None:
        raise failure


def extend_settings(config: Config, roots: Sequence[Path], usd: float | None) -> Config:
    """Return the settings of an agent's server.

    Files below `roots` can be its inputs, too. `usd` is the most that all its programs together may
    spend on models.
    """
    limits = [limit for limit in (usd, config.llm.principal.usd) if limit is not None]
    principal = replace(config.llm.principal, usd=min(limits, default=None))
    folders = tuple(dict.fromkeys((*config.server.context_roots, *roots)))
    return replace(
        config,
        llm=replace(config.llm, principal=principal),
        server=replace(config.server, context_roots=folders),
    )
