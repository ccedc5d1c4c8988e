"""The index over the passages of all providers: one SQLite file with FTS5 in the data folder.

Rule 1: the index can be rebuilt at any time; a damaged file is replaced.
Rule 2: the index is shared by all servers of a data folder and belongs to none of them. Every use
opens a connection of its own, every change is one short transaction, and there is no lease. Entries
are keyed by where a provider gets its texts (`source_key`), not by its name in one server's
settings. So two servers may read the same file twice, but neither removes what the other has just
added.
Rule 3: no query can be a syntax error.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import Unavailable
from ...journal.schema import enable_write_ahead_log
from ..full_text import match_any, split_words
from .passages import PassageSpan

FORMAT_VERSION = 1  # in the file's name, because servers of two versions may share the folder
BUSY_TIMEOUT_S = 20.0  # that a change waits for the changes of other servers
MAX_CANDIDATES = 60  # passages that are scored for one query
UNUSED_AFTER_S = 30 * 86_400.0  # a source that no server has used for so long is removed
SCHEMA = """
CREATE TABLE sources (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, used_at REAL NOT NULL);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY, source INTEGER NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL,
    digest TEXT NOT NULL, checked_at REAL NOT NULL, problem TEXT NOT NULL, UNIQUE (source, name)
);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, source INTEGER NOT NULL, document INTEGER NOT NULL, title TEXT NOT NULL,
    start_char INTEGER NOT NULL, end_char INTEGER NOT NULL,
    first_line INTEGER NOT NULL, last_line INTEGER NOT NULL, is_lines INTEGER NOT NULL
);
CREATE INDEX passages_of_documents ON passages (document);
CREATE VIRTUAL TABLE words USING fts5(name, title, body, parts, tokenize = 'porter unicode61');
"""
SCORE_QUERY = """
SELECT words.rowid, -bm25(words, 2, 4, 1, 0.5) AS score
FROM words JOIN passages ON passages.id = words.rowid
WHERE words MATCH ? AND passages.source IN ({}) ORDER BY score DESC LIMIT ?
"""
PASSAGE_QUERY = """
SELECT sources.key, documents.name, start_char, end_char, first_line, last_line, passages.title,
    is_lines, words.body
FROM passages JOIN documents ON documents.id = passages.document
JOIN sources ON sources.id = passages.source JOIN words ON words.rowid = passages.id
WHERE passages.id = ?
"""
UPSERT_DOCUMENT = """
INSERT INTO documents (source, name, version, digest, checked_at, problem) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (source, name) DO UPDATE SET version = excluded.version, digest = excluded.digest,
checked_at = excluded.checked_at, problem = excluded.problem RETURNING id
"""
INSERT_PASSAGE = """
INSERT INTO passages
    (source, document, title, start_char, end_char, first_line, last_line, is_lines)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
CAMEL_CASE_NAMES = re.compile(r"(?<![^\W_])[^\W_]*?[a-z0-9](?=[A-Z])[^\W_]*")  # openConnection

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DocumentStatus:
    """The version of a document, when it was checked, and why it cannot be read."""

    version: str
    digest: str
    checked_at: float
    problem: str = ""


@dataclass(frozen=True)
class IndexedDocument:
    """A document and its passages, ready for the index."""

    name: str
    status: DocumentStatus
    text: str
    passages: Sequence[PassageSpan]


@dataclass(frozen=True)
class PassageMatch:
    """A passage that matches a query, and how well."""

    source_key: str
    name: str
    span: PassageSpan
    text: str
    score: float


@dataclass(frozen=True)
class SourceCounts:
    """How much of a source is in the index, and which documents could not be read, by reason."""

    documents: int
    passages: int
    failed: dict[str, list[str]]


