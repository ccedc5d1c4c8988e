"""What metrics and traces learn from a runtime: runs, calls, sandboxes and model requests.

The runtime reports facts that it has measured anyway, and knows neither metrics nor traces. An
observer returns at once. Without observers, nothing is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .call_ledger import LedgerEntry

RunMode = Literal["live", "dry_run", "replay"]  # a replay has its answers from a recording
NameTarget = Callable[[str], tuple[str, str]]  # the upstream and the tool of a call, "" for unknown
UNKNOWN = "unknown"  # what stands for a name that only a stranger has chosen
CallOutcome = Literal["ok", "error", "denied", "planned", "cancelled"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObservedRun:
    """What an observer may know of a run: nothing of its code and its values."""

    id: str
    session_id: str
    mode: RunMode


@dataclass(frozen=True)
class ObservedCall:
    """A call of the run `run_id`; `prefix` names its route, "" if there is none."""

    run_id: str
    prefix: str
    entry: LedgerEntry


class RuntimeObserver(Protocol):
    """Learns what happens. Each method is called in the task that the event concerns."""

    def on_run_requested(self, run: ObservedRun) -> None:
        """Learn of a new run, in the task of the request that it comes from."""
        ...

    def on_run_ended(self, run: ObservedRun, status: str, usage: Mapping[str, float]) -> None:
        """Learn how a run ended, and its figures; "suspended" if the next server continues it."""
        ...

    def on_call_started(self, call: ObservedCall) -> None:
        """Learn of a call, in the task that makes it."""
        ...

    def on_call_ended(self, call: ObservedCall, outcome: CallOutcome) -> None:
        """Learn of the end of a call, in the same task."""
        ...

    def on_sandbox_acquired(self, *, was_ready: bool) -> None:
        """Learn that a session has a sandbox, and whether it was kept ready."""
        ...

    def on_model_request(self, model: str, usage: Mapping[str, float], duration_ms: float) -> None:
        """Learn what an attempt to ask a model has cost: calls, tokens_in, tokens_out, usd."""
        ...


class Observers:
    """All observers of one server. A mistake in one of them harms neither runs nor the others."""

    def __init__(self, observers: Sequence[RuntimeObserver] = ()) -> None:
        self._observers = tuple(observers)

    def on_run_requested(self, run: ObservedRun) -> None:
        """Report a new run."""
        self._report(lambda each: each.on_run_requested(run))

    def on_run_ended(self, run: ObservedRun, status: str, usage: Mapping[str, float]) -> None:
        """Report the end of a run."""
        self._report(lambda each: each.on_run_ended(run, status, usage))

    def on_call_started(self, call: ObservedCall) -> None:
        """Report a call."""
        self._report(lambda each: each.on_call_started(call))

    def on_call_ended(self, call: ObservedCall) -> None:
        """Report the end of a call."""
        self._report(lambda each: each.on_call_ended(call, find_outcome(call.entry)))

    def on_sandbox_acquired(self, *, was_ready: bool) -> None:
        """Report that a session has a sandbox."""
        self._report(lambda each: each.on_sandbox_acquired(was_ready=was_ready))

    def on_model_request(self, model: str, usage: Mapping[str, float], duration_ms: float) -> None:
        """Report an attempt to ask a model."""
        self._report(lambda each: each.on_model_request(model, usage, duration_ms))

    def _report(self, event: Callable[[RuntimeObserver], None]) -> None:
        for each in self._observers:
            try:
                event(each)
            except Exception:
                logger.exception("an observer failed inside the server")


NO_OBSERVERS = Observers()


def find_outcome(call: LedgerEntry) -> CallOutcome:
    """Return how a call ended; one that has neither an answer nor an error was cancelled."""
    if call.status == "started" or call.status == "waiting":  # noqa: PLR1714 - for the type checker
        return "cancelled"
    return call.status
