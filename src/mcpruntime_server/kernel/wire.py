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
    from typing import Any, Callable, ClassVar, Dict, List, Optional, Tuple, Type, TypeVar, Union, dataclass_transform

    M = TypeVar("M", bound="Message")
else:

    def dataclass_transform(**_):
        return lambda cls: cls


VERSION = 2
MAX_FRAME = 64 * 1024 * 1024  # bytes; larger values belong in a file, not in a message
CHUNK = 256 * 1024  # bytes of file content or output in one frame, so that nothing waits long behind it
HEADER = 5  # bytes: length and kind
ABANDON = "runtime.abandon"  # the target by which code tells that it waits no more for the reply to the call `call`
INPUTS = "/context"  # where a container has the folder of its inputs
MARK = ".here"  # the file in it that says whose it is
BROKEN = 70  # the exit code of an interpreter whose own modules were changed until they failed


CHECKS: Dict[str, Callable[[Any], bool]] = {
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
        value is None or (type(value) is dict and all(type(item) in (int, float) for item in value.values()))
    ),
}


class WireError(Exception):
    """The peer sent bytes that are not a message, or a message was too large to send."""


@dataclass_transform(frozen_default=True)
class Message:
    """Base of everything that crosses the boundary: its subclasses behave like frozen dataclasses.

    They are not, because importing `dataclasses` and running it over them is a fifth of a sandbox's start.
    """

    FIELDS: ClassVar[Tuple[Tuple[str, Callable[[Any], bool]], ...]] = ()  # name, and whether a value fits
    NAMES: ClassVar[Tuple[str, ...]] = ()
    CARRIES_DATA: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.FIELDS = tuple((name, CHECKS[kind]) for name, kind in cls.__annotations__.items())
        cls.NAMES = tuple(name for name, _ in cls.FIELDS)
        cls.CARRIES_DATA = "data" in cls.NAMES

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(self.NAMES):
            raise TypeError(f"{type(self).__name__} has {len(self.NAMES)} fields, not {len(args)}")
        values = dict(zip(self.NAMES, args))  # noqa: B905 - `strict` is newer than Python 3.9
        for name in self.NAMES[len(args) :]:
            if name in kwargs:
                values[name] = kwargs.pop(name)
            elif not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs {name}")
            else:
                values[name] = getattr(type(self), name)
        if kwargs:
            raise TypeError(f"{type(self).__name__} has no {', '.join(kwargs)}")
        self.__dict__.update(values)

    def but(self: M, **changes: Any) -> M:
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
    contained: bool
    output_limit: int
    value_limit: int
    workspace_limit: int
    process_limit: int  # processes and threads of the code's that the container allows; 0 where none does
    checkpoints: int  # parked copies at most; 0: none
    checkpoint_bytes: int  # memory that the parked copies together may take beyond the worker's own
    limits: Dict[str, Any]


class Execute(Message):
    """Run `code`; `name` is what tracebacks call it (`<step 3>`); the packages in `stale` are imported anew.

    All chance that the run draws follows from `seed`. `clocks` (name to readings) is told to the code before any real
    clock is asked. `park`: whether a copy of the interpreter is to be parked when the run is over. `inputs`: what
    `CONTEXT` is, each as `inputs.Input` takes it.
    """

    run: int
    code: str
    name: str
    stale: List[str]
    seed: str
    clocks: Optional[Dict[str, Any]] = None
    park: bool = True
    inputs: Optional[List[Any]] = None


class Reply(Message):
    """The answer to `Call` number `call`: a value, or the error that the code is to raise."""

    call: int
    value: Any = None
    error: Optional[Dict[str, Any]] = None  # keys: kind, message, data


class Interrupt(Message):
    """Raise KeyboardInterrupt in run `run`; ignored if that run is over."""

    run: int


class Kill(Message):
    """Kill every process of the code's and start a fresh interpreter; ignored if run `run` is over."""

    run: int


class Put(Message):
    """Write a piece of a workspace file; the first piece has `offset` 0 and replaces what was there."""

    path: str  # relative to the workspace, with `/`
    mode: int
    offset: int
    last: bool
    data: bytes


class Remove(Message):
    """Delete a workspace file, and the folders that become empty by that."""

    path: str


class Promote(Message):
    """Make the parked copy of run `run` the live interpreter, in place of the one that is; 0: an empty one."""

    run: int


# sandbox -> host ----------------------------------------------------------------------------------


class Ready(Message):
    """The kernel stands: sent once, after `Setup`. `shares` is what the mark in the folder of inputs says, if any."""

    version: int
    python: str
    platform: str
    shares: str = ""


class Output(Message):
    """What run `run` printed, as bytes; `dropped` counts the bytes left out before `data`."""

    run: int
    stream: str  # "stdout" | "stderr"
    dropped: int
    data: bytes


class Call(Message):
    """Sandboxed code asks the host for something."""

    id: int
    run: int
    target: str
    args: Dict[str, Any]
    line: Optional[int] = None  # line of the user's code that made the call, where it is known
    clocks: Optional[Dict[str, Any]] = None  # what clocks told the code since the run's last call


class Files(Message):
    """Workspace paths that run `run` changed or removed; sent before its `Done`, unless it died."""

    run: int
    changed: List[str]
    removed: List[str]
    passed_over: int = 0  # files that are not kept: there are too many, or their names are no text


class Restarted(Message):
    """The interpreter died and an empty one has taken its place; what it did to files, the next `Promoted` tells."""

    reason: str


