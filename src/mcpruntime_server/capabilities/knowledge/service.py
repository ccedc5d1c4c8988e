"""The handler of the `knowledge` calls: search passages, read documents, describe providers.

Rule 1: the index is brought up to date when a call needs it, in the background. A call waits for
this a moment, then answers and says what is still missing. Nothing blocks the event loop.
Rule 2: an address is valid only if the index knows the document, so that nothing else of a provider
can be read.
Rule 3: answers contain text from strangers. It is passed on as plain data, together with its
source, and never as instructions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, unquote

import anyio
from anyio.abc import TaskGroup

from ...config import KnowledgeSettings
from ...errors import CallFailed, Unavailable
from ...journal.events import canonical_json
from ...protocol.payloads import (
    DocumentPart,
    JsonObject,
    OutlineEntry,
    PassageData,
    ProviderDescription,
    ProviderSummary,
    SearchAnswer,
    SkippedData,
)
from ...protocol.suggestions import did_you_mean
from ..call_arguments import get_argument
from ..full_text import split_words
from .folder_provider import FolderProvider
from .passage_index import PassageIndex, PassageMatch
from .provider import DocumentSkipped, KnowledgeProvider, format_names, is_valid_name
from .python_provider import PythonProvider
from .refresh import RefreshProgress, refresh_index
from .resource_provider import ResourceAccess, ResourceProvider
from .sqlite_provider import SqliteProvider

URI_SCHEME = "knowledge://"
INDEX_WAIT_S = 1.0  # that a call waits for the index
MIN_FRESH_S, MAX_FRESH_S = 2.0, 20.0  # bounds of the time until a provider is checked again
FRESH_FACTOR = 5  # a provider is checked again after this many times the last refresh's duration
MAX_RESULTS = 50
MAX_ANSWER_CHARS = 200_000
MAX_CONCURRENT_CALLS = 8  # code that sends a thousand calls must leave worker threads to others
MAX_QUERY_CHARS = 10_000
MAX_OUTLINE_DOCUMENTS = 200
MAX_OUTLINE_TITLES = 20  # of one document
MAX_SKIPPED_NAMES = 5  # for one reason
URI_SAFE_CHARS = "/:@!$&'()*+,;=~"  # not escaped in addresses
FRAGMENT_PATTERN = re.compile(r"(?P<unit>[LC])(?P<first>\d{1,9})-(?P<last>\d{1,9})")
NO_PROVIDERS = "There are no knowledge providers: add a table [knowledge.NAME] to the settings."

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass
class ProviderState:
    """A provider, and the state of its index."""

    name: str
    kind: str  # folder, sqlite, python or server
    title: str
    source_key: str  # its key in the index
    provider: KnowledgeProvider
    progress: RefreshProgress = field(default_factory=RefreshProgress)
    problem: Unavailable | None = None  # of the last refresh
    refresh_due: float = float("-inf")  # when the next refresh may start
    refresh_done: anyio.Event | None = None  # set when the current refresh ends


class ProviderCheck(ProviderSummary):
    """A summary of a provider, and whether its last refresh failed."""

    is_failed: bool


class KnowledgeService:
    """All providers of the settings; create it with `open_knowledge`."""

    def __init__(
        self, providers: Sequence[ProviderState], index: PassageIndex, tasks: TaskGroup
    ) -> None:
        self._providers = {each.name: each for each in providers}
        self._by_source_key = {each.source_key: each for each in providers}
        self._index = index
        self._tasks = tasks
        self._thread_limiter = anyio.CapacityLimiter(MAX_CONCURRENT_CALLS)

    @property
    def names(self) -> list[str]:
        """The names of all providers."""
        return list(self._providers)

    async def handle_call(self, target: str, args: JsonObject) -> Any:
        """Answer a call; raises `CallFailed`.

        The targets are `knowledge.search` {query, limit, source}, `knowledge.get` {uri, start,
        chars} and `knowledge.describe` {name, samples}.
        """
        if target == "knowledge.search":
            query = get_argument(args, "query", str, "")
            limit = get_argument(args, "limit", int, 5)
            return await self.search(query, limit, get_argument(args, "source", str, None))
        if target == "knowledge.get":
            uri = get_argument(args, "uri", str, "")
            start = get_argument(args, "start", int, 0)
            chars = get_argument(args, "chars", int, MAX_ANSWER_CHARS)
            return await self.get(uri, start, chars)
        if target == "knowledge.describe":
            name = get_argument(args, "name", str, None)
            samples = get_argument(args, "samples", int, 0)
            if name is None:
                return await self.describe_all()
            return await self.describe(name, samples)
        raise CallFailed("unknown_target", f"There is no call {target!r:.80}.")

    async def search(self, query: str, limit: int = 5, source: str | None = None) -> SearchAnswer:
        """Return the passages that match best, of all providers or of one; raises `CallFailed`."""
        if len(query) > MAX_QUERY_CHARS:
            raise CallFailed(
                "invalid_arguments", f"A query has at most {MAX_QUERY_CHARS:,} characters."
            )
        searched = (
            list(self._providers.values()) if source is None else [self._get_provider(source)]
        )
        await self._ensure_fresh(searched)
        source_keys = [each.source_key for each in searched]
        count = max(1, min(limit, MAX_RESULTS))
        matches = await self._run_in_thread(self._index.search, query, source_keys, count)
        problems = [problem for each in searched if (problem := describe_provider_problem(each))]
        if not self._providers:
            problems.append(NO_PROVIDERS)
        elif not split_words(query):
            problems.append("The query has no words to search for.")
        return {"passages": [self._format_passage(each) for each in matches], "problems": problems}

    async def get(self, uri: str, start: int = 0, chars: int = MAX_ANSWER_CHARS) -> DocumentPart:
        """Return a document or passage, or `chars` characters of it from `start` on.

        Raises `CallFailed`.
        """
        state, name, fragment = await self._resolve_uri(uri)
        if start < 0 or chars < 1:
            raise CallFailed(
                "invalid_arguments", "`start` must be at least 0 and `chars` at least 1."
            )
        text = await self._run_in_thread(_read_document, state.provider, name)
        first, end = _resolve_fragment(text, fragment)
        size = end - first
        first = min(first + start, end)
        last = min(end, first + min(chars, MAX_ANSWER_CHARS))
        first_line = text.count("\n", 0, first) + 1
        last_line = first_line + text.count("\n", first, max(first, last - 1))
        return {
            "text": text[first:last],
            "uri": uri,
            "source": state.name,
            "size": size,
            "start": start,
            "span": {"lines": [first_line, last_line], "chars": [first, last]},
            "is_whole": last - first == size,
        }

    async def describe_all(self) -> list[ProviderSummary]:
        """Return a summary of each provider; raises `CallFailed`."""
        states = list(self._providers.values())
        await self._ensure_fresh(states)
        return [await self._summarize_provider(each) for each in states]

    async def describe(self, name: str, samples: int = 0) -> ProviderDescription:
        """Return what one provider has; of a database, also `samples` rows of each table.

        Raises `CallFailed`.
        """
        state = self._get_provider(name)
        await self._ensure_fresh([state])
        outline = await self._build_outline(state, samples)
        summary = await self._summarize_provider(state)
        return {**summary, "documents_shown": len(outline), "outline": outline}

    async def list_documents(self, limit: int) -> list[tuple[str, str, str]]:
        """Return provider, name and address of some documents of each provider.

        Raises `CallFailed`.
        """
        states = list(self._providers.values())
        await self._ensure_fresh(states)
        share = max(1, limit // max(1, len(states)))
        found: list[tuple[str, str, str]] = []
        for state in states:
            documents = await self._run_in_thread(
                self._index.list_documents, state.source_key, share, 0
            )
            found += [(state.name, name, build_uri(state.name, name)) for name, _ in documents]
        return found

    async def check_providers(self, wait_s: float) -> list[ProviderCheck]:
        """Return a summary of each provider after waiting at most `wait_s` for the index."""
        states = list(self._providers.values())
        await self._ensure_fresh(states, wait_s)
        checks: list[ProviderCheck] = []
        for state in states:
            summary = await self._summarize_provider(state)
            checks.append({**summary, "is_failed": state.problem is not None})
        return checks

    def close(self) -> None:
        """Stop the refreshes that are running."""
        for each in self._providers.values():
            each.progress.stop.set()
            if isinstance(each.provider, PythonProvider):
                each.provider.close()

    # the index ------------------------------------------------------------------------------------

    async def _ensure_fresh(
        self, states: Sequence[ProviderState], wait_s: float = INDEX_WAIT_S
    ) -> None:
        """Start the refreshes that are due, and wait at most `wait_s` for all that are running."""
        for state in states:
            if state.refresh_done is None and anyio.current_time() >= state.refresh_due:
                state.refresh_done = anyio.Event()
                self._tasks.start_soon(self._refresh, state, state.refresh_done)
        with anyio.move_on_after(wait_s):
            for state in states:
                if state.refresh_done is not None:
                    await state.refresh_done.wait()

    async def _refresh(self, state: ProviderState, done: anyio.Event) -> None:
        problem: Unavailable | None = None
        started_at = anyio.current_time()
        try:
            await anyio.to_thread.run_sync(
                refresh_index,
                self._index,
                state.source_key,
                state.provider,
                state.progress,
                abandon_on_cancel=True,
            )
        except Unavailable as exc:
            problem = exc
        except Exception:  # a defect in our code that one text triggers must not end the server
            logger.exception("the provider %s could not be indexed", state.name)
            problem = Unavailable("It could not be indexed.", remedy="See the log of the server.")
        finally:
            now = anyio.current_time()
            fresh_s = FRESH_FACTOR * (now - started_at)
            state.problem = problem
            state.refresh_due = now + min(max(MIN_FRESH_S, fresh_s), MAX_FRESH_S)
            state.refresh_done = None
            done.set()

    async def _resolve_uri(self, uri: str) -> tuple[ProviderState, str, str]:
        """Return the provider, document name and fragment that an address means.

        Raises `CallFailed`.
        """
        document_uri, _, fragment = uri.partition("#")
        provider, slash, path = document_uri.removeprefix(URI_SCHEME).partition("/")
        is_well_formed = document_uri.startswith(URI_SCHEME) and slash
        if not is_well_formed or (fragment and not FRAGMENT_PATTERN.fullmatch(fragment)):
            _raise_not_found(
                uri, f"an address is {URI_SCHEME}PROVIDER/NAME, with #L3-20 for lines 3 to 20"
            )
        state = self._get_provider(provider)
        name = unquote(path)
        await self._ensure_fresh([state])
        status = None
        if is_valid_name(name):
            status = await self._run_in_thread(self._index.get_status, state.source_key, name)
        if status is None:
            problem = describe_provider_problem(state)
            reason = f"{provider} has no such text"
            _raise_not_found(uri, f"{reason} ({problem})" if problem else reason)
        if status.problem:
            _raise_not_found(uri, f"it is skipped: {status.problem}")
        return state, name, fragment

    def _get_provider(self, name: str) -> ProviderState:
        if name not in self._providers:
            names = ", ".join(self._providers)
            known = f"Providers: {names}." if names else NO_PROVIDERS
            hint = did_you_mean(name, self._providers)
            raise CallFailed(
                "unknown_provider", f"There is no provider {name!r:.80}. {hint}{known}"
            )
        return self._providers[name]

    async def _run_in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Return the result of a blocking function.

        Raises `CallFailed` where it raises `Unavailable`.
        """
        try:
            return await anyio.to_thread.run_sync(
                function, *args, abandon_on_cancel=True, limiter=self._thread_limiter
            )
        except Unavailable as exc:
            raise CallFailed("unavailable", exc.message, remedy=exc.remedy) from None

    # answers --------------------------------------------------------------------------------------

    def _format_passage(self, match: PassageMatch) -> PassageData:
        provider = self._by_source_key[match.source_key].name
        span = match.span
        if span.is_lines:
            fragment = f"L{span.first_line}-{span.last_line}"
        else:
            fragment = f"C{span.start}-{span.end}"
        return {
            "text": match.text,
            "source": provider,
            "name": match.name,
            "title": span.title,
            "uri": f"{build_uri(provider, match.name)}#{fragment}",
            "span": {
                "lines": [span.first_line, span.last_line],
                "chars": [span.start, span.end],
            },
            "score": match.score,
        }

    async def _summarize_provider(self, state: ProviderState) -> ProviderSummary:
        counts = await self._run_in_thread(self._index.count_entries, state.source_key)
        skipped: dict[str, SkippedData] = {
            reason: {"count": count, "names": names}
            for reason, (count, names) in state.provider.skipped.by_reason().items()
        }
        for reason, names in counts.failed.items():
            skipped[reason] = {"count": len(names), "names": names[:MAX_SKIPPED_NAMES]}
        return {
            "name": state.name,
            "kind": state.kind,
            "title": state.title,
            "documents": counts.documents,
            "passages": counts.passages,
            "skipped": skipped,
            "problem": describe_provider_problem(state),
        }

    async def _build_outline(self, state: ProviderState, samples: int) -> list[OutlineEntry]:
        documents = await self._run_in_thread(
            self._index.list_documents,
            state.source_key,
            MAX_OUTLINE_DOCUMENTS,
            MAX_OUTLINE_TITLES,
        )
        provider = state.provider
        if isinstance(provider, SqliteProvider):
            if samples > provider.max_samples:
                setting = f"[knowledge.{state.name}] samples = {provider.max_samples}"
                raise CallFailed(
                    "denied",
                    f"{samples} rows of each table of {state.name} may not be shown: "
                    f"the settings say {setting}.",
                )
            uris = {name: build_uri(state.name, name) for name, _ in documents}
            return await self._run_in_thread(_read_tables, provider, uris, max(0, samples))
        if samples:
            raise CallFailed(
                "invalid_arguments", f"{state.name} is not a database, so it has no sample rows."
            )
        return [
            {"name": name, "uri": build_uri(state.name, name), "titles": titles}
            for name, titles in documents
        ]


