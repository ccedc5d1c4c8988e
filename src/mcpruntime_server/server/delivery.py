"""What one client connection has been sent of runs: output, questions, ends.

A run belongs to its session, and any request may look at it. Each connection has a cursor, so that
a client gets every piece of output once, and is not asked again what it was asked already.

Rule 1: output is counted in characters of each stream. The journal has the same text, so a position
holds for a run that is continued by another server, too.
Rule 2: the end of a run comes with the output that was not delivered before it. A request that asks
for the run after that gets everything.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import anyio

from ..runtime.call_ledger import SUBMIT_TARGET
from ..runtime.run import Run
from ..runtime.run_report import RunReport
from ..runtime.session import Session

MAX_TRACKED_RUNS = 1_000  # that were reported before they ended
MAX_KEPT_RUNS = 32  # finished runs with the notes that the journal does not have
MAX_KEPT_CHARS = 4_000_000  # of the output of these runs together; the journal has it, too

NOTHING_DELIVERED: Mapping[str, int] = {}


@dataclass(frozen=True)
class OpenForm:
    """A form that the client shows to a person, as far as is known."""

    run_id: str
    question_ids: frozenset[str]
    is_of_task: bool  # shown for a task, not for a request
    open_until: float  # on the clock of the event loop


@dataclass
class RunPosition:
    """How much of one run was delivered."""

    output: dict[str, int] = field(default_factory=dict)  # characters, by stream
    calls: set[int] = field(default_factory=set)  # settled ones, by their place in the ledger
    questions: set[str] = field(default_factory=set)  # ids
    dismissed_questions: set[str] = field(default_factory=set)  # forms that came back empty
    end_delivered: bool = False
    is_task_result_full: bool | None = None  # None until the result of its task was asked for


class DeliveryCursor:
    """The positions of one client connection in the runs that it has seen."""

    def __init__(self) -> None:
        self._positions: OrderedDict[str, RunPosition] = OrderedDict()
        self._kept_runs: OrderedDict[str, tuple[Session, Run]] = OrderedDict()
        self._timed_out_requests: set[str] = set()
        self._open_forms: dict[str, OpenForm] = {}

    # output ---------------------------------------------------------------------------------------

    def output_positions(self, run_id: str) -> Mapping[str, int]:
        """Return how many characters of each stream of a run were delivered."""
        position = self._positions.get(run_id)
        return NOTHING_DELIVERED if position is None else position.output

    def select_undelivered(self, report: RunReport) -> RunReport:
        """Return a report with the output and the calls that were not delivered yet."""
        delivered = self.output_positions(report.run_id)
        if not delivered:
            return report
        known = self._positions[report.run_id].calls
        return replace(
            report,
            calls=[entry for index, entry in enumerate(report.calls) if index not in known],
            stdout=report.stdout[delivered.get("stdout", 0) :],
            stderr=report.stderr[delivered.get("stderr", 0) :],
        )

    def advance(self, report: RunReport, question_ids: Collection[str]) -> None:
        """Note that the report of an unfinished run and these questions are delivered."""
        position = self._position(report.run_id)
        position.output = {"stdout": len(report.stdout), "stderr": len(report.stderr)}
        position.calls.update(
            index
            for index, entry in enumerate(report.calls)
            if entry.is_settled and entry.target != SUBMIT_TARGET
        )
        position.questions.update(question_ids)

    def start_request(self, run_id: str) -> None:
        """Start again with a run whose end was delivered to an earlier request."""
        position = self._positions.get(run_id)
        if position is not None and position.end_delivered:
            position.output = {}

    def finish(self, run_id: str) -> None:
        """Note that the end of a run is delivered."""
        position = self._positions.get(run_id)
        if position is not None:
            position.end_delivered = True

    def rewind(self, run_id: str) -> None:
        """Note that what was read of a run did not reach the client."""
        if run_id in self._positions:
            self._positions[run_id].output = {}
            self._positions[run_id].calls = set()

    # questions ------------------------------------------------------------------------------------

    def delivered_questions(self, run_id: str) -> Collection[str]:
        """Return the ids of the questions of a run that were delivered."""
        position = self._positions.get(run_id)
        return () if position is None else position.questions

    def dismissed_questions(self, run_id: str) -> Collection[str]:
        """Return the ids of the questions whose forms came back without an answer."""
        position = self._positions.get(run_id)
        return () if position is None else position.dismissed_questions

    def dismiss_questions(self, run_id: str, question_ids: Collection[str]) -> None:
        """Do not show these questions in forms again."""
        self._position(run_id).dismissed_questions.update(question_ids)

    def open_form(
        self,
        form_id: str,
        run_id: str,
        question_ids: Collection[str],
        open_s: float = math.inf,
        *,
        is_of_task: bool = False,
    ) -> None:
        """Note that the client shows a form with these questions, for `open_s` or until closed.

        It takes the place of an earlier form with one of them.
        """
        now, ids = anyio.current_time(), frozenset(question_ids)
        self._open_forms = {
            name: form
            for name, form in self._open_forms.items()
            if form.open_until > now and not (form.run_id == run_id and form.question_ids & ids)
        }
        self._open_forms[form_id] = OpenForm(run_id, ids, is_of_task, now + open_s)

    def close_form(self, form_id: str) -> None:
        """Note that a form was answered, or is no longer needed."""
        self._open_forms.pop(form_id, None)

    def questions_in_forms(self, run_id: str, *, with_tasks: bool = True) -> set[str]:
        """Return the ids of the questions of a run that a person sees in forms now."""
        now = anyio.current_time()
        return {
            question_id
            for form in self._open_forms.values()
            if form.run_id == run_id and form.open_until > now
            if with_tasks or not form.is_of_task
            for question_id in form.question_ids
        }

    def form_left_s(self) -> float:
        """Return the time until the next open form counts as dropped, more than 0."""
        now = anyio.current_time()
        left_s = [form.open_until - now for form in self._open_forms.values()]
        return min((each for each in left_s if each > 0), default=math.inf)

    # tasks ----------------------------------------------------------------------------------------

    def keep_run(self, session: Session, run: Run) -> None:
        """Keep a run whose end a task is to report with its notes."""
        self._kept_runs[run.id] = session, run
        if len(self._kept_runs) > MAX_KEPT_RUNS:
            self._kept_runs.popitem(last=False)
        run.call_at_end(self._drop_large_runs)

    def _drop_large_runs(self) -> None:
        """Keep no more finished runs than their output allows, the last ones at most."""
        chars_left = MAX_KEPT_CHARS
        for run_id, (_, run) in reversed([*self._kept_runs.items()]):
            if run.finished.is_set():
                chars_left -= len(run.report.stdout) + len(run.report.stderr)
                if chars_left < 0:
                    del self._kept_runs[run_id]

    def claim_task_result(self, run_id: str) -> bool:
        """Return whether the result of a task has what its run left; it stays as it was first.

        It does not if the end of the run was delivered to a request before.
        """
        position = self._position(run_id)
        if position.is_task_result_full is None:
            position.is_task_result_full = not position.end_delivered
        return position.is_task_result_full

    def find_kept_run(self, run_id: str) -> tuple[Session, Run] | None:
        """Return a run that was kept, with its session."""
        return self._kept_runs.get(run_id)

    # requests -------------------------------------------------------------------------------------

    def record_timed_out(self, request_id: str) -> None:
        """Note that the client has given up waiting for a request, but not what it asked for."""
        self._timed_out_requests.add(request_id)

    def take_timed_out(self, request_id: str | None) -> bool:
        """Return whether a cancelled request has only timed out; its id may be used again then."""
        is_timed_out = request_id in self._timed_out_requests
        if request_id is not None:
            self._timed_out_requests.discard(request_id)
        return is_timed_out

    def _position(self, run_id: str) -> RunPosition:
        position = self._positions.setdefault(run_id, RunPosition())
        self._positions.move_to_end(run_id)
        if len(self._positions) > MAX_TRACKED_RUNS:
            self._positions.popitem(last=False)
        return position


FindCursor = Callable[[Any], DeliveryCursor]  # by the context of a request: its connection's cursor
