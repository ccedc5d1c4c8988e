"""Planning what code would change, and committing to it.

A dry run lets calls through that only read, and records the others instead of making them. To commit, the code is
executed again: what it read is answered from the journal, and the planned calls that were approved are made. What it
comes to beyond them, because it has now seen their results, is planned in its turn: another round.

Rule: a call is made only if target, arguments and occurrence are those that were approved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidRequest
from ..journal.events import ApprovedCall, canonical_json
from ..journal.recording import RecordedCall, Recording

PLANNED_KIND = "planned"  # the kind of error that a planned call is answered with
CallKey = tuple[str, str, int]  # target, canonical arguments, occurrence


@dataclass(frozen=True)
class PlannedCall:
    """A call that was recorded instead of made."""

    number: int
    target: str
    args: Mapping[str, Any]
    line: int | None
    hints: tuple[str, ...] = ()


class Plan:
    """What is decided of the calls of a run that may write: those approved are made, others refused or planned."""

    def __init__(self, approvals: Iterable[ApprovedCall] = ()) -> None:
        self._calls: dict[int, PlannedCall] = {}
        self._approvals = {approval_key(each): each for each in approvals}

    def find_approval(self, key: CallKey) -> ApprovedCall | None:
        """Return what was decided of a call, or None where nothing was."""
        return self._approvals.get(key)

    def approved_args(self, key: CallKey, args: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with which a call is made that has `args` in the code: those that were approved."""
        approval = self.find_approval(key)
        found: dict[str, Any] = (
            json.loads(approval["sent"]) if approval is not None and approval["sent"] else args
        )
        return found

    @property
    def calls(self) -> list[PlannedCall]:
        """The calls that were planned in this run, in order."""
        return [self._calls[number] for number in sorted(self._calls)]

    def add_call(self, call: PlannedCall) -> None:
        """Note a call that is not made."""
        self._calls[call.number] = call

    def restore_recorded(self, recording: Recording) -> None:
        """Have what was planned and decided in another server."""
        for call in filter(is_planned, recording.calls):
            self.add_call(planned_call_of(call))
        for asked in recording.questions:
            answer = recording.answers.get(asked.question_id)
            if answer is not None:
                (self.record_approval if answer.decision == "allow" else self.record_denial)(
                    asked.covered_calls
                )

    @property
    def approved_calls(self) -> list[ApprovedCall]:
        """The calls that are to be made."""
        return [each for each in self._approvals.values() if each["sent"]]

    def record_approval(self, approvals: Iterable[ApprovedCall]) -> None:
        """A person has allowed these."""
        for each in approvals:
            self._approvals[approval_key(each)] = ApprovedCall(**{**each, "person": True})

    def record_denial(self, approvals: Iterable[ApprovedCall]) -> None:
        """A person has refused these."""
        for each in approvals:
            self._approvals[approval_key(each)] = ApprovedCall(
                **{**each, "sent": "", "person": True}
            )


def approval_key(approval: ApprovedCall) -> CallKey:
    """Return the name of the call that was decided on."""
    return approval["target"], approval["args"], approval["nth"]


def is_planned(call: RecordedCall) -> bool:
    """Return whether a call was recorded instead of made."""
    return call.error is not None and call.error.get("kind") == PLANNED_KIND


def planned_call_of(call: RecordedCall) -> PlannedCall:
    """Return a recorded call that was planned."""
    data = (call.error or {}).get("data")
    hints = data.get("hints", []) if isinstance(data, dict) else []
    return PlannedCall(
        call.call_id, call.target, parse_args(call), call.line_number, tuple(map(str, hints))
    )


def parse_args(call: RecordedCall) -> dict[str, Any]:
    """Return the arguments of a recorded call; an archive of a stranger's may have nonsense there."""
    try:
        args = json.loads(call.args)
    except (ValueError, RecursionError):
        return {}
    return args if isinstance(args, dict) else {}


def planned_call_name(call: int) -> str:
    """Return the name under which a planned call is committed."""
    return f"c{call}"


def planned_calls(recording: Recording) -> dict[str, RecordedCall]:
    """Return the calls that a dry run has planned, in order, by the names under which they are committed."""
    return {planned_call_name(call.call_id): call for call in recording.calls if is_planned(call)}


def decide_approvals(
    recording: Recording, answers: Mapping[str, Any], *, for_person: bool = False
) -> list[ApprovedCall]:
    """Return what `answers` decide of the planned calls of a dry run; what they do not name is not to be made.

    They count as a person's if whoever gives them may decide `for_person`. Raises `InvalidRequest`.
    """
    planned = planned_calls(recording)
    unknown = [name for name in answers if name != "*" and name not in planned]
    if unknown:
        names = ", ".join(planned)
        raise InvalidRequest(
            f"The plan has no call {unknown[0]!r:.80}.", remedy=f"Its calls are {names:.500}."
        )
    rest = answers.get("*", "deny")
    return [
        _decide_call(name, call, answers.get(name, rest), for_person=for_person)
        for name, call in planned.items()
    ]


def _decide_call(name: str, call: RecordedCall, answer: Any, *, for_person: bool) -> ApprovedCall:
    sent: str | None = (
        {"allow": call.args, "deny": ""}.get(answer) if isinstance(answer, str) else None
    )
    if isinstance(answer, dict) and answer.keys() == {"args"} and isinstance(answer["args"], dict):
        try:
            sent = canonical_json(answer["args"])
        except ValueError as exc:
            raise InvalidRequest(f"The arguments given for {name} cannot be sent. {exc}") from exc
    if sent is None:
        raise InvalidRequest(
            f"{json.dumps(answer, default=str)[:80]} is no answer to {name}.",
            remedy="Answer with 'allow', 'deny' or {\"args\": {...}}, which is made instead.",
        )
    return ApprovedCall(
        target=call.target, args=call.args, nth=call.nth, sent=sent, person=for_person
    )