def _read_tables(
    database: SqliteProvider, uris: Mapping[str, str], samples: int
) -> list[OutlineEntry]:
    """Return the current schema of each table, its number of rows and some of them.

    `uris` are by table name.
    """
    tables: list[OutlineEntry] = []
    remaining_chars = MAX_ANSWER_CHARS
    for name, uri in uris.items():
        schema = _read_document(database, name)[:remaining_chars]
        remaining_chars -= len(schema)
        count, rows = database.read_sample(name, samples)
        tables.append({"name": name, "uri": uri, "schema": schema, "rows": count, "samples": rows})
    return tables


def _read_document(provider: KnowledgeProvider, name: str) -> str:
    """Return the text of a document; raises `CallFailed` if it can no longer be read."""
    try:
        return provider.read(name)
    except DocumentSkipped as exc:
        raise CallFailed("not_found", f"{name!r:.200} is skipped now: {exc}.") from None
    except OSError as exc:
        raise CallFailed("not_found", f"{name!r:.200} cannot be read: {exc.strerror}.") from None


def _raise_not_found(uri: str, reason: str) -> NoReturn:
    raise CallFailed("not_found", f"There is nothing at {uri!r:.200}: {reason}.")


def _resolve_fragment(text: str, fragment: str) -> tuple[int, int]:
    """Return the start and end, in characters, of the part that a fragment means."""
    match = FRAGMENT_PATTERN.fullmatch(fragment)
    if match is None:
        return 0, len(text)
    first, last = int(match["first"]), int(match["last"])
    if match["unit"] == "C":
        start = min(first, len(text))
        return start, max(start, min(last, len(text)))
    start = _find_line_start(text, first)
    end = max(start, _find_line_start(text, last + 1))
    return start, start + len(text[start:end].removesuffix("\n").removesuffix("\r"))


