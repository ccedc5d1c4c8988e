"""The events of the journal, and their text form.

Rule 1: everything that happens is one frozen dataclass in `EVENT_CLASSES`, written once and never
changed.
Rule 2: this module does no I/O and knows neither SQL nor the sandbox; values are plain JSON data.
Rule 3: the text is ASCII JSON. A lone surrogate, which UTF-8 cannot encode, is read back as the
text of its escape; a high and a low one in a row are read back as the character that they encode.
NaN, infinities, cycles and anything else that is not JSON raise `ValueError`.
Rule 4: readers accept what a newer version wrote: an unknown kind becomes an `UnknownEvent`, an
unknown field is ignored. A field that is added later therefore needs a default. A field that has
its default is not written, so a default never changes. `EVENT_VERSION` rises only when the meaning
of an existing field changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

EVENT_VERSION = 1

Effect = Literal["read", "idempotent", "write"]  # of a call, as its handler declares it


@dataclass(frozen=True)
class Event:
    """Base of every event."""


@dataclass(frozen=True)
class SessionOpened(Event):
    """A session was created; `name` is the principal's own name for it.

    `origin` is the run that it was forked at, or whose agent works in it. `purpose` is "" (for
    work), "fork", "agent", "rerun" (scratch) or "import".
    """

    name: str | None
    principal: str
    backend: str
    origin: str | None = None
    purpose: str = ""


@dataclass(frozen=True)
class SandboxStarted(Event):
    """The session got a sandbox; `image` is a content digest if the backend has one."""

    sandbox: str
    image: str
    python: str
    platform: str


@dataclass(frozen=True)
class SandboxStopped(Event):
    """The session's sandbox is gone; `reason` is a sentence."""

    reason: str


class ApprovedCall(TypedDict):
    """A planned call that may be made: target, args and nth identify it.

    `sent` are the arguments to make it with. `person` says whether a person has approved it, and
    not only the model.
    """

    target: str
    args: str  # canonical JSON, as `sent`
    nth: int
    sent: str
    person: bool


class InputEntry(TypedDict):
    """One input of a run: `digest` is its content in the blob store, or "" for the file `path`.

    `size` is in bytes. `stamp` identifies the file and its last modification. `start` and `end`
    (None: the end of the content) select a part of it.
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
    """Run `run_id` was announced to a client and waits for its slot; its `RunStarted` follows."""

    run_id: str
    code: str
    timeout_s: float
    idempotency_key: str | None = None
    dry_run: bool = False
    context: list[InputEntry] | None = None  # None: that of the parent


@dataclass(frozen=True)
class RunStarted(Event):
    """Run `run_id` started from the state at the end of `parent_id`; `step` is its depth there.

    All randomness of its code follows from `seed`. `replayed_run` is the run whose recording
    answers its calls. A `dry_run` plans its calls that may write, except `approved_calls`.
    """

    run_id: str
    parent_id: str | None
    step: int
    code: str
    name: str  # in tracebacks
    timeout_s: float
    idempotency_key: str | None = None
    seed: str = ""
    replayed_run: str | None = None
    stale_packages: list[str] = field(default_factory=list)  # of tools, which it imports again
    dry_run: bool = False
    approved_calls: list[ApprovedCall] = field(default_factory=list)
    detached: bool = False  # nobody waits for it: it continues when its server has stopped
    context: list[InputEntry] = field(default_factory=list)  # what `CONTEXT` is for its code


@dataclass(frozen=True)
class InputHashed(Event):
    """The content of an input file (`path`, `stamp`) has the SHA-256 `digest`."""

    path: str
    stamp: str
    digest: str


@dataclass(frozen=True)
class RunResumed(Event):
    """The run continues in another server; `replayed_calls` of its calls are answered again."""

    replayed_calls: int


@dataclass(frozen=True)
class RunSuspended(Event):
    """The server was asked to stop, and leaves the run to the next one."""


@dataclass(frozen=True)
class TipMoved(Event):
    """The state of the session is now the end of run `tip` (None: empty)."""

    tip: str | None
    previous_tip: str | None


@dataclass(frozen=True)
class OutputWritten(Event):
    """The code wrote `text`; `dropped_bytes` were left out before it."""

    stream: str  # "stdout" | "stderr"
    text: str
    dropped_bytes: int = 0


@dataclass(frozen=True)
class CallStarted(Event):
    """The code called the host; target, args and nth identify the call in a recording."""

    call_id: int  # unique in the run
    target: str
    args: str  # canonical JSON
    effect: str  # "read" | "idempotent" | "write"
    nth: int  # 0 for the run's first call with this target and these arguments
    line_number: int | None = None  # in the user's code
    in_ledger: bool = True
    order: int = 0  # as in the sandbox's message; tells identical calls at the same time apart


class ClientModelRequest(TypedDict):
    """A request to the client's model; `schema` is None where any text is an answer."""

    prompt: str
    schema: Mapping[str, Any] | None


