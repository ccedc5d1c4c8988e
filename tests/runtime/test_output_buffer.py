"""Output is decoded, bounded, journaled once, and read from any position."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.journal.events import OutputWritten
from mcpruntime_server.protocol import wire
from mcpruntime_server.runtime.output_buffer import OUTPUT_OVERHEAD_BYTES, OutputBuffer


def buffer(
    recorded: dict[str, str] | None = None, max_bytes: int = 100
) -> tuple[OutputBuffer, list[OutputWritten]]:
    """Return a buffer and the events that it appends."""
    events: list[OutputWritten] = []
    return OutputBuffer(events.append, max_bytes, recorded or {}), events


def output(data: bytes, stream: str = "stdout", dropped: int = 0) -> wire.Output:
    return wire.Output(1, stream, dropped, data)


@given(st.lists(st.text()), st.integers(0, 100))
def test_text_is_read_from_any_position(texts: list[str], position: int) -> None:
    out, _ = buffer(max_bytes=1_000_000)
    for text in texts:
        out.receive_output(output(text.encode("utf-8", "backslashreplace")))
    whole = out.stream_text("stdout")
    assert out.read_from({"stdout": position})["stdout"] == whole[position:]
    assert out.positions() == {"stdout": len(whole), "stderr": 0}
    assert out.has_output_since({"stdout": position}) == (len(whole) > position)


@given(st.text(), st.data())
def test_a_character_that_is_split_between_messages_is_joined(
    text: str, data: st.DataObject
) -> None:
    encoded = text.encode("utf-8", "surrogatepass")
    split = data.draw(st.integers(0, len(encoded)))
    out, events = buffer(max_bytes=1_000_000)
    out.receive_output(output(encoded[:split]))
    out.receive_output(output(encoded[split:]))
    out.close()
    expected = encoded.decode("utf-8", "backslashreplace")
    assert out.stream_text("stdout") == expected
    assert "".join(event.text for event in events) == expected


def test_output_that_the_journal_has_is_not_written_again() -> None:
    out, events = buffer({"stdout": "one\ntwo\n"})
    out.receive_output(output(b"one\n"))
    out.receive_output(output(b"two\nthree\n"))
    assert [event.text for event in events] == ["three\n"]
    assert not out.differs_from_recording
    assert out.stream_text("stdout") == "one\ntwo\nthree\n"


def test_output_that_differs_from_the_journal_is_written_and_noted() -> None:
    out, events = buffer({"stdout": "one\n"})
    out.receive_output(output(b"other\n"))
    assert [event.text for event in events] == ["other\n"]
    assert out.differs_from_recording


def test_dropped_bytes_are_noted_in_the_text_and_the_journal() -> None:
    out, events = buffer()
    out.receive_output(output(b"", dropped=1234))
    assert "1,234 bytes of output dropped" in out.stream_text("stdout")
    assert [event.dropped_bytes for event in events] == [1234]


def test_more_output_than_the_worker_lets_through_breaks_the_protocol() -> None:
    out, _ = buffer(max_bytes=0)
    with pytest.raises(wire.WireError, match="more output"):
        out.receive_output(output(bytes(2 * OUTPUT_OVERHEAD_BYTES + 1)))


def test_a_flood_of_notes_on_dropped_bytes_leaves_few_in_text_and_journal() -> None:
    out, events = buffer(max_bytes=1_000_000)
    for _ in range(1_000):
        out.receive_output(output(b"", dropped=1))
    out.close()
    assert "992 bytes of output dropped" in out.stream_text("stdout")
    assert len(events) < 12


@pytest.mark.parametrize("data", [b"\xff" * 50_000, b"text " * 10_000])
def test_output_beyond_the_limit_is_dropped_and_counted(data: bytes) -> None:
    out, events = buffer(max_bytes=0)
    for _ in range(40):
        out.receive_output(output(data))
    out.close()
    text = out.stream_text("stdout")
    assert len(text) <= OUTPUT_OVERHEAD_BYTES + 60
    assert text.endswith("bytes of output dropped: limit reached]\n")
    assert "".join(event.text for event in events) == text
