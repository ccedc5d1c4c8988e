"""Calls with large arguments are read in a process of their own; only their text comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mcpruntime_server.capabilities.large_calls import MAX_SHOWN_CHARS, LargeCalls, open_large_calls
from mcpruntime_server.journal.events import (
    EncodedArguments,
    canonical_json,
    encode_json,
    find_encoded,
)
from mcpruntime_server.protocol import wire
from mcpruntime_server.runtime.call_journal import digest_args
from mcpruntime_server.runtime.call_ledger import MAX_CALL_CHARS, LedgerEntry

LONG = "x" * 300_000


@pytest.fixture(scope="module")
async def calls() -> AsyncIterator[LargeCalls]:
    async with open_large_calls() as reader:
        yield reader


def encode(args: Any, **fields: Any) -> bytes:
    """Return the body of a frame with a call."""
    frame = wire.encode_message(wire.Call(3, 1, "tools.x.echo", args, **fields))
    return frame[wire.HEADER_BYTES :]


async def read_encoded(calls: LargeCalls, body: bytes) -> tuple[wire.Call, EncodedArguments]:
    call = await calls.read(body)
    encoded = find_encoded(call.args)
    assert encoded is not None
    return call, encoded


@pytest.mark.parametrize(
    "args",
    [
        {"text": LONG, "b": None, "a": True},
        {"text": '\n"\\\u20ac\U0001f600' * 50_000},
        {"list": [0.1, 1e22, -0.0, 2**80, {"b": {}, "a": []}] * 9_000},
        {"half": "a\ud800b" * 50_000, "\udfff": 1},
    ],
    ids=["text", "escapes", "numbers", "halves of characters"],
)
async def test_what_is_read_is_what_the_link_would_decode(calls: LargeCalls, args: Any) -> None:
    body = encode(args, line=5, clock_readings={"time": [1.5]}, order=2)
    call, encoded = await read_encoded(calls, body)
    plain = wire.decode_message(wire.TYPE_CODES[wire.Call], body)
    assert isinstance(plain, wire.Call)
    text = canonical_json(plain.args)
    assert encoded.data.decode() == text
    assert encoded.journaled.decode() == encode_json(text)
    assert encoded.digest == digest_args(text)
    assert dict(encoded) == plain.args
    assert call.replace(args=plain.args) == plain


async def test_what_a_client_sees_is_what_it_would_see_of_decoded_arguments(
    calls: LargeCalls,
) -> None:
    args = {"text": LONG, "list": [[1] * 5] * 9_000}
    call, _ = await read_encoded(calls, encode(args))
    entry = LedgerEntry(call.target, call.args)
    assert MAX_SHOWN_CHARS == MAX_CALL_CHARS
    assert entry.format() == LedgerEntry(call.target, args).format()
    entry.forget_large_args()
    assert (entry.args, entry.shown) == ({}, entry.format())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"call_id":1}' + b" " * 300_000, "needs run_number"),
        (b"[" * 300_000, "has more than 100,000 values"),
        (encode({"a": LONG}).replace(b"}", b"}}", 1), "not a Call"),
        (encode({"a": LONG}).replace(b'"a":', b'"a":' + b"[" * 200), "not a Call"),
    ],
    ids=["missing fields", "brackets", "no JSON", "depth"],
)
async def test_what_is_no_call_breaks_the_protocol(
    calls: LargeCalls, body: bytes, message: str
) -> None:
    with pytest.raises(wire.WireError, match=message):
        await calls.read(body)
    await read_encoded(calls, encode({"a": LONG}))


async def test_calls_that_are_not_passed_on_as_text_are_decoded_here(calls: LargeCalls) -> None:
    many = {f"p{n}": n for n in range(30_000)}
    for body in (
        encode(many),
        encode({"a": LONG}, clock_readings={"time": [1.5] * 2_000}),
        encode({"a": 1}).replace(b'"a":1', b'"a":1e999,"b":"' + LONG.encode() + b'"'),
    ):
        call = await calls.read(body)
        assert find_encoded(call.args) is None
        assert call == wire.decode_message(wire.TYPE_CODES[wire.Call], body)


async def test_it_goes_on_after_its_process_has_ended(calls: LargeCalls) -> None:
    await read_encoded(calls, encode({"a": LONG}))
    process = calls._process._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    await read_encoded(calls, encode({"a": LONG}))
