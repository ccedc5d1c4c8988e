"""Search what the runs of sessions have said and done.

Rule 1: a text in a blob is searched in pieces, so that no step of a search holds the interpreter.
Rule 2: a search ends after `MAX_SEARCH_S`, in a statement of SQLite, too, and says so.

As in `queries`, functions block until they have the result, and let `sqlite3.Error` pass.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from ..errors import JournalFailed, NotFound
from . import queries
from .blob_store import BlobStore
from .encoded_text import iter_text_pieces
from .events import decode_json, encode_json
from .rows import SessionRow

MAX_SEARCH_S = 2.0
MAX_LIST_BYTES = 1_000_000  # of a blob with a list of files; longer ones are left out
EXCERPT_CHARS = 70  # before and after what was searched for
MAX_CHAR_BYTES = 24  # in JSON within JSON
CHECKED_STEPS = 20_000  # of SQLite, between two looks at the clock
UNREADABLE = (JournalFailed, NotFound, OSError)  # raised for blobs that are damaged or lost

SELECT_SEARCHED = """
    SELECT run_id, (SELECT step FROM runs WHERE runs.id = run_id), kind, body, large_fields
    FROM events
    WHERE session_id = ?1 AND run_id IS NOT NULL
        AND kind IN ('run_started', 'output_written', 'call_started', 'files_changed')
        AND (instr(lower(body), ?2) > 0 OR instr(lower(body), ?3) > 0 OR large_fields IS NOT NULL)
    ORDER BY sequence DESC"""
SEARCHED_FIELDS = {  # by the kind of an event
    "run_started": ("code",),
    "output_written": ("text",),
    "call_started": ("target", "args"),
    "files_changed": ("changed", "removed"),
}


@dataclass(frozen=True, slots=True)
class SearchMatch:
    """An event of a run that contains what was searched for, with the text around it."""

    run_id: str
    step: int  # 0: it was not started
    kind: str
    before: str
    found: str
    after: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Sessions with matches, the last used first; how many were searched, of how many.

    `is_complete` says that all of each of them was searched.
    """

    sessions: list[tuple[SessionRow, list[SearchMatch]]]
    searched_count: int
    session_count: int
    is_complete: bool


class SearchTimedOutError(Exception):
    """The time of a search is over."""


class SessionSearch:
    """A search for one text, which is under way; upper and lower case of ASCII are equal."""

    def __init__(self, connection: Connection, blobs: BlobStore, text: str) -> None:
        self._connection = connection
        self._blobs = blobs
        self._ends_at = time.monotonic() + MAX_SEARCH_S
        # In a body, text is JSON; the arguments of a call are JSON text within it.
        escaped = encode_json(text)[1:-1]
        self._encoded = escaped.lower(), encode_json(escaped)[1:-1].lower()
        self._needles = tuple(each.encode("ascii") for each in self._encoded)
        options = dict.fromkeys((text, escaped))
        self._pattern = re.compile("|".join(map(re.escape, options)), re.IGNORECASE | re.ASCII)
        self._overlap_bytes = MAX_CHAR_BYTES * (len(text) + EXCERPT_CHARS)
        self.is_complete = True

    @property
    def is_over(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self._ends_at

    @contextmanager
    def limit_time(self) -> Iterator[None]:
        """Let statements of SQLite end with the time of the search."""
        self._connection.set_progress_handler(lambda: int(self.is_over), CHECKED_STEPS)
        try:
            yield
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            raise SearchTimedOutError from None
        finally:
            self._connection.set_progress_handler(None, 0)

    def iter_matches(self, session_id: str) -> Iterator[SearchMatch]:
        """Yield the events of a session that contain the text, the newest first.

        Raises `SearchTimedOutError`.
        """
        rows = self._connection.execute(SELECT_SEARCHED, (session_id, *self._encoded))
        for run_id, step, kind, body, large_fields in rows:
            self._check_time()
            with suppress(ValueError, TypeError, AttributeError, RecursionError, *UNREADABLE):
                digests: Mapping[str, str] = json.loads(large_fields or "{}")
                fields: Mapping[str, Any] = decode_json(body)
                for name in SEARCHED_FIELDS[kind]:
                    if name in digests:
                        found = self._search_blob(digests[name], is_list=kind == "files_changed")
                    else:
                        found = self._search_texts(fields.get(name))
                    if found is not None:
                        yield SearchMatch(run_id, step or 0, kind, *found)
                        break

    def _search_texts(self, field: Any) -> tuple[str, str, str] | None:
        """Return where a field contains the text: itself, or the paths that it has."""
        texts: Sequence[str] = ()
        if isinstance(field, str):
            texts = (field,)
        elif isinstance(field, dict | list):
            texts = tuple(map(str, field))
        for each in texts:
            if match := self._pattern.search(each):
                start, end = match.span()
                before = each[max(start - EXCERPT_CHARS, 0) : start]
                return before, match[0], each[end : end + EXCERPT_CHARS]
        return None

    def _search_blob(self, digest: str, *, is_list: bool) -> tuple[str, str, str] | None:
        with self._blobs.open_blob(digest) as file:
            if is_list:
                encoded = file.read(MAX_LIST_BYTES)
                if file.read(1):
                    self.is_complete = False
                    return None
                return self._search_texts(decode_json(encoded.decode("ascii")))
            for piece in iter_text_pieces(file, self._overlap_bytes):
                self._check_time()
                lowered = piece.lower()
                if any(each in lowered for each in self._needles):
                    found = self._search_texts(decode_json(f'"{piece.decode("ascii")}"'))
                    if found is not None:
                        return found
        return None

    def _check_time(self) -> None:
        if self.is_over:
            raise SearchTimedOutError


def search_sessions(
    connection: Connection,
    blobs: BlobStore,
    principal: str,
    text: str,
    max_sessions: int,
    max_matches: int,
    purposes: Sequence[str] = ("", "fork", "import"),
) -> SearchResult:
    """Return the sessions whose code, output, calls or file names contain a text.

    The newest sessions are searched first, for `MAX_SEARCH_S` at most. Of matches of one kind that
    follow each other in a run, the last one stands for all.
    """
    search = SessionSearch(connection, blobs, text)
    sessions = [
        each for each in queries.list_sessions(connection, principal) if each.purpose in purposes
    ]
    found: list[tuple[SessionRow, list[SearchMatch]]] = []
    searched_count = 0
    is_cut = False
    for session in sessions:
        if is_cut or search.is_over or len(found) >= max_sessions:
            break
        matches: list[SearchMatch] = []
        try:
            with search.limit_time():
                for match in search.iter_matches(session.id):
                    if matches and is_alike(matches[-1], match):
                        continue
                    matches.append(match)
                    if len(matches) >= max_matches:
                        break
        except SearchTimedOutError:
            is_cut = True
        else:
            searched_count += 1
        if matches or text.lower() in (session.name or "").lower():
            found.append((session, matches))
    is_complete = search.is_complete and searched_count == len(sessions)
    return SearchResult(found, searched_count, len(sessions), is_complete)


def is_alike(one: SearchMatch, other: SearchMatch) -> bool:
    """Return whether two matches are of one kind in one run."""
    return (one.run_id, one.kind) == (other.run_id, other.kind)
