"""The key that seals what clients send back with their answers, kept in the data folder.

A form that is open while the server restarts can so be answered at the next one, or at another
server on the data folder.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

KEY_FILE = "request_state.key"
KEY_BYTES = 32

logger = logging.getLogger(__name__)


def load_state_key(data_dir: Path, principal: str) -> bytes:
    """Return the key of a principal: what it seals is nothing to the servers of others."""
    return hmac.digest(load_or_create_secret(data_dir), principal.encode(), "sha256")


def load_or_create_secret(data_dir: Path) -> bytes:
    """Return what all keys are made of; it is of this process if there can be no file."""
    path = data_dir / KEY_FILE
    try:
        if not path.exists():
            create_secret(path)
        secret = path.read_bytes()
    except OSError as exc:
        logger.warning("open forms do not survive a restart: %s", exc)
        return secrets.token_bytes(KEY_BYTES)
    if len(secret) != KEY_BYTES:
        logger.warning("open forms do not survive a restart: %s is damaged", path)
        return secrets.token_bytes(KEY_BYTES)
    return secret


def create_secret(path: Path) -> None:
    """Create the file, complete from the first; of several servers, the first one wins."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        Path(temporary).unlink()
