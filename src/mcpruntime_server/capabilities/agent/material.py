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

from ...errors import InvalidRequest
from ...protocol.library_names import GZIP_MAGIC
from ...protocol.presentation import truncate_text
from .conversation import mark_as_data

CONTEXT_NAME = "CONTEXT"
PREVIEW_CHARS = 400  # characters of a context that the model is shown
READING_HELP = (
    "It is no str: CONTEXT.peek(n), .slice(start, end), .lines(start, end), .grep(pattern), .sample(n) and "
    '.chunks(max_chars, overlap=0, by="lines") give pieces of it, of which .text is the text; ask_llm takes them as '
    "data and sub_agent as context; for line in CONTEXT reads on; CONTEXT_DATA has the inputs by place and name"
)


@dataclass(frozen=True)
class LocalFiles:
    """Files that programs get as inputs; nobody else reads them."""

    paths: tuple[Path, ...]

    @property
    def total_bytes(self) -> int:
        """Their bytes; raises `InvalidRequest`."""
        return sum(file_bytes(path) for path in self.paths)

    @property
    def has_compressed_file(self) -> bool:
        """Whether there is a gzip file among them, which says something only when it is unpacked."""
        return any(
            path.is_file() and read_file_start(path, len(GZIP_MAGIC)) == GZIP_MAGIC
            for path in self.paths
        )


@dataclass(frozen=True)
class AgentMaterial:
    """What the model is told of the material, and what hands it over: a program, and inputs of its run."""

    description: str
    setup_code: str = "None"
    inputs: Sequence[Any] = ()


def file_bytes(path: Path) -> int:
    """Return the bytes of a file; raises `InvalidRequest`."""
    try:
        return path.stat().st_size
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read: {exc.strerror}.") from exc


def read_file_start(path: Path, size: int) -> bytes:
    """Return the first bytes of a file; raises `InvalidRequest`."""
    try:
        with path.open("rb") as opened:
            return opened.read(size)
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read: {exc.strerror}.") from exc


def material_text(context: Any) -> str:
    """Return a text, JSON data as text, or what is in files."""
    if isinstance(context, LocalFiles):
        return "\n".join(path.read_text("utf-8", "replace") for path in context.paths)
    return context if isinstance(context, str) else json.dumps(context, ensure_ascii=False)


def material_size(context: Any) -> int | None:
    """Return how large material is, in characters or bytes; None if there is none. Raises `InvalidRequest`."""
    if context is None:
        return None
    return context.total_bytes if isinstance(context, LocalFiles) else len(material_text(context))


def prepare_material(context: Any) -> AgentMaterial | None:
    """Return how a text, JSON data or files are given to an agent; None if there is nothing to give."""
    if context is None:
        return None
    if isinstance(context, LocalFiles):
        return prepare_files(context)
    text = material_text(context)
    if isinstance(context, str):
        code = f"{CONTEXT_NAME} = {context!r}"
        kind = f"a text of {len(text):,} characters in {text.count(chr(10)) + 1:,} lines"
    else:
        code = f"import json as _json\n{CONTEXT_NAME} = _json.loads({json.dumps(context)!r})\ndel _json"
        kind = f"{describe_json(context)}, {len(text):,} characters as JSON"
    return AgentMaterial(
        f"{kind}; it begins\n{mark_as_data(truncate_text(text, PREVIEW_CHARS)[0])}", f"{code}\nNone"
    )


def prepare_files(files: LocalFiles) -> AgentMaterial:
    """Return how files are given to the agent of a client, which names them to its server."""
    begins = read_file_start(files.paths[0], PREVIEW_CHARS)
    if begins.startswith(GZIP_MAGIC):
        with suppress(zlib.error):  # what is damaged is told to programs
            begins = zlib.decompressobj(31).decompress(begins, PREVIEW_CHARS)
    sizes = ", ".join(f"{path.name} ({file_bytes(path):,} bytes)" for path in files.paths)
    return prepare_inputs(
        sizes, begins.decode("utf-8", "replace"), [str(path.resolve()) for path in files.paths]
    )


def prepare_inputs(names: str, preview: str, inputs: Sequence[Any]) -> AgentMaterial:
    """Return how inputs are given to an agent; `begins` is the beginning of the first."""
    many = "an input" if len(inputs) == 1 else f"{len(inputs)} inputs"
    return AgentMaterial(
        f"{many}: {names}. {READING_HELP}. It begins\n{mark_as_data(preview)}", inputs=inputs
    )


def describe_json(value: Any) -> str:
    """Return in words what JSON data is."""
    if isinstance(value, list):
        return f"a list of {len(value):,} items"
    if isinstance(value, dict):
        return f"a dict with {len(value):,} keys"
    return f"a value of type {type(value).__name__}"
