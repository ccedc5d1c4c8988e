"""Register this server in a client's file, and take that back.

What was there before comes back exactly if the file has not changed since. Otherwise only the entry
is removed, and what had been made for it. A record in the user's state folder says which; it has no
text of the entry, which may hold credentials.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..errors import Conflict, NotFound
from .client_documents import parse_text, read_table, remove_servers, server_key, set_server
from .client_kinds import ClientKind, KeyPath
from .server_entries import is_own_entry, make_own_entry
from .text_files import (
    TextFile,
    edit_text_file,
    lock_edits,
    read_text_file,
    remove_text_file,
    replace_text,
)

DEFAULT_NAME = "runtime"


@dataclass(frozen=True)
class RegistrationRecord:
    """How a file changed when this server was registered in it."""

    name: str
    had_file: bool
    made_folders: list[str] = field(default_factory=list)  # the innermost first
    made_keys: list[str] = field(default_factory=list)  # the path of the outermost new table
    start: int = 0
    removed: str = ""  # the text that the change has replaced, from `start`
    inserted_chars: int = 0
    digest: str = ""  # of the whole text after the change; "" if the change cannot be inverted


@dataclass(frozen=True)
class FileChange:
    """A file before and after a change."""

    path: Path
    before: str
    after: str
    is_removed: bool = False  # the file itself is gone

    @property
    def is_change(self) -> bool:
        """Whether anything is different."""
        return self.before != self.after or self.is_removed


class Registration:
    """The entry of this server in one file of one client; records are kept below `state`."""

    def __init__(self, kind: ClientKind, path: Path, state: Path, name: str = DEFAULT_NAME) -> None:
        self._kind = kind
        self._path = path
        self._state = state
        self._name = name
        place = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
        self._record_file = state / f"{kind.name}-{place}.json"

    def install(
        self, command: Sequence[str], env: Mapping[str, str], *, is_trial: bool = False
    ) -> FileChange:
        """Write the entry of this server; a trial computes the change and writes nothing.

        Raises `Conflict` if another server has its name.
        """

        def change(file: TextFile) -> str:
            return self._add_entry(file, command, env)

        if is_trial:
            file = read_text_file(self._path)
            return FileChange(self._path, file.text, change(file))
        with lock_edits(self._state):
            folders = find_missing_folders(self._path)
            file, after = edit_text_file(self._path, change)
            if after != file.text:
                self._write_record(make_record(self._kind, self._name, file, after, folders))
        return FileChange(self._path, file.text, after)

    def _add_entry(self, file: TextFile, command: Sequence[str], env: Mapping[str, str]) -> str:
        content = parse_text(self._kind, file.text, self._path)
        key = server_key(self._kind, content)
        existing = read_table(content, key).get(self._name)
        if existing is not None and not is_own_entry(existing):
            raise Conflict(
                f"{self._path} has another server with the name {self._name!r}.",
                remedy="Choose a name with --name.",
            )
        entry = make_own_entry(self._kind, key, command, env)
        if existing is not None:
            entry = merge_entries(existing, entry)
        if existing == entry:
            return file.text
        return set_server(self._kind, file.text, self._path, self._name, entry)

    def uninstall(self, *, is_trial: bool = False) -> FileChange:
        """Remove the entry of this server; raises `NotFound` if there is none."""
        with lock_edits(self._state):
            record = self._read_record()
            file = read_text_file(self._path)
            after = self._remove_entry(file, record)
            is_gone = bool(record and not record.had_file and not after.strip())
            if not is_trial:
                if is_gone:
                    remove_text_file(file)
                    remove_folders(record.made_folders if record else ())
                elif not replace_text(file, after):
                    _, after = edit_text_file(
                        self._path, lambda changed: self._remove_entry(changed, record)
                    )
                self._record_file.unlink(missing_ok=True)
        return FileChange(self._path, file.text, after, is_gone)

    def _remove_entry(self, file: TextFile, record: RegistrationRecord | None) -> str:
        content = parse_text(self._kind, file.text, self._path)
        key = server_key(self._kind, content)
        entries = read_table(content, key)
        name = record.name if record and record.name in entries else self._name
        if not is_own_entry(entries.get(name)):
            raise NotFound(
                f"{self._path} does not have this server under the name {name!r}.",
                remedy=f"`install {self._kind.name}` registers it.",
            )
        if record and record.digest == compute_digest(file.text):
            end = record.start + record.inserted_chars
            return file.text[: record.start] + record.removed + file.text[end:]
        text = remove_servers(self._kind, file.text, self._path, key, [name])
        return self._remove_made_tables(text, record, key)

    def _remove_made_tables(
        self, text: str, record: RegistrationRecord | None, key: KeyPath
    ) -> str:
        """Return a text without the tables that were made for the entry, if they are empty."""
        made = tuple(record.made_keys) if record else ()
        for depth in range(len(key), max(len(made) - 1, 0), -1):
            content = parse_text(self._kind, text, self._path)
            is_made = bool(made) and key[: len(made)] == made
            if is_made and not read_table(content, key[:depth]):
                text = remove_servers(
                    self._kind, text, self._path, key[: depth - 1], [key[depth - 1]]
                )
        return text

    def _write_record(self, record: RegistrationRecord) -> None:
        earlier = self._read_record()
        if earlier and not record.digest:  # an entry was updated: what was made stays known
            record = RegistrationRecord(
                record.name, earlier.had_file, earlier.made_folders, earlier.made_keys
            )
        text = json.dumps(asdict(record), indent=1)
        replace_text(read_text_file(self._record_file), text)

    def _read_record(self) -> RegistrationRecord | None:
        with suppress(OSError, ValueError, TypeError):
            record = RegistrationRecord(**json.loads(self._record_file.read_bytes()))
            if isinstance(record.name, str) and isinstance(record.removed, str):
                return record
        return None


def find_own_entries(kind: ClientKind, path: Path) -> dict[str, Any]:
    """Return the entries of this server in a client's file, by name."""
    file = read_text_file(path)
    content = parse_text(kind, file.text, path)
    entries = read_table(content, server_key(kind, content))
    return {name: entry for name, entry in entries.items() if is_own_entry(entry)}


