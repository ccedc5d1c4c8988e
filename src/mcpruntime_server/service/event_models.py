"""The events of a run as HTTP clients get them: the schema in the OpenAPI document is made of this.

Rule: this shape is public. Clients ignore types and fields that they do not know, so both may be
added; what is here keeps its name and its meaning, whatever the events of the journal become.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from ..journal.events import Effect

FinalStatus = Literal["ok", "error", "timeout", "crashed", "cancelled", "waiting"]


class BaseRunEvent(BaseModel):
    """What all events have in common."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="The place of the event: send it as `Last-Event-ID` to continue.")
    run: str
    session: str
    at: datetime


class RunQueuedEvent(BaseRunEvent):
    """The run exists, and starts when its turn comes."""

    type: Literal["run_queued"] = "run_queued"


class RunStartedEvent(BaseRunEvent):
    """The code starts, from the state at the end of run `parent`."""

    type: Literal["run_started"] = "run_started"
    step: int
    parent: str | None
    dry_run: bool


class RunSuspendedEvent(BaseRunEvent):
    """The server stops, and the next one continues the run."""

    type: Literal["run_suspended"] = "run_suspended"


class RunResumedEvent(BaseRunEvent):
    """The run continues in another server; so many of its calls are answered from the journal."""

    type: Literal["run_resumed"] = "run_resumed"
    replayed_calls: int


class OutputEvent(BaseRunEvent):
    """The code has written `text`; `dropped_bytes` were left out before it."""

    type: Literal["output"] = "output"
    stream: Literal["stdout", "stderr"]
    text: str
    dropped_bytes: int


class CallStartedEvent(BaseRunEvent):
    """The code calls a tool, a model or an agent; `call` is a number that is unique in the run."""

    type: Literal["call_started"] = "call_started"
    call: int
    target: str = Field(description='What is called: "tools.SERVER.TOOL", "llm.ask", ...')
    arguments: Any
    arguments_cut: bool = Field(description="Parts of the arguments are left out here.")
    effect: Effect
    line: int | None = Field(description="Of the code of the run.")


class EventError(BaseModel):
    """Why a call failed; `kind` is for programs."""

    kind: str
    message: str


class CallFinishedEvent(BaseRunEvent):
    """A call has returned `value`, or failed with `error`."""

    type: Literal["call_finished"] = "call_finished"
    call: int
    target: str
    status: Literal["ok", "error"]
    value: Any
    value_cut: bool = Field(description="Parts of the value are left out here.")
    error: EventError | None
    duration_ms: float


class CoveredCall(BaseModel):
    """A call that an answer holds for, too."""

    target: str
    arguments: Any


class WaitingEvent(BaseRunEvent):
    """The run waits until `expires_at` for an answer: `POST /runs/{asking_run}/answers`.

    `asking_run` is the run itself, or that of one of its agents. The question is about call `call`
    of that run, whose arguments are in its `call_started`. "approval": may it be made? "in_doubt":
    a crash may have interrupted it, is it made again? "question": `prompt` is for the client's
    model, and the answer follows `answer_schema`. "credential": a person has to store one on the
    page `url`, or as `hints` say, and the run goes on; the only answer is "decline".
    """

    type: Literal["waiting"] = "waiting"
    asking_run: str = Field(description="Where it is answered.")
    question: str
    kind: Literal["approval", "in_doubt", "question", "credential"]
    call: int
    target: str
    covered_calls: list[CoveredCall]
    prompt: str | None
    answer_schema: Any
    hints: list[str]
    url: str | None
    expires_at: datetime


class AnsweredEvent(BaseRunEvent):
    """A question has its answer, and the run goes on.

    `decision` is "" if the run of an agent has ended before the answer.
    """

    type: Literal["answered"] = "answered"
    asking_run: str
    question: str
    decision: str
    scope: str
    answered_by: str


class FileEvent(BaseRunEvent):
    """A file of the workspace was changed or removed; `digest` is the SHA-256 of its content."""

    type: Literal["file"] = "file"
    path: str
    change: Literal["changed", "removed"]
    size: int | None
    digest: str | None


class RunErrorInfo(BaseModel):
    """The exception that has ended the code."""

    type: str
    message: str
    traceback: str
    line: int | None
    hint: str


class RunFinishedEvent(BaseRunEvent):
    """The run is finished, and this is its last event: its files can be read.

    "waiting": a dry run has planned calls, which `POST /runs/{run}/answers` commits. `undone`: its
    session is in the state before it. `files_lost`: a crash has lost what it wrote to files.
    """

    type: Literal["run_finished"] = "run_finished"
    status: FinalStatus
    value: Any = Field(description="Of the last expression: JSON data, or its repr as text.")
    value_cut: bool = Field(description="Parts of the value are left out here.")
    error: RunErrorInfo | None
    usage: dict[str, float]
    undone: bool
    files_lost: bool


PublicRunEvent = (
    RunQueuedEvent
    | RunStartedEvent
    | RunSuspendedEvent
    | RunResumedEvent
    | OutputEvent
    | CallStartedEvent
    | CallFinishedEvent
    | WaitingEvent
    | AnsweredEvent
    | FileEvent
    | RunFinishedEvent
)


class RunEvent(RootModel[Annotated[PublicRunEvent, Field(discriminator="type")]]):
    """The data of a server-sent event; its name is `type`."""
