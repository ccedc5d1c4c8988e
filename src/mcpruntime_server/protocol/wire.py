"""The messages between the host and a sandbox, and their encoding as bytes.

The host imports this module, and a sandbox gets it as source.

Rule 1: every message is an immutable class listed in `MESSAGE_TYPES`; nothing else crosses the
boundary.
Rule 2: this module does no I/O. `encode_message`, `FrameSplitter` and `MessageDecoder` turn
messages into bytes and back. Which message is legal when is in `link_states`.
Rule 3: a frame is `length (4 bytes, big endian) | type code (1 byte) | JSON object | newline |
payload`. The length counts everything after itself. The payload is the raw bytes of the field
`data`; newline and payload are present only if the message has that field. The JSON is ASCII on one
line, so the first newline ends it.
Rule 4: bytes that are not a message raise `WireError`; after that the connection cannot be trusted.
So does a message that is larger, has more values or is nested deeper than its class allows.
"""

from __future__ import annotations

import json

from .json_limits import has_more_values, is_nested_deeper

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import (
        Any,
        Callable,
        ClassVar,
        Dict,
        Iterator,
        List,
        Optional,
        Tuple,
        Type,
        TypeVar,
        Union,
        dataclass_transform,
    )

    MessageT = TypeVar("MessageT", bound="Message")
else:

    def dataclass_transform(**_):
        return lambda cls: cls


PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 64 * 1024 * 1024  # of what the host sends; a larger value belongs in a file
CHUNK_BYTES = 256 * 1024  # file content or output in one frame, so that other messages do not wait
MAX_CHUNK_BYTES = 1024 * 1024  # of a frame with such a chunk
MAX_CONTROL_BYTES = 64 * 1024  # of a message that only says what has happened
MAX_DATA_BYTES = 8 * 1024 * 1024  # of a message with data or names that code chooses
LARGE_CALL_BYTES = 256 * 1024  # of JSON in a call; more is not decoded on the event loop
MAX_CALL_JSON_BYTES = 4 * 1024 * 1024  # of a call without its payload
MAX_HOST_BYTES = 512  # of a message with the name of a host
MAX_VALUES = 250_000  # JSON values in such a message, those in arrays and objects included
MAX_CALL_VALUES = 100_000
MAX_PATH_BYTES = 4096  # of the path of a file, as Linux has it
MAX_CALL_ID = 1 << 63
MAX_CALL_ORDER = 1 << 24
FIRST_PROXY_CALL_ID = 1 << 62  # of the web proxy; above those of every worker
MAX_LINE = 1 << 31
MAX_DROPPED_BYTES = 1 << 53
OUTPUT_STREAMS = ("stdout", "stderr")
MAX_TARGET_CHARS = 1_000  # of the name of what is called
MAX_PROBLEM_CHARS = 200  # of what is wrong with a message
MAX_DATA_DEPTH = 100  # of nested arrays and objects in a message; no JSON reader refuses as much
HEADER_BYTES = 5  # length and type code
ABANDON_TARGET = "runtime.abandon"  # tells that code no longer waits for the call in `args["call"]`
PACKAGES_FOLDER = "/packages"  # where a container sees what code has asked for, by digest
INPUTS_FOLDER = "/context"  # where a container mounts the folder of its inputs
MARKER_FILE = ".here"  # the file in that folder that names the sandbox it belongs to
LINK_FILE = ".link"  # a socket in that folder that the supervisor connects to, if it can
BROKEN_EXIT_CODE = 70  # of an interpreter that user code has damaged beyond use


TYPE_CHECKS: Dict[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int,
    "bool": lambda value: type(value) is bool,
    "str": lambda value: type(value) is str,
    "bytes": lambda value: type(value) is bytes,
    "Any": lambda value: True,
    "List[str]": lambda value: type(value) is list and {str}.issuperset(map(type, value)),
    "Optional[List[Any]]": lambda value: value is None or type(value) is list,
    "Dict[str, Any]": lambda value: type(value) is dict,
    "Optional[int]": lambda value: value is None or type(value) is int,
    "Optional[Dict[str, Any]]": lambda value: value is None or type(value) is dict,
    "Optional[Dict[str, float]]": lambda value: (
        value is None
        or (type(value) is dict and all(type(item) in (int, float) for item in value.values()))
    ),
}