def _find_line_start(text: str, line: int) -> int:
    """Return the offset where a line starts, counted from 1.

    The end of the text if there are fewer lines.
    """
    offset = 0
    for _ in range(line - 1):
        offset = text.find("\n", offset) + 1
        if not offset:
            return len(text)
    return offset


def build_uri(provider: str, name: str) -> str:
    """Return the address of a document."""
    return f"{URI_SCHEME}{provider}/{quote(name, safe=URI_SAFE_CHARS)}"


def describe_provider_problem(state: ProviderState) -> str:
    """Return a sentence that says what is missing from answers about a provider.

    "" if nothing is.
    """
    if state.refresh_done is not None:
        total = state.progress.total
        read = total - state.progress.remaining
        extent = f"{read:,} of {total:,} texts so far" if total else "its texts are being listed"
        return (
            f"{state.name} is still being indexed ({extent}). Ask again in a moment for the rest."
        )
    return f"{state.name}: {state.problem}" if state.problem else ""


def format_skipped(summary: ProviderSummary) -> str:
    """Return for people what a provider has skipped; "" if nothing."""
    parts = []
    for reason, skipped in summary["skipped"].items():
        more = ", ..." if skipped["count"] > len(skipped["names"]) else ""
        parts.append(f"{skipped['count']:,} {reason} ({format_names(skipped['names'])}{more})")
    return "; ".join(parts)