class CallError(TypedDict):
    """The error that a call raises in the code; `kind` decides its type there."""

    kind: str
    message: str
    data: Any


class RunValue(TypedDict):
    """The value of a run as text: JSON, or that of `repr`; `cut` if parts are left out."""

    kind: str  # "json" | "repr"
    text: str
    type: str
    cut: bool


class RunError(TypedDict):
    """The exception that ended a run; `line` is that of the run's code, None if there is none."""

    type: str
    message: str
    traceback: str
    line: int | None
    hint: str


@dataclass(frozen=True)
class QuestionAsked(Event):
    """The run waits until `expires_at` for the answer to a question about call `call_id`.

    `kind` is "approval" (may it be made?), "in_doubt" (a crash may have interrupted it: make it
    again?), "question" (the call sends `model_request` to the client's model) or "credential" (a
    person has to store one, on the page at `url`). The answer also holds for `covered_calls` of a
    plan. `hints` say where text in the arguments may have come from, or what a person has to do.
    """

    question_id: str  # "q1", ...
    kind: str
    call_id: int
    expires_at: float  # seconds since the epoch
    covered_calls: list[ApprovedCall] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    model_request: ClientModelRequest | None = None
    url: str = ""


@dataclass(frozen=True)
class AgentQuestionAsked(Event):
    """An agent of the run waits: its run `asking_run` has asked this, and gets the answer.

    `target` is what the call about which it asks would call; the rest is its `QuestionAsked`.
    """

    asking_run: str
    target: str
    question_id: str
    kind: str
    call_id: int  # in `asking_run`
    expires_at: float
    covered_calls: list[ApprovedCall] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    model_request: ClientModelRequest | None = None
    url: str = ""


@dataclass(frozen=True)
class AgentQuestionAnswered(Event):
    """The agent no longer waits; without a `decision`, its run has ended before the answer."""

    asking_run: str
    question_id: str
    decision: str = ""
    scope: str = "once"
    answered_by: str = ""


@dataclass(frozen=True)
class QuestionAnswered(Event):
    """The question has its answer.

    `decision` is "allow", "deny", "again", "fail", "result" (with `value`), "stored", "decline"
    (credentials) or "expired". `scope` is what an approval applies to: "once", "run" or "session".
    """

    question_id: str
    decision: str
    scope: str = "once"
    answered_by: str = ""  # who, and how
    target: str = ""  # of an approval for a run or a session
    value: Any = None


class CallSummary(TypedDict):
    """What the ledger shows of a call instead of its arguments, and what came of it."""

    args: Mapping[str, Any]
    outcome: str


@dataclass(frozen=True)
class CallFinished(Event):
    """The call returned `value`, or failed with `error`."""

    call_id: int
    value: Any = None
    error: CallError | None = None
    duration_ms: float = 0.0
    summary: CallSummary | None = None  # of a call whose arguments say little
    blobs: list[str] = field(default_factory=list)  # that `value` names; 200 at most
    download_bytes: int = 0  # of those that the call has brought from the web


@dataclass(frozen=True)
class ModelUsageRecorded(Event):
    """One request to a model used this much, however it ended."""

    calls: int
    tokens_in: int
    tokens_out: int
    usd: float
    duration_ms: float = 0.0


class FileEntry(TypedDict):
    """One workspace file: `digest` is its content in the blob store, `size` is in bytes."""

    digest: str
    size: int
    mode: int


