"""Answers what is asked of the providers: finds passages, reads them whole, says what there is.

Rule 1: the index is brought up to date when somebody asks, beside the question: an answer waits a moment for that, then
says what is still missing. Nothing blocks the event loop.
Rule 2: an address is believed only if the index knows it: nothing else of a provider can be had.
Rule 3: what is answered are strangers' words, as plain data, with where they stand. They are never instructions.
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
from ...protocol.suggestions import did_you_mean
from ..full_text import split_words
from .folder_provider import FolderProvider
from .passage_index import PassageIndex, PassageMatch
from .provider import DocumentSkipped, KnowledgeProvider, format_names, is_valid_name
from .python_provider import PythonProvider
from .refresh import RefreshProgress, refresh_index
from .resource_provider import ResourceAccess, ResourceProvider
from .sqlite_provider import SqliteProvider

URI_SCHEME = "knowledge://"
INDEX_WAIT_S = 1.0  # that an answer waits for the index
MIN_FRESH_S, MAX_FRESH_S = (
    2.0,
    20.0,
)  # until a provider is looked at again: between these, the longer it took the last time
MAX_RESULTS = 50
MAX_ANSWER_CHARS = 200_000  # of one answer
MAX_CONCURRENT_CALLS = 8  # questions that are answered at once, so that code which asks a thousand leaves threads to others
MAX_QUERY_CHARS = 10_000  # characters
MAX_OUTLINE_DOCUMENTS, MAX_OUTLINE_TITLES = 200, 20  # documents of an outline, and titles of one
URI_SAFE_CHARS = "/:@!$&'()*+,;=~"  # what stands in addresses as it is
FRAGMENT_PATTERN = re.compile(r"(?P<unit>[LC])(?P<first>\d{1,9})-(?P<last>\d{1,9})")
NO_PROVIDERS = (
    "There are no knowledge providers: a table [knowledge.NAME] in the settings makes one."
)

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass
class ProviderState:
    """One provider, and how its index is."""

    name: str
    kind: str
    title: str
    source_key: str  # what the index knows it by
    provider: KnowledgeProvider
    progress: RefreshProgress = field(default_factory=RefreshProgress)
    problem: Unavailable | None = None
    refresh_due: float = float("-inf")  # when it is to be looked at again
    refresh_done: anyio.Event | None = None  # of the refresh under way


class KnowledgeService:
    """All providers of the settings; make it with `open_providers`."""

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

    async def handle_call(self, target: str, args: dict[str, Any]) -> Any:
        """Answer `knowledge.search {query, limit, source}`, `.get {uri, start, chars}` or `.describe {name, samples}`."""
        if target == "knowledge.search":
            source = _get_argument(args, "source", str, None)
            return await self.search(
                _get_argument(args, "query", str, ""), _get_argument(args, "limit", int, 5), source
            )
        if target == "knowledge.get":
            bounds = (
                _get_argument(args, "start", int, 0),
                _get_argument(args, "chars", int, MAX_ANSWER_CHARS),
            )
            return await self.get(_get_argument(args, "uri", str, ""), *bounds)
        if target == "knowledge.describe":
            return await self.describe(
                _get_argument(args, "name", str, None), _get_argument(args, "samples", int, 0)
            )
        raise CallFailed("unknown_target", f"Providers are not asked with {target!r:.80}.")

    async def search(self, query: str, limit: int = 5, source: str | None = None) -> dict[str, Any]:
        """Return {"passages", "problems"}: what fits best of all providers, or of one; raises `CallFailed`."""
        if len(query) > MAX_QUERY_CHARS:
            raise CallFailed(
                "invalid_arguments", f"A question has at most {MAX_QUERY_CHARS:,} characters."
            )
        asked = list(self._providers.values()) if source is None else [self._get_provider(source)]
        await self._ensure_fresh(asked)
        sources = [each.source_key for each in asked]
        found = await self._run_in_thread(
            self._index.search, query, sources, max(1, min(limit, MAX_RESULTS))
        )
        problems = [problem for each in asked if (problem := describe_problem(each))]
        if not self._providers:
            problems.append(NO_PROVIDERS)
        elif not split_words(query):
            problems.append("There are no words to search for.")
        return {"passages": [self._format_passage(each) for each in found], "problems": problems}

    async def get(self, uri: str, begin: int = 0, chars: int = MAX_ANSWER_CHARS) -> dict[str, Any]:
        """Return a document or a passage, or `chars` of it from `begin` on; raises `CallFailed`."""
        held, name, fragment = await self._resolve_uri(uri)
        if begin < 0 or chars < 1:
            raise CallFailed(
                "invalid_arguments", "`start` must be at least 0 and `chars` at least 1."
            )
        text = await self._run_in_thread(_read_document, held.provider, name)
        start, end = _resolve_fragment(text, fragment)
        size = end - start
        start = min(start + begin, end)
        end = min(end, start + min(chars, MAX_ANSWER_CHARS))
        line = text.count("\n", 0, start) + 1
        lines = [line, line + text.count("\n", start, max(start, end - 1))]
        return {
            "text": text[start:end], "uri": uri, "source": held.name, "size": size, "start": begin,
            "span": {"lines": lines, "chars": [start, end]}, "is_whole": end - start == size,
        }  # fmt: skip

    async def describe(self, name: str | None = None, samples: int = 0) -> Any:
        """Return what providers there are, or what one has; `samples` are rows of each table. Raises `CallFailed`."""
        asked = list(self._providers.values()) if name is None else [self._get_provider(name)]
        await self._ensure_fresh(asked)
        if name is None:
            return [await self._summarize_provider(each) for each in asked]
        held = asked[0]
        outline = await self._build_outline(held, samples)
        return {
            **await self._summarize_provider(held),
            "documents_shown": len(outline),
            "outline": outline,
        }

    async def list_documents(self, limit: int) -> list[tuple[str, str, str]]:
        """Return provider, name and address of some documents of each provider."""
        held = list(self._providers.values())
        await self._ensure_fresh(held)
        each = max(1, limit // max(1, len(held)))
        found: list[tuple[str, str, str]] = []
        for one in held:
            outline = await self._run_in_thread(self._index.list_documents, one.source_key, each, 0)
            found += [(one.name, name, build_uri(one.name, name)) for name, _ in outline]
        return found

    async def check_providers(self, wait_s: float) -> list[dict[str, Any]]:
        """Return a summary of each provider, having waited so long at most until it is indexed."""
        await self._ensure_fresh(list(self._providers.values()), wait_s)
        return [
            {**await self._summarize_provider(each), "is_failed": each.problem is not None}
            for each in self._providers.values()
        ]

    def close(self) -> None:
        """Have refreshes that are under way end."""
        for each in self._providers.values():
            each.progress.stop.set()
            if isinstance(each.provider, PythonProvider):
                each.provider.close()

    # the index --------------------------------------------------------------------------------------

    async def _ensure_fresh(
        self, asked: Sequence[ProviderState], wait_s: float = INDEX_WAIT_S
    ) -> None:
        """Have the index brought up to date, and wait a moment for it."""
        for each in asked:
            if each.refresh_done is None and anyio.current_time() >= each.refresh_due:
                each.refresh_done = anyio.Event()
                self._tasks.start_soon(self._refresh, each)
        with anyio.move_on_after(wait_s):
            for each in asked:
                if each.refresh_done is not None:
                    await each.refresh_done.wait()

    async def _refresh(self, held: ProviderState) -> None:
        problem, done, began = None, held.refresh_done, anyio.current_time()
        try:
            await anyio.to_thread.run_sync(
                refresh_index,
                self._index,
                held.source_key,
                held.provider,
                held.progress,
                abandon_on_cancel=True,
            )
        except Unavailable as exc:
            problem = exc
        except Exception:  # a mistake of ours with one text must not end the server
            logger.exception("the provider %s could not be indexed", held.name)
            problem = Unavailable(
                "It could not be indexed.", remedy="The log of the server says why."
            )
        finally:
            now = anyio.current_time()
            held.problem, held.refresh_due = (
                problem,
                now + min(max(MIN_FRESH_S, 5 * (now - began)), MAX_FRESH_S),
            )
            held.refresh_done = None
            if done is not None:
                done.set()

    async def _resolve_uri(self, uri: str) -> tuple[ProviderState, str, str]:
        """Return what an address means: provider, name and fragment; raises `CallFailed`."""
        whole, _, fragment = uri.partition("#")
        provider, slash, rest = whole.removeprefix(URI_SCHEME).partition("/")
        if (
            not whole.startswith(URI_SCHEME)
            or not slash
            or (fragment and not FRAGMENT_PATTERN.fullmatch(fragment))
        ):
            _raise_not_found(
                uri, f"an address is {URI_SCHEME}PROVIDER/NAME, with #L3-20 for lines 3 to 20"
            )
        held, name = self._get_provider(provider), unquote(rest)
        await self._ensure_fresh([held])
        known = (
            await self._run_in_thread(self._index.get_status, held.source_key, name)
            if is_valid_name(name)
            else None
        )
        if known is None:
            _raise_not_found(
                uri,
                f"{provider} has no such text"
                + (f" ({problem})" if (problem := describe_problem(held)) else ""),
            )
        if known.problem:
            _raise_not_found(uri, f"it is passed over: {known.problem}")
        return held, name, fragment

    def _get_provider(self, name: str) -> ProviderState:
        if name not in self._providers:
            listed = (
                f"Providers: {', '.join(self._providers)}." if self._providers else NO_PROVIDERS
            )
            hint = did_you_mean(name, self._providers)
            raise CallFailed(
                "unknown_provider", f"There is no provider {name!r:.80}. {hint}{listed}"
            )
        return self._providers[name]

    async def _run_in_thread(self, question: Callable[..., T], *args: Any) -> T:
        """Return what is answered in a worker thread; raises `CallFailed`."""
        try:
            return await anyio.to_thread.run_sync(
                question, *args, abandon_on_cancel=True, limiter=self._thread_limiter
            )
        except Unavailable as exc:
            raise CallFailed("unavailable", exc.message, remedy=exc.remedy) from None

    # what is told -----------------------------------------------------------------------------------

    def _format_passage(self, found: PassageMatch) -> dict[str, Any]:
        held, piece = self._by_source_key[found.source_key], found.span
        fragment = (
            f"L{piece.first_line}-{piece.last_line}"
            if piece.is_lines
            else f"C{piece.start}-{piece.end}"
        )
        return {
            "text": found.text, "source": held.name, "name": found.name, "title": piece.title,
            "uri": f"{build_uri(held.name, found.name)}#{fragment}",
            "span": {"lines": [piece.first_line, piece.last_line], "chars": [piece.start, piece.end]}, "score": found.score,
        }  # fmt: skip

    async def _summarize_provider(self, held: ProviderState) -> dict[str, Any]:
        documents, passages, failed = await self._run_in_thread(
            self._index.count_entries, held.source_key
        )
        over = {
            reason: {"count": count, "names": names}
            for reason, (count, names) in held.provider.skipped.by_reason().items()
        }
        over |= {
            reason: {"count": len(names), "names": names[:5]} for reason, names in failed.items()
        }
        return {
            "name": held.name, "kind": held.kind, "title": held.title, "documents": documents, "passages": passages,
            "passed_over": over, "problem": describe_problem(held),
        }  # fmt: skip

    async def _build_outline(self, held: ProviderState, samples: int) -> list[dict[str, Any]]:
        outline = await self._run_in_thread(
            self._index.list_documents, held.source_key, MAX_OUTLINE_DOCUMENTS, MAX_OUTLINE_TITLES
        )
        told = [
            {"name": name, "uri": build_uri(held.name, name), "titles": titles}
            for name, titles in outline
        ]
        provider = held.provider
        if not isinstance(provider, SqliteProvider):
            if samples:
                raise CallFailed(
                    "invalid_arguments", f"{held.name} is no database: it has no sample rows."
                )
            return told
        if samples > provider.max_samples:
            why = f"the settings say [knowledge.{held.name}] samples = {provider.max_samples}"
            raise CallFailed(
                "denied", f"{samples} rows of each table of {held.name} may not be shown: {why}."
            )
        return await self._run_in_thread(_read_schema, provider, told, max(0, samples))


def _read_schema(
    database: SqliteProvider, told: Sequence[dict[str, Any]], samples: int
) -> list[dict[str, Any]]:
    """Return an outline with the tables of a database as they are."""
    outline, left = [], MAX_ANSWER_CHARS
    for each in told:
        text = _read_document(database, each["name"])[:left]
        left -= len(text)
        rows, sample = database.read_sample(each["name"], samples)
        outline.append(
            {
                "name": each["name"],
                "uri": each["uri"],
                "schema": text,
                "rows": rows,
                "samples": sample,
            }
        )
    return outline


def _read_document(provider: KnowledgeProvider, name: str) -> str:
    try:
        return provider.read(name)
    except DocumentSkipped as exc:
        raise CallFailed("not_found", f"{name!r:.200} is passed over now: {exc}.") from None
    except OSError as exc:
        raise CallFailed("not_found", f"{name!r:.200} cannot be read: {exc.strerror}.") from None


def _raise_not_found(uri: str, why: str) -> NoReturn:
    raise CallFailed("not_found", f"There is nothing at {uri!r:.200}: {why}.")


def _resolve_fragment(text: str, fragment: str) -> tuple[int, int]:
    """Return from where to where a fragment means."""
    found = FRAGMENT_PATTERN.fullmatch(fragment)
    if found is None:
        return 0, len(text)
    first, last = int(found["first"]), int(found["last"])
    if found["unit"] == "C":
        return min(first, len(text)), max(min(first, len(text)), min(last, len(text)))
    begin = _find_line_start(text, first)
    end = max(begin, _find_line_start(text, last + 1))
    return begin, begin + len(text[begin:end].removesuffix("\n").removesuffix("\r"))


def _find_line_start(text: str, number: int) -> int:
    at = 0
    for _ in range(number - 1):
        at = text.find("\n", at) + 1
        if not at:
            return len(text)
    return at


def build_uri(provider: str, name: str) -> str:
    """Return the address of a document."""
    return f"{URI_SCHEME}{provider}/{quote(name, safe=URI_SAFE_CHARS)}"


def describe_problem(held: ProviderState) -> str:
    """Return what an answer about a provider does not have, as a sentence; "" if it has everything."""
    if held.refresh_done is not None:
        done, total = held.progress.total - held.progress.remaining, held.progress.total
        far = f"{done:,} of {total:,}" if total else "and not listed yet"
        return f"{held.name} is still being indexed, {far}: ask again in a moment for the rest."
    return f"{held.name}: {held.problem}" if held.problem else ""


def format_skipped(summary: Mapping[str, Any]) -> str:
    """Return what a provider has passed over, for people."""
    return "; ".join(
        f"{each['count']:,} {reason} ({format_names(each['names'])}{', ...' if each['count'] > len(each['names']) else ''})"
        for reason, each in summary["passed_over"].items()
    )


def _get_argument(args: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = args.get(name, default)
    if value is not default and type(value) is not kind:
        raise CallFailed(
            "invalid_arguments",
            f"{name!r} must be of type {kind.__name__}, not {type(value).__name__}.",
        )
    return value


def create_provider(
    name: str, settings: KnowledgeSettings, access: Callable[[str], ResourceAccess]
) -> ProviderState:
    """Return the provider that a table of the settings means; `access` is how the resources of a server are had."""
    if settings.path is not None:
        kind, of = "folder", [str(settings.path), settings.include, settings.exclude]
        provider: KnowledgeProvider = FolderProvider(
            settings.path, settings.include, settings.exclude
        )
    elif settings.sqlite is not None:
        kind, of, provider = (
            "sqlite",
            [str(settings.sqlite)],
            SqliteProvider(settings.sqlite, settings.samples),
        )
    elif settings.python is not None:
        kind, of, provider = (
            "python",
            [str(settings.python)],
            PythonProvider(settings.python, settings.timeout_s),
        )
    else:
        assert settings.server is not None, "the settings are checked"
        server = access(settings.server)
        kind, of, provider = "server", [server.identity], ResourceProvider(server)
    source = sha256(canonical_json([name, kind, of]).encode("utf-8", "surrogatepass")).hexdigest()[
        :24
    ]
    return ProviderState(name, kind, settings.title, source, provider)


@asynccontextmanager
async def open_knowledge(
    settings: Mapping[str, KnowledgeSettings], folder: Path, access: Callable[[str], ResourceAccess]
) -> AsyncIterator[KnowledgeService]:
    """Yield the providers of the settings, with their index in `folder`; none of them is looked at yet."""
    held = [create_provider(name, each, access) for name, each in settings.items()]
    async with anyio.create_task_group() as tasks:
        providers = KnowledgeService(held, PassageIndex(folder), tasks)
        try:
            yield providers
        finally:
            providers.close()
            tasks.cancel_scope.cancel()
