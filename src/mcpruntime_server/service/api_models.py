"""The bodies and parameters of HTTP requests, and the documents in the responses.

Requests are validated with these models, and the OpenAPI document has their schemas: so what is
documented is what is checked.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..journal.events import Effect
from ..runtime.call_ledger import CallStatus
from ..runtime.run_report import RunStatus
from ..runtime.runtime import SESSION_NAME
from .event_models import CoveredCall, RunErrorInfo
from .request_checks import MAX_BODY_BYTES
from .run_events import EVENT_ID_PATTERN

MAX_HANDLE_CHARS = 80
MAX_PATH_CHARS = 1_000
MAX_NAME_CHARS = 200
MAX_TIMEOUT_S = 86_400
MAX_CONTEXT_ITEMS = 1_000
MAX_ANSWERS = 1_000
MAX_LIVE_NAMES = 100
MAX_PAGE_SIZE = 200
PAGE_SIZE = 50
MAX_STEP = 1_000_000

STEP_TARGET: Any = {"required": ["step"], "properties": {"step": {"type": "integer"}}}
RUN_TARGET: Any = {"required": ["run"], "properties": {"run": {"type": "string"}}}
BOTH_TARGETS: Any = {"allOf": [STEP_TARGET, RUN_TARGET]}


def to_integer(value: Any) -> Any:
    """Return a number as an integer if it is one: JSON has no types for them."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


SessionName = Annotated[str, Field(pattern=f"^{SESSION_NAME.pattern}$")]
Handle = Annotated[str, Field(min_length=1, max_length=MAX_HANDLE_CHARS)]
Code = Annotated[str, Field(max_length=MAX_BODY_BYTES)]
Step = Annotated[int, Field(ge=0, le=MAX_STEP), BeforeValidator(to_integer)]
PageSize = Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)]


# requests -----------------------------------------------------------------------------------------


class RequestModel(BaseModel):
    """A request: unknown fields are errors, because they would be ignored silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BodyModel(RequestModel):
    """The body of a request: JSON has types, so nothing is converted."""

    model_config = ConfigDict(strict=True)


class ContextText(BodyModel):
    """A text as an input."""

    text: str
    name: Annotated[str | None, Field(max_length=MAX_NAME_CHARS)] = None


class ContextSource(BodyModel):
    """A path, pattern or URI as an input with a name of its own."""

    source: str
    name: Annotated[str | None, Field(max_length=MAX_NAME_CHARS)] = None


class StreamRequest(BodyModel):
    """Code to execute in a session."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"code": "print('hello')\n6 * 7", "session": "analysis"}],
        }
    )

    code: Code
    session: Annotated[
        SessionName | None,
        Field(
            description="The id of a session, or a name of your own, which starts a session at its "
            "first use. Without it, the code runs in a new session."
        ),
    ] = None
    timeout_s: Annotated[
        float | None, Field(gt=0, le=MAX_TIMEOUT_S, description="For the code.")
    ] = None
    dry_run: Annotated[
        bool, Field(description="Plan the calls that may write, instead of making them.")
    ] = False
    shows_pages: Annotated[
        bool,
        Field(
            description="A person sees the pages on which missing credentials are stored: the run "
            "waits for them, and the question has the address. Otherwise the calls that need "
            "them fail."
        ),
    ] = False
    context: Annotated[
        list[str | ContextText | ContextSource] | None,
        Field(
            max_length=MAX_CONTEXT_ITEMS,
            description="What `CONTEXT` is for the code: paths, patterns, URIs, texts.",
        ),
    ] = None


class ExecuteRequest(StreamRequest):
    """Code to execute in a session, and how long to wait for it."""

    wait_s: Annotated[
        float | None,
        Field(
            ge=0,
            le=MAX_TIMEOUT_S,
            description="Then the response has what there is, and the run goes on.",
        ),
    ] = None


class EventsQuery(RequestModel):
    """Where a stream of events begins."""

    after: Annotated[
        str | None,
        Field(pattern=EVENT_ID_PATTERN, description="The id of the last event that is known."),
    ] = None


class SessionsQuery(RequestModel):
    """A page of sessions."""

    limit: PageSize = PAGE_SIZE
    cursor: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9]{1,12}(\.[0-9]{1,20})?~s_[A-Za-z0-9_-]{1,64}$",
            description="`next_cursor` of the page before.",
        ),
    ] = None


class FilesQuery(RequestModel):
    """A page of the files in a workspace."""

    limit: Annotated[int, Field(ge=1, le=1_000)] = 200
    after: Annotated[
        str | None, Field(max_length=MAX_PATH_CHARS, description="The last path of the page before")
    ] = None
    run: Annotated[
        Handle | None, Field(description="As of the end of this run, and not of the last one.")
    ] = None


class FileQuery(RequestModel):
    """Which version of a file."""

    run: Annotated[
        Handle | None, Field(description="As of the end of this run, and not of the last one.")
    ] = None


class AnswersRequest(BodyModel):
    """Answers to what a run waits for, by the ids of its questions; `*` is for all others.

    To an approval: "allow", "allow_run", "allow_session" or "deny". To a call in doubt: "again",
    "fail" or {"result": ...}. To a question for the model: the answer. To a missing credential:
    "decline". To the planned calls of a dry run: "allow", "deny" or {"args": {...}}.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"answers": {"q1": "allow"}}]})

    answers: Annotated[dict[str, Any], Field(min_length=1, max_length=MAX_ANSWERS)]


class TargetRequest(BodyModel):
    """A step of a session: its number, or the id of its run."""

    model_config = ConfigDict(json_schema_extra={"not": BOTH_TARGETS})

    step: Step | None = None
    run: Handle | None = None

    @model_validator(mode="after")
    def check_target(self) -> Self:
        """Refuse two targets."""
        if self.step is not None and self.run is not None:
            raise ValueError("`step` and `run` both name a step: give one of them")
        return self


class RewindRequest(TargetRequest):
    """The step that a session continues from, 0 for its beginning."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"step": 2}], "oneOf": [STEP_TARGET, RUN_TARGET]}
    )

    cancel: Annotated[bool, Field(description="Cancel the runs that are not finished.")] = False

    @model_validator(mode="after")
    def check_named(self) -> Self:
        """Refuse a request that names no step."""
        if self.step is None and self.run is None:
            raise ValueError("`step` or `run` is required")
        return self


