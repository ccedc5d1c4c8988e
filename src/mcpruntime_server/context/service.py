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

from ..config import ProviderSettings
from ..errors import CallFailed, Unavailable
from ..journal.events import canonical_json
from ..kernel.results import did_you_mean
from ..search import words
from .folder import Folder
from .index import Found, Index
from .provider import PassedOver, Source, fit_name, named
from .python import Own
from .refresh import Progress, refresh
from .resources import Access, Resources
from .sqlite import Database

SCHEME = "context://"
WAIT_S = 1.0  # that an answer waits for the index
FRESH_S, STALE_S = 2.0, 20.0  # until a provider is looked at again: between these, the longer it took the last time
MAX_FOUND = 50
MAX_CHARS = 200_000  # of one answer
AT_ONCE = 8  # questions that are answered at once, so that code which asks a thousand leaves threads to others
MAX_QUESTION = 10_000  # characters
OUTLINED, TITLES = 200, 20  # documents of an outline, and titles of one
SAFE = "/:@!$&'()*+,;=~"  # what stands in addresses as it is
FRAGMENT = re.compile(r"(?P<unit>[LC])(?P<first>\d{1,9})-(?P<last>\d{1,9})")
NONE = "There are no providers of context: a table [context.NAME] in the settings makes one."

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass
class Held:
    """One provider, and how its index is."""

    name: str
    kind: str
    title: str
    source: str  # what the index knows it by
    provider: Source
    progress: Progress = field(default_factory=Progress)
    problem: Unavailable | None = None
    due: float = float("-inf")  # when it is to be looked at again
    done: anyio.Event | None = None  # of the refresh under way


