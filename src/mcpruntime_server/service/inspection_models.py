"""The bodies and documents of the routes that look into recorded steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from ..runtime.inspector import DEFAULT_HITS, MAX_EXPRESSION_CHARS
from ..runtime.run_report import MAX_PROBE_HITS, RunStatus
from .api_models import (
    MAX_NAME_CHARS,
    MAX_TIMEOUT_S,
    BodyModel,
    Code,
    Document,
    Handle,
    MediaDocument,
    RequestModel,
    to_integer,
)
from .event_models import RunErrorInfo

MAX_LINE = 10_000_000
MAX_HIT = 1_000_000_000


class ProbeBody(BodyModel):
    """A line of a step, and an expression to evaluate each time that it is about to be executed."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"line": 3, "expression": "len(rows)"}]}
    )

    line: Annotated[int, Field(ge=1, le=MAX_LINE), BeforeValidator(to_integer)]
    expression: Annotated[
        str, Field(min_length=1, max_length=MAX_EXPRESSION_CHARS, pattern=r"[^\s]")
    ]
    first_hit: Annotated[
        int,
        Field(ge=1, le=MAX_HIT, description="The executions before this one are only counted."),
        BeforeValidator(to_integer),
    ] = 1
    max_hits: Annotated[int, Field(ge=1, le=MAX_PROBE_HITS), BeforeValidator(to_integer)] = (
        DEFAULT_HITS
    )


class QuestionBody(BodyModel):
    """An expression, or other code, to execute in the state after a step."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"code": "rows[:3]"}]})

    code: Code
    timeout_s: Annotated[float | None, Field(gt=0, le=MAX_TIMEOUT_S)] = None


class RecordedCallDocument(Document):
    """A call of a run with its recorded answer, which may be long; `number` counts from 1."""

    number: int
    target: str
    args: str = Field(description="JSON.")
    status: Literal["ok", "error", "started"]
    value: Any = Field(description="null, too, if it is too long to be shown: see `cut`.")
    cut: bool
    error: str | None
    line: int | None
    duration_ms: float


class RecordedCallsDocument(Document):
    """The calls of a run, in their order."""

    run: str
    calls: list[RecordedCallDocument]
    call_count: int


class PinBody(BodyModel):
    """Whether garbage collection keeps a run, and with it its session."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pinned": True}]})

    pinned: bool
    reason: Annotated[str, Field(max_length=MAX_NAME_CHARS)] = ""


class PinDocument(Document):
    """Whether garbage collection keeps a run."""

    run: str
    pinned: bool


class DiffQuery(RequestModel):
    """The run that is compared."""

    other: Annotated[
        Handle | None, Field(description="The other run; without it, the run before this one.")
    ] = None


class ValueChangeDocument(Document):
    """A field that differs; null where a run does not have it."""

    a: Any
    b: Any


class CallChangeDocument(Document):
    """A call that one run did not make, or that ended differently."""

    target: str
    args: str = Field(description="JSON.")
    nth: int
    a: Any
    b: Any


class FileChangeDocument(Document):
    """A file that differs at the ends of the runs; `text` is the difference of short texts."""

    path: str
    a: Any
    b: Any
    text: str


class DiffDocument(Document):
    """How run `b` differs from run `a`."""

    a: str
    b: str
    equal: bool
    code: str
    stdout: str
    stderr: str
    calls: list[CallChangeDocument]
    value: ValueChangeDocument | None
    error: ValueChangeDocument | None
    status: ValueChangeDocument | None
    files: list[FileChangeDocument]
    damage: list[str]


class ShownValueDocument(Document):
    """A value as text of bounded length; of the kind "error" if it could not be read."""

    kind: Literal["json", "repr", "error"]
    text: str
    type: str
    cut: bool


class HitDocument(Document):
    """The value of an expression before one execution of a line, counted from 1."""

    number: int
    value: ShownValueDocument


class ProbeDocument(Document):
    """What a probe saw, and whether the replay did what the recording says."""

    run: str
    line: int = Field(description="Of the statement that was probed; 0 if that is not known.")
    hits: list[HitDocument]
    hit_count: int | None = Field(description="null: the interpreter died before the end.")
    faithful: bool = Field(description="The replay ended as recorded.")
    differences: list[str] = Field(description="The names of what differs from the recording.")
    divergence: str = Field(description="Where the calls differ; empty if they do not.")
    status: RunStatus = Field(description="How the replay ended.")
    wall_ms: float | None
    notes: list[str]


class AnswerDocument(Document):
    """The outcome of code that was executed in the state after a step, which is as before."""

    run: str
    status: RunStatus
    value: Any
    value_cut: bool
    value_type: str | None
    stdout: str
    stderr: str
    output_cut: bool
    error: RunErrorInfo | None
    media: list[MediaDocument]
    notes: list[str]


class VariableDocument(Document):
    """A variable after a step; `change` compares it with the state after the step before."""

    name: str
    type: str
    value: ShownValueDocument
    length: int | None
    shape: list[int] | None
    change: Literal["added", "changed", "unchanged"]


class VariablesDocument(Document):
    """The variables after a step, in the order in which they were set."""

    run: str
    variables: list[VariableDocument]
    removed: list[str] = Field(description="The names that the step has deleted.")
    notes: list[str]
