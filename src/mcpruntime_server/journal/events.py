"""The facts that a journal is made of, and how they become text.

Rule 1: everything that happens is one frozen dataclass listed in `KINDS`, written once and never changed.
Rule 2: this module does no I/O and knows neither SQL nor the sandbox; values are plain JSON data.
Rule 3: the text is ASCII JSON. A lone surrogate is escaped and comes back as it was; a high and a low one side by side
come back as the character that they spell. NaN, infinities, cycles and anything that is not JSON raise `ValueError`.
Rule 4: readers tolerate what a newer version wrote: an unknown kind becomes `Unknown`, an unknown field is left out.
A field added later therefore needs a default. `VERSION` rises only when the meaning of an existing field changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypedDict

EVENT_VERSION = 1


@dataclass(frozen=True)
class Event:
    """Base of every fact."""


@dataclass(frozen=True)
class SessionOpened(Event):
    """A session was made; `name` is its owner's own word for it, if any.

    `origin` is the run that it was forked at, or whose agent works in it. `purpose` is "" (to work in), "fork",
    "agent", "rerun" (scratch) or "import".
    """

    name: str | None
    principal: str
    backend: str
    origin: str | None = None
    purpose: str = ""


@dataclass(frozen=True)
class SandboxStarted(Event):
    """The session got a sandbox; `image` is a content digest where the backend has one."""

    sandbox: str
    image: str
    python: str
    platform: str


@dataclass(frozen=True)
class SandboxStopped(Event):
    """The session's sandbox is gone; `reason` is one sentence."""

    reason: str


class ApprovedCall(TypedDict):
    """A planned call that may be made: (target, args, nth) names it; `sent` are the arguments to make it with.

    `person` says whether a person has allowed it, and not only the model.
    """

    target: str
    args: str  # canonical JSON, as `sent`
    nth: int
    sent: str
    person: bool


class InputEntry(TypedDict):
    """One input of a run: `digest` names its content in the blob store; if it is "", it is the file `path` as it was.

    `size` is that of the content or the file, in bytes; `stamp` says which file it was, and when it was last modified.
    `start` and `end` (None: its end) are the part of it that is meant.
    """

    name: str
    digest: str
    path: str
    size: int
    stamp: str
    start: int
    end: int | None


@dataclass(frozen=True)
class RunQueued(Event):
    """Run `run` was asked for and told of, and waits for its turn; a `RunStarted` of it follows."""

    run_id: str
    code: str
    timeout_s: float
    idempotency_key: str | None = None
    dry_run: bool = False
    context: list[InputEntry] | None = None  # None: that of the run before it


@dataclass(frozen=True)
class RunStarted(Event):
    """Run `run` began; `parent` is the run whose state it started from and `step` its depth in that line.

    All chance that its code draws follows from `seed`; `replays` is the run whose recorded answers its calls get.
    A `dry_run` plans its calls that may write, but for those that are `approved`.
    """

    run_id: str
    parent_id: str | None
    step: int
    code: str
    name: str  # what tracebacks call it
    timeout_s: float
    idempotency_key: str | None = None
    seed: str = ""
    replayed_run: str | None = None
    stale_packages: list[str] = field(
        default_factory=list
    )  # packages of tools that it imports anew
    dry_run: bool = False
    approved_calls: list[ApprovedCall] = field(default_factory=list)
    detached: bool = False  # nobody waits for it: it goes on when its server has ended
    context: list[InputEntry] = field(default_factory=list)  # what `CONTEXT` is in it


@dataclass(frozen=True)
class InputHashed(Event):
    """The content of a file that is an input (`path`, `stamp`) has this SHA-256."""

    path: str
    stamp: str
    digest: str


@dataclass(frozen=True)
class RunResumed(Event):
    """The run goes on in another server, its first one having died; `calls` recorded calls are answered again."""

    replayed_calls: int


@dataclass(frozen=True)
class RunSuspended(Event):
    """Its server was told to end, and leaves the run to the next one."""


@dataclass(frozen=True)
class TipMoved(Event):
    """The session's state is now the end of run `tip` (None: empty); `left` was the tip before."""

    tip: str | None
    previous_tip: str | None


@dataclass(frozen=True)
class OutputWritten(Event):
    """The code printed `text`; `dropped` counts the bytes left out before it."""

    stream: str  # "stdout" | "stderr"
    text: str
    dropped_bytes: int = 0


@dataclass(frozen=True)
class CallStarted(Event):
    """The code asked the host for something; (target, args, nth) names the call in a recording."""

    call_id: int  # unique in the run
    target: str
    args: str  # canonical JSON
    effect: str  # "read" | "idempotent" | "write"
    nth: int  # 0 for the run's first call with this target and these arguments
    line_number: int | None = None  # of the user's code
    in_ledger: bool = True  # on the ledger


@dataclass(frozen=True)
class QuestionAsked(Event):
    """The run waits for an answer to `question` ("q1", ...) before call `call` is made, until `expires` at most.

    `kind` is "approval" (may it be made?), "in_doubt" (it may have been made before a crash: again?) or "question" (the
    call puts one before the client's model: `about` has the `prompt`, and the `schema` if there is one). The answer
    holds for the planned calls `covers`, too. `hints` say where text in the arguments may have come from.
    """

    question_id: str
    kind: str
    call_id: int
    expires_at: float  # seconds since the epoch
    covered_calls: list[ApprovedCall] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    model_request: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class QuestionAnswered(Event):
    """`question` has its answer: `decision` is "allow", "deny", "again", "fail", "result" (then `value`) or "expired".

    `scope` is what an approval holds for: "once", "run" or "session". `by` says who answered, and how.
    """

    question_id: str
    decision: str
    scope: str = "once"
    answered_by: str = ""
    target: str = ""  # that an approval for a run or a session holds for
    value: Any = None


