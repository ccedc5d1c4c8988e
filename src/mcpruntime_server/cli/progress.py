"""A progress display for what takes longer than a second: what is done, and for how long."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .console import create_console
from .terminal_text import escape_text, print_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHOWN_AFTER_S = 0.5  # what is faster needs no display, which would only flicker


class ProgressDisplay:
    """A line at the bottom of a terminal that disappears at the end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._is_closed = False

    def show(self) -> None:
        """Show the line, unless all is done already."""
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        with self._lock:
            if self._is_closed:
                return
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
                console=create_console(sys.stdout),
                transient=True,
            )
            self._task = self._progress.add_task(escape_text(self._text), total=None)
            self._progress.start()

    def update(self, text: str) -> None:
        """Say what is done now."""
        with self._lock:
            self._text = text
            if self._progress is not None and self._task is not None:
                self._progress.update(self._task, description=escape_text(text))

    def print_line(self, text: str) -> None:
        """Print a line that stays, above the display."""
        with self._lock:
            if self._progress is not None:
                self._progress.console.print(escape_text(text))
            else:
                print_text(text)

    def close(self) -> None:
        """Remove the line."""
        with self._lock:
            self._is_closed = True
            if self._progress is not None:
                self._progress.stop()


@contextmanager
def show_progress(text: str) -> Iterator[ProgressDisplay]:
    """Say on a terminal what is done, if it takes longer; elsewhere, nothing is shown."""
    display = ProgressDisplay(text)
    timer = threading.Timer(SHOWN_AFTER_S, display.show)
    timer.daemon = True
    if sys.stdout.isatty():
        timer.start()
    try:
        yield display
    finally:
        timer.cancel()
        display.close()