class WireError(Exception):
    """The peer sent bytes that are not a message, or a message was too large to send."""


@dataclass_transform(frozen_default=True)
class Message:
    """Base class of all messages. Subclasses behave like frozen dataclasses.

    They are not dataclasses because importing `dataclasses` takes a fifth of a sandbox's start.
    """

    FIELDS: ClassVar[Tuple[Tuple[str, Callable[[Any], bool]], ...]] = ()  # name and type check
    FIELD_NAMES: ClassVar[Tuple[str, ...]] = ()
    HAS_PAYLOAD: ClassVar[bool] = False
    ENCODABLE: ClassVar[str] = ""  # the field that may be an `EncodedValue` when it is sent
    MAX_BYTES: ClassVar[int] = MAX_FRAME_BYTES
    MAX_VALUES: ClassVar[int] = MAX_FRAME_BYTES
    MAX_JSON_BYTES: ClassVar[int] = MAX_FRAME_BYTES  # of all fields without the payload

    def __init_subclass__(cls) -> None:
        cls.FIELDS = tuple((name, TYPE_CHECKS[kind]) for name, kind in cls.__annotations__.items())
        cls.FIELD_NAMES = tuple(name for name, _ in cls.FIELDS)
        cls.HAS_PAYLOAD = "data" in cls.FIELD_NAMES

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        if len(args) > len(self.FIELD_NAMES):
            raise TypeError(f"{cls.__name__} has {len(self.FIELD_NAMES)} fields, not {len(args)}")
        values = dict(zip(self.FIELD_NAMES, args))  # noqa: B905 - `strict` is newer than Python 3.9
        for name in self.FIELD_NAMES[len(args) :]:
            if name in kwargs:
                values[name] = kwargs.pop(name)
            elif not hasattr(cls, name):
                raise TypeError(f"{cls.__name__} needs {name}")
            else:
                values[name] = getattr(cls, name)
        if kwargs:
            raise TypeError(f"{cls.__name__} has no {', '.join(kwargs)}")
        self.__dict__.update(values)

    def check(self) -> None:
        """Raise `ValueError` if a field has a value that its type does not rule out."""

    def replace(self: MessageT, **changes: Any) -> MessageT:
        """Return a copy with some fields changed."""
        return type(self)(**{**self.__dict__, **changes})

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({fields})"


# host -> sandbox ----------------------------------------------------------------------------------


class Setup(Message):
    """The first message: what the sandbox is and what its code may use."""

    version: int
    has_own_processes: bool  # it has a process namespace of its own
    max_output_bytes: int  # of each stream, for one run
    max_value_chars: int  # of a value that is sent whole
    max_shown_chars: int  # of a value that is cut, as a client gets it
    max_shown_items: int  # of a list or an object in such a value
    max_file_bytes: int
    max_processes: int  # processes and threads that the container allows user code; 0: not limited
    max_checkpoints: int  # parked forks; 0: none
    max_checkpoint_bytes: int  # memory of all parked forks together, beyond that of the worker
    resource_limits: Dict[str, Any]  # by name in the module `resource`; a container has its own
    facts: Optional[Dict[str, Any]] = None  # `SandboxFacts`, for `help()` and hints
    web: Optional[Dict[str, Any]] = None  # code may make web requests: "authority" and "key" (PEM)


class Execute(Message):
    """Run `code`, under the name `filename` in tracebacks (`<step 3>`)."""

    ENCODABLE = "code"

    run_number: int  # one more than that of the last `Execute`
    code: str
    filename: str
    stale_packages: List[str]  # to be imported again
    seed: str  # determines all randomness of the run
    clock_readings: Optional[Dict[str, Any]] = None  # to be replayed, by clock
    park: bool = True  # answer with `ForkParked` or `ParkFailed` after the run
    keep_previous: bool = False  # park the present state first, even in a burst
    inputs: Optional[List[Any]] = None  # the items of `CONTEXT`, as `inputs.Input` takes them
    fetchers: Optional[List[Any]] = None  # tools that fetch from the network, as far as known
    inspection: Optional[Dict[str, Any]] = None  # what to observe, see `payloads.Inspection`


