"""A provider that the user wrote, in a Python file.

Rule 1: the file is executed in this process with all rights of the user. The user decides this by
naming the file in the settings; nothing else in this package executes anything.
Rule 2: whatever the file does (raise, return something else, hang), only its own texts are missing,
and answers say so. A call that hangs cannot be stopped. It keeps its thread, and the provider is
not called again until it returns.
"""

from __future__ import annotations

import importlib.util
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import Unavailable
from .boundaries import guess_format
from .provider import (
    MAX_DOCUMENT_BYTES,
    MAX_DOCUMENTS,
    MAX_NAME_CHARS,
    DocumentSkipped,
    SkippedDocuments,
    clean_line,
    is_valid_name,
)

PROVIDER_CLASS = "Provider"  # what the file defines: a class, or a function that returns a provider
MAX_ERROR_CHARS = 300

ProviderOutcome = tuple[Any, BaseException | None]


class PythonProvider:
    """A provider in a file of the user's."""

    def __init__(self, file: Path, timeout_s: float) -> None:
        self.skipped = SkippedDocuments()
        self._file = file
        self._timeout_s = timeout_s
        self._provider: Any = None
        self._hanging_thread: threading.Thread | None = None
        self._call_lock = threading.Lock()  # one call at a time
        self._outcomes: queue.SimpleQueue[ProviderOutcome] = (
            queue.SimpleQueue()
        )  # of the current call
        self._is_closed = False

    def names(self) -> Mapping[str, str]:
        """Return the versions that the provider lists, without invalid names.

        Raises `Unavailable`.
        """
        self.skipped = SkippedDocuments()
        listed = self._call_provider("names", _list_names)
        versions: dict[str, str] = {}
        for name, version in islice(listed.items(), MAX_DOCUMENTS):
            is_version = isinstance(version, str) and len(version) <= MAX_NAME_CHARS
            if is_valid_name(name) and is_version:
                versions[name] = version
            else:
                shown = clean_line(ascii(name)[:MAX_NAME_CHARS], MAX_ERROR_CHARS)
                self.skipped.add("not a name and a version", shown)
        if len(listed) > MAX_DOCUMENTS:
            self.skipped.add(f"and more, beyond {MAX_DOCUMENTS:,} texts", "...")
        return versions

    def read(self, name: str) -> str:
        """Return a text; raises `DocumentSkipped`, or `Unavailable` if the provider hangs."""
        try:
            text = self._call_provider("read", lambda provider: provider.read(name))
        except Unavailable:
            if self._hanging_thread is not None:
                raise
            raise DocumentSkipped("its provider failed", is_temporary=True) from None
        if not isinstance(text, str):
            raise DocumentSkipped("not text")
        if len(text) > MAX_DOCUMENT_BYTES:
            raise DocumentSkipped("too large")
        return str(text).encode("utf-8", "replace").decode()

    def get_format(self, name: str) -> str:
        """Return the format of a text by its suffix; markdown if it has none."""
        return guess_format(name) if "." in name.rpartition("/")[2] else "markdown"

    def close(self) -> None:
        """Wake the thread that waits for the current call, because the server ends."""
        self._is_closed = True
        self._outcomes.put((None, EOFError("the server ends")))

    def _call_provider(self, method: str, call: Callable[[Any], Any]) -> Any:
        """Return the result of a call, which runs in a thread of its own; raises `Unavailable`."""
        if not self._call_lock.acquire(timeout=self._timeout_s):
            raise self._unavailable_error("is busy")
        try:
            return self._call_in_thread(method, call)
        finally:
            self._call_lock.release()

    def _call_in_thread(self, method: str, call: Callable[[Any], Any]) -> Any:
        if self._hanging_thread is not None and self._hanging_thread.is_alive():
            raise self._unavailable_error(
                f"has not returned from a call that started over {self._timeout_s:g} s ago"
            )
        self._hanging_thread = None
        outcomes: queue.SimpleQueue[ProviderOutcome] = queue.SimpleQueue()
        self._outcomes = outcomes
        if self._is_closed:
            raise self._unavailable_error("is closed")
        thread = threading.Thread(
            target=self._run_call,
            args=(call, outcomes),
            name=f"provider {self._file.name}",
            daemon=True,
        )
        thread.start()
        try:
            value, error = outcomes.get(timeout=self._timeout_s)
        except queue.Empty:
            self._hanging_thread = thread
            raise self._unavailable_error(
                f"did not return from {method} within {self._timeout_s:g} s"
            ) from None
        if error is not None:
            raise self._unavailable_error(
                f"failed in {method}: {_describe_error(error)}"
            ) from error
        return value

    def _run_call(
        self, call: Callable[[Any], Any], outcomes: queue.SimpleQueue[ProviderOutcome]
    ) -> None:
        try:
            if self._provider is None:
                self._provider = load_provider(self._file)
            outcomes.put((call(self._provider), None))
        except BaseException as exc:  # noqa: BLE001 - it may even be SystemExit
            outcomes.put((None, exc))

    def _unavailable_error(self, problem: str) -> Unavailable:
        return Unavailable(
            f"The provider in {self._file} {problem}.",
            remedy="Correct the file and restart the server.",
        )


def _list_names(provider: Any) -> dict[Any, Any]:
    return dict(islice(dict(provider.names()).items(), MAX_DOCUMENTS + 1))


def load_provider(file: Path) -> Any:
    """Execute a file and return the provider that it defines."""
    name = f"mcpruntime_provider_{abs(hash(file)):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file.name} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    factory = getattr(module, PROVIDER_CLASS, None)
    if not callable(factory):
        raise TypeError(f"it has no class {PROVIDER_CLASS}")
    return factory()


def _describe_error(error: BaseException) -> str:
    try:
        return clean_line(f"{type(error).__name__}: {error}", MAX_ERROR_CHARS)
    except Exception:  # noqa: BLE001 - `__str__` is the user's code, too
        return type(error).__name__
