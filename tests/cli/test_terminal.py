"""Colour changes how a program looks and nothing of what it says."""

from __future__ import annotations

import re

import pytest

from mcpruntime_server.cli.terminal import STYLES, apply_style, highlight_python

ESCAPE = re.compile("\033\\[[0-9]+m")


@pytest.mark.parametrize(
    "code",
    [
        "",
        "x = 1  # one",
        'f"{{x}} {1:{2}}"',
        'if x: """a\n b"""',
        "x = (",
        "no python at all '",
        "\ttab\n  wrong",
        "\0",
        "x\x0cy",
    ],
)
def test_painting_a_program_keeps_every_character_of_it(code: str) -> None:
    lines = code.split("\n")
    assert [ESCAPE.sub("", line) for line in highlight_python(lines, apply_style)] == lines


def test_keywords_strings_numbers_and_comments_are_told_apart() -> None:
    [line] = highlight_python(["return 'a', 1  # why"], lambda text, style: f"<{style}:{text}>")
    assert line == "<magenta:return> <green:'a'>, <yellow:1>  <dim:# why>"


def test_a_style_ends_where_its_text_ends() -> None:
    assert apply_style("x", "bold") == f"\033[{STYLES['bold']}mx\033[0m"
    assert apply_style("", "bold") == ""
    assert apply_style("x", "") == "x"