@dataclass(frozen=True)
class FilesChanged(Event):
    """The run changed or removed these paths of the workspace."""

    changed: Mapping[str, FileEntry]
    removed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ClocksRead(Event):
    """What the code read from clocks since the last such event of the run."""

    readings: Mapping[str, list[float]]  # by name of the clock, in order


class MediaEntry(TypedDict):
    """One image or sound that the code has shown; `data` is in base64."""

    mime_type: str
    data: str


@dataclass(frozen=True)
class RunFinished(Event):
    """The run has finished; `flags` say what happened to its state and how to restore it.

    `undone`: its interpreter died, and the tip is its parent again. `interrupted`: it was stopped
    before its end, so that its state cannot be rebuilt. `files`: it announced files, and a
    `FilesChanged` follows; if none does, a crash has lost them. `fresh`: it started without the
    variables of its parent. A dry run with the status `waiting` has planned calls, and was undone.
    """

    status: str  # "ok" | "error" | "timeout" | "crashed" | "cancelled" | "waiting"
    value: RunValue | None = None
    error: RunError | None = None
    usage: Mapping[str, float] | None = None  # keys: wall_ms, cpu_ms, peak_mb
    flags: list[str] = field(default_factory=list)
    media: list[MediaEntry] = field(default_factory=list)  # in the order in which it was shown


@dataclass(frozen=True)
class UnknownEvent(Event):
    """An event of a kind that only a newer version knows, as it was written."""

    kind: str
    fields: Mapping[str, Any]


EVENT_CLASSES: Mapping[str, type[Event]] = {
    "session_opened": SessionOpened,
    "sandbox_started": SandboxStarted,
    "sandbox_stopped": SandboxStopped,
    "tip_moved": TipMoved,
    "run_queued": RunQueued,
    "run_started": RunStarted,
    "input_hashed": InputHashed,
    "run_resumed": RunResumed,
    "run_suspended": RunSuspended,
    "output_written": OutputWritten,
    "call_started": CallStarted,
    "question_asked": QuestionAsked,
    "question_answered": QuestionAnswered,
    "agent_question_asked": AgentQuestionAsked,
    "agent_question_answered": AgentQuestionAnswered,
    "call_finished": CallFinished,
    "model_usage_recorded": ModelUsageRecorded,
    "files_changed": FilesChanged,
    "clocks_read": ClocksRead,
    "run_finished": RunFinished,
}
KIND_BY_CLASS: Mapping[type[Event], str] = {cls: kind for kind, cls in EVENT_CLASSES.items()}
EVENT_FIELDS: Mapping[type[Event], Mapping[str, bool]] = {  # field -> whether it is required
    cls: {
        item.name: item.default is MISSING and item.default_factory is MISSING
        for item in fields(cls)
    }
    for cls in EVENT_CLASSES.values()
}
EVENT_DEFAULTS: Mapping[type[Event], Mapping[str, Any]] = {
    cls: {
        item.name: item.default if item.default_factory is MISSING else item.default_factory()
        for item in fields(cls)
        if not EVENT_FIELDS[cls][item.name]
    }
    for cls in EVENT_CLASSES.values()
}
REQUIRED = object()  # equals no value of a field


@dataclass(frozen=True)
class EncodedJson:
    """JSON data as the ASCII text in which it is written: large data need not be built to pass."""

    data: bytes

    def decode(self) -> Any:
        """Return the data."""
        return decode_json(self.data.decode("ascii"))


