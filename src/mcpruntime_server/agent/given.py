"""How an agent gets its material: the program or the inputs that make the variable CONTEXT, and what its model is told.

Texts and JSON data become plain values. What is too large for that, files and pieces of inputs, becomes inputs of the
agent's session, which programs read piece by piece.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..kernel.input_bytes import GZIP
from ..kernel.present import shorten
from .conversation import apart

NAME = "CONTEXT"
BEGINS = 400  # characters of a context that the model is shown
READING = (
    "It is no str: CONTEXT.peek(n), .slice(start, end), .lines(start, end), .grep(pattern), .sample(n) and "
    '.chunks(max_chars, overlap=0, by="lines") give pieces of it, of which .text is the text; ask_llm takes them as '
    "data and sub_agent as context; for line in CONTEXT reads on; CONTEXT_DATA has the inputs by place and name"
)


@dataclass(frozen=True)
class Files:
    """Files that programs get as inputs; nobody else reads them."""

    paths: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Their bytes; raises `InvalidRequest`."""
        return sum(size_of(path) for path in self.paths)

    @property
    def are_packed(self) -> bool:
        """Whether there is a gzip file among them, which says something only when it is unpacked."""
        return any(path.is_file() and begins_with(path, len(GZIP)) == GZIP for path in self.paths)


@dataclass(frozen=True)
class Given:
    """What the model is told of the material, and what hands it over: a program, and inputs of its run."""

    told: str
    code: str = "None"
    inputs: Sequence[Any] = ()


def size_of(path: Path) -> int:
    """Return the bytes of a file; raises `InvalidRequest`."""
    try:
        return path.stat().st_size
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read: {exc.strerror}.") from exc


def begins_with(path: Path, size: int) -> bytes:
    """Return the first bytes of a file; raises `InvalidRequest`."""
    try:
        with path.open("rb") as opened:
            return opened.read(size)
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read: {exc.strerror}.") from exc


def text_of(context: Any) -> str:
    """Return a text, JSON data as text, or what is in files."""
    if isinstance(context, Files):
        return "\n".join(path.read_text("utf-8", "replace") for path in context.paths)
    return context if isinstance(context, str) else json.dumps(context, ensure_ascii=False)


def size_in(context: Any) -> int | None:
    """Return how large material is, in characters or bytes; None if there is none. Raises `InvalidRequest`."""
    if context is None:
        return None
    return context.size if isinstance(context, Files) else len(text_of(context))


def given(context: Any) -> Given | None:
    """Return how a text, JSON data or files are given to an agent; None if there is nothing to give."""
    if context is None:
        return None
    if isinstance(context, Files):
        return given_files(context)
    text = text_of(context)
    if isinstance(context, str):
        code = f"{NAME} = {context!r}"
        kind = f"a text of {len(text):,} characters in {text.count(chr(10)) + 1:,} lines"
    else:
        code = f"import json as _json\n{NAME} = _json.loads({json.dumps(context)!r})\ndel _json"
        kind = f"{kind_of(context)}, {len(text):,} characters as JSON"
    return Given(f"{kind}; it begins\n{apart(shorten(text, BEGINS)[0])}", f"{code}\nNone")


def given_files(files: Files) -> Given:
    """Return how files are given to the agent of a client, which names them to its server."""
    begins = begins_with(files.paths[0], BEGINS)
    if begins.startswith(GZIP):
        with suppress(zlib.error):  # what is damaged is told to programs
            begins = zlib.decompressobj(31).decompress(begins, BEGINS)
    sizes = ", ".join(f"{path.name} ({size_of(path):,} bytes)" for path in files.paths)
    return given_inputs(sizes, begins.decode("utf-8", "replace"), [str(path.resolve()) for path in files.paths])


def given_inputs(what: str, begins: str, inputs: Sequence[Any]) -> Given:
    """Return how inputs are given to an agent; `begins` is the beginning of the first."""
    many = "an input" if len(inputs) == 1 else f"{len(inputs)} inputs"
    return Given(f"{many}: {what}. {READING}. It begins\n{apart(begins)}", inputs=inputs)


def kind_of(value: Any) -> str:
    """Return in words what JSON data is."""
    if isinstance(value, list):
        return f"a list of {len(value):,} items"
    if isinstance(value, dict):
        return f"a dict with {len(value):,} keys"
    return f"a value of type {type(value).__name__}"
