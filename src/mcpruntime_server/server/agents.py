"""Where the agents of runs work, as their loop knows it: results as `run_code` tells them, what was submitted whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ..config import Config
from ..journal.events import Input
from ..journal.scope import Scope
from ..runtime.child import Child, Tell, open_child
from ..runtime.sessions import Runtime
from .results import result_of, submissions


class AgentSession:
    """The session of an agent."""

    def __init__(self, child: Child, config: Config) -> None:
        self.id = child.id
        self._child = child
        self._config = config

    async def execute(self, code: str, tell: Tell, inputs: Sequence[Input] = ()) -> dict[str, Any]:
        """Run code to its end and return what `run_code` answers with; raises `McpRuntimeError`."""
        report = await self._child.execute(code, tell, inputs)
        result = result_of(report, self.id, self._config).model_dump(mode="json", exclude_defaults=True)
        return {**result, "value": value} if (value := next(iter(submissions(report)), None)) is not None else result


@asynccontextmanager
async def open_agent_session(runtime: Runtime, config: Config, parent: Scope) -> AsyncIterator[AgentSession]:
    """Yield a session for an agent of the run `parent`; raises `Unavailable` if there is no room for one more."""
    async with open_child(runtime, parent, config.sandbox.timeout_s) as child:
        yield AgentSession(child, config)
