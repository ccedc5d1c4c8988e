"""What the server answers, as Python objects."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mcp.types import AudioContent, CallToolResult, ImageContent, TextContent
from pydantic import Field

from ..errors import CallFailed, McpRuntimeError, ReplayDiverged
from ..server.result_format import USAGE_META_KEY, RunResult

UNFINISHED_STATUSES = ("queued", "running", "waiting")
UNSETTLED_STATUSES = ("started", "waiting")  # of calls
REFUSAL = re.compile(r"\[(\w+)\] (.*)", re.DOTALL)  # code and message of an error


@dataclass(frozen=True)
class RunMedia:
    """An image or a sound that a run has shown."""

    mime_type: str
    data: bytes


class RunOutcome(RunResult):
    """What is known of a run: `text` is what a model reads of it, `usage` has all figures."""

    text: str = ""
    media: list[RunMedia] = Field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the code finished without an exception."""
        return self.status == "ok"

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen in this run."""
        return self.status not in UNFINISHED_STATUSES


@dataclass(frozen=True)
class SessionStep:
    """A finished run of a session; `is_abandoned` if the session was rewound to before it."""

    step: int
    run: str
    status: str
    code: str
    is_abandoned: bool


@dataclass(frozen=True)
class SavedSkill:
    """A skill after `save_skill`: an active one can be imported, a draft has `reasons`."""

    name: str
    version: int
    signature: str
    state: str
    reasons: tuple[str, ...]


def parse_outcome(result: CallToolResult) -> RunOutcome:
    """Return what a result of `run_code` or `replay` says of a run."""
    data = {**(result.structured_content or {})}
    if usage := (result.meta or {}).get(USAGE_META_KEY):
        data["usage"] = usage
    outcome = RunOutcome.model_validate(data)
    outcome.text = result_text(result)
    outcome.media = list(iter_media(result))
    return outcome


def merge_outcomes(earlier: RunOutcome, later: RunOutcome) -> RunOutcome:
    """Return the later outcome of a run with what the earlier one has: a result has what is new."""
    settled = [call for call in earlier.calls if call.status not in UNSETTLED_STATUSES]
    return later.model_copy(
        update={
            "stdout": earlier.stdout + later.stdout,
            "stderr": earlier.stderr + later.stderr,
            "calls": settled + later.calls,
        }
    )


def result_text(result: CallToolResult) -> str:
    """Return a result as the text that a model reads."""
    return "\n".join(part.text for part in result.content if isinstance(part, TextContent))


def iter_media(result: CallToolResult) -> Iterator[RunMedia]:
    """Yield the images and sounds of a result."""
    for part in result.content:
        if isinstance(part, ImageContent | AudioContent):
            yield RunMedia(part.mime_type, base64.b64decode(part.data))


def parse_refusal(result: CallToolResult) -> McpRuntimeError:
    """Return the error of a request that the server refused, as it was raised there."""
    text = result_text(result)
    found = REFUSAL.fullmatch(text)
    kind = ERRORS_BY_CODE.get(found[1]) if found is not None else None
    if found is None or kind is None:
        return CallFailed("refused", text)
    return kind(found[2])


def index_errors() -> dict[str, type[McpRuntimeError]]:
    """Return the classes of errors that a message alone makes, by their codes."""
    others = (CallFailed, ReplayDiverged)  # which take more than a message
    classes = [each for each in McpRuntimeError.__subclasses__() if each not in others]
    return {each.code: each for each in classes}


ERRORS_BY_CODE = index_errors()
