"""Where the parts of a text start: headings, keys, rows, statements, paragraphs.

Rule 1: texts are scanned, never parsed. The text stays unchanged, so the span of a passage is
exact, and a hostile text has nothing to expand (YAML aliases) or to recurse into (JSON). Broken
text has boundaries, too. A title is only as good as the syntax is plain.
Rule 2: the number of boundaries is limited; the text beyond the limit is split by lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

MAX_BOUNDARIES = 50_000  # in one text
MAX_DEPTH = 8  # of keys that are boundaries
MAX_LABEL_CHARS = 80  # of one part of a title
MAX_COLUMN_CHARS = 200  # of all column names in a title
PARAGRAPH_LEVEL = 7  # deeper than any heading

FORMAT_BY_SUFFIX: Mapping[str, str] = {
    **dict.fromkeys((".md", ".markdown", ".mdx", ".rst", ".qmd"), "markdown"),
    **dict.fromkeys((".txt", ".text", ".log", ".adoc", ".org", ".tex"), "text"),
    **dict.fromkeys((".json", ".geojson", ".ipynb"), "json"),
    **dict.fromkeys((".jsonl", ".ndjson"), "lines"),
    **dict.fromkeys((".yaml", ".yml"), "yaml"),
    **dict.fromkeys((".toml", ".ini", ".cfg", ".conf", ".properties"), "toml"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".sql", ".ddl"), "sql"),
}

ATX_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
SETEXT_UNDERLINE = re.compile(r"(={2,}|-{2,})[ \t]*$")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
NOT_HEADING_PREFIXES = ("#", "|", "-", ">", "*", "+", " ", "\t")  # of a line above an underline
JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)
YAML_KEY = re.compile(
    r"(?P<indent> *)(?P<items>(?:- +)*)"
    r"(?P<key>\"[^\"\n]{1,80}\"|'[^'\n]{1,80}'|[\w.$/@-][^\n:#]{0,80}?) *:(?=\s|$)"
)
TOML_TABLE = re.compile(r"\s*\[\[?([^\[\]\n]+)\]\]?\s*(?:[#;].*)?$")
TOML_SETTING = re.compile(r"\s*([^\s=:#;][^=:\n]{0,80}?)\s*[=:]")
SQL_CREATE = re.compile(
    r"(?:\s|--[^\n]*\n)*create\s+(?:or\s+replace\s+)?"
    r"(?:temp(?:orary)?\s+|unique\s+|virtual\s+|materialized\s+)*"
    r"(table|view|index|trigger|function|procedure|type)\s+(?:if\s+not\s+exists\s+)?([^\s(]+)",
    re.IGNORECASE,
)
MAX_CREATE_CHARS = 500  # of a statement that are searched for what it creates


@dataclass(frozen=True)
class Boundary:
    """A part of a text starts at `offset`, `depth` levels inside other parts.

    `title` names the part and those around it, the outermost first.
    If `starts_passage`, the passage before it ends here, however short it is.
    """

    offset: int
    depth: int
    title: tuple[str, ...] = ()
    starts_passage: bool = False


def guess_format(name: str) -> str:
    """Return the format of a text by the suffix of its name."""
    return FORMAT_BY_SUFFIX.get(PurePosixPath(name).suffix.lower(), "text")


def find_boundaries(text: str, text_format: str) -> list[Boundary]:
    """Return the boundaries of a text, in order."""
    return list(islice(SCANNERS[text_format](text), MAX_BOUNDARIES))


def build_title(text_format: str, text: str, boundaries: Sequence[Boundary]) -> str:
    """Return a common title for the parts that start at `boundaries`."""
    if text_format == "csv":
        header_end = text.find("\n")
        header = text if header_end < 0 else text[:header_end]
        columns = shorten_label(header, MAX_COLUMN_CHARS)
        first, last = boundaries[0].title[0], boundaries[-1].title[0]
        return f"row {first} of {columns}" if first == last else f"rows {first}-{last} of {columns}"
    shared = boundaries[0].title
    for boundary in boundaries[1:]:
        shared = _common_prefix(shared, boundary.title)
    if text_format in ("json", "yaml", "toml"):
        return ".".join(shared).replace(".[", "[")
    return " > ".join(shared)


def _common_prefix(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    size = 0
    while size < min(len(one), len(other)) and one[size] == other[size]:
        size += 1
    return one[:size]


def shorten_label(text: str, limit: int = MAX_LABEL_CHARS) -> str:
    """Return text as one part of a title."""
    return " ".join(text[: limit * 2].split())[:limit]


def iter_line_offsets(text: str) -> Iterator[tuple[int, str]]:
    """Yield the offset of each line, and the line without its end."""
    offset = 0
    while offset < len(text):
        end = text.find("\n", offset)
        if end < 0:
            end = len(text)
        yield offset, text[offset:end].removesuffix("\r")
        offset = end + 1


# one scanner for each format ----------------------------------------------------------------------


def scan_markdown(text: str) -> Iterator[Boundary]:
    """Yield headings and the paragraphs under them; nothing inside fences is either."""
    path: list[tuple[int, str]] = []
    pending: Boundary | None = (
        None  # a heading, until it is known whether text or a heading follows
    )
    for offset, level, heading in _scan_blocks(text):
        title = tuple(name for _, name in path)
        if level == PARAGRAPH_LEVEL:
            if pending is not None:
                yield pending
            elif offset:
                yield Boundary(offset, PARAGRAPH_LEVEL, title)
            pending = None
            continue
        while path and path[-1][0] >= level:
            path.pop()
        path.append((level, heading))
        start = offset
        if pending is not None:
            if len(path) > len(pending.title):
                start = pending.offset  # a heading directly above a deeper one belongs to that
            else:
                yield pending
        pending = Boundary(start, level, tuple(name for _, name in path), starts_passage=True)
    if pending is not None:
        yield pending


def _scan_blocks(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield offset, level and words of each heading; paragraphs have `PARAGRAPH_LEVEL`."""
    fence = ""  # the marker of the open fence
    above, previous = "", ""  # the two lines before the current one
    previous_offset = 0
    is_yielded = False  # whether the current paragraph has been yielded
    is_front_matter = text.startswith("---\n")
    for offset, line in iter_line_offsets(text):
        opening = FENCE.match(line)
        heading = None if fence or is_front_matter else ATX_HEADING.match(line)
        if is_front_matter:
            is_front_matter = not (offset and line.rstrip() == "---")
        elif fence:
            if opening and opening[1].startswith(fence) and line.strip() == opening[1]:
                fence = ""
        elif heading:
            if previous.strip() and not is_yielded:
                yield previous_offset, PARAGRAPH_LEVEL, ""
            yield offset, len(heading[1]), shorten_label(heading[2] or "")
            is_yielded = False
            above, previous = "", ""
            continue
        elif SETEXT_UNDERLINE.match(line) and _can_be_heading(previous, above):
            yield previous_offset, 1 if line[0] == "=" else 2, shorten_label(previous)
            is_yielded = False
            above, previous = "", ""
            continue
        elif opening:
            fence = opening[1]
        if previous.strip() and not is_yielded:
            yield previous_offset, PARAGRAPH_LEVEL, ""
            is_yielded = True
        if not line.strip() and not fence:
            is_yielded = False
        above, previous, previous_offset = previous, line, offset
    if previous.strip() and not is_yielded:
        yield previous_offset, PARAGRAPH_LEVEL, ""


