"""`export`: a copy of a workspace file for the user."""

from __future__ import annotations

import base64
import builtins
import os
from hashlib import sha256
from typing import Any

from ...protocol.library_names import EXPORT_NAME
from . import tools

PIECE_BYTES = 4 * 1024 * 1024  # a call has room for it in base64


def export(path: Any, name: str | None = None) -> str:
    """Copy a file to the user's export folder and return its path on the user's machine.

    The copy is called `name`, by default as the file; if that is taken, with a number.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        digest = sha256()
        while True:
            piece = file.read(PIECE_BYTES)
            if not piece:
                break
            digest.update(piece)
        size = file.tell()
        file.seek(0)
        offset = 0
        while True:
            piece = file.read(PIECE_BYTES)
            arguments = {
                "name": os.path.basename(path) if name is None else name,
                "size": size,
                "sha256": digest.hexdigest(),
                "offset": offset,
                "data": base64.b64encode(piece).decode("ascii"),
            }
            exported: str = tools.call_host("files.export", arguments, "export")
            offset += len(piece)
            if offset >= size or not piece:
                return exported


def install_export() -> None:
    """Make `export` a builtin, which skills have as well."""
    setattr(builtins, EXPORT_NAME, export)
