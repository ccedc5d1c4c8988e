"""Lets h11, which reads what MCP servers answer over HTTP, take linear time.

Its patterns of header lines and of chunk sizes go back over blanks: one header of 60 kB of blanks
holds the event loop for ten seconds. The patterns here never go back. They match the same header
lines, and the same chunk sizes but for extensions with control characters.
"""

from __future__ import annotations

import re
from typing import Any

from h11 import _readers

HEADER_LINE = re.compile(
    rb"(?P<field_name>[-!#$%&'*+.^_`|~0-9a-zA-Z]++):[ \t]*+"
    rb"(?P<field_value>(?:[^\x00\s]++(?:[ \t]++[^\x00\s]++)*+)?+)[ \t]*+"
)
CHUNK_SIZE = re.compile(
    rb"(?P<chunk_size>[0-9A-Fa-f]{1,20})(?P<chunk_ext>;[^\x00\r\n]*+)?+[ \t]*+\r\n"
)


def make_h11_linear() -> None:
    """Replace the patterns of h11 in this process."""
    readers: Any = _readers
    readers.header_field_re, readers.chunk_header_re = HEADER_LINE, CHUNK_SIZE