class PassageIndex:
    """The index in a data folder. Its methods block: call them in worker threads."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"knowledge-{FORMAT_VERSION}.db"
        self._is_ready = False
        self._is_damaged = False

    # reading --------------------------------------------------------------------------------------

    def load_statuses(self, source_key: str) -> dict[str, DocumentStatus]:
        """Return the status of each document of a source, by name."""
        with self._connection() as db:
            rows = db.execute(
                "SELECT name, version, digest, checked_at, problem "
                "FROM documents JOIN sources ON sources.id = source WHERE key = ?",
                (source_key,),
            )
            return {name: DocumentStatus(*rest) for name, *rest in rows}

    def get_status(self, source_key: str, name: str) -> DocumentStatus | None:
        """Return the status of one document; None if the index does not know it."""
        with self._connection() as db:
            row = db.execute(
                "SELECT version, digest, checked_at, problem "
                "FROM documents JOIN sources ON sources.id = source WHERE key = ? AND name = ?",
                (source_key, name),
            ).fetchone()
        return DocumentStatus(*row) if row else None

    def count_entries(self, source_key: str) -> SourceCounts:
        """Return how much of a source is in the index."""
        with self._connection() as db:
            source = _get_source_id(db, source_key)
            passages = db.execute(
                "SELECT count(*) FROM passages WHERE source = ?", (source,)
            ).fetchone()[0]
            documents = db.execute(
                "SELECT count(*) FROM documents WHERE source = ? AND problem = ''", (source,)
            ).fetchone()[0]
            failed: defaultdict[str, list[str]] = defaultdict(list)
            for problem, name in db.execute(
                "SELECT problem, name FROM documents "
                "WHERE source = ? AND problem <> '' ORDER BY name",
                (source,),
            ):
                failed[problem].append(name)
        return SourceCounts(documents, passages, dict(failed))

    def list_documents(
        self, source_key: str, limit: int, max_titles: int
    ) -> list[tuple[str, list[str]]]:
        """Return the names of the first documents, each with the titles of its passages."""
        with self._connection() as db:
            rows = db.execute(
                "SELECT id, name FROM documents "
                "WHERE source = ? AND problem = '' ORDER BY name LIMIT ?",
                (_get_source_id(db, source_key), limit),
            ).fetchall()
            select_titles = (
                "SELECT title FROM passages WHERE document = ? AND title <> '' "
                "GROUP BY title ORDER BY min(id) LIMIT ?"
            )
            return [
                (name, [title for (title,) in db.execute(select_titles, (document, max_titles))])
                for document, name in rows
            ]

    def search(self, query: str, source_keys: Collection[str], limit: int) -> list[PassageMatch]:
        """Return the passages of the sources that match any word of `query`, best first."""
        expression = match_any(split_words(query))
        with self._connection() as db:
            ids = [_get_source_id(db, key) for key in source_keys]
            sources = [each for each in ids if each is not None]
            if not sources or not expression:
                return []
            select_scores = SCORE_QUERY.format(",".join("?" * len(sources)))
            scores = db.execute(select_scores, (expression, *sources, MAX_CANDIDATES)).fetchall()
            best = sorted(scores, key=lambda each: (-each[1], each[0]))[:limit]
            matches = [_load_match(db, passage, score) for passage, score in best]
            return [match for match in matches if match is not None]

    # changing -------------------------------------------------------------------------------------

    def mark_used(self, source_key: str) -> None:
        """Record that a source is in use, and remove those that have not been used for long."""
        now = time.time()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO sources (key, used_at) VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET used_at = excluded.used_at",
                (source_key, now),
            )
            unused = db.execute(
                "SELECT id FROM sources WHERE used_at < ?", (now - UNUSED_AFTER_S,)
            ).fetchall()
            for (source,) in unused:
                rows = db.execute("SELECT id FROM documents WHERE source = ?", (source,)).fetchall()
                _delete_documents(db, [document for (document,) in rows])
                db.execute("DELETE FROM sources WHERE id = ?", (source,))

    def put_documents(self, source_key: str, documents: Iterable[IndexedDocument]) -> None:
        """Add or replace documents; if the digest is unchanged, only the version is updated."""
        with self._transaction() as db:
            source = _get_source_id(db, source_key)
            for document in documents:
                row = db.execute(
                    "SELECT digest, problem FROM documents WHERE source = ? AND name = ?",
                    (source, document.name),
                ).fetchone()
                document_id = _upsert_document(db, source, document)
                if row != (document.status.digest, document.status.problem):
                    _delete_passages(db, document_id)
                    for span in document.passages:
                        _insert_passage(db, source, document_id, document, span)

    def remove_documents(self, source_key: str, names: Collection[str]) -> None:
        """Remove documents that no longer exist."""
        if not names:
            return
        with self._transaction() as db:
            source = _get_source_id(db, source_key)
            select = "SELECT id FROM documents WHERE source = ? AND name = ?"
            rows = [db.execute(select, (source, name)).fetchone() for name in names]
            _delete_documents(db, [row[0] for row in rows if row])

    # the file -------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.rollback()
                raise
            db.commit()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection to the file, which is created if necessary; raises `Unavailable`."""
        try:
            if not self._is_ready:
                self._prepare_file()
            db = self._connect()
            try:
                yield db
            finally:
                db.close()
        except (sqlite3.Error, OSError) as exc:
            self._is_ready = False
            self._is_damaged = is_damage_error(exc)
            raise Unavailable(
                f"The index {self._path} cannot be used: {exc}.",
                remedy="Check that the disk has space and that the folder is writable. "
                "A damaged index is rebuilt at the next attempt.",
            ) from exc

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        db.execute("PRAGMA synchronous = NORMAL")
        return db

    def _prepare_file(self) -> None:
        """Create the file, or replace it if it is damaged."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._is_damaged:
            try:
                self._create_tables()
                return
            except sqlite3.DatabaseError as exc:
                if not is_damage_error(exc):
                    raise
                logger.warning("the index %s is damaged and is rebuilt: %s", self._path, exc)
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._create_tables()

    def _create_tables(self) -> None:
        """Create the tables if there are none."""
        db = self._connect()
        try:
            enable_write_ahead_log(db, BUSY_TIMEOUT_S)
            db.execute("BEGIN IMMEDIATE")
            if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in SCHEMA.strip().split(";\n"):
                    db.execute(statement)
            db.execute("COMMIT")
        finally:
            db.close()
        self._is_ready = True
        self._is_damaged = False


def is_damage_error(error: Exception) -> bool:
    """Return whether an error means that the file is damaged or not a database.

    Locks and full disks raise subclasses of `DatabaseError`.
    """
    return type(error) is sqlite3.DatabaseError


def _get_source_id(db: sqlite3.Connection, source_key: str) -> int | None:
    row = db.execute("SELECT id FROM sources WHERE key = ?", (source_key,)).fetchone()
    return row[0] if row else None


def _upsert_document(db: sqlite3.Connection, source: int | None, document: IndexedDocument) -> int:
    status = document.status
    values = (status.version, status.digest, status.checked_at, status.problem)
    row = db.execute(UPSERT_DOCUMENT, (source, document.name, *values)).fetchone()
    return int(row[0])


def _insert_passage(
    db: sqlite3.Connection,
    source: int | None,
    document_id: int,
    document: IndexedDocument,
    span: PassageSpan,
) -> None:
    place = (span.start, span.end, span.first_line, span.last_line, span.is_lines)
    cursor = db.execute(INSERT_PASSAGE, (source, document_id, span.title, *place))
    body = document.text[span.start : span.end]
    name = " ".join(split_words(document.name))
    title = " ".join(split_words(span.title))
    db.execute(
        "INSERT INTO words (rowid, name, title, body, parts) VALUES (?, ?, ?, ?, ?)",
        (cursor.lastrowid, name, title, body, _split_names(body)),
    )


def _split_names(body: str) -> str:
    """Return the words inside the camel-case names of a text, which FTS5 does not see."""
    names = CAMEL_CASE_NAMES.findall(body)
    return " ".join(word for name in names for word in split_words(name))


def _delete_passages(db: sqlite3.Connection, document: int) -> None:
    db.execute(
        "DELETE FROM words WHERE rowid IN (SELECT id FROM passages WHERE document = ?)", (document,)
    )
    db.execute("DELETE FROM passages WHERE document = ?", (document,))


def _delete_documents(db: sqlite3.Connection, documents: Iterable[int]) -> None:
    for document in documents:
        _delete_passages(db, document)
        db.execute("DELETE FROM documents WHERE id = ?", (document,))


def _load_match(db: sqlite3.Connection, passage: int, score: float) -> PassageMatch | None:
    row: Sequence[Any] | None = db.execute(PASSAGE_QUERY, (passage,)).fetchone()
    if row is None:
        return None
    source_key, name, start, end, first_line, last_line, title, is_lines, body = row
    span = PassageSpan(start, end, first_line, last_line, title, bool(is_lines))
    return PassageMatch(source_key, name, span, body, round(score, 3))
