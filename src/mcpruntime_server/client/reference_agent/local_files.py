"""Files of the client as the material of a task.

Programs read them as inputs. A task without programs includes their text in its model request.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...capabilities.agent.material import (
    PREVIEW_CHARS,
    AgentMaterial,
    material_text,
    prepare_inputs,
    prepare_material,
)
from ...errors import InvalidRequest
from ...protocol.library_names import GZIP_MAGIC

GZIP_FORMAT = zlib.MAX_WBITS | 16  # for `zlib.decompressobj`


@dataclass(frozen=True)
class LocalFiles:
    """Files that programs receive as inputs."""

    paths: tuple[Path, ...]

    @property
    def total_bytes(self) -> int:
        """The size of all files together; raises `InvalidRequest`."""
        return sum(file_bytes(path) for path in self.paths)

    @property
    def has_compressed_file(self) -> bool:
        """Whether one of the files is a gzip file, which a model cannot read."""
        return any(path.is_file() and is_gzip(path) for path in self.paths)


def name_files(context: Any) -> Any:
    """Return a path, or a list of paths, as `LocalFiles`, and any other material as it is."""
    paths = context if isinstance(context, list | tuple) else [context]
    if paths and all(isinstance(path, Path) for path in paths):
        return LocalFiles(tuple(paths))
    return context


def is_gzip(path: Path) -> bool:
    """Return whether a file is compressed; raises `InvalidRequest`."""
    return read_file_start(path, len(GZIP_MAGIC)) == GZIP_MAGIC


def file_bytes(path: Path) -> int:
    """Return the size of a file; raises `InvalidRequest`."""
    try:
        return path.stat().st_size
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read: {exc.strerror}.") from exc


def read_file_start(path: Path, size: int) -> bytes:
    """Return the first bytes of a file; raises `InvalidRequest`."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read: {exc.strerror}.") from exc


def context_size(context: Any) -> int | None:
    """Return the size of material in characters or bytes; None if there is none.

    Raises `InvalidRequest`.
    """
    if context is None:
        return None
    return context.total_bytes if isinstance(context, LocalFiles) else len(material_text(context))


def context_text(context: Any) -> str:
    """Return a text, JSON data as text, or the text of files."""
    if isinstance(context, LocalFiles):
        return "\n".join(path.read_text("utf-8", "replace") for path in context.paths)
    return material_text(context)


def prepare_context(context: Any) -> AgentMaterial | None:
    """Return how an agent receives a text, JSON data or files; None if there is nothing."""
    return prepare_files(context) if isinstance(context, LocalFiles) else prepare_material(context)


def prepare_files(files: LocalFiles) -> AgentMaterial:
    """Return how an agent receives files: the client names them to its server."""
    preview = read_file_start(files.paths[0], PREVIEW_CHARS)
    if preview.startswith(GZIP_MAGIC):
        with suppress(zlib.error):  # programs get the error for a damaged file
            preview = zlib.decompressobj(GZIP_FORMAT).decompress(preview, PREVIEW_CHARS)
    names = ", ".join(f"{path.name} ({file_bytes(path):,} bytes)" for path in files.paths)
    inputs = [str(path.resolve()) for path in files.paths]
    return prepare_inputs(names, preview.decode("utf-8", "replace"), inputs)
