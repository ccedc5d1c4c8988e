"""The errors that this package raises deliberately.

Rule 1: a message says what happened, with the value, and `remedy` what to do, in full sentences.
Rule 2: user code that fails is data (a run with the status `error`), never one of these. An
exception means that the runtime cannot do what it was asked, or that one of its parts failed.
Rule 3: no message contains a credential.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

MODEL_SETUP_REMEDY = (
    "There are three ways to set one up: [llm] model, with its provider's key in the environment; "
    "[llm] api_base and model, for an OpenAI-compatible server; "
    'or [llm] broker = "caller", so that the client\'s own model answers.'
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
    """The settings cannot be used; the message names the file, the line and the key."""

    code = "config_invalid"
    http_status = 400
    exit_code = 2


class InvalidRequest(McpRuntimeError):
    """A request is malformed, or does not apply to what it names."""

    code = "invalid_request"
    http_status = 400
    exit_code = 2


class Conflict(InvalidRequest):
    """A request is well-formed, but what it names is not in a state in which it applies.

    It has the code of `InvalidRequest`: over HTTP alone, the two have different statuses.
    """

    http_status = 409


class NotFound(McpRuntimeError):
    """A session, a run or another named object does not exist, or belongs to another principal."""

    code = "not_found"
    http_status = 404
    exit_code = 2


class SkillRefused(McpRuntimeError):
    """Code cannot become a skill; the message names the line if there is one."""

    code = "skill_refused"
    http_status = 400
    exit_code = 2


class Forbidden(McpRuntimeError):
    """A request needs the decision of a person."""

    code = "forbidden"
    http_status = 403
    exit_code = 2


class InvalidToken(McpRuntimeError):
    """A request over HTTP has no access token, or one that is not valid here."""

    code = "invalid_token"
    http_status = 401
    exit_code = 2


class InsufficientScope(McpRuntimeError):
    """An access token does not allow what the request asks for, which needs all of `scopes`."""

    code = "insufficient_scope"
    http_status = 403
    exit_code = 2

    def __init__(self, message: str, *, remedy: str = "", scopes: Sequence[str] = ()) -> None:
        super().__init__(message, remedy=remedy)
        self.scopes = scopes


class RateLimited(McpRuntimeError):
    """A principal or an address does something too often; it may try again after a while."""

    code = "rate_limited"
    http_status = 429

    def __init__(self, message: str, *, remedy: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after_s = retry_after_s


class NoModelConfigured(McpRuntimeError):
    """No model is available to answer a request of code."""

    code = "no_model"
    http_status = 503
    exit_code = 3

    def __init__(self, message: str = "No model is configured.", *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy or MODEL_SETUP_REMEDY)


class BudgetExceeded(McpRuntimeError):
    """A model request would exceed the budget; it was not sent."""

    code = "budget_exceeded"
    http_status = 429


class InvalidModelResponse(McpRuntimeError):
    """A model responded twice, and neither response matches the schema."""

    code = "llm_bad_answer"
    http_status = 502


class ModelRequestFailed(McpRuntimeError):
    """A model did not respond; the message says why."""

    code = "llm_failed"
    http_status = 502


class Unavailable(McpRuntimeError):
    """Something that the runtime needs (engine, image, upstream, capacity) is not available now."""

    code = "unavailable"
    http_status = 503
    exit_code = 3


class CredentialsUnusable(McpRuntimeError):
    """The credentials of principals cannot be encrypted or decrypted; the message says why."""

    code = "credentials_unusable"
    http_status = 503
    exit_code = 3


class SandboxFailed(McpRuntimeError):
    """A sandbox could not start, died, or broke the protocol; the session gets a new one."""

    code = "sandbox_failed"


class JournalFailed(McpRuntimeError):
    """The journal cannot be written or read; nothing that was acknowledged before is lost."""

    code = "journal_failed"


class JournalLimitReached(JournalFailed):
    """A run or a session has written as much into the journal as the settings allow."""

    code = "journal_limit"
    http_status = 413


class ReplayDiverged(McpRuntimeError):
    """Code that is executed again made another call than the recorded one."""

    code = "replay_diverged"
    http_status = 409

    def __init__(self, step: int, call_id: int, expected: str, actual: str) -> None:
        super().__init__(
            f"Step {step}, call {call_id}: the recording expects {expected}, "
            f"but the code reached {actual}."
        )
        self.step = step
        self.call_id = call_id
        self.expected = expected
        self.actual = actual


class InputChanged(McpRuntimeError):
    """An input of a run has changed since the run got it, or is gone."""

    code = "input_changed"
    http_status = 409


class CallFailed(McpRuntimeError):
    """A call from sandboxed code failed; handlers raise it, and the code gets it as an exception.

    `kind` is the reason, for programs: `tool_error` (the upstream reported an error),
    `unavailable`, `timeout`, `unknown_tool`, `invalid_arguments`, `protocol` (the upstream
    violated its contract), `credential_missing` (of this principal, for this upstream),
    `cancelled`, `internal` and others. `data` is JSON for the code.
    """

    code = "call_failed"

    def __init__(self, kind: str, message: str, *, remedy: str = "", data: Any = None) -> None:
        super().__init__(message, remedy=remedy)
        self.kind = kind
        self.data = data
