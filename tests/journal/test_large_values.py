"""Large data is encoded in pieces, and the result is that of the encoder."""

from __future__ import annotations

from time import thread_time
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.journal import large_values
from mcpruntime_server.journal.events import EncodedJson, encode_json
from mcpruntime_server.journal.large_values import (
    MAX_TURN_CHARS,
    encode_if_large,
    encode_in_turns,
    iter_encoded,
    measure_json,
)

LARGE: dict[str, Any] = {
    "a text": 'a"\n\u20ac\U0001f600\ud800' * 100_000,
    "a member": {"value": "x" * 500_000, "usage": {"calls": 1}},
    "members": {f"name {n}": n for n in range(50_000)},
    "items": [[], {}, "", None, True, 1.5, -1, "\\"] * 20_000,
    "numbers": list(range(200_000)),
    "texts": ["y" * 3_000] * 300,
    "a long name": {"n" * 100_000: ["z" * 100_000], "": [[]]},
}


@pytest.mark.parametrize("name", LARGE)
async def test_pieces_are_together_what_the_encoder_writes(name: str) -> None:
    encoded = await encode_in_turns(LARGE[name])
    assert encoded.data.decode("ascii") == encode_json(LARGE[name])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(JSON)
def test_small_pieces_are_together_what_the_encoder_writes(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_values, "PIECE_CHARS", 8)
        patch.setattr(large_values, "PIECE_ITEMS", 2)
        assert "".join(iter_encoded(value)) == encode_json(value)


async def test_others_have_turns_while_a_text_is_encoded() -> None:
    turns = []

    async def count() -> None:
        while True:
            turns.append(thread_time())
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        await encode_in_turns('"' * 8_000_000)
        tasks.cancel_scope.cancel()
    assert len(turns) > 5


async def test_only_large_data_is_encoded() -> None:
    values: list[Any] = [None, "x" * MAX_TURN_CHARS, [1], {}]
    for small in values:
        assert await encode_if_large(small) is small
    encoded = EncodedJson(b"1")
    assert await encode_if_large(encoded) is encoded
    assert isinstance(await encode_if_large([{"k": 1}] * 5_000), EncodedJson)  # takes as long
    large = await encode_if_large("x" * (MAX_TURN_CHARS + 1))
    assert isinstance(large, EncodedJson)
    assert large.decode() == "x" * (MAX_TURN_CHARS + 1)


@pytest.mark.parametrize("value", [float("nan"), object(), {1: 2}.keys()])
async def test_what_is_not_json_is_refused(value: Any) -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    for large in (["x" * MAX_TURN_CHARS, value], [nested] * 2):
        with pytest.raises(ValueError, match="not JSON data"):
            await encode_in_turns(large)


def test_the_size_of_data_is_about_that_of_its_text() -> None:
    for value in (*LARGE.values(), [], {"a": [1]}, ["x"] * 5):
        assert measure_json(value, 10**9) <= 8 * len(encode_json(value))
        assert len(encode_json(value)) <= 12 * measure_json(value, 10**9) + 100
    assert measure_json(list(range(10**6)), 1_000) > 1_000
