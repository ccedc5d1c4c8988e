"""Passages of all providers in one SQLite file in the data folder, with FTS5 over them.

Rule 1: it can be made anew at any time: a file that is damaged is replaced.
Rule 2: any number of servers and threads may use it. Each use opens its own connection, each change is one short
transaction, and what belongs together is known by what it comes from (`source`), not by what a server calls it.
Rule 3: no question can be a syntax error.
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
from ..full_text import LIKENESS, match_any, query_words, related, split_words
from .passages import PassageSpan

FORMAT_VERSION = 1  # of the file, and in its name: servers of two versions may share the folder
BUSY_TIMEOUT_S = 20.0  # that a change waits for those of other servers
MAX_CANDIDATES = 60  # passages that are looked at for one part of a question
UNUSED_AFTER_S = 30 * 86_400.0  # until what no server asks for any more is forgotten
SCHEMA = """
CREATE TABLE sources (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, used REAL NOT NULL);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY, source INTEGER NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL,
    looked REAL NOT NULL, problem TEXT NOT NULL, UNIQUE (source, name)
);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, source INTEGER NOT NULL, document INTEGER NOT NULL, title TEXT NOT NULL,
    begin INTEGER NOT NULL, end INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    is_lines INTEGER NOT NULL
);
CREATE INDEX passages_of_documents ON passages (document);
CREATE VIRTUAL TABLE words USING fts5(name, title, body, parts, tokenize = 'porter unicode61');
"""
SCORE_QUERY = """
SELECT words.rowid, -bm25(words, 2, 4, 1, 0.5) AS score FROM words JOIN passages ON passages.id = words.rowid
WHERE words MATCH ? AND passages.source IN ({}) ORDER BY score DESC LIMIT ?
"""
PASSAGE_QUERY = """
SELECT source, documents.name, passages.title, begin, end, first, last, is_lines, words.body FROM passages
JOIN documents ON documents.id = document JOIN words ON words.rowid = passages.id WHERE passages.id = ?
""".replace("SELECT source", "SELECT passages.source")

CAMEL_CASE_NAMES = re.compile(
    r"(?<![^\W_])[^\W_]*?[a-z0-9](?=[A-Z])[^\W_]*"
)  # words in which others begin: openConnection

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DocumentStatus:
    """What the index knows of a document: the version that it has, when that was looked at, and what is wrong."""

    version: str
    digest: str
    checked_at: float
    problem: str = ""


@dataclass(frozen=True)
class IndexedDocument:
    """A document as it is put into the index."""

    name: str
    status: DocumentStatus
    text: str
    passages: Sequence[PassageSpan]


@dataclass(frozen=True)
class PassageMatch:
    """A passage, and how well it fits."""

    source_key: str
    name: str
    span: PassageSpan
    text: str
    score: float


class PassageIndex:
    """The index in a data folder. Blocks: for worker threads."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"knowledge-{FORMAT_VERSION}.db"
        self._is_ready = self._is_damaged = False

    # what is there ----------------------------------------------------------------------------------

    def load_statuses(self, source: str) -> dict[str, DocumentStatus]:
        """Return what is known of a source's documents, by name."""
        with self._connection() as db:
            rows = db.execute(
                "SELECT name, version, digest, looked, problem FROM documents JOIN sources ON sources.id = source "
                "WHERE key = ?",
                (source,),
            )
            return {name: DocumentStatus(*rest) for name, *rest in rows}

    def get_status(self, source: str, name: str) -> DocumentStatus | None:
        """Return what is known of one document."""
        with self._connection() as db:
            row = db.execute(
                "SELECT version, digest, looked, problem FROM documents JOIN sources ON sources.id = source "
                "WHERE key = ? AND name = ?",
                (source, name),
            ).fetchone()
        return DocumentStatus(*row) if row else None

    def count_entries(self, source: str) -> tuple[int, int, dict[str, list[str]]]:
        """Return how many documents and passages a source has, and the names of what could not be read, by reason."""
        with self._connection() as db:
            key = _get_source_id(db, source)
            passages = db.execute(
                "SELECT count(*) FROM passages WHERE source = ?", (key,)
            ).fetchone()[0]
            documents = db.execute(
                "SELECT count(*) FROM documents WHERE source = ? AND problem = ''", (key,)
            ).fetchone()[0]
            failed: defaultdict[str, list[str]] = defaultdict(list)
            wrong = "SELECT problem, name FROM documents WHERE source = ? AND problem <> '' ORDER BY name"
            for problem, name in db.execute(wrong, (key,)):
                failed[problem].append(name)
        return documents, passages, dict(failed)

    def list_documents(self, source: str, limit: int, titles: int) -> list[tuple[str, list[str]]]:
        """Return the first documents of a source and what their passages are called."""
        with self._connection() as db:
            rows = db.execute(
                "SELECT id, name FROM documents WHERE source = ? AND problem = '' ORDER BY name LIMIT ?",
                (_get_source_id(db, source), limit),
            ).fetchall()
            called = "SELECT title FROM passages WHERE document = ? AND title <> '' GROUP BY title ORDER BY min(id) LIMIT ?"
            return [
                (name, [title for (title,) in db.execute(called, (number, titles))])
                for number, name in rows
            ]

    def search(self, query: str, sources: Collection[str], limit: int) -> list[PassageMatch]:
        """Return the passages of `sources` that fit best: those with any word of the question, or words like them."""
        terms = query_words(query) or [word.lower() for word in split_words(query)[:8]]
        scores: defaultdict[int, float] = defaultdict(float)
        with self._connection() as db:
            keys = [
                key for key in (_get_source_id(db, source) for source in sources) if key is not None
            ]
            for wanted, counts in ((terms, 1.0), (related(terms), LIKENESS)):
                if wanted and keys:
                    scored = SCORE_QUERY.format(",".join("?" * len(keys)))
                    for number, score in db.execute(
                        scored, (match_any(wanted), *keys, MAX_CANDIDATES)
                    ):
                        scores[number] += score * counts
            best = sorted(scores.items(), key=lambda each: (-each[1], each[0]))[:limit]
            return [
                found
                for number, score in best
                if (found := _load_match(db, number, score)) is not None
            ]

    # what changes it --------------------------------------------------------------------------------

    def mark_used(self, source: str) -> None:
        """Note that a source is in use, and forget those that have not been for long."""
        now = time.time()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO sources (key, used) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET used = excluded.used",
                (source, now),
            )
            for (old,) in db.execute(
                "SELECT id FROM sources WHERE used < ?", (now - UNUSED_AFTER_S,)
            ).fetchall():
                _delete_documents(
                    db,
                    [
                        number
                        for (number,) in db.execute(
                            "SELECT id FROM documents WHERE source = ?", (old,)
                        )
                    ],
                )
                db.execute("DELETE FROM sources WHERE id = ?", (old,))

    def put_documents(self, source: str, texts: Iterable[IndexedDocument]) -> None:
        """Make these what is known of their documents; one that has the same digest as before only gets the version."""
        with self._transaction() as db:
            key = _get_source_id(db, source)
            for each in texts:
                row = db.execute(
                    "SELECT id, digest, problem FROM documents WHERE source = ? AND name = ?",
                    (key, each.name),
                ).fetchone()
                is_same = row is not None and row[1:] == (each.status.digest, each.status.problem)
                number = _upsert_document(db, key, each)
                if not is_same:
                    _delete_passages(db, number)
                    for piece in each.passages:
                        _insert_passage(db, key, number, each, piece)

    def remove_documents(self, source: str, names: Collection[str]) -> None:
        """Remove documents that are no more."""
        if not names:
            return
        with self._transaction() as db:
            key = _get_source_id(db, source)
            select = "SELECT id FROM documents WHERE source = ? AND name = ?"
            _delete_documents(
                db,
                [row[0] for name in names if (row := db.execute(select, (key, name)).fetchone())],
            )

    # the file ---------------------------------------------------------------------------------------

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
        """Yield a connection to the file, which is made if need be; raises `Unavailable`."""
        try:
            if not self._is_ready:
                self._prepare_file()
            db = self._connect()
            try:
                yield db
            finally:
                db.close()
        except (sqlite3.Error, OSError) as exc:
            self._is_ready, self._is_damaged = False, is_damage_error(exc)
            raise Unavailable(
                f"The index {self._path} cannot be used: {exc}.",
                remedy="It is made anew if it is damaged; see that the disk has room and the folder can be written.",
            ) from exc

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        db.execute("PRAGMA synchronous = NORMAL")
        return db

    def _prepare_file(self) -> None:
        """Make the file, or make it anew if it is damaged."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._is_damaged:
            try:
                self._create_tables()
                return
            except sqlite3.DatabaseError as exc:
                if not is_damage_error(exc):
                    raise
                logger.warning("the index %s is made anew: %s", self._path, exc)
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._create_tables()

    def _create_tables(self) -> None:
        """Make the tables, if there are none."""
        db = self._connect()
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN IMMEDIATE")
            if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in SCHEMA.strip().split(";\n"):
                    db.execute(statement)
            db.execute("COMMIT")
        finally:
            db.close()
        self._is_ready, self._is_damaged = True, False


def is_damage_error(error: Exception) -> bool:
    """Return whether an error says that the file is damaged or no database; locks and full disks are other classes."""
    return type(error) is sqlite3.DatabaseError


def _get_source_id(db: sqlite3.Connection, source: str) -> int | None:
    row = db.execute("SELECT id FROM sources WHERE key = ?", (source,)).fetchone()
    return row[0] if row else None


def _upsert_document(db: sqlite3.Connection, key: int | None, each: IndexedDocument) -> int:
    known = each.status
    row = db.execute(
        "INSERT INTO documents (source, name, version, digest, looked, problem) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (source, name) DO UPDATE SET version = excluded.version, digest = excluded.digest, "
        "looked = excluded.looked, problem = excluded.problem RETURNING id",
        (key, each.name, known.version, known.digest, known.checked_at, known.problem),
    ).fetchone()
    return int(row[0])


def _insert_passage(
    db: sqlite3.Connection,
    key: int | None,
    document: int,
    each: IndexedDocument,
    piece: PassageSpan,
) -> None:
    body = each.text[piece.start : piece.end]
    place = piece.start, piece.end, piece.first_line, piece.last_line, piece.is_lines
    cursor = db.execute(
        "INSERT INTO passages (source, document, title, begin, end, first, last, is_lines) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (key, document, piece.title, *place),
    )
    texts = (
        " ".join(split_words(each.name)),
        " ".join(split_words(piece.title)),
        body,
        _split_names(body),
    )
    db.execute(
        "INSERT INTO words (rowid, name, title, body, parts) VALUES (?, ?, ?, ?, ?)",
        (cursor.lastrowid, *texts),
    )


def _split_names(body: str) -> str:
    """Return the words that names in a text are made of, which FTS5 does not see."""
    return " ".join(part for name in CAMEL_CASE_NAMES.findall(body) for part in split_words(name))


def _delete_passages(db: sqlite3.Connection, document: int) -> None:
    db.execute(
        "DELETE FROM words WHERE rowid IN (SELECT id FROM passages WHERE document = ?)", (document,)
    )
    db.execute("DELETE FROM passages WHERE document = ?", (document,))


def _delete_documents(db: sqlite3.Connection, documents: Iterable[int]) -> None:
    for number in documents:
        _delete_passages(db, number)
        db.execute("DELETE FROM documents WHERE id = ?", (number,))


def _load_match(db: sqlite3.Connection, number: int, score: float) -> PassageMatch | None:
    row: Sequence[Any] | None = db.execute(PASSAGE_QUERY, (number,)).fetchone()
    if row is None:
        return None
    key, name, title, begin, end, first, last, is_lines, body = row
    (source,) = db.execute("SELECT key FROM sources WHERE id = ?", (key,)).fetchone()
    return PassageMatch(
        source,
        name,
        PassageSpan(begin, end, first, last, title, bool(is_lines)),
        body,
        round(score, 3),
    )
