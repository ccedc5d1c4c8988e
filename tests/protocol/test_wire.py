"""The wire, fed with everything: whole frames, frames in pieces, damaged frames, noise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.protocol import wire

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
INTEGERS = st.integers(-(2**70), 2**70)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=4)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "int": INTEGERS,
    "bool": st.booleans(),
    "str": TEXT,
    "bytes": st.binary(max_size=200),
    "Any": JSON,
    "List[str]": st.lists(TEXT, max_size=4),
    "Optional[List[Any]]": st.none() | st.lists(JSON, max_size=4),
    "Dict[str, Any]": OBJECTS,
    "Optional[int]": st.none() | INTEGERS,
    "Optional[Dict[str, Any]]": st.none() | OBJECTS,
    "Optional[Dict[str, float]]": st.none()
    | st.dictionaries(TEXT, st.integers(0, 99) | st.floats(0, 1), max_size=3),
}


# of messages that the sandbox sends: the host accepts no others
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1)
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map(
    "/".join
)
LIMITED_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "path": PATHS,
    "changed": st.lists(PATHS),
    "removed": st.lists(PATHS),
    "unreadable": st.lists(PATHS),
    "stream": st.sampled_from(wire.OUTPUT_STREAMS),
    "dropped_bytes": st.integers(0, wire.MAX_DROPPED_BYTES),
    "call_id": st.integers(0, wire.MAX_CALL_ID - 1),
    "order": st.integers(0, wire.MAX_CALL_ORDER - 1),
    "line": st.none() | st.integers(0, wire.MAX_LINE - 1),
}


def a_message(cls: type[wire.Message]) -> st.SearchStrategy[wire.Message]:
    parts = {name: FIELDS[str(annotation)] for name, annotation in cls.__annotations__.items()}
    parts |= {name: limited for name, limited in LIMITED_FIELDS.items() if name in parts}
    return st.fixed_dictionaries(parts).map(lambda fields: cls(**fields))


MESSAGES = st.one_of(*map(a_message, wire.MESSAGE_TYPES))


@st.composite
def in_pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Cut `data` anywhere, any number of times."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(MESSAGES)
def test_every_message_comes_back_as_it_was(message: wire.Message) -> None:
    assert wire.MessageDecoder().decode_messages(wire.encode_message(message)) == [message]


@given(st.lists(MESSAGES, max_size=5), st.data())
def test_frames_may_arrive_in_any_pieces(messages: list[wire.Message], data: st.DataObject) -> None:
    decoder = wire.MessageDecoder()
    pieces = data.draw(in_pieces(b"".join(map(wire.encode_message, messages))))
    assert [message for piece in pieces for message in decoder.decode_messages(piece)] == messages


@given(st.lists(MESSAGES, max_size=3), st.data())
def test_frames_pass_through_a_splitter_untouched(
    messages: list[wire.Message], data: st.DataObject
) -> None:
    sent = b"".join(map(wire.encode_message, messages))
    splitter = wire.FrameSplitter()
    frames = [frame for piece in data.draw(in_pieces(sent)) for frame in splitter.feed(piece)]
    assert b"".join(frame for _, frame in frames) == sent
    assert [kind for kind, _ in frames] == [wire.TYPE_CODES[type(message)] for message in messages]


@given(MESSAGES, st.data())
def test_a_damaged_frame_is_a_message_or_an_error_and_nothing_else(
    message: wire.Message, data: st.DataObject
) -> None:
    frame = bytearray(wire.encode_message(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    check_fed(bytes(frame))


@given(st.binary(max_size=300))
def test_noise_is_a_message_or_an_error_and_nothing_else(noise: bytes) -> None:
    check_fed(noise)


@given(st.integers(0, 20), JSON, st.binary(max_size=50))
def test_a_frame_of_any_json_is_a_message_or_an_error_and_nothing_else(
    kind: int, head: Any, payload: bytes
) -> None:
    body = bytes([kind]) + json.dumps(head).encode() + b"\n" * bool(payload) + payload
    check_fed(len(body).to_bytes(4, "big") + body)


def check_fed(data: bytes) -> None:
    """Feed `data`; each message that results has the declared types and can be sent again."""
    try:
        found = wire.MessageDecoder().decode_messages(data)
    except wire.WireError:
        return
    for message in found:
        assert all(fits(getattr(message, name)) for name, fits in message.FIELDS)
        try:
            again = wire.encode_message(message)
        except wire.WireError:  # NaN can be read, and is refused by whoever takes it for a number
            assert "nan" in repr(message).lower() or "inf" in repr(message).lower()
        else:
            assert wire.MessageDecoder().decode_messages(again) == [message]


@given(MESSAGES, st.data())
def test_an_incomplete_frame_waits_for_the_rest(message: wire.Message, data: st.DataObject) -> None:
    frame = wire.encode_message(message)
    end = data.draw(st.integers(0, len(frame) - 1))
    decoder = wire.MessageDecoder()
    assert decoder.decode_messages(frame[:end]) == []
    assert decoder.decode_messages(frame[end:]) == [message]


@given(st.just(0) | st.integers(wire.MAX_FRAME_BYTES + 1, 2**32 - 1))
def test_an_impossible_size_is_refused_before_anything_is_buffered(size: int) -> None:
    with pytest.raises(wire.WireError, match="the limit is"):
        wire.FrameSplitter().feed(size.to_bytes(4, "big") + b"x")


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1, 2}, b"bytes", object(), [[...]]],
    ids=["nan", "infinity", "set", "bytes", "object", "ellipsis"],
)
def test_what_is_not_json_cannot_be_sent(value: Any) -> None:
    with pytest.raises(wire.WireError, match="cannot be sent"):
        wire.encode_message(wire.Reply(1, value))


def test_cycles_and_depth_cannot_be_sent() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (cycle, deep):
        with pytest.raises(wire.WireError):
            wire.encode_message(wire.Reply(1, value))


def test_a_message_beyond_the_limit_cannot_be_sent() -> None:
    with pytest.raises(wire.WireError, match="the limit is"):
        wire.encode_message(wire.Reply(1, "x" * wire.MAX_FRAME_BYTES))


def test_a_lone_surrogate_arrives_as_its_escape() -> None:
    sent = wire.Call(1, 1, "t", {"\ud800": ["\udfff", "\U0001f600"]})
    [found] = wire.MessageDecoder().decode_messages(wire.encode_message(sent))
    assert found == wire.Call(1, 1, "t", {"\\ud800": ["\\udfff", "\U0001f600"]})


def test_json_that_is_nested_too_deeply_is_an_error() -> None:
    head = b'{"call":1,"value":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    body = bytes([wire.TYPE_CODES[wire.Reply]]) + head
    with pytest.raises(wire.WireError):
        wire.MessageDecoder().decode_messages(len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize(
    "message",
    [
        wire.Output(1, "other", 0, b""),
        wire.Output(1, "stdout", -1, b""),
        wire.Output(1, "stdout", 1 << 60, b""),
        wire.Call(-1, 1, "tools.x", {}),
        wire.Call(1 << 70, 1, "tools.x", {}),
        wire.Call(1, 1, "tools.x", {}, 10**4000),
        wire.Call(1, 1, "t" * 2_000, {}),
        wire.FilesChanged(1, ["a//b"], []),
        wire.FilesChanged(1, [], [""]),
        wire.FilesChanged(1, [], ["ok", "../up"]),
        wire.FilesChanged(1, ["x" * 5_000], []),
        wire.FilesSaved(1, ["a/."]),
    ],
)
def test_what_no_honest_sandbox_says_is_no_message(message: wire.Message) -> None:
    fields = dict(vars(message))
    payload = b"\n" + fields.pop("data") if "data" in fields else b""
    body = bytes([wire.TYPE_CODES[type(message)]]) + json.dumps(fields).encode() + payload
    with pytest.raises(wire.WireError):
        wire.MessageDecoder().decode_messages(len(body).to_bytes(4, "big") + body)


def test_a_field_with_a_long_name_is_quoted_in_part() -> None:
    body = json.dumps({"run_number": 1, "f" * 60_000: 1}).encode()
    with pytest.raises(wire.WireError, match="not a WorkerRestarted") as caught:
        wire.decode_message(wire.TYPE_CODES[wire.WorkerRestarted], body)
    assert len(str(caught.value)) < 500


def test_many_paths_are_taken() -> None:
    paths = [f"folder {n}/..x/.y/{n}.txt" for n in range(10_000)]
    message = wire.FilesChanged(1, paths, ["a", "..."])
    assert wire.MessageDecoder().decode_messages(wire.encode_message(message)) == [message]


def test_a_value_that_is_encoded_already_is_sent_as_it_is() -> None:
    value = {"a": [1, "\u20ac"]}
    encoded = wire.EncodedValue(json.dumps(value).encode())
    [reply] = wire.MessageDecoder().decode_messages(wire.encode_message(wire.Reply(7, encoded)))
    assert reply == wire.Reply(7, value)
    with pytest.raises(wire.WireError, match="the limit is"):
        wire.encode_message(wire.Reply(7, wire.EncodedValue(b"1" * wire.MAX_FRAME_BYTES)))
