"""Messages between the host and a sandbox, and how they become bytes.

This module is imported by the host and is also shipped, as source, into the sandbox.

Rule 1: every message is an immutable class listed in `KINDS`; nothing else crosses the boundary.
Rule 2: this module does no I/O. `encode`, `Splitter` and `Decoder` turn messages into bytes and back.
Rule 3: a frame is `length (4 bytes, big endian) | kind (1 byte) | JSON object | newline | payload`, where the length
counts everything after itself and the payload is the raw bytes of the field `data`. The newline and the payload are
there only if the message has such a field. JSON is ASCII, so a raw newline cannot occur inside it.
Rule 4: bytes that are not a message raise `WireError`; the connection cannot be trusted after that.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False  # `typing` itself costs too much of a sandbox's start
if TYPE_CHECKING:
    from typing import (
        Any,
        Callable,
        ClassVar,
        Dict,
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


PROTOCOL_VERSION = 2
MAX_FRAME_BYTES = 64 * 1024 * 1024  # bytes; larger values belong in a file, not in a message
CHUNK_BYTES = (
    256 * 1024
)  # bytes of file content or output in one frame, so that nothing waits long behind it
HEADER_BYTES = 5  # bytes: length and kind
ABANDON_TARGET = "runtime.abandon"  # the target by which code tells that it waits no more for the reply to the call `call`
INPUTS_FOLDER = "/context"  # where a container has the folder of its inputs
MARKER_FILE = ".here"  # the file in it that says whose it is
BROKEN_EXIT_CODE = (
    70  # the exit code of an interpreter whose own modules were changed until they failed
)


TYPE_CHECKS: Dict[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int,
    "bool": lambda value: type(value) is bool,
    "str": lambda value: type(value) is str,
    "bytes": lambda value: type(value) is bytes,
    "Any": lambda value: True,
    "List[str]": lambda value: type(value) is list and all(type(item) is str for item in value),
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
    """Base of everything that crosses the boundary: its subclasses behave like frozen dataclasses.

    They are not, because importing `dataclasses` and running it over them is a fifth of a sandbox's start.
    """

    FIELDS: ClassVar[
        Tuple[Tuple[str, Callable[[Any], bool]], ...]
    ] = ()  # name, and whether a value fits
    FIELD_NAMES: ClassVar[Tuple[str, ...]] = ()
    HAS_PAYLOAD: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.FIELDS = tuple((name, TYPE_CHECKS[kind]) for name, kind in cls.__annotations__.items())
        cls.FIELD_NAMES = tuple(name for name, _ in cls.FIELDS)
        cls.HAS_PAYLOAD = "data" in cls.FIELD_NAMES

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(self.FIELD_NAMES):
            raise TypeError(
                f"{type(self).__name__} has {len(self.FIELD_NAMES)} fields, not {len(args)}"
            )
        values = dict(zip(self.FIELD_NAMES, args))  # noqa: B905 - `strict` is newer than Python 3.9
        for name in self.FIELD_NAMES[len(args) :]:
            if name in kwargs:
                values[name] = kwargs.pop(name)
            elif not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs {name}")
            else:
                values[name] = getattr(type(self), name)
        if kwargs:
            raise TypeError(f"{type(self).__name__} has no {', '.join(kwargs)}")
        self.__dict__.update(values)

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
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


# host -> sandbox ----------------------------------------------------------------------------------


class Setup(Message):
    """The first message: whether the sandbox has a process namespace of its own, and its limits (bytes).

    `limits` are resource limits by their name in the module `resource`, for sandboxes where no container sets any.
    """

    version: int
    has_own_processes: bool
    max_output_bytes: int
    max_value_chars: int
    max_file_bytes: int
    max_processes: (
        int  # processes and threads of the code's that the container allows; 0 where none does
    )
    max_checkpoints: int  # parked copies at most; 0: none
    max_checkpoint_bytes: (
        int  # memory that the parked copies together may take beyond the worker's own
    )
    resource_limits: Dict[str, Any]


class Execute(Message):
    """Run `code`; `name` is what tracebacks call it (`<step 3>`); the packages in `stale` are imported anew.

    All chance that the run draws follows from `seed`. `clocks` (name to readings) is told to the code before any real
    clock is asked. `park`: whether a copy of the interpreter is to be parked when the run is over. `inputs`: what
    `CONTEXT` is, each as `inputs.Input` takes it.
    """

    run_number: int
    code: str
    filename: str
    stale_packages: List[str]
    seed: str
    clock_readings: Optional[Dict[str, Any]] = None
    park: bool = True
    inputs: Optional[List[Any]] = None


class Reply(Message):
    """The answer to `Call` number `call`: a value, or the error that the code is to raise."""

    call_id: int
    value: Any = None
    error: Optional[Dict[str, Any]] = None  # keys: kind, message, data


class Interrupt(Message):
    """Raise KeyboardInterrupt in run `run`; ignored if that run is over."""

    run_number: int


class Kill(Message):
    """Kill every process of the code's and start a fresh interpreter; ignored if run `run` is over."""

    run_number: int


