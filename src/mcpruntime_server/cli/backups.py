"""The commands `backup` and `restore`: all that a server keeps, in one file."""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import anyio
import click

from ..config import Config
from ..errors import InvalidRequest, Unavailable
from .console import ConsoleWriter, format_count, format_size
from .options import pass_config
from .progress import show_progress

if TYPE_CHECKING:
    from ..journal.backup import BackupSummary

STANDARD_STREAM = "-"
COMPRESSED_SUFFIXES = (".gz", ".tgz")
COMPRESSION_LEVEL = 1  # journals are text, and a backup should not keep a processor busy for long


@click.command("backup")
@click.argument("file", metavar="FILE")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@pass_config
def backup_command(config: Config, *, file: str, force: bool) -> int:
    """Write all state into FILE, a tar archive, while servers may work; "-" is stdout.

    A name that ends with .gz or .tgz is compressed. Not included: the settings, the key of stored
    credentials, files that code has exported to other folders, and logs.
    """
    from ..journal.backup import write_backup

    with show_progress(f"Writing {file}"), open_target(file, force=force) as target:
        summary = write_backup(config.server.data_dir, config.skills.folder, target)
    report_backup(f"backed up to {file}", summary)
    return 0


@click.command("restore")
@click.argument("file", metavar="FILE")
@pass_config
def restore_command(config: Config, *, file: str) -> int:
    """Restore all state from FILE, which `backup` wrote, into an empty data folder.

    Runs that had not ended do not continue: what they did after the backup is not known. Tokens
    that were revoked after it are valid again: `token list` shows all of them.
    """
    from ..journal.backup import restore_backup

    with show_progress(f"Restoring from {file}"), open_source(file) as source:
        restore = partial(restore_backup, source, config.server.data_dir, config.skills.folder)
        summary = anyio.run(restore)
    report_backup(f"restored to {config.server.data_dir}", summary)
    if summary.ended_runs:
        runs = format_count(summary.ended_runs, "run")
        ConsoleWriter(sys.stderr).write_warning(f"{runs} had not ended and will not continue")
    return 0


def report_backup(what: str, summary: BackupSummary) -> None:
    """Say how much there was; stdout may have the backup."""
    files = format_count(summary.files, "file")
    ConsoleWriter(sys.stderr).write_line(f"{what}: {files}, {format_size(summary.bytes)}")


@contextmanager
def open_target(file: str, *, force: bool) -> Iterator[IO[bytes]]:
    """Yield a stream to write to; FILE appears when it is complete, and is on the disk then."""
    if file == STANDARD_STREAM:
        if sys.stdout.isatty():
            raise InvalidRequest("A backup is not text: send it to a file or another program.")
        yield sys.stdout.buffer
        return
    path = Path(file)
    if path.exists() and not force:
        raise InvalidRequest(f"{path} exists.", remedy="Choose another name, or use --force.")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as draft:
            if path.suffix in COMPRESSED_SUFFIXES:
                with gzip.open(draft, "wb", COMPRESSION_LEVEL) as compressed:
                    yield cast("IO[bytes]", compressed)
            else:
                yield cast("IO[bytes]", draft)
            draft.flush()
            os.fsync(draft.fileno())
            os.link(draft.name, f"{draft.name}.done")
            os.replace(f"{draft.name}.done", path)
    except OSError as exc:
        raise Unavailable(f"{path} cannot be written: {exc.strerror or exc}.") from exc


@contextmanager
def open_source(file: str) -> Iterator[IO[bytes]]:
    """Yield a stream to read from."""
    if file == STANDARD_STREAM:
        yield sys.stdin.buffer
        return
    try:
        with open(file, "rb") as source:
            yield source
    except OSError as exc:
        raise InvalidRequest(
            f"{file} cannot be read: {exc.strerror or exc}.",
            remedy="Name a file that `backup` has written.",
        ) from exc