@dataclass(frozen=True, eq=False)
class EncodedArguments(EncodedJson, Mapping[str, Any]):
    """Large arguments of a call as canonical JSON, decoded only if something looks into them.

    `journaled` is that text as an event has it: as a JSON string. `shown` is the call as a client
    sees it.
    """

    names: tuple[str, ...]
    digest: str  # of the text
    journaled: bytes
    shown: str

    @cached_property
    def _decoded(self) -> dict[str, Any]:
        decoded: dict[str, Any] = self.decode()
        return decoded

    def __getitem__(self, name: str) -> Any:
        return self._decoded[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _decode_encoded(value: Any) -> Any:
    if isinstance(value, EncodedJson):
        return value.decode()
    raise TypeError(f"{type(value).__name__} is not JSON")


_encode_in_order = json.JSONEncoder(
    allow_nan=False, separators=(",", ":"), default=_decode_encoded
).encode
_encode_sorted = json.JSONEncoder(
    allow_nan=False, separators=(",", ":"), sort_keys=True, default=_decode_encoded
).encode


def event_kind(event: Event) -> str:
    """Return the kind under which `event` is written."""
    return event.kind if isinstance(event, UnknownEvent) else KIND_BY_CLASS[type(event)]


def event_fields(event: Event) -> Mapping[str, Any]:
    """Return the fields of `event` that are written: those that do not have their default."""
    if isinstance(event, UnknownEvent):
        return event.fields
    defaults = EVENT_DEFAULTS[type(event)]
    return {
        name: value for name, value in vars(event).items() if value != defaults.get(name, REQUIRED)
    }


def escape_surrogates(text: str) -> str:
    """Return `text` with its lone surrogates escaped: neither UTF-8 nor SQLite can hold them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def decode_json(
    text: str,
    parse_float: Callable[[str], float] | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> Any:
    """Return the JSON data in `text`, lone surrogates escaped; raises `ValueError`."""
    data = json.loads(text, parse_float=parse_float, parse_constant=parse_constant)
    has_surrogates = "\\ud" in text or "\\uD" in text
    return _escape_strings(data) if has_surrogates else data


def _escape_strings(value: Any) -> Any:
    if isinstance(value, str):
        return escape_surrogates(value)
    if isinstance(value, list):
        return [_escape_strings(item) for item in value]
    if isinstance(value, dict):
        return {escape_surrogates(key): _escape_strings(item) for key, item in value.items()}
    return value


def encode_json(value: Any) -> str:
    """Return JSON data as text, keys in the order given; raises `ValueError` on anything else."""
    return _encode_checked(_encode_in_order, value)


def canonical_json(value: Any) -> str:
    """Return JSON data as text with sorted keys, so that equal data has equal text.

    Integers and floats stay different (`1` is not `1.0`); keys are expected to be strings. Raises
    `ValueError` on anything that is not JSON data.
    """
    return _encode_checked(_encode_sorted, value)


def arguments_text(args: Mapping[str, Any]) -> str:
    """Return the arguments of a call as canonical JSON; raises `ValueError`."""
    encoded = find_encoded(args)
    return canonical_json(args) if encoded is None else encoded.data.decode("ascii")


def find_encoded(args: Mapping[str, Any]) -> EncodedArguments | None:
    """Return arguments if they are large ones that nobody has decoded."""
    return args if isinstance(args, EncodedArguments) else None


def _encode_checked(encode: Callable[[Any], str], value: Any) -> str:
    try:
        return encode(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(f"This is not JSON data: {exc}.") from exc


def encoded_fields(event: Event) -> dict[str, bytes]:
    """Return the fields of `event` that are encoded already."""
    fields = event_fields(event).items()
    return {name: value.data for name, value in fields if isinstance(value, EncodedJson)}


def event_to_json(event: Event, left_out: Collection[str] = ()) -> str:
    """Return the written fields of `event` as a JSON object, but for those that are `left_out`.

    Raises `ValueError` if that is impossible.
    """
    written = event_fields(event)
    if left_out:
        written = {name: value for name, value in written.items() if name not in left_out}
    try:
        return encode_json(written)
    except ValueError as exc:
        raise ValueError(f"An event of kind {event_kind(event)} cannot be recorded. {exc}") from exc


def event_from_fields(kind: str, found: Mapping[str, Any]) -> Event:
    """Return the event of `kind` with the fields `found`; raises `ValueError` if one is missing."""
    cls = EVENT_CLASSES.get(kind)
    if cls is None:
        return UnknownEvent(kind, found)
    known = EVENT_FIELDS[cls]
    missing = [name for name, is_required in known.items() if is_required and name not in found]
    if missing:
        raise ValueError(f"An event of kind {kind} has no {', '.join(missing)}.")
    return cls(**{name: value for name, value in found.items() if name in known})


def listed_digests(entries: Mapping[str, FileEntry] | Sequence[InputEntry] | None) -> set[str]:
    """Return the blobs that are the content of files, by path, or of inputs."""
    listed: Iterable[FileEntry | InputEntry] = ()
    if isinstance(entries, Mapping):
        listed = entries.values()
    elif entries:
        listed = entries
    return {entry["digest"] for entry in listed} - {""}