class WriteFile(Message):
    """Write a piece of a workspace file; the first piece has `offset` 0 and replaces what was there."""

    path: str  # relative to the workspace, with `/`
    mode: int
    offset: int
    is_last: bool
    data: bytes


class RemoveFile(Message):
    """Delete a workspace file, and the folders that become empty by that."""

    path: str


class Promote(Message):
    """Make the parked copy of run `run` the live interpreter, in place of the one that is; 0: an empty one."""

    run_number: int


# sandbox -> host ----------------------------------------------------------------------------------


class Ready(Message):
    """The kernel stands: sent once, after `Setup`. `shares` is what the mark in the folder of inputs says, if any."""

    version: int
    python_version: str
    platform: str
    inputs_marker: str = ""


class Output(Message):
    """What run `run` printed, as bytes; `dropped` counts the bytes left out before `data`."""

    run_number: int
    stream: str  # "stdout" | "stderr"
    dropped_bytes: int
    data: bytes


class Call(Message):
    """Sandboxed code asks the host for something."""

    call_id: int
    run_number: int
    target: str
    args: Dict[str, Any]
    line: Optional[int] = None  # line of the user's code that made the call, where it is known
    clock_readings: Optional[Dict[str, Any]] = (
        None  # what clocks told the code since the run's last call
    )


class FilesChanged(Message):
    """Workspace paths that run `run` changed or removed; sent before its `Done`, unless it died."""

    run_number: int
    changed: List[str]
    removed: List[str]
    skipped_count: int = (
        0  # files that are not kept: there are too many, or their names are no text
    )


class WorkerRestarted(Message):
    """The interpreter died and an empty one has taken its place; what it did to files, the next `Promoted` tells."""

    reason: str


class RunDone(Message):
    """Run `run` is over."""

    run_number: int
    status: str  # "ok" | "error" | "interrupted" | "died"
    value: Optional[Dict[str, Any]] = None  # see `present.present`
    error: Optional[Dict[str, Any]] = None  # keys: type, message, traceback
    usage: Optional[Dict[str, float]] = None  # keys: wall_ms, cpu_ms, peak_mb
    clock_readings: Optional[Dict[str, Any]] = (
        None  # what clocks told the code since its last call: name to list of readings
    )


class FileData(Message):
    """A piece of a changed workspace file, streamed after `Done`."""

    run_number: int
    path: str
    mode: int
    is_last: bool
    data: bytes


class FilesSaved(Message):
    """All `FileData` of run `run` have been sent; `skipped` names files that could not be read."""

    run_number: int
    unreadable: List[str]


class ForkParked(Message):
    """A copy of the interpreter as it was at the end of run `run` stands ready to be promoted."""

    run_number: int


class ParkFailed(Message):
    """No copy could be parked at the end of run `run`, for a reason in people's words."""

    run_number: int
    reason: str


class ForkDropped(Message):
    """The parked copy of run `run` is gone: it had to make room, or it died."""

    run_number: int


class Promoted(Message):
    """The answer to `Promote`; where it is not `ok`, that copy is not there and an empty interpreter is live.

    `changed` and `removed` are the workspace paths that differ from what the last `Files` told: traces of runs that
    died, and of background processes.
    """

    run_number: int
    ok: bool
    changed: List[str]
    removed: List[str]


