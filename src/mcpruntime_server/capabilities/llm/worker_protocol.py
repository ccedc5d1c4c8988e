"""The messages between the server and the process that sends model requests, as lines of JSON.

Each command has an `id` and receives one reply with the same `id`. `cancel` names the command to
cancel and receives no reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, final

API_KEY_VARIABLE = "MCPRUNTIME_LLM_KEY"  # the environment variable that passes [llm] api_key
# A command contains the longest prompt and data, with up to six bytes per character.
MAX_LINE_BYTES = 256 * 1024 * 1024


class ModelSelection(TypedDict):
    """The model of a command. Only the name of a configured model may choose a provider."""

    model: str
    is_configured: bool
    api_base: str


class CompleteCommand(ModelSelection):
    """Send messages to a model; the reply is a `CompletionReply` or an `ErrorReply`."""

    id: int
    command: Literal["complete"]
    messages: Sequence[Mapping[str, str]]
    max_tokens: int
    timeout_s: float
    schema: Mapping[str, Any] | None


class DescribeCommand(ModelSelection):
    """Describe a model and get ready for it.

    The reply is a `DescriptionReply` or an `ErrorReply`.
    """

    id: int
    command: Literal["describe"]


class CancelCommand(TypedDict):
    """Cancel the command `id`."""

    id: int
    command: Literal["cancel"]


Command = CompleteCommand | DescribeCommand | CancelCommand


class WorkerUsage(TypedDict):
    """What one request used."""

    tokens_in: int
    tokens_out: int
    usd: float


@final
class CompletionReply(TypedDict):
    """The answer of a model."""

    id: int
    text: str
    is_truncated: bool
    usage: WorkerUsage


@final
class DescriptionReply(TypedDict):
    """USD per token in and out, and the longest prompt in tokens; 0 if unknown."""

    id: int
    usd_in: float
    usd_out: float
    max_input_tokens: int


class ErrorData(TypedDict):
    """The reason why there is no answer; the fields are those of `ModelFailed`."""

    kind: str
    message: str
    is_transient: NotRequired[bool]
    is_interrupted: NotRequired[bool]
    retry_after_s: NotRequired[float]


@final
class ErrorReply(TypedDict):
    """A failure; `usage` is its cost, if it is known."""

    id: int
    error: ErrorData
    usage: NotRequired[WorkerUsage]


WorkerReply = CompletionReply | DescriptionReply | ErrorReply
