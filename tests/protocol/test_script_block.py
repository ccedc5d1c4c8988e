"""The block at the top of a script is what PEP 723 says, in linear time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.protocol.script_block import find_script_block

# As PEP 723 has it, for the type `script`.
REFERENCE = re.compile(r"(?m)^# /// script$\s(?P<content>(?:^#(?:| .*)$\s)+)^# ///$")
LINES = st.sampled_from(["# /// script", "# ///", "#", "# a = 1", "x = 1", "#no", "", "# # ///"])
MAX_CPU_S = 1.0


@given(st.lists(LINES, max_size=12))
def test_a_block_is_the_one_of_the_standard(lines: list[str]) -> None:
    code = "\n".join(lines)
    found = REFERENCE.search(code)
    expected = None
    if found is not None:
        expected = "\n".join(line[2:] for line in found["content"].splitlines())
    assert find_script_block(code) == expected


def test_a_block_without_an_end_takes_linear_time() -> None:
    started = time.process_time()
    assert find_script_block("# /// script\n" * 100_000) is None
    assert time.process_time() - started < MAX_CPU_S


@pytest.mark.parametrize("code", ["# /// script \n# a\n# ///\t\n", "# /// script\r\n# a\r\n# ///"])
def test_blanks_and_carriage_returns_at_the_end_of_a_line_do_not_matter(code: str) -> None:
    assert find_script_block(code) == "a"
