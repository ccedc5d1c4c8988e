"""The session in which an agent works, with results in the format of `run_code`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ..config import Config
from ..journal.call_scope import CallScope
from ..journal.events import InputEntry
from ..protocol.payloads import JsonObject
from ..runtime.child_session import ChildSession, StatusCallback, open_child_session
from ..runtime.runtime import Runtime
from .result_format import build_run_result, submitted_values


class AgentRunSession:
    """The session of an agent; a submitted value is returned whole, not truncated."""

    def __init__(self, child: ChildSession, config: Config) -> None:
        self.session_id = child.id
        self._child = child
        self._config = config

    async def execute(
        self, code: str, report_status: StatusCallback, inputs: Sequence[InputEntry] = ()
    ) -> JsonObject:
        """Run code to its end and return the data of a `run_code` result.

        Raises `McpRuntimeError`.
        """
        report = await self._child.execute(code, report_status, inputs)
        result = build_run_result(report, self.session_id, self._config)
        data = result.model_dump(mode="json", exclude_defaults=True)
        submitted = submitted_values(report)
        if submitted and submitted[0] is not None:
            data["value"] = submitted[0]
        return data


@asynccontextmanager
async def open_agent_run_session(
    runtime: Runtime, config: Config, parent: CallScope
) -> AsyncIterator[AgentRunSession]:
    """Yield a session for an agent of the run `parent`; raises `Unavailable` at the limit."""
    async with open_child_session(runtime, parent, config.sandbox.timeout_s) as child:
        yield AgentRunSession(child, config)
