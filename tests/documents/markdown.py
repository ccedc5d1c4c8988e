"""Reads the documents: their code blocks, headings and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in (
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")),
        *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md")),
    )
)
FENCE = re.compile(
    r"(?P<notes>(?:^<!-- [a-z]+: .*? -->\n)*)^```(?P<language>[a-z]+)(?P<options>[^\n]*)\n"
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NOTE = re.compile(r"^<!-- (?P<name>[a-z]+): (?P<text>.*?) -->$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)\s]*)\)|(?:src|srcset|href)=\"(?P<quoted>[^\"]+)\"")
INLINE_CODE = re.compile(r"`[^`\n]+`")


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block, with the notes for tests in the comments before it."""

    document: Path
    language: str
    options: str  # behind the language
    text: str
    notes: dict[str, str]


def read_document(name: str | Path) -> str:
    """Return the text of a document, by its path in the repository."""
    return (ROOT / name).read_text("utf-8")


def list_blocks(document: str | Path, language: str = "") -> list[CodeBlock]:
    """Return the blocks of a document, or those in one language."""
    found = [
        CodeBlock(
            Path(document),
            match["language"],
            match["options"].strip(),
            match["text"],
            dict(NOTE.findall(match["notes"])),
        )
        for match in FENCE.finditer(read_document(document))
    ]
    return [block for block in found if language in ("", block.language)]


def strip_code(text: str) -> str:
    """Return a document without its code."""
    return INLINE_CODE.sub("", FENCE.sub("", text))


def list_links(document: Path) -> Iterator[str]:
    """Yield the targets of the links and pictures of a document."""
    for found in LINK.finditer(strip_code(read_document(document))):
        yield found["target"] or found["quoted"]


def list_anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as repositories and the site name them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {make_anchor(heading) for heading in headings}


def make_anchor(heading: str) -> str:
    """Return the anchor of a heading."""
    plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[\s]+", "-", plain)