class EncodedValue:
    """A value, already encoded as ASCII JSON and checked for its depth."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class Reply(Message):
    """The answer to a `Call`: a value, or the error that the call raises."""

    ENCODABLE = "value"

    call_id: int
    value: Any = None
    error: Optional[Dict[str, Any]] = None  # keys: kind, message, data
    data: bytes = b""  # that the value names


class Interrupt(Message):
    """Raise KeyboardInterrupt in the run; ignored if it has finished."""

    run_number: int


class Kill(Message):
    """Kill all processes of the run and start an empty interpreter; ignored if it has finished."""

    run_number: int


class WriteFile(Message):
    """Write a chunk of a workspace file; the chunk at offset 0 replaces an existing file."""

    path: str  # relative to the workspace, with `/`
    mode: int
    offset: int
    is_last: bool
    data: bytes


class RemoveFile(Message):
    """Delete a workspace file, and each folder that this leaves empty."""

    path: str


class Promote(Message):
    """Replace the live interpreter by the parked fork of a run, or by an empty one (0)."""

    run_number: int


class Certificate(Message):
    """The answer to `CertificateRequest`: a certificate in PEM, or "" if there will be none."""

    host: str
    certificate: str


# sandbox -> host ----------------------------------------------------------------------------------


class Ready(Message):
    """The answer to `Setup`: the first interpreter is about to start."""

    MAX_BYTES = MAX_CONTROL_BYTES

    version: int
    python_version: str
    platform: str
    inputs_marker: str = ""  # the content of the marker file in the inputs folder; "": none there


class Output(Message):
    """What the run printed."""

    MAX_BYTES = MAX_CONTROL_BYTES

    run_number: int
    stream: str  # "stdout" | "stderr"
    dropped_bytes: int  # left out before `data`, because of the limit
    data: bytes

    def check(self) -> None:
        """Raise `ValueError` if there is no such stream, or no such number of bytes."""
        if self.stream not in OUTPUT_STREAMS:
            raise ValueError(f"there is no stream {self.stream!r:.80}")
        if not 0 <= self.dropped_bytes <= MAX_DROPPED_BYTES:
            raise ValueError("its number of dropped bytes is impossible")


class Call(Message):
    """Sandboxed code asks the host for something."""

    MAX_BYTES = MAX_DATA_BYTES + MAX_CONTROL_BYTES
    MAX_JSON_BYTES = MAX_CALL_JSON_BYTES
    MAX_VALUES = MAX_CALL_VALUES

    call_id: int
    run_number: int
    target: str
    args: Dict[str, Any]
    line: Optional[int] = None  # of the user's code that made the call, if known
    clock_readings: Optional[Dict[str, Any]] = None  # since the last call, by clock
    data: bytes = b""  # for the handler: neither journaled nor compared by a replay
    order: int = 0  # tells identical calls at the same time apart; 0 if nothing does

    def check(self) -> None:
        """Raise `ValueError` if our worker could not make such a call."""
        if len(self.target) > MAX_TARGET_CHARS:
            raise ValueError(f"its target has more than {MAX_TARGET_CHARS:,} characters")
        if not 0 <= self.call_id < MAX_CALL_ID or not 0 <= (self.line or 0) < MAX_LINE:
            raise ValueError("its id or its line is impossible")
        if not 0 <= self.order < MAX_CALL_ORDER:
            raise ValueError("its order is impossible")


def is_large_call(frame: bytes) -> bool:
    """Return whether a frame is a `Call` with so much JSON that to decode it takes milliseconds."""
    if frame[HEADER_BYTES - 1] != TYPE_CODES[Call] or len(frame) <= LARGE_CALL_BYTES:
        return False
    return frame.find(b"\n", HEADER_BYTES, LARGE_CALL_BYTES) < 0


class CertificateRequest(Message):
    """The proxy of a sandbox needs a certificate for a host that code connects to."""

    MAX_BYTES = MAX_HOST_BYTES

    host: str


class FilesChanged(Message):
    """Workspace paths that the run changed or removed; sent before `RunDone` unless it died."""

    MAX_BYTES = MAX_DATA_BYTES
    MAX_VALUES = MAX_VALUES

    run_number: int
    changed: List[str]
    removed: List[str]
    skipped_count: int = 0  # files that are not kept: beyond the limit, or named in invalid UTF-8

    def check(self) -> None:
        """Raise `ValueError` if it names what cannot be a file of the workspace."""
        check_workspace_paths(self.changed + self.removed)


class WorkerRestarted(Message):
    """The interpreter died and an empty one replaces it.

    The paths that it changed before it died follow with the next `Promoted`.
    """

    MAX_BYTES = MAX_CONTROL_BYTES

    reason: str


class RunDone(Message):
    """The run has finished."""

    MAX_BYTES = MAX_DATA_BYTES
    MAX_VALUES = MAX_VALUES

    run_number: int
    status: str  # "ok" | "error" | "interrupted" | "died"
    value: Optional[Dict[str, Any]] = None  # see `presentation.present_value`
    error: Optional[Dict[str, Any]] = None  # keys: type, message, traceback, line
    usage: Optional[Dict[str, float]] = None  # keys: wall_ms, cpu_ms, peak_mb
    clock_readings: Optional[Dict[str, Any]] = None  # since the last call, by clock
    media: Optional[List[Any]] = None  # what was shown, in order: {"mime_type", "data" in base64}
    inspection: Optional[Dict[str, Any]] = None  # see `payloads.InspectionResult`


class ProbeHit(Message):
    """The value of a probed expression, just before its line was executed."""

    MAX_BYTES = MAX_CONTROL_BYTES

    run_number: int
    number: int  # the executions of the line, counted from 1
    value: Dict[str, Any]  # see `payloads.ShownValue`


class FileData(Message):
    """A chunk of a file that `FilesChanged` named; sent after `RunDone`."""

    MAX_BYTES = MAX_CHUNK_BYTES

    run_number: int
    path: str
    mode: int
    is_last: bool
    data: bytes

    def check(self) -> None:
        """Raise `ValueError` if it names what cannot be a file of the workspace."""
        check_workspace_paths([self.path])


class FilesSaved(Message):
    """The content of all files that `FilesChanged` named has been sent."""

    MAX_BYTES = MAX_DATA_BYTES
    MAX_VALUES = MAX_VALUES

    run_number: int
    unreadable: List[str]  # paths whose content is missing

    def check(self) -> None:
        """Raise `ValueError` if it names what cannot be a file of the workspace."""
        check_workspace_paths(self.unreadable)


class ForkParked(Message):
    """A fork of the interpreter, as it was at the end of the run, can be promoted."""

    MAX_BYTES = MAX_CONTROL_BYTES

    run_number: int


class ParkFailed(Message):
    """There will be no fork of the interpreter as it was at the end of the run."""

    MAX_BYTES = MAX_CONTROL_BYTES

    run_number: int
    reason: str  # a clause for people


class ForkDropped(Message):
    """The parked fork of the run is gone: it was the oldest of too many, or it died."""

    MAX_BYTES = MAX_CONTROL_BYTES

    run_number: int


class Promoted(Message):
    """The answer to `Promote`; if not `ok`, there is no such fork and the interpreter is empty.

    `changed` and `removed` are workspace paths that no `FilesChanged` has named: traces of runs
    that died and of background processes.
    """

    MAX_BYTES = MAX_DATA_BYTES
    MAX_VALUES = MAX_VALUES

    run_number: int
    ok: bool
    changed: List[str]
    removed: List[str]

    def check(self) -> None:
        """Raise `ValueError` if it names what cannot be a file of the workspace."""
        check_workspace_paths(self.changed + self.removed)


# supervisor -> worker -----------------------------------------------------------------------------


class Park(Message):
    """Leave a parked fork behind, in the state at the end of the run."""

    run_number: int


MESSAGE_TYPES: Tuple[Type[Message], ...] = (
    Setup, Execute, Reply, Interrupt, Kill, WriteFile, RemoveFile, Promote,
    Ready, Output, Call, FilesChanged, RunDone, WorkerRestarted, FileData, FilesSaved,
    ForkParked, ParkFailed, ForkDropped, Promoted, Park, CertificateRequest, Certificate,
    ProbeHit,
)  # fmt: skip
TYPE_CODES: Dict[Type[Message], int] = {cls: code for code, cls in enumerate(MESSAGE_TYPES)}


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# Bound here, so that code that replaces `json.loads` does not break the runtime.
_dump_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_load_json = json.JSONDecoder(parse_constant=_reject_constant).decode


def encode_message(message: Message) -> bytes:
    """Return `message` as one frame; raises `WireError` if it is not JSON or too large."""
    cls = type(message)
    fields = dict(message.__dict__)
    if cls.ENCODABLE and isinstance(fields[cls.ENCODABLE], EncodedValue):
        return _encode_around(cls, fields)
    payload = b"\n" + fields.pop("data") if cls.HAS_PAYLOAD else b""
    try:
        message.check()
        text = _dump_json(fields)
        if _check_json(cls, text):
            _check_depth(fields)
    except (TypeError, ValueError, RecursionError) as exc:
        raise WireError(f"{cls.__name__} cannot be sent: {exc}") from exc
    size = 1 + len(text) + len(payload)
    if size > cls.MAX_BYTES:
        raise WireError(f"{cls.__name__} is {size:,} bytes; the limit is {cls.MAX_BYTES:,}")
    return size.to_bytes(4, "big") + bytes((TYPE_CODES[cls],)) + text.encode("ascii") + payload


def _encode_around(cls: Type[Message], fields: Dict[str, Any]) -> bytes:
    """Return the frame of a message one field of which is encoded already."""
    payload = b"\n" + fields.pop("data") if cls.HAS_PAYLOAD else b""
    value = fields.pop(cls.ENCODABLE).data
    rest = _dump_json(fields)[1:].encode("ascii")
    head = b'{"%s":' % cls.ENCODABLE.encode("ascii")
    size = 1 + len(head) + len(value) + 1 + len(rest) + len(payload)
    if size > cls.MAX_BYTES:
        raise WireError(f"{cls.__name__} is {size:,} bytes; the limit is {cls.MAX_BYTES:,}")
    code = bytes((TYPE_CODES[cls],))
    return b"".join((size.to_bytes(4, "big"), code, head, value, b",", rest, payload))


def decode_message(type_code: int, body: bytes) -> Message:
    """Return the message with this type code and body (the frame without its header).

    Raises `WireError` if it is not a message.
    """
    if type_code >= len(MESSAGE_TYPES):
        raise WireError(f"no message has the type code {type_code}")
    cls = MESSAGE_TYPES[type_code]
    head, payload = body, None
    if cls.HAS_PAYLOAD:
        head, _, payload = body.partition(b"\n")
    try:
        text = head.decode("ascii")
        may_be_deep = _check_json(cls, text)
        fields = _load_json(text)
        if may_be_deep:
            _check_depth(fields)
        if "\\" in text and ("\\ud" in text or "\\uD" in text):
            fields = escape_json_surrogates(fields)
        if payload is not None:
            fields["data"] = payload
        message = cls(**fields)
    except (ValueError, TypeError, RecursionError) as exc:
        problem = str(exc)[:MAX_PROBLEM_CHARS]  # it may have the name of a field
        raise WireError(f"not a {cls.__name__} ({problem}): {body[:80]!r}") from exc
    for name, fits in cls.FIELDS:
        value = getattr(message, name)
        if not fits(value):
            raise WireError(f"{cls.__name__}.{name} has the wrong type: {value!r:.80}")
    try:
        message.check()
    except ValueError as exc:
        raise WireError(f"not a {cls.__name__}: {exc}") from None
    return message


def _check_json(cls: Type[Message], text: str) -> bool:
    """Raise `ValueError` if JSON is too long or has too many values.

    Return whether it may be nested too deeply.
    """
    if len(text) > cls.MAX_JSON_BYTES:
        raise ValueError(f"it is {len(text):,} bytes; the limit is {cls.MAX_JSON_BYTES:,}")
    brackets = text.count("[") + text.count("{")
    if text.count(",") + brackets > cls.MAX_VALUES and has_more_values(text, cls.MAX_VALUES):
        raise ValueError(f"it has more than {cls.MAX_VALUES:,} values")
    return brackets > MAX_DATA_DEPTH


def _check_depth(data: Any) -> None:
    """Raise `ValueError` if `data` is nested too deeply."""
    if is_nested_deeper(data, MAX_DATA_DEPTH):
        raise ValueError(f"it is nested more than {MAX_DATA_DEPTH} deep")


def is_workspace_path(path: str) -> bool:
    """Return whether a workspace can have a file at `path`: it is relative and normalised."""
    return "\0" not in path and {"", ".", ".."}.isdisjoint(path.split("/"))


def check_workspace_paths(paths: List[str]) -> None:
    """Raise `ValueError` if one of them cannot be the path of a file of a workspace."""
    joined = "/\0/".join(["", *paths, ""])  # so that few searches check many paths
    parts = ("//", "/./", "/../")
    is_clean = joined.count("\0") == len(paths) + 1 and not any(part in joined for part in parts)
    longest = max(map(len, paths), default=0)
    if is_clean and longest <= MAX_PATH_BYTES // 4:
        return
    for path in paths:
        if not is_workspace_path(path) or len(path.encode("utf-8", "replace")) > MAX_PATH_BYTES:
            raise ValueError(f"{path!r:.80} is not a path in the workspace")


def no_active_run_error(target: str) -> Dict[str, Any]:
    """Return the error for a call that a background thread makes when no run is active."""
    message = f"{target}: no run is active that could make this call"
    return {"kind": "cancelled", "message": message, "data": None}


def escape_surrogates(text: str) -> str:
    """Return `text` with lone surrogates as backslash escapes: UTF-8 cannot encode them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def escape_json_surrogates(value: Any) -> Any:
    """Return JSON data with `escape_surrogates` applied to all its strings."""
    if isinstance(value, str):
        return escape_surrogates(value)
    if isinstance(value, list):
        return [escape_json_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {escape_json_surrogates(key): escape_json_surrogates(v) for key, v in value.items()}
    return value


class FrameSplitter:
    """Splits a stream of bytes into frames, undecoded; holds at most one partial frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> List[Tuple[int, bytes]]:
        """Return (type code, frame) of each frame that `data` completes.

        Raises `WireError` on an impossible size.
        """
        return list(self.iter_frames(data))

    def iter_frames(self, data: bytes) -> Iterator[Tuple[int, bytes]]:
        """Yield (type code, frame) of each frame that `data` completes, which must be exhausted.

        Raises `WireError` on an impossible size.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= HEADER_BYTES:
            end = start + 4 + parse_frame_size(buffer[start : start + HEADER_BYTES])
            if len(buffer) < end:
                break
            code, frame = buffer[start + 4], bytes(memoryview(buffer)[start:end])
            start = end
            if start == len(buffer):  # not to hold a large frame twice while it is worked on
                buffer.clear()
                start = 0
            yield code, frame
        del buffer[:start]


class MessageDecoder(FrameSplitter):
    """Turns a stream of bytes into messages."""

    frame_bytes = 0  # the size of the frame of the last message

    def decode_messages(self, data: bytes) -> List[Message]:
        """Return each message that `data` completes; raises `WireError` on anything else."""
        return list(self.iter_messages(data))

    def iter_messages(self, data: bytes) -> Iterator[Message]:
        """Yield each message that `data` completes, which must be exhausted.

        Raises `WireError` on anything else.
        """
        for code, frame in self.iter_frames(data):
            self.frame_bytes = len(frame)
            yield decode_message(code, frame[HEADER_BYTES:])


def parse_frame_size(header: Union[bytes, bytearray]) -> int:
    """Return the size in a frame's header; raises `WireError` if its type does not allow it."""
    size = int.from_bytes(header[:4], "big")
    limit = MESSAGE_TYPES[header[4]].MAX_BYTES if header[4] < len(MESSAGE_TYPES) else 1
    if not 1 <= size <= limit:
        raise WireError(f"a frame of {size} bytes; the limit is {limit}")
    return size
