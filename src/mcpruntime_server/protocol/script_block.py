"""Finds the block at the top of a script that lists its dependencies (PEP 723)."""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Optional

START = "# /// script"
END = "# ///"


def find_script_block(code: str) -> Optional[str]:
    """Return the lines of the block without their `#`; None if there is no block.

    A block ends at the last end in its run of comments. Each line is looked at once.
    """
    if START not in code:
        return None
    lines = code.splitlines()
    start = end = 0  # of a block: the line after its start, and the line that ends it
    for number, line in enumerate(lines, 1):
        plain = line.rstrip(" \t")
        if not start:
            start = number if plain == START else 0
        elif plain == END:
            end = number - 1
        elif line != "#" and not line.startswith("# "):
            if end > start:
                break
            start = end = 0
    if end <= start:
        return None
    return "\n".join(line[2:] for line in lines[start:end])