@dataclass(frozen=True)
class CallFinished(Event):
    """Call `call` ended with `value`, or with `error` (keys: kind, message, data) if that is not None."""

    call_id: int
    value: Any = None
    error: Mapping[str, Any] | None = None
    duration_ms: float = 0.0


@dataclass(frozen=True)
class ModelUsageRecorded(Event):
    """A question was put before a model, once, and has cost this, however it ended; `ms` is how long that took."""

    calls: int
    tokens_in: int
    tokens_out: int
    usd: float
    duration_ms: float = 0.0


class FileEntry(TypedDict):
    """One workspace file: `digest` names its content in the blob store, `size` is in bytes."""

    digest: str
    size: int
    mode: int


@dataclass(frozen=True)
class FilesChanged(Event):
    """The run left these workspace paths changed or removed."""

    changed: Mapping[str, FileEntry]
    removed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ClocksRead(Event):
    """What the clocks told the code since the run's last such event: name of the clock to its readings, in order."""

    readings: Mapping[str, list[float]]


@dataclass(frozen=True)
class RunFinished(Event):
    """The run is over; `flags` are words that say what became of its state and how that can be restored.

    `undone`: its interpreter died, and the tip is its parent again. `interrupted`: it was stopped in its middle, so its
    end cannot be rebuilt. `files`: files were announced, and a `FilesChanged` follows; where none does, a crash cost
    them. `fresh`: it began without the variables of the step before it. `state_lost`: an older version wrote it, and
    its interpreter died. A dry run whose status is `waiting` has planned calls, and was undone.
    """

    status: str  # "ok" | "error" | "timeout" | "crashed" | "cancelled" | "waiting"
    value: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None  # keys: type, message, traceback
    usage: Mapping[str, float] | None = None  # keys: wall_ms, cpu_ms, peak_mb
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class UnknownEvent(Event):
    """A fact of a kind that only a newer version knows, kept as it was written."""

    kind: str
    fields: Mapping[str, Any]


EVENT_CLASSES: Mapping[str, type[Event]] = {
    "session_opened": SessionOpened,
    "sandbox_started": SandboxStarted,
    "sandbox_ended": SandboxStopped,
    "tip_moved": TipMoved,
    "run_queued": RunQueued,
    "run_started": RunStarted,
    "input_hashed": InputHashed,
    "run_resumed": RunResumed,
    "run_suspended": RunSuspended,
    "output": OutputWritten,
    "call_started": CallStarted,
    "asked": QuestionAsked,
    "answered": QuestionAnswered,
    "call_finished": CallFinished,
    "spent": ModelUsageRecorded,
    "files_changed": FilesChanged,
    "clocks_read": ClocksRead,
    "run_finished": RunFinished,
}
KIND_BY_CLASS: Mapping[type[Event], str] = {cls: kind for kind, cls in EVENT_CLASSES.items()}
EVENT_FIELDS: Mapping[type[Event], Mapping[str, bool]] = {  # field -> whether it must be there
    cls: {
        item.name: item.default is MISSING and item.default_factory is MISSING
        for item in fields(cls)
    }
    for cls in EVENT_CLASSES.values()
}

_encode_in_order = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_encode_sorted = json.JSONEncoder(allow_nan=False, separators=(",", ":"), sort_keys=True).encode


def event_kind(event: Event) -> str:
    """Return the name under which `event` is written."""
    return event.kind if isinstance(event, UnknownEvent) else KIND_BY_CLASS[type(event)]


def event_fields(event: Event) -> Mapping[str, Any]:
    """Return the fields of `event` as written."""
    return event.fields if isinstance(event, UnknownEvent) else vars(event)


def encode_json(value: Any) -> str:
    """Return JSON data as text, keys in the order given; raises `ValueError` on anything else."""
    return _encode_checked(_encode_in_order, value)


def canonical_json(value: Any) -> str:
    """Return JSON data as the one text that equal data has, keys sorted; raises `ValueError` on anything else.

    Integers and floats stay apart (`1` is not `1.0`); keys are expected to be strings.
    """
    return _encode_checked(_encode_sorted, value)


def _encode_checked(encode: Any, value: Any) -> str:
    try:
        text: str = encode(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(f"This is not JSON data: {exc}.") from exc
    return text


def event_to_json(event: Event) -> str:
    """Return the fields of `event` as one JSON object; raises `ValueError` if a value is not JSON data."""
    try:
        return encode_json(event_fields(event))
    except ValueError as exc:
        raise ValueError(f"An event of kind {event_kind(event)} cannot be recorded. {exc}") from exc


def event_from_fields(kind: str, found: Mapping[str, Any]) -> Event:
    """Return the event of `kind` with the fields `found`; raises `ValueError` if one that it needs is missing."""
    cls = EVENT_CLASSES.get(kind)
    if cls is None:
        return UnknownEvent(kind, found)
    known = EVENT_FIELDS[cls]
    missing = [name for name, needed in known.items() if needed and name not in found]
    if missing:
        raise ValueError(f"An event of kind {kind} has no {', '.join(missing)}.")
    return cls(**{name: value for name, value in found.items() if name in known})


def event_from_json(kind: str, text: str) -> Event:
    """Return the event that `to_json` wrote; raises `ValueError` if `text` is not one."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"An event of kind {kind} is not a JSON object.")
    return event_from_fields(kind, found)
