"""The unfinished runs of one session, in their order, and the requests that started runs."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import anyio

from .run import Run

MAX_IDEMPOTENCY_KEYS = 10_000  # that a live session remembers; the journal knows them all


class RunQueue:
    """First in, first out; one task takes the runs out and executes them."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Run](math.inf)
        self._active_runs: list[Run] = []  # the one under way first
        self._runs_by_key: dict[str, str] = {}  # idempotency key -> the id of the run it started

    @property
    def active_runs(self) -> Sequence[Run]:
        """The run that is under way, and those that wait behind it."""
        return tuple(self._active_runs)

    @property
    def waiting_runs(self) -> list[Run]:
        """The runs that wait for an answer."""
        return [run for run in self._active_runs if run.questions.open_questions]

    def add_run(self, run: Run) -> None:
        """Put a run behind the others."""
        self._active_runs.append(run)
        key = run.spec.idempotency_key
        if key is not None:
            self._runs_by_key[key] = run.id
            if len(self._runs_by_key) > MAX_IDEMPOTENCY_KEYS:
                del self._runs_by_key[next(iter(self._runs_by_key))]
        self._send.send_nowait(run)

    def remove_run(self, run: Run) -> None:
        """Forget a run that is finished."""
        self._active_runs.remove(run)

    def find_by_key(self, key: str) -> str | None:
        """Return the id of the run that the request `key` has started since the session is live."""
        return self._runs_by_key.get(key)

    def find_active(self, run_id: str) -> Run | None:
        """Return that run, if it is not finished."""
        return next((run for run in self._active_runs if run.id == run_id), None)

    def count_before(self, run: Run) -> int:
        """Return how many runs come before `run`."""
        return self._active_runs.index(run) if run in self._active_runs else 0

    async def take_runs(self) -> AsyncIterator[Run]:
        """Yield each run to execute, until the queue is closed and empty."""
        with suppress(anyio.EndOfStream):
            while True:
                run = await self._receive.receive()
                if not run.finished.is_set():  # else it was cancelled in the queue
                    yield run
                del run  # its output may be megabytes, and the next run may be far away

    def close(self) -> None:
        """Take no more runs."""
        self._send.close()

    def discard(self) -> None:
        """Close both ends."""
        self._send.close()
        self._receive.close()
