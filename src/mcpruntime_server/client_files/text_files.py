"""Read and replace text files that belong to other programs.

Rule 1: a file is replaced as a whole, with its mode; a link stays, and what it leads to is
replaced.
Rule 2: it is replaced only if it still is what was read. Other programs write these files at any
time; then the change is computed again.
Rule 3: what is read-only stays as it is.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, Unavailable

MAX_FILE_BYTES = 64 << 20  # the state file of a client with a long history has tens of megabytes
NEW_FILE_MODE = 0o600
EDIT_TRIES = 5  # a client that writes its file again and again in between is given up
LOCK_NAME = "edits.lock"


@dataclass(frozen=True)
class TextFile:
    """A file as it was read; `text` is empty and `mode` None if it does not exist."""

    path: Path  # as it was named
    target: Path  # what it leads to
    text: str
    mode: int | None

    @property
    def exists(self) -> bool:
        """Whether there is such a file."""
        return self.mode is not None


def read_text_file(path: Path) -> TextFile:
    """Return a file, absent ones included; raises `ConfigError` if it is not a text file."""
    try:
        target = Path(os.path.realpath(path))
        status = target.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a file.", remedy="Name the file itself.")
        if status.st_size > MAX_FILE_BYTES:
            raise ConfigError(
                f"The file {path} has {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are "
                "read.",
                remedy="Is it the right file?",
            )
        text = target.read_bytes().decode("utf-8")
        return TextFile(path, target, text, stat.S_IMODE(status.st_mode))
    except FileNotFoundError:
        return TextFile(path, target, "", None)
    except UnicodeDecodeError as exc:
        raise ConfigError(
            f"The file {path} is not UTF-8 text (byte {exc.start}).",
            remedy="Save it as UTF-8. Nothing was changed.",
        ) from exc
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigError(
            f"The file {path} cannot be read: {reason}.", remedy="Make it readable."
        ) from exc


@contextmanager
def lock_edits(folder: Path) -> Iterator[None]:
    """Let one process at a time change files; `folder` is this program's own."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise Unavailable(
            f"The folder {folder} cannot be written: {exc.strerror}.",
            remedy="Make it writable, or name another data folder with --data-dir.",
        ) from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def edit_text_file(path: Path, change: Callable[[TextFile], str]) -> tuple[TextFile, str]:
    """Replace a file by `change(file)`; return the file as it was, and its new text.

    `change` is called again if the file was written meanwhile. Raises `ConfigError` and
    `Unavailable`; the file is then as it was.
    """
    for _ in range(EDIT_TRIES):
        file = read_text_file(path)
        text = change(file)
        if text == file.text or replace_text(file, text):
            return file, text
    raise Unavailable(
        f"Another program writes {path} again and again.", remedy="Close it, and try again."
    )


def replace_text(file: TextFile, text: str) -> bool:
    """Replace the text of a file; return False if it has changed since it was read."""
    check_writable(file)
    target = file.target
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as exc:
        raise unwritable_error(file.path, exc) from exc
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(text.encode("utf-8"))
            os.fchmod(out.fileno(), NEW_FILE_MODE if file.mode is None else file.mode)
            keep_owner(out.fileno(), target)
            out.flush()
            os.fsync(out.fileno())
        if read_text_file(file.path) != file:
            return False
        os.replace(temporary, target)
        return True
    except OSError as exc:
        raise unwritable_error(file.path, exc) from exc
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def check_writable(file: TextFile) -> None:
    """Raise `ConfigError` if a file is read-only."""
    is_read_only = file.mode is not None and not file.mode & stat.S_IWUSR
    if is_read_only or (file.exists and not os.access(file.target, os.W_OK)):
        raise ConfigError(
            f"The file {file.path} is read-only.",
            remedy=f"If it may be changed: chmod u+w {file.target}. Nothing was changed.",
        )


def keep_owner(handle: int, target: Path) -> None:
    """Give a new file the owner of the one that it replaces, as far as this user may."""
    with suppress(OSError):
        status = target.stat()
        os.fchown(handle, status.st_uid, status.st_gid)


def unwritable_error(path: Path, exc: OSError) -> ConfigError:
    """Return the error for a file that cannot be written."""
    return ConfigError(
        f"The file {path} cannot be written: {exc.strerror or exc}.",
        remedy="Make its folder writable. Nothing was changed.",
    )


def remove_text_file(file: TextFile) -> None:
    """Remove a file, if it still is what was read."""
    with suppress(FileNotFoundError):
        if read_text_file(file.path) == file:
            file.target.unlink()


def back_up(file: TextFile) -> Path:
    """Copy a file to one beside it that did not exist; return its path."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = file.target.with_name(f"{file.target.name}.backup-{stamp}")
    for number in range(1, 1000):
        copy = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            handle = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, NEW_FILE_MODE)
        except FileExistsError:
            continue
        except OSError as exc:
            raise unwritable_error(copy, exc) from exc
        with os.fdopen(handle, "wb") as out:
            out.write(file.text.encode("utf-8"))
            out.flush()
            os.fsync(out.fileno())
        return copy
    raise Unavailable(f"There are too many backups of {file.path}.", remedy="Remove some.")


def format_diff(path: Path, before: str, after: str) -> str:
    """Return a unified diff of a change."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        f"{path} (now)",
        f"{path} (then)",
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