class Done(Message):
    """Run `run` is over."""

    run: int
    status: str  # "ok" | "error" | "interrupted" | "died"
    value: Optional[Dict[str, Any]] = None  # see `present.present`
    error: Optional[Dict[str, Any]] = None  # keys: type, message, traceback
    usage: Optional[Dict[str, float]] = None  # keys: wall_ms, cpu_ms, peak_mb
    clocks: Optional[Dict[str, Any]] = None  # what clocks told the code since its last call: name to list of readings


class FileData(Message):
    """A piece of a changed workspace file, streamed after `Done`."""

    run: int
    path: str
    mode: int
    last: bool
    data: bytes


class Saved(Message):
    """All `FileData` of run `run` have been sent; `skipped` names files that could not be read."""

    run: int
    skipped: List[str]


class Parked(Message):
    """A copy of the interpreter as it was at the end of run `run` stands ready to be promoted."""

    run: int


class Unparkable(Message):
    """No copy could be parked at the end of run `run`, for a reason in people's words."""

    run: int
    reason: str


class Dropped(Message):
    """The parked copy of run `run` is gone: it had to make room, or it died."""

    run: int


class Promoted(Message):
    """The answer to `Promote`; where it is not `ok`, that copy is not there and an empty interpreter is live.

    `changed` and `removed` are the workspace paths that differ from what the last `Files` told: traces of runs that
    died, and of background processes.
    """

    run: int
    ok: bool
    changed: List[str]
    removed: List[str]


KINDS: Tuple[Type[Message], ...] = (
    Setup, Execute, Reply, Interrupt, Kill, Put, Remove, Promote,
    Ready, Output, Call, Files, Done, Restarted, FileData, Saved, Parked, Unparkable, Dropped, Promoted,
)  # fmt: skip
KIND_OF: Dict[Type[Message], int] = {cls: kind for kind, cls in enumerate(KINDS)}


_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_parse = json.JSONDecoder().decode  # bound here, so that code which replaces `json.loads` stops nothing of ours


def encode(message: Message) -> bytes:
    """Return `message` as one frame; raises `WireError` if it is not JSON or too large."""
    cls = type(message)
    head = dict(message.__dict__)
    payload = b"\n" + head.pop("data") if cls.CARRIES_DATA else b""
    try:
        text = _json(head)
    except (TypeError, ValueError, RecursionError) as exc:
        raise WireError(f"{cls.__name__} cannot be sent: {exc}") from exc
    size = 1 + len(text) + len(payload)
    if size > MAX_FRAME:
        raise WireError(f"{cls.__name__} is {size} bytes; the limit is {MAX_FRAME}")
    return size.to_bytes(4, "big") + bytes((KIND_OF[cls],)) + text.encode("ascii") + payload


def decode(kind: int, body: bytes) -> Message:
    """Return the message whose kind byte is `kind` and whose remaining bytes are `body`."""
    if kind >= len(KINDS):
        raise WireError(f"no message has the kind {kind}")
    cls = KINDS[kind]
    try:
        if cls.CARRIES_DATA:
            text, _, payload = body.partition(b"\n")
        else:
            text, payload = body, None
        head = _parse(text.decode("ascii"))
        if b"\\ud" in text:
            head = spelled_out(head)
        if payload is not None:
            head["data"] = payload
        message = cls(**head)
    except (ValueError, TypeError, RecursionError) as exc:
        raise WireError(f"not a {cls.__name__}: {body[:80]!r}") from exc
    for name, fits in cls.FIELDS:
        if not fits(getattr(message, name)):
            raise WireError(f"{cls.__name__}.{name} has the wrong type: {getattr(message, name)!r:.80}")
    return message


def too_late(target: str) -> Dict[str, Any]:
    """Return the error for a call that has no run: background threads go on when theirs is over."""
    return {"kind": "cancelled", "message": f"{target}: no run is under way that could make this call", "data": None}


def printable(text: str) -> str:
    """Return `text` with lone surrogates spelled out, because no UTF-8 text can carry them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def spelled_out(value: Any) -> Any:
    """Return JSON data with lone surrogates spelled out in all its strings."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [spelled_out(item) for item in value]
    if isinstance(value, dict):
        return {spelled_out(key): spelled_out(item) for key, item in value.items()}
    return value


class Splitter:
    """Bytes in, whole frames out, unread; holds at most one partial frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> List[Tuple[int, bytes]]:
        """Return (kind, frame) of every frame that `data` completes; raises `WireError` on an impossible size."""
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= HEADER:
            end = start + 4 + frame_size(buffer[start : start + 4])
            if len(buffer) < end:
                break
            frames.append((buffer[start + 4], bytes(buffer[start:end])))
            start = end
        del buffer[:start]
        return frames


class Decoder(Splitter):
    """Bytes in, messages out."""

    def messages(self, data: bytes) -> List[Message]:
        """Return the messages that `data` completes; raises `WireError` on bytes that are not a message."""
        return [decode(kind, frame[HEADER:]) for kind, frame in self.feed(data)]


def frame_size(prefix: Union[bytes, bytearray]) -> int:
    """Return the size that a frame's first four bytes announce; raises `WireError` if it is out of bounds."""
    size = int.from_bytes(prefix, "big")
    if not 1 <= size <= MAX_FRAME:
        raise WireError(f"a frame of {size} bytes; the limit is {MAX_FRAME}")
    return size
