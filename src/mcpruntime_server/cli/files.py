"""The command `files`: lists the workspace files of a session, and copies them out.

Code in a sandbox chose the paths and the content. So a copy gets the last part of its path as its
name, made printable, and goes into the export folder, where nothing is overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import click

from ..config import Config
from ..errors import InvalidRequest, NotFound, Unavailable
from ..journal.events import FileEntry
from ..journal.store import Journal
from ..runtime.run_history import find_any_session
from .console import ConsoleWriter, format_count, format_size
from .journal_access import read_journal
from .options import json_option, pass_config, principal_option
from .terminal_text import print_json

GET_ACTION = "get"
MAX_NAMED_FILES = 10  # in an error


@click.command("files")
@click.argument("session")
@click.argument("words", nargs=-1, metavar="[get PATH...]")
@principal_option
@json_option
@pass_config
def files_command(
    config: Config, *, session: str, words: tuple[str, ...], principal: str, as_json: bool
) -> int:
    """List the workspace files of SESSION, or copy some: `files SESSION get PATH...`.

    PATH is a file, a folder or a pattern in the workspace. Copies go into the folder `[server]
    export_dir`; a file whose name is taken gets a number.
    """
    if not words:
        return print_files(config, principal, session, as_json=as_json)
    if words[0] != GET_ACTION or len(words) == 1:
        raise InvalidRequest(
            f"{' '.join(words)!r:.200} does not say what to do with the files of {session!r:.80}.",
            remedy="Write `files SESSION get PATH...`.",
        )
    copies = read_journal(
        config, lambda journal: copy_files(config, journal, principal, session, words[1:])
    )
    if as_json:
        print_json({path: str(copy) for path, copy in copies.items()})
        return 0
    writer = ConsoleWriter()
    for path, copy in copies.items():
        writer.write_line(f"{path} -> {copy}")
    return 0


def print_files(config: Config, principal: str, session: str, *, as_json: bool) -> int:
    """Print the workspace files of a session."""
    files = read_journal(config, lambda journal: load_files(journal, principal, session))
    if as_json:
        print_json([{"path": path, "size": files[path]["size"]} for path in sorted(files)])
        return 0
    writer = ConsoleWriter()
    for path in sorted(files):
        writer.write_line(f"{format_size(files[path]['size']):>9}  {path}")
    writer.write_note(format_count(len(files), "file"))
    return 0


async def load_files(journal: Journal, principal: str, session: str) -> dict[str, FileEntry]:
    """Return the files at the end of a session's tip, by path; raises `NotFound`."""
    row = await find_any_session(journal, session, principal)
    files, _ = await journal.load_files_at(row.tip, [])
    return files


async def copy_files(
    config: Config, journal: Journal, principal: str, session: str, wanted: Sequence[str]
) -> dict[str, Path]:
    """Copy files into the export folder; return the path of each copy."""
    files = await load_files(journal, principal, session)
    paths = [path for each in wanted for path in match_files(files, each)]
    copies = {}
    for path in dict.fromkeys(paths):
        data = await journal.get_blob(files[path]["digest"])
        copies[path] = write_copy(config.server.export_dir, path, data)
    return copies


def match_files(files: Mapping[str, FileEntry], wanted: str) -> list[str]:
    """Return the paths that a file, a folder or a pattern names; raises `NotFound`."""
    path = wanted.removeprefix("./").rstrip("/")
    found = [path] if path in files else []
    found = found or sorted(each for each in files if each.startswith(f"{path}/"))
    found = found or sorted(each for each in files if fnmatchcase(each, path))
    if not found:
        listed = ", ".join(map(repr, sorted(files)[:MAX_NAMED_FILES])) or "none"
        raise NotFound(
            f"The workspace has no file {wanted!r:.200}.", remedy=f"Its files: {listed:.1000}."
        )
    return found


def choose_name(path: str) -> str:
    """Return a name for the copy of a file: printable, not hidden, and without a folder."""
    name = path.rpartition("/")[2]
    name = "".join(each if each.isprintable() else "_" for each in name)
    return f"_{name[1:]}" if name.startswith(".") else name


def write_copy(folder: Path, path: str, data: bytes) -> Path:
    """Write the content of a workspace file into a folder; return the path of the copy."""
    from ..capabilities.file_exports import write_file

    try:
        return write_file(folder, choose_name(path), [data])
    except OSError as exc:
        raise Unavailable(
            f"{path!r:.200} cannot be copied to {folder}: {exc.strerror}.",
            remedy="Make the folder writable, or name another in [server] export_dir.",
        ) from exc
