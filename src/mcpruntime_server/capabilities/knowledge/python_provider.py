"""A Python file of the user's own as a provider.

Rule 1: it is executed in this process with all that the user may do. That is the user's decision, made by naming the
file in the settings; nothing else in this room executes anything.
Rule 2: whatever it does (raises, answers with something else, hangs), only its own texts are missing, and that is told.
A call that hangs cannot be stopped: it keeps a thread of its own, and nothing more is asked meanwhile.
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

PROVIDER_CLASS = "Provider"  # what the file has: a class, or a function that makes one
MAX_ERROR_CHARS = 300  # characters of an error that are told

Outcome = tuple[Any, BaseException | None]


class PythonProvider:
    """A provider in a file of the user's."""

    def __init__(self, file: Path, timeout_s: float) -> None:
        self.skipped = SkippedDocuments()
        self._file = file
        self._timeout_s = timeout_s
        self._provider: Any = None
        self._hanging_thread: threading.Thread | None = None
        self._call_lock = threading.Lock()  # it is asked by one at a time
        self._answers: queue.SimpleQueue[Outcome] = queue.SimpleQueue()  # to what it is asked now
        self._is_closed = False

    def names(self) -> Mapping[str, str]:
        """Return what it lists, without what cannot be; raises `Unavailable`."""
        self.skipped = SkippedDocuments()
        listed = self._call_provider(
            "names",
            lambda provider: dict(islice(dict(provider.names()).items(), MAX_DOCUMENTS + 1)),
        )
        found: dict[str, str] = {}
        for name, version in islice(listed.items(), MAX_DOCUMENTS):
            if is_valid_name(name) and isinstance(version, str) and len(version) <= MAX_NAME_CHARS:
                found[name] = version
            else:
                self.skipped.add(
                    "not a name and a version",
                    clean_line(ascii(name)[:MAX_NAME_CHARS], MAX_ERROR_CHARS),
                )
        if len(listed) > MAX_DOCUMENTS:
            self.skipped.add(f"and more, beyond {MAX_DOCUMENTS:,} texts", "...")
        return found

    def read(self, name: str) -> str:
        """Return a text; raises `PassedOver`, and `Unavailable` where it hangs."""
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
        """Return how a text is taken apart, by what its name ends with."""
        return guess_format(name) if "." in name.rpartition("/")[2] else "markdown"

    def close(self) -> None:
        """Have whoever waits for it wait no more: the server ends."""
        self._is_closed = True
        self._answers.put((None, EOFError("the server ends")))

    def _call_provider(self, what: str, question: Callable[[Any], Any]) -> Any:
        """Return what the provider answers, in a thread of its own; raises `Unavailable`."""
        if not self._call_lock.acquire(timeout=self._timeout_s):
            raise self._unavailable_error("is busy")
        try:
            return self._call_in_thread(what, question)
        finally:
            self._call_lock.release()

    def _call_in_thread(self, what: str, question: Callable[[Any], Any]) -> Any:
        if self._hanging_thread is not None and self._hanging_thread.is_alive():
            raise self._unavailable_error(
                f"is still busy with what it was asked more than {self._timeout_s:g} s ago"
            )
        self._hanging_thread = None
        answers: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._answers = answers
        if self._is_closed:
            raise self._unavailable_error("is not asked any more")
        thread = threading.Thread(
            target=self._run_call,
            args=(question, answers),
            name=f"provider {self._file.name}",
            daemon=True,
        )
        thread.start()
        try:
            value, error = answers.get(timeout=self._timeout_s)
        except queue.Empty:
            self._hanging_thread = thread
            raise self._unavailable_error(
                f"did not answer {what} within {self._timeout_s:g} s"
            ) from None
        if error is not None:
            raise self._unavailable_error(f"failed in {what}: {_describe_error(error)}") from error
        return value

    def _run_call(
        self, question: Callable[[Any], Any], answers: queue.SimpleQueue[Outcome]
    ) -> None:
        try:
            if self._provider is None:
                self._provider = load_provider(self._file)
            answers.put((question(self._provider), None))
        except BaseException as exc:  # noqa: BLE001 - code of the user's may raise anything, SystemExit among it
            answers.put((None, exc))

    def _unavailable_error(self, how: str) -> Unavailable:
        return Unavailable(
            f"The provider in {self._file} {how}.",
            remedy="Mend the file, and start the server again.",
        )


def load_provider(file: Path) -> Any:
    """Execute a file and return the provider that it makes."""
    name = f"mcpruntime_provider_{abs(hash(file)):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file.name} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = getattr(module, PROVIDER_CLASS, None)
    if not callable(made):
        raise TypeError(f"it has no class {PROVIDER_CLASS}")
    return made()


def _describe_error(error: BaseException) -> str:
    try:
        return clean_line(f"{type(error).__name__}: {error}", MAX_ERROR_CHARS)
    except Exception:  # noqa: BLE001 - its __str__ is the user's, too
        return type(error).__name__