def merge_entries(existing: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry with what a person or the client has added to the earlier one."""
    merged = {**existing, **entry}
    for name in ("env", "environment"):
        variables = existing.get(name)
        if isinstance(variables, Mapping):
            merged[name] = {**variables, **entry.get(name, {})}
    return merged


def make_record(
    kind: ClientKind, name: str, file: TextFile, after: str, folders: Sequence[str]
) -> RegistrationRecord:
    """Return the record of a change that has added an entry, or changed it."""
    before = parse_text(kind, file.text, file.path)
    key = server_key(kind, before)
    made = next(
        (key[:depth] for depth in range(1, len(key) + 1) if not has_table(before, key[:depth])), ()
    )
    if name in read_table(before, key):
        return RegistrationRecord(name, file.exists, [*folders], [*made])
    start = count_common(file.text, after)
    tail = count_common(file.text[start:][::-1], after[start:][::-1])
    return RegistrationRecord(
        name,
        file.exists,
        [*folders],
        [*made],
        start,
        file.text[start : len(file.text) - tail],
        len(after) - tail - start,
        compute_digest(after),
    )


def has_table(content: Mapping[str, Any], key: KeyPath) -> bool:
    """Return whether there is a table at a key, be it empty."""
    parent = read_table(content, key[:-1])
    return isinstance(parent.get(key[-1]), Mapping)


def count_common(left: str, right: str) -> int:
    """Return how many characters two texts begin with in common."""
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    )


def compute_digest(text: str) -> str:
    """Return what differs between two texts."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def find_missing_folders(path: Path) -> list[str]:
    """Return the folders of a file that do not exist, the innermost first."""
    return [str(parent) for parent in path.absolute().parents if not parent.exists()]


def remove_folders(folders: Sequence[str]) -> None:
    """Remove some folders as far as they are empty."""
    for folder in folders:
        with suppress(OSError):
            Path(folder).rmdir()