MESSAGE_TYPES: Tuple[Type[Message], ...] = (
    Setup, Execute, Reply, Interrupt, Kill, WriteFile, RemoveFile, Promote,
    Ready, Output, Call, FilesChanged, RunDone, WorkerRestarted, FileData, FilesSaved, ForkParked, ParkFailed, ForkDropped, Promoted,
)  # fmt: skip
TYPE_CODES: Dict[Type[Message], int] = {cls: kind for kind, cls in enumerate(MESSAGE_TYPES)}


_dump_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_load_json = (
    json.JSONDecoder().decode
)  # bound here, so that code which replaces `json.loads` stops nothing of ours


def encode_message(message: Message) -> bytes:
    """Return `message` as one frame; raises `WireError` if it is not JSON or too large."""
    cls = type(message)
    head = dict(message.__dict__)
    payload = b"\n" + head.pop("data") if cls.HAS_PAYLOAD else b""
    try:
        text = _dump_json(head)
    except (TypeError, ValueError, RecursionError) as exc:
        raise WireError(f"{cls.__name__} cannot be sent: {exc}") from exc
    size = 1 + len(text) + len(payload)
    if size > MAX_FRAME_BYTES:
        raise WireError(f"{cls.__name__} is {size} bytes; the limit is {MAX_FRAME_BYTES}")
    return size.to_bytes(4, "big") + bytes((TYPE_CODES[cls],)) + text.encode("ascii") + payload


def decode_message(type_code: int, body: bytes) -> Message:
    """Return the message whose kind byte is `kind` and whose remaining bytes are `body`."""
    if type_code >= len(MESSAGE_TYPES):
        raise WireError(f"no message has the kind {type_code}")
    cls = MESSAGE_TYPES[type_code]
    try:
        if cls.HAS_PAYLOAD:
            text, _, payload = body.partition(b"\n")
        else:
            text, payload = body, None
        head = _load_json(text.decode("ascii"))
        if b"\\ud" in text:
            head = escape_json_surrogates(head)
        if payload is not None:
            head["data"] = payload
        message = cls(**head)
    except (ValueError, TypeError, RecursionError) as exc:
        raise WireError(f"not a {cls.__name__}: {body[:80]!r}") from exc
    for name, fits in cls.FIELDS:
        if not fits(getattr(message, name)):
            raise WireError(
                f"{cls.__name__}.{name} has the wrong type: {getattr(message, name)!r:.80}"
            )
    return message


def no_active_run_error(target: str) -> Dict[str, Any]:
    """Return the error for a call that has no run: background threads go on when theirs is over."""
    return {
        "kind": "cancelled",
        "message": f"{target}: no run is under way that could make this call",
        "data": None,
    }


def escape_surrogates(text: str) -> str:
    """Return `text` with lone surrogates spelled out, because no UTF-8 text can carry them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def escape_json_surrogates(value: Any) -> Any:
    """Return JSON data with lone surrogates spelled out in all its strings."""
    if isinstance(value, str):
        return escape_surrogates(value)
    if isinstance(value, list):
        return [escape_json_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {
            escape_json_surrogates(key): escape_json_surrogates(item) for key, item in value.items()
        }
    return value


class FrameSplitter:
    """Bytes in, whole frames out, unread; holds at most one partial frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> List[Tuple[int, bytes]]:
        """Return (kind, frame) of every frame that `data` completes; raises `WireError` on an impossible size."""
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= HEADER_BYTES:
            end = start + 4 + parse_frame_size(buffer[start : start + 4])
            if len(buffer) < end:
                break
            frames.append((buffer[start + 4], bytes(buffer[start:end])))
            start = end
        del buffer[:start]
        return frames


class MessageDecoder(FrameSplitter):
    """Bytes in, messages out."""

    def decode_messages(self, data: bytes) -> List[Message]:
        """Return the messages that `data` completes; raises `WireError` on bytes that are not a message."""
        return [decode_message(kind, frame[HEADER_BYTES:]) for kind, frame in self.feed(data)]


def parse_frame_size(prefix: Union[bytes, bytearray]) -> int:
    """Return the size that a frame's first four bytes announce; raises `WireError` if it is out of bounds."""
    size = int.from_bytes(prefix, "big")
    if not 1 <= size <= MAX_FRAME_BYTES:
        raise WireError(f"a frame of {size} bytes; the limit is {MAX_FRAME_BYTES}")
    return size
