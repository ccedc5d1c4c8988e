"""A client of a server: sessions, their runs, time travel and skills, as typed Python.

A run that fails is an outcome, never an exception. An exception means that the server refused a
request or does not answer.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mcp import Client, MCPError
from mcp.types import CallToolResult, TextResourceContents

from ..errors import NotFound, Unavailable
from ..protocol.payloads import JsonObject
from ..server.workspace_resources import workspace_uri
from .outcomes import (
    RunOutcome,
    SavedSkill,
    SessionStep,
    merge_outcomes,
    parse_outcome,
    parse_refusal,
)

ADVANCING_STATUSES = ("queued", "running")  # of runs that need nothing to go on

ReportUpdate = Callable[[RunOutcome], None]
ReportProgress = Callable[[str], None]


class RuntimeClient:
    """A connection to a server; `mcp` is the client of the MCP SDK below it."""

    def __init__(self, client: Client) -> None:
        self.mcp = client

    def session(self, name: str = "") -> RuntimeSession:
        """Return the session `name`, which exists from its first run on; without a name, a new one.

        Its variables and files outlive this program.
        """
        return RuntimeSession(self, name or f"session-{secrets.token_hex(4)}")

    async def wait(
        self, run: str, *, wait_s: float | None = None, on_update: ReportUpdate | None = None
    ) -> RunOutcome:
        """Return a run when it has finished or waits for an answer, or after about `wait_s`."""
        if wait_s is not None:
            arguments = {"run": run, "wait_s": wait_s}
            return parse_outcome(await self.call_tool("run_code", arguments))
        return await self.follow({"run": run}, on_update=on_update)

    async def answer(self, run: str, answers: Mapping[str, Any]) -> RunOutcome:
        """Answer what a run waits for, by the ids of the questions, and wait for it.

        The answers to a dry run commit its plan: `{"*": "allow"}` makes all planned calls.
        """
        return await self.follow({"run": run, "answers": dict(answers)})

    async def cancel(self, run: str) -> RunOutcome:
        """Interrupt a run; what it did in the session is undone."""
        return parse_outcome(await self.call_tool("run_code", {"run": run, "cancel": True}))

    async def list_skills(self, query: str = "") -> list[JsonObject]:
        """Return the skills that match words best, or the best ones, each with its signature."""
        result = await self.call_tool("list_skills", {"query": query})
        skills: list[JsonObject] = read_data(result)["skills"]
        return skills

    async def save_skill(
        self, run: str = "", *, code: str = "", name: str = "", description: str = ""
    ) -> SavedSkill:
        """Save a run, or code with a function `run`, as a skill; it is active once it is tested."""
        given = {"run": run, "code": code, "name": name, "description": description}
        arguments = {key: value for key, value in given.items() if value}
        data = read_data(await self.call_tool("save_skill", arguments))
        return SavedSkill(
            data["name"],
            data["version"],
            data["signature"],
            data["state"],
            tuple(data["reasons"]),
        )

    async def call_tool(
        self, tool: str, arguments: JsonObject, on_progress: ReportProgress | None = None
    ) -> CallToolResult:
        """Call a tool of the server and return its result as it is.

        Raises `McpRuntimeError`: the server's error if it refuses, `Unavailable` if it is gone.
        """

        async def report(progress: float, total: float | None, message: str | None) -> None:
            if on_progress is not None and message:
                on_progress(message)

        options: JsonObject = {}
        if on_progress is not None:  # the SDK sends no token to a server in this process
            options = {"progress_callback": report, "meta": {"progress_token": tool}}
        try:
            result = await self.mcp.call_tool(tool, arguments, **options)
        except MCPError as exc:
            raise Unavailable(
                f"The server does not answer: {exc}", remedy="Its log says why."
            ) from None
        if result.is_error:
            raise parse_refusal(result)
        return result

    async def read_resource(self, uri: str) -> bytes:
        """Return the content of a resource; raises `NotFound`."""
        try:
            found = await self.mcp.read_resource(uri)
        except MCPError as exc:
            raise NotFound(str(exc)) from None
        content = found.contents[0]
        if isinstance(content, TextResourceContents):
            return content.text.encode()
        return base64.b64decode(content.blob)

    async def follow(
        self,
        arguments: JsonObject,
        *,
        on_progress: ReportProgress | None = None,
        on_update: ReportUpdate | None = None,
    ) -> RunOutcome:
        """Call `run_code`; return the outcome of the run once it has finished or needs an answer.

        `on_progress` gets new output and signs of life, `on_update` each outcome before the last.
        """
        outcome = parse_outcome(await self.call_tool("run_code", arguments, on_progress))
        while outcome.status in ADVANCING_STATUSES:
            if on_update is not None:
                on_update(outcome)
            result = await self.call_tool("run_code", {"run": outcome.run}, on_progress)
            outcome = merge_outcomes(outcome, parse_outcome(result))
        return outcome


class RuntimeSession:
    """A session of a server: code runs in it one step after another and keeps its variables."""

    def __init__(self, client: RuntimeClient, name: str) -> None:
        self.client = client
        self.name = name

    async def run(
        self,
        code: str,
        *,
        timeout_s: float | None = None,
        context: Sequence[str | Mapping[str, str]] = (),
        dry_run: bool = False,
        on_progress: ReportProgress | None = None,
        on_update: ReportUpdate | None = None,
    ) -> RunOutcome:
        """Run code and return its outcome when it has finished or waits for an answer.

        `context` names inputs: paths, patterns, addresses or `{"text": ...}`. A dry run plans the
        calls that write. `on_progress` gets new output and signs of life, `on_update` each outcome
        before the last.
        """
        arguments = self._build_arguments(code, timeout_s, context)
        if dry_run:
            arguments["dry_run"] = True
        return await self.client.follow(arguments, on_progress=on_progress, on_update=on_update)

    async def start(
        self,
        code: str,
        *,
        timeout_s: float | None = None,
        context: Sequence[str | Mapping[str, str]] = (),
    ) -> RunOutcome:
        """Start code in the background and return at once; `client.wait` takes its id, `run`."""
        arguments = self._build_arguments(code, timeout_s, context)
        arguments["background"] = True
        return parse_outcome(await self.client.call_tool("run_code", arguments))

    async def read_file(self, path: str) -> bytes:
        """Return a file of the workspace; raises `NotFound`."""
        return await self.client.read_resource(workspace_uri(self.name, path))

    async def list_steps(self) -> list[SessionStep]:
        """Return the last steps of the session, abandoned ones included."""
        data = read_data(await self._replay("list"))
        return [
            SessionStep(
                each["step"], each["run"], each["status"], each["code"], each.get("left", False)
            )
            for each in data["steps"]
        ]

    async def rewind(self, step: int) -> JsonObject:
        """Let the session continue from an earlier step; calls are not undone, and are listed."""
        return read_data(await self._replay("rewind", step=step))

    async def fork(self, step: int | None = None, name: str = "") -> RuntimeSession:
        """Return a new session that starts from a step of this one, by default from the last."""
        forked = await self._replay("fork", step=step, name=name or None)
        return RuntimeSession(self.client, read_data(forked)["session"])

    async def rerun(
        self, step: int | None = None, *, code: str | None = None, live: Sequence[str] = ()
    ) -> RunOutcome:
        """Execute a step again, or all, in a session of its own, with recorded answers.

        `code` replaces the code of the step; `live` names servers that are called again.
        """
        return parse_outcome(
            await self._replay("rerun", step=step, code=code, live=list(live) or None)
        )

    async def diff(self, other: RuntimeSession) -> JsonObject:
        """Return how another session differs from this one since their last common step."""
        return read_data(await self._replay("diff", other=other.name))

    def _build_arguments(
        self,
        code: str,
        timeout_s: float | None,
        context: Sequence[str | Mapping[str, str]],
    ) -> JsonObject:
        return omit_none(
            code=code, session=self.name, timeout_s=timeout_s, context=list(context) or None
        )

    async def _replay(self, action: str, **arguments: Any) -> CallToolResult:
        arguments |= {"action": action, "session": self.name}
        return await self.client.call_tool("replay", omit_none(**arguments))


def omit_none(**arguments: Any) -> JsonObject:
    """Return the arguments of a tool that are given."""
    return {name: value for name, value in arguments.items() if value is not None}


def read_data(result: CallToolResult) -> JsonObject:
    """Return the data of a result."""
    return result.structured_content or {}
