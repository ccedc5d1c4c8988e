"""What is printed is harmless, fits, and says what is missing."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mcpruntime_server.cli.console import (
    HEAD_LINES,
    TAIL_LINES,
    ConsoleWriter,
    format_duration,
    format_size,
    pad_text,
    truncate_to_columns,
)
from mcpruntime_server.cli.terminal_text import escape_lines, escape_text
from mcpruntime_server.protocol.presentation import format_stored_call

ANY = st.text(st.characters())


@given(ANY)
def test_safe_text_prints_on_one_line(text: str) -> None:
    assert escape_text(text).isprintable()
    assert all(line.isprintable() for line in escape_lines(text))


@given(ANY, st.integers(1, 40))
def test_fitted_text_has_the_room_that_it_is_given(text: str, room: int) -> None:
    assert cell_len(truncate_to_columns(escape_text(text), room)) <= room
    assert cell_len(pad_text(escape_text(text), room)) == room


@given(ANY)
def test_a_program_is_shown_whatever_it_is(code: str) -> None:
    written = io.StringIO()
    written.isatty = lambda: True  # type: ignore[method-assign]
    ConsoleWriter(written, show_full=True).write_program(code)
    assert written.getvalue().count("\n") >= len(escape_lines(code))


def test_long_texts_say_how_much_of_them_is_missing() -> None:
    written = io.StringIO()
    screen = ConsoleWriter(written)
    screen.write_block("stdout", "".join(f"{n}\n" for n in range(1000)))
    screen.write_block("stdout", "x" * 5000)
    screen.write_program("".join(f"x = {n}\n" for n in range(1000)))
    lines = written.getvalue().splitlines()
    assert len(lines) == 2 * (HEAD_LINES + TAIL_LINES + 1) + 1 + 2
    assert "    │ … 960 more lines …" in lines
    assert lines[HEAD_LINES + TAIL_LINES + 3].endswith("… 3,000 more characters")
    screen.write_footer()
    assert "--full" in written.getvalue()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (123_456_789, "123 MB")]
)
def test_sizes_are_short(count: int, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.0123, "12 ms"), (1.25, "1.2 s"), (600, "10 min")]
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ('{"a":1,"b":"é"}', "t.f(a=1, b='é')"),
        ("{}", "t.f()"),
        ("[1", "t.f([1)"),
        ("[1]", "t.f([1])"),
    ],
)
def test_a_call_is_shown_as_python_has_it(args: str, text: str) -> None:
    assert format_stored_call("tools.t.f", args, 200) == text
