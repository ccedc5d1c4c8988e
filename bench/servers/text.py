"""A collection of documents: read in pieces, searched by word, and annotated."""

from __future__ import annotations

import re

from typing_extensions import TypedDict

from .base import StatefulServer, ToolError, find_record

server = StatefulServer("text")
MAX_PIECE_CHARS = 2_000


class DocumentInfo(TypedDict):
    """What a list shows of a document."""

    id: int
    title: str
    characters: int


class Piece(TypedDict):
    """A part of a document; `next_start` is -1 at the end."""

    text: str
    next_start: int


class Note(TypedDict):
    """A note on a document."""

    document: int
    text: str


@server.tool(reads=True)
async def list_documents() -> list[DocumentInfo]:
    """Return all documents without their text."""
    return [
        {"id": each["id"], "title": each["title"], "characters": len(each["text"])}
        for each in server.read_state()["documents"]
    ]


@server.tool(reads=True)
async def read_document(id: int, start: int = 0) -> Piece:
    """Return up to 2,000 characters of a document from `start`."""
    text = find_record(server.read_state()["documents"], "id", id)["text"]
    end = start + MAX_PIECE_CHARS
    return {"text": text[start:end], "next_start": end if end < len(text) else -1}


@server.tool(reads=True)
async def search_word(word: str) -> list[int]:
    """Return the ids of documents that have a word; capital letters do not matter."""
    if not re.fullmatch(r"\w+", word):
        raise ToolError(f"{word!r} is not one word.")
    pattern = re.compile(rf"\b{word}\b", re.IGNORECASE)
    documents = server.read_state()["documents"]
    return [each["id"] for each in documents if pattern.search(each["text"])]


@server.tool(reads=True)
async def list_notes() -> list[Note]:
    """Return all notes."""
    result: list[Note] = server.read_state()["notes"]
    return result


@server.tool()
async def add_note(document: int, text: str) -> Note:
    """Add a note to a document; it has at most 200 characters."""
    if len(text) > 200:
        raise ToolError(f"The note has {len(text)} characters, and at most 200 are allowed.")
    with server.change_state() as state:
        find_record(state["documents"], "id", document)
        note: Note = {"document": document, "text": text}
        state["notes"].append(note)
    return note


if __name__ == "__main__":
    server.run()