def _can_be_heading(line: str, above: str) -> bool:
    """Return whether an underline makes `line` a heading; `above` is the line before it."""
    has_text = bool(line.strip()) and not above.strip()
    return has_text and not line.startswith(NOT_HEADING_PREFIXES)


def scan_paragraphs(text: str) -> Iterator[Boundary]:
    """Yield paragraphs."""
    is_after_blank = True
    for offset, line in iter_line_offsets(text):
        if line.strip() and is_after_blank:
            yield Boundary(offset, 1)
        is_after_blank = not line.strip()


def scan_csv_rows(text: str) -> Iterator[Boundary]:
    """Yield the rows of a table; the header is row 1, and a quoted cell may span lines."""
    number = 0
    is_quote_open = False
    for offset, line in iter_line_offsets(text):
        if not is_quote_open:
            number += 1
            yield Boundary(offset, 1, (str(number),))
        is_quote_open ^= line.count('"') % 2 == 1


def scan_lines(text: str) -> Iterator[Boundary]:
    """Yield lines."""
    for offset, _ in iter_line_offsets(text):
        yield Boundary(offset, 1)


def scan_json(text: str) -> Iterator[Boundary]:
    """Yield the members of objects and the items of arrays."""
    path: list[str] = []  # the name of each open value; the name of the whole text is ""
    item_counts: list[int] = []  # of each open array so far; -1 for an object
    key: tuple[int, str] | None = None
    expects_value = True
    for match in JSON_TOKEN.finditer(text):
        symbol, offset = match[0], match.start()
        if symbol in "]}":
            if item_counts:
                item_counts.pop()
                path.pop()
            expects_value = False
        elif symbol == ",":
            key, expects_value = None, True
        elif symbol == ":":
            expects_value = True
        elif item_counts and item_counts[-1] == -1 and key is None and symbol[0] == '"':
            key, expects_value = (offset, shorten_label(symbol[1:-1])), False
        elif expects_value:
            if item_counts and item_counts[-1] >= 0:
                key = offset, f"[{item_counts[-1]}]"
                item_counts[-1] += 1
            if key is not None and len(path) <= MAX_DEPTH:
                yield Boundary(key[0], len(path), (*path[1:], key[1]))
            if symbol in "[{":
                path.append(key[1] if key else "")
                item_counts.append(-1 if symbol == "{" else 0)
                key = None
            expects_value = symbol == "["


