"""Every error that this package raises on purpose.

Rule 1: an error says what happened, where, and what to do about it (`remedy`), in full sentences.
Rule 2: user code that fails is data (a run with status `error`), never one of these; an exception here
means that the runtime was asked for something it cannot do, or that one of its parts failed.
Rule 3: no message carries a credential.
"""

from __future__ import annotations

from typing import Any, ClassVar

MODEL_SETUP_REMEDY = (
    "There are three ways to have one: [llm] model with its provider's key in the environment; "
    "[llm] api_base and model, for a server like OpenAI's; "
    'or [llm] broker = "caller", with which the client\'s own model answers what code asks.'
)


class McpRuntimeError(Exception):
    """Base of all deliberate errors; `code` is stable and safe to match on."""

    code: ClassVar[str] = "runtime_error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ConfigError(McpRuntimeError):
    """The settings are not usable; the message names the file, the line and the key."""

    code = "config_invalid"
    http_status = 400
    exit_code = 2


class InvalidRequest(McpRuntimeError):
    """A request is malformed or asks for something that does not apply."""

    code = "invalid_request"
    http_status = 400
    exit_code = 2


class NotFound(McpRuntimeError):
    """A session, run or other named thing does not exist, or belongs to somebody else."""

    code = "not_found"
    http_status = 404
    exit_code = 2


class SkillRefused(McpRuntimeError):
    """Code cannot be kept as a skill; the message names the line where there is one."""

    code = "skill_refused"
    http_status = 400
    exit_code = 2


class Forbidden(McpRuntimeError):
    """A request asks for what only a person may decide."""

    code = "forbidden"
    http_status = 403
    exit_code = 2


class NoModelConfigured(McpRuntimeError):
    """Nobody is there to answer a question to a model."""

    code = "no_model"
    http_status = 503
    exit_code = 3

    def __init__(self, message: str = "No model is configured.", *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy or MODEL_SETUP_REMEDY)


class BudgetExceeded(McpRuntimeError):
    """A question to a model would cost more than what is left; it was not asked."""

    code = "budget_exceeded"
    http_status = 429


class InvalidModelResponse(McpRuntimeError):
    """A model has answered, twice, but not as the schema wants it."""

    code = "llm_bad_answer"
    http_status = 502


class ModelRequestFailed(McpRuntimeError):
    """A model did not answer; the message says why."""

    code = "llm_failed"
    http_status = 502


class Unavailable(McpRuntimeError):
    """Something that the runtime depends on (engine, image, upstream, capacity) is not there now."""

    code = "unavailable"
    http_status = 503
    exit_code = 3


class SandboxFailed(McpRuntimeError):
    """A sandbox could not be made, died, or broke the protocol; its session lives on in a new one."""

    code = "sandbox_failed"


class JournalFailed(McpRuntimeError):
    """The journal could not be written or read; nothing that was acknowledged before is lost."""

    code = "journal_failed"


class ReplayDiverged(McpRuntimeError):
    """Code that is executed again asked for something else than it did when it was recorded."""

    code = "replay_diverged"
    http_status = 409

    def __init__(self, step: int, call_id: int, expected: str, actual: str) -> None:
        super().__init__(
            f"Step {step}, call {call_id}: the recording expects {expected}; the code came to {actual}."
        )
        self.step = step
        self.call_id = call_id
        self.expected = expected
        self.actual = actual


class InputChanged(McpRuntimeError):
    """An input of a run is not what it was when it was given, or is gone."""

    code = "input_changed"
    http_status = 409


class CallFailed(McpRuntimeError):
    """A call from sandboxed code failed; raised by handlers, and raised again inside the code.

    `kind` names the reason for programs: `tool_error` (the upstream said no), `unavailable`, `timeout`,
    `unknown_tool`, `invalid_arguments`, `protocol` (the upstream broke its contract), `cancelled`, `internal`.
    `data` is plain JSON that the code may inspect.
    """

    code = "call_failed"

    def __init__(self, kind: str, message: str, *, remedy: str = "", data: Any = None) -> None:
        super().__init__(message, remedy=remedy)
        self.kind = kind
        self.data = data
