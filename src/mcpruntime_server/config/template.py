"""A settings file to start from: every setting with its default and its reason, commented out.

What is commented out follows the defaults of newer versions; what a person has uncommented stays.
"""

from __future__ import annotations

import re
from pathlib import Path

TEMPLATE_NAME = "server.toml"
CHECKOUT_FOLDER = Path(__file__).parents[3]  # where the template is, unless it was installed
HEADER = """\
# Settings of mcpruntime-server. Every line without "# " in front is in force; the others show the
# defaults. `mcpruntime-server config show` prints what is in force, and where it comes from.
"""
TABLE_LINE = re.compile(r"\[([\w.]+)\]")
SETTING_LINE = re.compile(r"[a-z_]+ = ")
CONTINUED_COMMENT = re.compile(r"\s+#")


def read_template() -> str:
    """Return the file that lists every setting with its default."""
    installed = Path(__file__).with_name(TEMPLATE_NAME)
    file = installed if installed.is_file() else CHECKOUT_FOLDER / TEMPLATE_NAME
    return file.read_text("utf-8")


def make_settings_text(template: str) -> str:
    """Return a settings file in which nothing but the headers of tables is in force.

    Headers of tables in tables are commented out as well: an empty one may mean something else
    than none.
    """
    introduction, newline, rest = template.partition("\n\n")
    lines = [HEADER, *map(comment_out, rest.split("\n"))] if newline else [introduction]
    return "\n".join(lines)


def comment_out(line: str) -> str:
    """Return a line of the template as a comment, unless it is the header of a main table."""
    found = TABLE_LINE.match(line)
    if found and "." not in found[1]:
        return line
    if found or SETTING_LINE.match(line):
        return f"# {line}"
    return f"# {line}" if CONTINUED_COMMENT.match(line) else line
