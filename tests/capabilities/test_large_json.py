"""Large JSON is read in a process of its own, and is what the parser here would find."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mcpruntime_server.capabilities.large_json import LargeJson, open_large_json
from mcpruntime_server.journal.events import decode_json

LONG = 'a"\n\u20ac\U0001f600' * 1_000
VALUES = {
    "a message": {"params": {"name": "x", "arguments": {"code": LONG, "n": [1, {"b": LONG}]}}},
    "a text": LONG,
    "texts": [LONG, "", LONG, [LONG], {"": LONG}],
    "no long text": {"a": [1.5, None, True, "b"] * 100},
    "halves of characters": {"a": "\ud800" * 2_000, "b": "\udfff"},
    "a long name": {LONG: LONG},
    "nothing": [],
}


@pytest.fixture(scope="module")
async def reader() -> AsyncIterator[LargeJson]:
    async with open_large_json() as opened:
        yield opened


@pytest.mark.parametrize("name", VALUES)
async def test_what_is_read_is_what_the_parser_finds(reader: LargeJson, name: str) -> None:
    text = json.dumps(VALUES[name])
    assert await reader.decode(text.encode()) == decode_json(text)


async def test_only_texts_in_some_parameters_are_taken_out(reader: LargeJson) -> None:
    data = {"a": LONG, "params": {"arguments": {"code": LONG}, "_meta": {"b": LONG}, "name": LONG}}
    split = await reader.split(json.dumps(data).encode(), ("arguments", "inputResponses"))
    rest = json.loads(split.rest)
    assert rest["params"]["arguments"] == {"code": ""}
    assert [text for _, text in split.texts] == [LONG]
    assert split.fill_in(rest) == data
    others: list[Any] = [[], 1, {"params": []}, {"params": {"arguments": LONG}}]
    for other in others:
        whole = await reader.split(json.dumps(other).encode(), ("arguments",))
        assert (json.loads(whole.rest), whole.texts) == (other, [])


async def test_a_request_has_no_long_names_and_no_other_long_texts(reader: LargeJson) -> None:
    long = "x" * 70_000
    params: Any
    for params in ({"arguments": {long: 1}}, {"_meta": {"a": long}}, {"arguments": [{long: []}]}):
        text = json.dumps({"params": params}).encode()
        assert (await reader.split(text, ("arguments",))).rest == b""
        assert await reader.decode(text) == {"params": params}


@pytest.mark.parametrize("text", [b"", b"[" * 300_000, b'{"a":', b"9" * 100_000, b"\xff", b'"'])
async def test_what_is_not_json_is_refused(reader: LargeJson, text: bytes) -> None:
    assert (await reader.split(text)).rest == b""
    with pytest.raises(ValueError, match="Expecting value"):
        await reader.decode(text)


async def test_json_is_read_though_the_process_has_ended() -> None:
    async with open_large_json() as reader:
        assert await reader.decode(b'["a"]') == ["a"]
        process: Any = reader._process._process
        os.kill(process.pid, signal.SIGKILL)
        assert await reader.decode(json.dumps([LONG]).encode()) == [LONG]
