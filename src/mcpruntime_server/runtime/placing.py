"""Having the inputs of a run where its sandbox sees them, and telling the kernel of them.

Rule 1: what was put there once stays as long as the sandbox, so that pieces of earlier steps can still be read.
Rule 2: where a recording is executed again, an input that has changed is an error. Where a session only goes on, it is
one for the code that reads it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from anyio import from_thread
from anyio.to_thread import run_sync

from ..errors import InputChanged, InvalidRequest
from ..inputs.service import Inputs, file_name, id_of
from ..journal.events import Input
from ..sandbox.hardening import WORKSPACE
from ..sandbox.link import Link
from .overflow import FOLDER

TELL_S = 1.0  # between two words of progress
SHARE = 2  # what is copied over the link takes at most this fraction of the workspace
READ_ONLY = 0o400
NAMED = 5  # inputs that a note names
METHODS = ".peek(n) .lines() .grep(pattern) .sample(n) .chunks(max_chars) .map(fn)"


class Waiter(Protocol):
    """The run that the inputs are for."""

    @property
    def is_cancelled(self) -> bool:
        """Whether it is to stop."""
        ...

    def enter_stage(self, stage: str) -> None:
        """Tell who waits what is being done."""
        ...


class Cancelled(Exception):
    """Nobody wants the inputs any more."""


class Placing:
    """The inputs that one sandbox has; `room` is the size of its workspace, in bytes."""

    def __init__(self, link: Link, inputs: Inputs, room: int) -> None:
        self._link = link
        self._inputs = inputs
        self._room = room // SHARE
        self._placed: dict[str, tuple[str, int]] = {}  # by the names of their files: path inside, when modified

    async def provide(
        self, session: str, inputs: Sequence[Input], waiter: Waiter, *, strictly: bool
    ) -> list[dict[str, Any]]:
        """Return what the kernel is told of the inputs of a run of `session`.

        Raises `InputChanged` for one that is not what it was, if `strictly`; `Unavailable`, `InvalidRequest`.
        """
        self._inputs.note(session, inputs)
        told = []
        for entry in inputs:
            path, modified, problem = "", 0, ""
            try:
                path, modified = await self._place(session, entry, waiter)
            except Cancelled:
                problem = "The run was cancelled."
            except InputChanged as exc:
                if strictly:
                    raise
                problem = str(exc)
            told.append(
                {
                    "id": id_of(entry),
                    "name": entry["name"],
                    "path": path,
                    "size": entry["size"],
                    "stamp": modified,
                    "problem": problem,
                    "start": entry["start"],
                    "end": entry["end"],
                }
            )
        return told

    async def _place(self, session: str, entry: Input, waiter: Waiter) -> tuple[str, int]:
        name = file_name(entry)
        if name not in self._placed:
            try:
                self._placed[name] = await self._put(name, entry, waiter)
            except InputChanged:
                if not entry["path"]:
                    raise
                await self._inputs.load_digests(session)  # the content may be the same
                self._placed[name] = await self._put(name, entry, waiter)
        return self._placed[name]

    async def _put(self, name: str, entry: Input, waiter: Waiter) -> tuple[str, int]:
        if self._link.inputs is None:
            return await self._send(name, entry)
        progress = Progress(entry, waiter)
        modified = await run_sync(self._inputs.put, entry, self._link.inputs / name, progress.tell)
        if progress.has_told:
            waiter.enter_stage("")
        return f"{self._link.info.inputs_inside}/{name}", modified

    async def _send(self, name: str, entry: Input) -> tuple[str, int]:
        """Copy an input over the link: the engine is elsewhere, and sees no folder of this machine."""
        if entry["size"] > self._room:
            raise InvalidRequest(
                f"The input {entry['name']!r} has {entry['size']:,} bytes, and the engine is on another machine, "
                f"where at most {self._room:,} can be copied.",
                remedy="Use an engine of this machine, raise [sandbox] workspace_mb, or give less.",
            )
        self._room -= entry["size"]
        self._link.put(f"{FOLDER}/inputs/{name}", READ_ONLY, await run_sync(self._inputs.content, entry))
        return f"{WORKSPACE}/{FOLDER}/inputs/{name}", 0


def note_on(inputs: Sequence[Input]) -> str:
    """Return what is told of inputs that a client has given: their sizes, and what code can do with them."""
    named = ", ".join(f"{each['name']!r} ({each['size']:,} bytes)" for each in inputs[:NAMED])
    more = f" and {len(inputs) - NAMED} more" if len(inputs) > NAMED else ""
    one = "" if len(inputs) == 1 else " CONTEXT_DATA[0] is one of them."
    return f"CONTEXT is {named}{more}.{one} It has {METHODS}."


class Progress:
    """Tells a run how far the copy of an input is; the copy goes on in a worker thread."""

    def __init__(self, entry: Input, waiter: Waiter) -> None:
        self.has_told = False
        self._entry = entry
        self._waiter = waiter
        self._due = time.monotonic() + TELL_S

    def tell(self, done: int) -> None:
        """Note that so many bytes are copied; raises `Cancelled` when nobody waits any more."""
        if self._waiter.is_cancelled:
            raise Cancelled
        if time.monotonic() >= self._due:
            self.has_told, self._due = True, time.monotonic() + TELL_S
            share = 100 * done // max(self._entry["size"], 1)
            from_thread.run_sync(self._waiter.enter_stage, f"copying the input {self._entry['name']!r}, {share}% done")
