"""The key that seals what clients send back with their answers, kept in the data folder.

A form that is open while the server restarts can so be answered at the next one, or at another
server on the data folder.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

KEY_FILE = "request_state.key"
KEY_BYTES = 32

logger = logging.getLogger(__name__)


def load_state_key(data_dir: Path) -> bytes:
    """Return the key, which is created if there is none; one of this process if that fails."""
    path = data_dir / KEY_FILE
    try:
        if not path.exists():
            create_state_key(path)
        key = path.read_bytes()
    except OSError as exc:
        logger.warning("open forms do not survive a restart: %s", exc)
        return secrets.token_bytes(KEY_BYTES)
    if len(key) != KEY_BYTES:
        logger.warning("open forms do not survive a restart: %s holds no key", path)
        return secrets.token_bytes(KEY_BYTES)
    return key


def create_state_key(path: Path) -> None:
    """Create the key, complete from the first; of several servers, the first one wins."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        Path(temporary).unlink()