def create_provider(
    name: str, settings: KnowledgeSettings, access: Callable[[str], ResourceAccess]
) -> ProviderState:
    """Return the provider that a table of the settings describes.

    `access` reads the resources of a server.
    """
    provider: KnowledgeProvider
    identity: list[Any]
    if settings.path is not None:
        kind = "folder"
        identity = [str(settings.path), settings.include, settings.exclude]
        provider = FolderProvider(settings.path, settings.include, settings.exclude)
    elif settings.sqlite is not None:
        kind = "sqlite"
        identity = [str(settings.sqlite)]
        provider = SqliteProvider(settings.sqlite, settings.samples)
    elif settings.python is not None:
        kind = "python"
        identity = [str(settings.python)]
        provider = PythonProvider(settings.python, settings.timeout_s)
    else:
        assert settings.server is not None, "the settings are validated"
        kind = "server"
        server = access(settings.server)
        identity = [server.identity]
        provider = ResourceProvider(server)
    key = canonical_json([name, kind, identity]).encode("utf-8", "surrogatepass")
    return ProviderState(name, kind, settings.title, sha256(key).hexdigest()[:24], provider)


@asynccontextmanager
async def open_knowledge(
    settings: Mapping[str, KnowledgeSettings],
    folder: Path,
    access: Callable[[str], ResourceAccess],
) -> AsyncIterator[KnowledgeService]:
    """Yield the service for the providers of the settings, with their index in `folder`.

    No provider is read before a call needs it.
    """
    providers = [create_provider(name, each, access) for name, each in settings.items()]
    async with anyio.create_task_group() as tasks:
        service = KnowledgeService(providers, PassageIndex(folder), tasks)
        try:
            yield service
        finally:
            service.close()
            tasks.cancel_scope.cancel()
