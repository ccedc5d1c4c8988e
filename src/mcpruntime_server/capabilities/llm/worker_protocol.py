"""The messages between the server and the process that sends model requests, as lines of JSON.

Each command has an `id`, and one reply with the same `id` follows; `cancel` names the command to
cancel and gets no reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, final

API_KEY_VARIABLE = "MCPRUNTIME_LLM_KEY"  # the environment variable that passes [llm] api_key
MAX_LINE_BYTES = (
    256 * 1024 * 1024
)  # of a command: the longest prompt and data, six bytes a character


class ModelSelection(TypedDict):
    """The model of a command; only a configured one may choose a provider by its name."""

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
    """USD for a token in and out, and the longest prompt in tokens; 0 where that is not known."""

    id: int
    usd_in: float
    usd_out: float
    max_input_tokens: int


class ErrorData(TypedDict):
    """Why there is no answer, as `ModelFailed` has it."""

    kind: str
    message: str
    is_transient: NotRequired[bool]
    is_interrupted: NotRequired[bool]
    retry_after_s: NotRequired[float]


@final
class ErrorReply(TypedDict):
    """A failure; `usage` is what it cost, if that is known."""

    id: int
    error: ErrorData
    usage: NotRequired[WorkerUsage]


Reply = CompletionReply | DescriptionReply | ErrorReply
