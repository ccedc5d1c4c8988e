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

MAX_MARKS = 50_000  # of one text
MAX_DEPTH = 8  # of keys that are marked
LABEL = 80  # characters of one part of a title
COLUMNS = 200  # characters of the names of columns in a title
PARAGRAPH = 7  # deeper than any heading

SUFFIXES: Mapping[str, str] = {
    **dict.fromkeys((".md", ".markdown", ".mdx", ".rst", ".qmd"), "markdown"),
    **dict.fromkeys((".txt", ".text", ".log", ".adoc", ".org", ".tex"), "text"),
    **dict.fromkeys((".json", ".geojson", ".ipynb"), "json"),
    **dict.fromkeys((".jsonl", ".ndjson"), "lines"),
    **dict.fromkeys((".yaml", ".yml"), "yaml"),
    **dict.fromkeys((".toml", ".ini", ".cfg", ".conf", ".properties"), "toml"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".sql", ".ddl"), "sql"),
}

ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
UNDERLINE = re.compile(r"(={2,}|-{2,})[ \t]*$")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
NO_HEADING = ("#", "|", "-", ">", "*", "+", " ", "\t")  # what a line above an underline does not begin with
TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)
YAML_KEY = re.compile(
    r"(?P<indent> *)(?P<items>(?:- +)*)(?P<key>\"[^\"\n]{1,80}\"|'[^'\n]{1,80}'|[\w.$/@-][^\n:#]{0,80}?) *:(?=\s|$)"
)
TABLE = re.compile(r"\s*\[\[?([^\[\]\n]+)\]\]?\s*(?:[#;].*)?$")
SETTING = re.compile(r"\s*([^\s=:#;][^=:\n]{0,80}?)\s*[=:]")
CREATE = re.compile(
    r"(?:\s|--[^\n]*\n)*create\s+(?:or\s+replace\s+)?(?:temp(?:orary)?\s+|unique\s+|virtual\s+|materialized\s+)*"
    r"(table|view|index|trigger|function|procedure|type)\s+(?:if\s+not\s+exists\s+)?([^\s(]+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mark:
    """Something begins at `at`, `depth` levels within others; `title` says what, outermost first.

    A mark that `parts` ends what came before it, however short that is.
    """

    at: int
    depth: int
    title: tuple[str, ...] = ()
    parts: bool = False


def kind_of(name: str) -> str:
    """Return how the text of a name is taken apart."""
    return SUFFIXES.get(PurePosixPath(name).suffix.lower(), "text")


def marks_of(text: str, kind: str) -> list[Mark]:
    """Return the marks of a text, in order."""
    return list(islice(KINDS[kind](text), MAX_MARKS))


def title_of(kind: str, text: str, marks: Sequence[Mark]) -> str:
    """Return what the pieces that begin at `marks` are called together."""
    if kind == "csv":
        columns = label(text[: text.find("\n") if "\n" in text else len(text)], COLUMNS)
        first, last = marks[0].title[0], marks[-1].title[0]
        return f"row {first} of {columns}" if first == last else f"rows {first}-{last} of {columns}"
    shared = marks[0].title
    for mark in marks[1:]:
        same = (one == other for one, other in zip(shared, mark.title, strict=False))
        shared = shared[: next((place for place, is_same in enumerate(same) if not is_same), len(mark.title))]
    if kind in ("json", "yaml", "toml"):
        return ".".join(shared).replace(".[", "[")
    return " > ".join(shared)


def label(text: str, limit: int = LABEL) -> str:
    """Return a part of a title."""
    return " ".join(text[: limit * 2].split())[:limit]


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line without its end, and where it begins."""
    at = 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        yield at, text[at:end].removesuffix("\r")
        at = end + 1


# one function a kind --------------------------------------------------------------------------------


def markdown(text: str) -> Iterator[Mark]:
    """Yield headings, and the paragraphs under them; what stands in fences is neither."""
    path: list[tuple[int, str]] = []
    held: Mark | None = None  # a heading: it is told when it is known that something is under it
    for at, level, heading in _blocks(text):
        title = tuple(name for _, name in path)
        if level == PARAGRAPH:
            if held is not None:
                yield held
            elif at:
                yield Mark(at, PARAGRAPH, title)
            held = None
            continue
        while path and path[-1][0] >= level:
            path.pop()
        path.append((level, heading))
        begins = held.at if held is not None and len(path) > len(held.title) else at
        if held is not None and begins == at:
            yield held
        held = Mark(begins, level, tuple(name for _, name in path), parts=True)
    if held is not None:
        yield held


def _blocks(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield where headings and paragraphs begin: place, level, and a heading's words."""
    fence, before, above = "", "", ""  # the mark of an open fence, the line before, and the one above that
    before_at, is_told = 0, False
    is_front = text.startswith("---\n")
    for at, line in lines_of(text):
        opened = FENCE.match(line)
        heading = ATX.match(line) if not fence and not is_front else None
        if is_front:
            is_front = not (at and line.rstrip() == "---")
        elif fence:
            fence = "" if opened and opened[1].startswith(fence) and line.strip() == opened[1] else fence
        elif heading:
            if before.strip() and not is_told:
                yield before_at, PARAGRAPH, ""
            yield at, len(heading[1]), label(heading[2] or "")
            is_told = False
            above, before = "", ""
            continue
        elif UNDERLINE.match(line) and before.strip() and not above.strip() and not before.startswith(NO_HEADING):
            yield before_at, 1 if line[0] == "=" else 2, label(before)
            is_told = False
            above, before = "", ""
            continue
        elif opened:
            fence = opened[1]
        if before.strip() and not is_told:
            yield before_at, PARAGRAPH, ""
            is_told = True
        if not line.strip() and not fence:
            is_told = False
        above, before, before_at = before, line, at
    if before.strip() and not is_told:
        yield before_at, PARAGRAPH, ""


def plain(text: str) -> Iterator[Mark]:
    """Yield paragraphs."""
    is_blank = True
    for at, line in lines_of(text):
        if line.strip() and is_blank:
            yield Mark(at, 1)
        is_blank = not line.strip()


def rows(text: str) -> Iterator[Mark]:
    """Yield the rows of a table, the header being row 1; quoted cells may have many lines."""
    number, is_open = 0, False
    for at, line in lines_of(text):
        if not is_open:
            number += 1
            yield Mark(at, 1, (str(number),))
        is_open ^= line.count('"') % 2 == 1


def each_line(text: str) -> Iterator[Mark]:
    """Yield lines."""
    for at, _ in lines_of(text):
        yield Mark(at, 1)


def json_keys(text: str) -> Iterator[Mark]:
    """Yield the members of objects and the items of lists."""
    path: list[str] = []  # the name of each value that is open, that of the whole text being ""
    counts: list[int] = []  # of items so far; -1 in objects
    key: tuple[int, str] | None = None
    expects_value = True
    for found in TOKEN.finditer(text):
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
            key, expects_value = (at, label(word[1:-1])), False
        elif expects_value:
            if counts and counts[-1] >= 0:
                key = at, f"[{counts[-1]}]"
                counts[-1] += 1
            if key is not None and len(path) <= MAX_DEPTH:
                yield Mark(key[0], len(path), (*path[1:], key[1]))
            if word in "[{":
                path.append(key[1] if key else "")
                counts.append(-1 if word == "{" else 0)
                key = None
            expects_value = word in "[{" and word == "["


def yaml_keys(text: str) -> Iterator[Mark]:
    """Yield keys, as far as their indentation tells which are within which."""
    path: list[tuple[int, str]] = []
    for at, line in lines_of(text):
        found = YAML_KEY.match(line)
        if found is None:
            if line.startswith("---"):
                path.clear()
            continue
        indent = len(found["indent"]) + len(found["items"])
        while path and path[-1][0] >= indent:
            path.pop()
        path.append((indent, label(found["key"].strip("\"'"))))
        if len(path) <= MAX_DEPTH:
            yield Mark(at, len(path), tuple(name for _, name in path))


def toml_keys(text: str) -> Iterator[Mark]:
    """Yield tables, and the settings in them."""
    table: tuple[str, ...] = ()
    for at, line in lines_of(text):
        if found := TABLE.match(line):
            table = (label(found[1]),)
            yield Mark(at, 1, table)
        elif found := SETTING.match(line):
            yield Mark(at, 2, (*table, label(found[1])))


def statements(text: str) -> Iterator[Mark]:
    """Yield statements; each that creates something is a piece by itself."""
    is_over, made = True, None
    for at, line in lines_of(text):
        if is_over and line.strip():
            before, made = made, CREATE.match(text[at : at + 500])
            title = (f"{made[1].lower()} {label(made[2])}",) if made else ()
            yield Mark(at, 1, title, parts=made is not None or before is not None)
            is_over = False
        is_over |= line.rstrip().endswith(";")


def schema(text: str) -> Iterator[Mark]:
    """Yield one mark: the first line names what the whole text is about."""
    yield Mark(0, 0, (label(text.partition("\n")[0]),))


KINDS: Mapping[str, Callable[[str], Iterator[Mark]]] = {
    "markdown": markdown,
    "text": plain,
    "json": json_keys,
    "lines": each_line,
    "yaml": yaml_keys,
    "toml": toml_keys,
    "csv": rows,
    "sql": statements,
    "schema": schema,
}
