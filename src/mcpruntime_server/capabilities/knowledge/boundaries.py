"""Where in a text something begins: headings, keys, rows, statements, paragraphs. The text itself is never changed.

Rule 1: text is scanned, never parsed: nothing is expanded (YAML), nothing recurses (JSON), broken text has marks too.
Rule 2: marks are bounded in number; what is beyond them is cut by lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

MAX_BOUNDARIES = 50_000  # of one text
MAX_DEPTH = 8  # of keys that are marked
MAX_LABEL_CHARS = 80  # characters of one part of a title
MAX_COLUMN_CHARS = 200  # characters of the names of columns in a title
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
NOT_HEADING_PREFIXES = (
    "#",
    "|",
    "-",
    ">",
    "*",
    "+",
    " ",
    "\t",
)  # what a line above an underline does not begin with
JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)
YAML_KEY = re.compile(
    r"(?P<indent> *)(?P<items>(?:- +)*)(?P<key>\"[^\"\n]{1,80}\"|'[^'\n]{1,80}'|[\w.$/@-][^\n:#]{0,80}?) *:(?=\s|$)"
)
TOML_TABLE = re.compile(r"\s*\[\[?([^\[\]\n]+)\]\]?\s*(?:[#;].*)?$")
TOML_SETTING = re.compile(r"\s*([^\s=:#;][^=:\n]{0,80}?)\s*[=:]")
SQL_CREATE = re.compile(
    r"(?:\s|--[^\n]*\n)*create\s+(?:or\s+replace\s+)?(?:temp(?:orary)?\s+|unique\s+|virtual\s+|materialized\s+)*"
    r"(table|view|index|trigger|function|procedure|type)\s+(?:if\s+not\s+exists\s+)?([^\s(]+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Boundary:
    """Something begins at `at`, `depth` levels within others; `title` says what, outermost first.

    A mark that `parts` ends what came before it, however short that is.
    """

    offset: int
    depth: int
    title: tuple[str, ...] = ()
    starts_passage: bool = False


def guess_format(name: str) -> str:
    """Return how the text of a name is taken apart."""
    return FORMAT_BY_SUFFIX.get(PurePosixPath(name).suffix.lower(), "text")


def find_boundaries(text: str, text_format: str) -> list[Boundary]:
    """Return the marks of a text, in order."""
    return list(islice(SCANNERS[text_format](text), MAX_BOUNDARIES))


def build_title(text_format: str, text: str, boundaries: Sequence[Boundary]) -> str:
    """Return what the pieces that begin at `marks` are called together."""
    if text_format == "csv":
        columns = shorten_label(
            text[: text.find("\n") if "\n" in text else len(text)], MAX_COLUMN_CHARS
        )
        first, last = boundaries[0].title[0], boundaries[-1].title[0]
        return f"row {first} of {columns}" if first == last else f"rows {first}-{last} of {columns}"
    shared = boundaries[0].title
    for mark in boundaries[1:]:
        same = (one == other for one, other in zip(shared, mark.title, strict=False))
        shared = shared[
            : next((place for place, is_same in enumerate(same) if not is_same), len(mark.title))
        ]
    if text_format in ("json", "yaml", "toml"):
        return ".".join(shared).replace(".[", "[")
    return " > ".join(shared)


def shorten_label(text: str, limit: int = MAX_LABEL_CHARS) -> str:
    """Return a part of a title."""
    return " ".join(text[: limit * 2].split())[:limit]


def iter_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line without its end, and where it begins."""
    at = 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        yield at, text[at:end].removesuffix("\r")
        at = end + 1


# one function a kind --------------------------------------------------------------------------------


def scan_markdown(text: str) -> Iterator[Boundary]:
    """Yield headings, and the paragraphs under them; what stands in fences is neither."""
    path: list[tuple[int, str]] = []
    held: Boundary | None = (
        None  # a heading: it is told when it is known that something is under it
    )
    for at, level, heading in _scan_blocks(text):
        title = tuple(name for _, name in path)
        if level == PARAGRAPH_LEVEL:
            if held is not None:
                yield held
            elif at:
                yield Boundary(at, PARAGRAPH_LEVEL, title)
            held = None
            continue
        while path and path[-1][0] >= level:
            path.pop()
        path.append((level, heading))
        begins = held.offset if held is not None and len(path) > len(held.title) else at
        if held is not None and begins == at:
            yield held
        held = Boundary(begins, level, tuple(name for _, name in path), starts_passage=True)
    if held is not None:
        yield held


