"""`export`: a copy of a workspace file for the user.

The content goes ahead in pieces, which a replay does not compare: an archive made again
has other dates in it. The call that writes the file names what the host has received.
"""

from __future__ import annotations

import builtins
import os

from ...protocol.library_names import EXPORT_NAME
from . import tools

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any

PIECE_BYTES = 4 * 1024 * 1024  # a call has room for it


def export(path: Any, name: str | None = None) -> str:
    """Copy a file to the user's export folder and return its path on the user's machine.

    The copy is called `name`, by default as the file; if another file has that name, with a number.
    """
    path = os.fspath(path)
    chosen = os.path.basename(path) if name is None else name
    pieces: list[str] = []
    with open(path, "rb") as file:
        while True:
            data = file.read(PIECE_BYTES)
            if not data and pieces:
                break
            arguments = {"name": chosen, "piece": len(pieces)}
            try:
                pieces.append(tools.host.call("uploads.piece", arguments, data))
            except tools.HostError as error:
                tools.raise_tool_error(error, "export", arguments)
    arguments = {"name": chosen, "pieces": pieces}
    exported: str = tools.call_host("files.export", arguments, "export")
    return exported


def install_export() -> None:
    """Make `export` a builtin, which skills have as well."""
    setattr(builtins, EXPORT_NAME, export)