class Providers:
    """All providers of the settings; make it with `open_providers`."""

    def __init__(self, held: Sequence[Held], index: Index, tasks: TaskGroup) -> None:
        self._held = {each.name: each for each in held}
        self._by_source = {each.source: each for each in held}
        self._index = index
        self._tasks = tasks
        self._threads = anyio.CapacityLimiter(AT_ONCE)

    @property
    def names(self) -> list[str]:
        """The names of all providers."""
        return list(self._held)

    async def answer(self, target: str, args: dict[str, Any]) -> Any:
        """Answer `context.search {query, limit, source}`, `.get {uri, begin, chars}` or `.describe {name, samples}`."""
        if target == "context.search":
            source = _argument(args, "source", str, None)
            return await self.search(_argument(args, "query", str, ""), _argument(args, "limit", int, 5), source)
        if target == "context.get":
            bounds = _argument(args, "begin", int, 0), _argument(args, "chars", int, MAX_CHARS)
            return await self.get(_argument(args, "uri", str, ""), *bounds)
        if target == "context.describe":
            return await self.describe(_argument(args, "name", str, None), _argument(args, "samples", int, 0))
        raise CallFailed("unknown_target", f"Providers are not asked with {target!r:.80}.")

    async def search(self, query: str, limit: int = 5, source: str | None = None) -> dict[str, Any]:
        """Return {"passages", "problems"}: what fits best of all providers, or of one; raises `CallFailed`."""
        if len(query) > MAX_QUESTION:
            raise CallFailed("invalid_arguments", f"A question has at most {MAX_QUESTION:,} characters.")
        asked = list(self._held.values()) if source is None else [self._get(source)]
        await self._freshen(asked)
        sources = [each.source for each in asked]
        found = await self._told(self._index.search, query, sources, max(1, min(limit, MAX_FOUND)))
        problems = [problem for each in asked if (problem := problem_of(each))]
        if not self._held:
            problems.append(NONE)
        elif not words(query):
            problems.append("There are no words to search for.")
        return {"passages": [self._passage(each) for each in found], "problems": problems}

    async def get(self, uri: str, begin: int = 0, chars: int = MAX_CHARS) -> dict[str, Any]:
        """Return a document or a passage, or `chars` of it from `begin` on; raises `CallFailed`."""
        held, name, fragment = await self._find(uri)
        if begin < 0 or chars < 1:
            raise CallFailed("invalid_arguments", "`begin` is at least 0, and `chars` at least 1.")
        text = await self._told(_read, held.provider, name)
        start, end = _range(text, fragment)
        size = end - start
        start = min(start + begin, end)
        end = min(end, start + min(chars, MAX_CHARS))
        line = text.count("\n", 0, start) + 1
        lines = [line, line + text.count("\n", start, max(start, end - 1))]
        return {
            "text": text[start:end], "uri": uri, "source": held.name, "size": size, "begin": begin,
            "span": {"lines": lines, "chars": [start, end]}, "is_whole": end - start == size,
        }  # fmt: skip

    async def describe(self, name: str | None = None, samples: int = 0) -> Any:
        """Return what providers there are, or what one has; `samples` are rows of each table. Raises `CallFailed`."""
        asked = list(self._held.values()) if name is None else [self._get(name)]
        await self._freshen(asked)
        if name is None:
            return [await self._summary(each) for each in asked]
        held = asked[0]
        outline = await self._outline(held, samples)
        return {**await self._summary(held), "documents_shown": len(outline), "outline": outline}

    async def listed(self, limit: int) -> list[tuple[str, str, str]]:
        """Return provider, name and address of some documents of each provider."""
        held = list(self._held.values())
        await self._freshen(held)
        each = max(1, limit // max(1, len(held)))
        found: list[tuple[str, str, str]] = []
        for one in held:
            outline = await self._told(self._index.outline, one.source, each, 0)
            found += [(one.name, name, uri_of(one.name, name)) for name, _ in outline]
        return found

    async def examine(self, wait_s: float) -> list[dict[str, Any]]:
        """Return a summary of each provider, having waited so long at most until it is indexed."""
        await self._freshen(list(self._held.values()), wait_s)
        return [{**await self._summary(each), "is_failed": each.problem is not None} for each in self._held.values()]

    def close(self) -> None:
        """Have refreshes that are under way end."""
        for each in self._held.values():
            each.progress.stop.set()
            if isinstance(each.provider, Own):
                each.provider.close()

    # the index --------------------------------------------------------------------------------------

    async def _freshen(self, asked: Sequence[Held], wait_s: float = WAIT_S) -> None:
        """Have the index brought up to date, and wait a moment for it."""
        for each in asked:
            if each.done is None and anyio.current_time() >= each.due:
                each.done = anyio.Event()
                self._tasks.start_soon(self._refresh, each)
        with anyio.move_on_after(wait_s):
            for each in asked:
                if each.done is not None:
                    await each.done.wait()

    async def _refresh(self, held: Held) -> None:
        problem, done, began = None, held.done, anyio.current_time()
        try:
            await anyio.to_thread.run_sync(
                refresh, self._index, held.source, held.provider, held.progress, abandon_on_cancel=True
            )
        except Unavailable as exc:
            problem = exc
        except Exception:  # a mistake of ours with one text must not end the server
            logger.exception("the provider %s could not be indexed", held.name)
            problem = Unavailable("It could not be indexed.", remedy="The log of the server says why.")
        finally:
            now = anyio.current_time()
            held.problem, held.due = problem, now + min(max(FRESH_S, 5 * (now - began)), STALE_S)
            held.done = None
            if done is not None:
                done.set()

    async def _find(self, uri: str) -> tuple[Held, str, str]:
        """Return what an address means: provider, name and fragment; raises `CallFailed`."""
        whole, _, fragment = uri.partition("#")
        provider, slash, rest = whole.removeprefix(SCHEME).partition("/")
        if not whole.startswith(SCHEME) or not slash or (fragment and not FRAGMENT.fullmatch(fragment)):
            _refuse(uri, f"an address is {SCHEME}PROVIDER/NAME, with #L3-20 for lines 3 to 20")
        held, name = self._get(provider), unquote(rest)
        await self._freshen([held])
        known = await self._told(self._index.get, held.source, name) if fit_name(name) else None
        if known is None:
            _refuse(uri, f"{provider} has no such text" + (f" ({problem})" if (problem := problem_of(held)) else ""))
        if known.problem:
            _refuse(uri, f"it is passed over: {known.problem}")
        return held, name, fragment

    def _get(self, name: str) -> Held:
        if name not in self._held:
            listed = f"Providers: {', '.join(self._held)}." if self._held else NONE
            hint = did_you_mean(name, self._held)
            raise CallFailed("unknown_provider", f"There is no provider {name!r:.80}. {hint}{listed}")
        return self._held[name]

    async def _told(self, question: Callable[..., T], *args: Any) -> T:
        """Return what is answered in a worker thread; raises `CallFailed`."""
        try:
            return await anyio.to_thread.run_sync(question, *args, abandon_on_cancel=True, limiter=self._threads)
        except Unavailable as exc:
            raise CallFailed("unavailable", exc.message, remedy=exc.remedy) from None

    # what is told -----------------------------------------------------------------------------------

    def _passage(self, found: Found) -> dict[str, Any]:
        held, piece = self._by_source[found.source], found.piece
        fragment = f"L{piece.first}-{piece.last}" if piece.is_lines else f"C{piece.begin}-{piece.end}"
        return {
            "text": found.text, "source": held.name, "name": found.name, "title": piece.title,
            "uri": f"{uri_of(held.name, found.name)}#{fragment}",
            "span": {"lines": [piece.first, piece.last], "chars": [piece.begin, piece.end]}, "score": found.score,
        }  # fmt: skip

    async def _summary(self, held: Held) -> dict[str, Any]:
        documents, passages, failed = await self._told(self._index.counts, held.source)
        over = {
            reason: {"count": count, "names": names}
            for reason, (count, names) in held.provider.omissions.told().items()
        }
        over |= {reason: {"count": len(names), "names": names[:5]} for reason, names in failed.items()}
        return {
            "name": held.name, "kind": held.kind, "title": held.title, "documents": documents, "passages": passages,
            "passed_over": over, "problem": problem_of(held),
        }  # fmt: skip

    async def _outline(self, held: Held, samples: int) -> list[dict[str, Any]]:
        outline = await self._told(self._index.outline, held.source, OUTLINED, TITLES)
        told = [{"name": name, "uri": uri_of(held.name, name), "titles": titles} for name, titles in outline]
        provider = held.provider
        if not isinstance(provider, Database):
            if samples:
                raise CallFailed("invalid_arguments", f"{held.name} is no database: it has no sample rows.")
            return told
        if samples > provider.samples:
            why = f"the settings say [context.{held.name}] samples = {provider.samples}"
            raise CallFailed("denied", f"{samples} rows of each table of {held.name} may not be shown: {why}.")
        return await self._told(_schema, provider, told, max(0, samples))


def _schema(database: Database, told: Sequence[dict[str, Any]], samples: int) -> list[dict[str, Any]]:
    """Return an outline with the tables of a database as they are."""
    outline, left = [], MAX_CHARS
    for each in told:
        text = _read(database, each["name"])[:left]
        left -= len(text)
        rows, sample = database.rows(each["name"], samples)
        outline.append({"name": each["name"], "uri": each["uri"], "schema": text, "rows": rows, "samples": sample})
    return outline


def _read(provider: Source, name: str) -> str:
    try:
        return provider.read(name)
    except PassedOver as exc:
        raise CallFailed("not_found", f"{name!r:.200} is passed over now: {exc}.") from None
    except OSError as exc:
        raise CallFailed("not_found", f"{name!r:.200} cannot be read: {exc.strerror}.") from None


def _refuse(uri: str, why: str) -> NoReturn:
    raise CallFailed("not_found", f"There is nothing at {uri!r:.200}: {why}.")


def _range(text: str, fragment: str) -> tuple[int, int]:
    """Return from where to where a fragment means."""
    found = FRAGMENT.fullmatch(fragment)
    if found is None:
        return 0, len(text)
    first, last = int(found["first"]), int(found["last"])
    if found["unit"] == "C":
        return min(first, len(text)), max(min(first, len(text)), min(last, len(text)))
    begin = _line_begin(text, first)
    end = max(begin, _line_begin(text, last + 1))
    return begin, begin + len(text[begin:end].removesuffix("\n").removesuffix("\r"))


def _line_begin(text: str, number: int) -> int:
    at = 0
    for _ in range(number - 1):
        at = text.find("\n", at) + 1
        if not at:
            return len(text)
    return at


def uri_of(provider: str, name: str) -> str:
    """Return the address of a document."""
    return f"{SCHEME}{provider}/{quote(name, safe=SAFE)}"


def problem_of(held: Held) -> str:
    """Return what an answer about a provider does not have, as a sentence; "" if it has everything."""
    if held.done is not None:
        done, total = held.progress.total - held.progress.left, held.progress.total
        far = f"{done:,} of {total:,}" if total else "and not listed yet"
        return f"{held.name} is still being indexed, {far}: ask again in a moment for the rest."
    return f"{held.name}: {held.problem}" if held.problem else ""


def passed_over(summary: Mapping[str, Any]) -> str:
    """Return what a provider has passed over, for people."""
    return "; ".join(
        f"{each['count']:,} {reason} ({named(each['names'])}{', ...' if each['count'] > len(each['names']) else ''})"
        for reason, each in summary["passed_over"].items()
    )


def _argument(args: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = args.get(name, default)
    if value is not default and type(value) is not kind:
        raise CallFailed("invalid_arguments", f"{name!r} must be of type {kind.__name__}, not {type(value).__name__}.")
    return value


def held_of(name: str, settings: ProviderSettings, access: Callable[[str], Access]) -> Held:
    """Return the provider that a table of the settings means; `access` is how the resources of a server are had."""
    if settings.path is not None:
        kind, of = "folder", [str(settings.path), settings.include, settings.exclude]
        provider: Source = Folder(settings.path, settings.include, settings.exclude)
    elif settings.sqlite is not None:
        kind, of, provider = "sqlite", [str(settings.sqlite)], Database(settings.sqlite, settings.samples)
    elif settings.python is not None:
        kind, of, provider = "python", [str(settings.python)], Own(settings.python, settings.timeout_s)
    else:
        assert settings.server is not None, "the settings are checked"
        server = access(settings.server)
        kind, of, provider = "server", [server.identity], Resources(server)
    source = sha256(canonical_json([name, kind, of]).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return Held(name, kind, settings.title, source, provider)


@asynccontextmanager
async def open_providers(
    settings: Mapping[str, ProviderSettings], folder: Path, access: Callable[[str], Access]
) -> AsyncIterator[Providers]:
    """Yield the providers of the settings, with their index in `folder`; none of them is looked at yet."""
    held = [held_of(name, each, access) for name, each in settings.items()]
    async with anyio.create_task_group() as tasks:
        providers = Providers(held, Index(folder), tasks)
        try:
            yield providers
        finally:
            providers.close()
            tasks.cancel_scope.cancel()