def _scan_blocks(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield where headings and paragraphs begin: place, level, and a heading's words."""
    fence, before, above = (
        "",
        "",
        "",
    )  # the mark of an open fence, the line before, and the one above that
    before_at, is_told = 0, False
    is_front = text.startswith("---\n")
    for at, line in iter_lines(text):
        opened = FENCE.match(line)
        heading = ATX_HEADING.match(line) if not fence and not is_front else None
        if is_front:
            is_front = not (at and line.rstrip() == "---")
        elif fence:
            fence = (
                ""
                if opened and opened[1].startswith(fence) and line.strip() == opened[1]
                else fence
            )
        elif heading:
            if before.strip() and not is_told:
                yield before_at, PARAGRAPH_LEVEL, ""
            yield at, len(heading[1]), shorten_label(heading[2] or "")
            is_told = False
            above, before = "", ""
            continue
        elif (
            SETEXT_UNDERLINE.match(line)
            and before.strip()
            and not above.strip()
            and not before.startswith(NOT_HEADING_PREFIXES)
        ):
            yield before_at, 1 if line[0] == "=" else 2, shorten_label(before)
            is_told = False
            above, before = "", ""
            continue
        elif opened:
            fence = opened[1]
        if before.strip() and not is_told:
            yield before_at, PARAGRAPH_LEVEL, ""
            is_told = True
        if not line.strip() and not fence:
            is_told = False
        above, before, before_at = before, line, at
    if before.strip() and not is_told:
        yield before_at, PARAGRAPH_LEVEL, ""


def scan_paragraphs(text: str) -> Iterator[Boundary]:
    """Yield paragraphs."""
    is_blank = True
    for at, line in iter_lines(text):
        if line.strip() and is_blank:
            yield Boundary(at, 1)
        is_blank = not line.strip()


def scan_csv_rows(text: str) -> Iterator[Boundary]:
    """Yield the rows of a table, the header being row 1; quoted cells may have many lines."""
    number, is_open = 0, False
    for at, line in iter_lines(text):
        if not is_open:
            number += 1
            yield Boundary(at, 1, (str(number),))
        is_open ^= line.count('"') % 2 == 1


def scan_lines(text: str) -> Iterator[Boundary]:
    """Yield lines."""
    for at, _ in iter_lines(text):
        yield Boundary(at, 1)


def scan_json(text: str) -> Iterator[Boundary]:
    """Yield the members of objects and the items of lists."""
    path: list[str] = []  # the name of each value that is open, that of the whole text being ""
    counts: list[int] = []  # of items so far; -1 in objects
    key: tuple[int, str] | None = None
    expects_value = True
    for found in JSON_TOKEN.finditer(text):
        word, at = found[0], found.start()
        if word in "]}":
            if counts:
                counts.pop()
                path.pop()
            expects_value = False
        elif word == ",":
            key, expects_value = None, True
        elif word == ":":
            expects_value = True
        elif counts and counts[-1] == -1 and key is None and word[0] == '"':
            key, expects_value = (at, shorten_label(word[1:-1])), False
        elif expects_value:
            if counts and counts[-1] >= 0:
                key = at, f"[{counts[-1]}]"
                counts[-1] += 1
            if key is not None and len(path) <= MAX_DEPTH:
                yield Boundary(key[0], len(path), (*path[1:], key[1]))
            if word in "[{":
                path.append(key[1] if key else "")
                counts.append(-1 if word == "{" else 0)
                key = None
            expects_value = word in "[{" and word == "["


def scan_yaml(text: str) -> Iterator[Boundary]:
    """Yield keys, as far as their indentation tells which are within which."""
    path: list[tuple[int, str]] = []
    for at, line in iter_lines(text):
        found = YAML_KEY.match(line)
        if found is None:
            if line.startswith("---"):
                path.clear()
            continue
        indent = len(found["indent"]) + len(found["items"])
        while path and path[-1][0] >= indent:
            path.pop()
        path.append((indent, shorten_label(found["key"].strip("\"'"))))
        if len(path) <= MAX_DEPTH:
            yield Boundary(at, len(path), tuple(name for _, name in path))


def scan_toml(text: str) -> Iterator[Boundary]:
    """Yield tables, and the settings in them."""
    table: tuple[str, ...] = ()
    for at, line in iter_lines(text):
        if found := TOML_TABLE.match(line):
            table = (shorten_label(found[1]),)
            yield Boundary(at, 1, table)
        elif found := TOML_SETTING.match(line):
            yield Boundary(at, 2, (*table, shorten_label(found[1])))


def scan_sql(text: str) -> Iterator[Boundary]:
    """Yield statements; each that creates something is a piece by itself."""
    is_over, made = True, None
    for at, line in iter_lines(text):
        if is_over and line.strip():
            before, made = made, SQL_CREATE.match(text[at : at + 500])
            title = (f"{made[1].lower()} {shorten_label(made[2])}",) if made else ()
            yield Boundary(at, 1, title, starts_passage=made is not None or before is not None)
            is_over = False
        is_over |= line.rstrip().endswith(";")


def scan_schema(text: str) -> Iterator[Boundary]:
    """Yield one mark: the first line names what the whole text is about."""
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