class ForkRequest(TargetRequest):
    """The step that a new session starts from; the last one, if none is named."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"step": 2, "name": "attempt"}], "not": BOTH_TARGETS}
    )

    name: SessionName | None = None


class AnswerChange(BodyModel):
    """Another answer for a call of a step: a value, or the error that the call raises."""

    call: Annotated[
        int,
        Field(ge=1, le=MAX_STEP, description="Its position among the calls of the step, from 1."),
        BeforeValidator(to_integer),
    ]
    value: Any = None
    error: Annotated[str | None, Field(max_length=MAX_PATH_CHARS)] = None


class RerunRequest(TargetRequest):
    """The step to execute again; all steps, if none is named."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"step": 2}], "not": BOTH_TARGETS})

    code: Annotated[Code | None, Field(description="Instead of that of the step.")] = None
    answers: Annotated[
        list[AnswerChange],
        Field(max_length=MAX_ANSWERS, description="Instead of the recorded answers of the step."),
    ] = []
    following: Annotated[
        bool, Field(description="Execute the steps after it again, too, on the changed state.")
    ] = False
    live: Annotated[
        list[Handle],
        Field(
            max_length=MAX_LIVE_NAMES,
            description="Servers and tools that are called; other calls get recorded answers.",
        ),
    ] = []


# documents ----------------------------------------------------------------------------------------


class Document(BaseModel):
    """What a response has; clients ignore fields that they do not know."""

    model_config = ConfigDict(frozen=True)


class CallDocument(Document):
    """A call that code has made, in Python's notation."""

    call: str
    target: str
    status: CallStatus
    effect: Effect
    duration_ms: float
    error: str | None


class QuestionDocument(Document):
    """What a run waits for; `kind` is as in the event `waiting`, or "plan" for a planned call."""

    id: str
    run: str = Field(description="Where it is answered: this run, or one of its sub-agents.")
    kind: Literal["approval", "in_doubt", "question", "credential", "plan"]
    calls: list[CoveredCall]
    prompt: str | None
    answer_schema: Any
    line: int | None
    hints: list[str]
    url: str | None = Field(description="The page where a person stores the credential.")
    expires_at: datetime | None


class MediaDocument(Document):
    """An image or a sound that the code has shown."""

    mime_type: str
    data: str = Field(description="In base64.", json_schema_extra={"contentEncoding": "base64"})


class RunDocument(Document):
    """A run: what is known of it by now, or what has become of it."""

    run: str
    session: str
    session_name: str | None
    step: int
    parent: str | None
    status: RunStatus
    dry_run: bool
    undone: bool = Field(description="The session is in the state before it.")
    started_at: datetime
    finished_at: datetime | None
    code: str
    code_cut: bool
    value: Any = Field(description="Of the last expression: JSON data, or its repr as text.")
    value_cut: bool
    stdout: str
    stderr: str
    output_cut: bool = Field(description="The events of the run have all of its output.")
    error: RunErrorInfo | None
    calls: list[CallDocument] = Field(description="The last ones; the events have all of them.")
    call_count: int
    waiting_for: list[QuestionDocument]
    changed_files: list[str]
    removed_files: list[str]
    media: list[MediaDocument]
    usage: dict[str, float]
    notes: list[str]


class SessionSummary(Document):
    """A session in a list."""

    session: str
    name: str | None
    run_count: int
    created_at: datetime
    last_used_at: datetime
    forked_from: str | None = Field(description="The run that it was forked at.")


class SessionPage(Document):
    """Sessions, the last used first; without `next_cursor` there are no more."""

    sessions: list[SessionSummary]
    next_cursor: str | None


class RunSummary(Document):
    """A run in the list of its session."""

    run: str
    step: int
    parent: str | None
    status: str
    undone: bool
    started_at: datetime
    finished_at: datetime | None


class SessionDocument(SessionSummary):
    """A session, with its last runs, the oldest first."""

    tip: str | None = Field(description="The run that the next one starts from.")
    step: int = Field(description="Of the tip; 0 for an empty session.")
    runs: list[RunSummary]


class FileDocument(Document):
    """A file in a workspace; `digest` is the SHA-256 of its content."""

    path: str
    size: int
    digest: str
    mime_type: str


class FilePage(Document):
    """Files of a workspace, by path; `next_after` is where the next page begins."""

    session: str
    run: str | None = Field(description="The files are as of the end of this run.")
    files: list[FileDocument]
    next_after: str | None
    runs_with_lost_files: list[str]


class PositionDocument(Document):
    """Where a session continues; calls that may have written something are not undone."""

    session: str
    name: str | None
    run: str | None
    step: int
    tier: Literal["parked", "rebuild", "files-only"] = Field(
        description="How its variables are restored: from a parked fork, by executing the journal "
        "again, or not for certain."
    )
    not_undone: list[str]


class RerunComparison(Document):
    """How a run that was executed again compares with its recording."""

    run: str
    differences: list[str] = Field(description="The names of what differs.")


class RerunDocument(Document):
    """Runs that were executed again, in a session of their own."""

    session: str
    runs: list[RunDocument]
    comparisons: list[RerunComparison]