def scan_yaml(text: str) -> Iterator[Boundary]:
    """Yield keys; the indentation tells which key contains which."""
    path: list[tuple[int, str]] = []
    for offset, line in iter_line_offsets(text):
        match = YAML_KEY.match(line)
        if match is None:
            if line.startswith("---"):
                path.clear()
            continue
        indent = len(match["indent"]) + len(match["items"])
        while path and path[-1][0] >= indent:
            path.pop()
        path.append((indent, shorten_label(match["key"].strip("\"'"))))
        if len(path) <= MAX_DEPTH:
            yield Boundary(offset, len(path), tuple(name for _, name in path))


def scan_toml(text: str) -> Iterator[Boundary]:
    """Yield tables and the settings in them."""
    table: tuple[str, ...] = ()
    for offset, line in iter_line_offsets(text):
        if match := TOML_TABLE.match(line):
            table = (shorten_label(match[1]),)
            yield Boundary(offset, 1, table)
        elif match := TOML_SETTING.match(line):
            yield Boundary(offset, 2, (*table, shorten_label(match[1])))


def scan_sql(text: str) -> Iterator[Boundary]:
    """Yield statements; one that creates something is a passage of its own."""
    is_finished = True
    creation = None
    for offset, line in iter_line_offsets(text):
        if is_finished and line.strip():
            is_after_creation = creation is not None
            creation = SQL_CREATE.match(text[offset : offset + MAX_CREATE_CHARS])
            title: tuple[str, ...] = ()
            if creation:
                title = (f"{creation[1].lower()} {shorten_label(creation[2])}",)
            yield Boundary(
                offset, 1, title, starts_passage=creation is not None or is_after_creation
            )
            is_finished = False
        is_finished |= line.rstrip().endswith(";")


def scan_schema(text: str) -> Iterator[Boundary]:
    """Yield one boundary: the first line names what the whole text describes."""
    yield Boundary(0, 0, (shorten_label(text.partition("\n")[0]),))


SCANNERS: Mapping[str, Callable[[str], Iterator[Boundary]]] = {
    "markdown": scan_markdown,
    "text": scan_paragraphs,
    "json": scan_json,
    "lines": scan_lines,
    "yaml": scan_yaml,
    "toml": scan_toml,
    "csv": scan_csv_rows,
    "sql": scan_sql,
    "schema": scan_schema,
}
