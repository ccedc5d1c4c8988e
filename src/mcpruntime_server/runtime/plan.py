"""Plans the calls of a dry run that would change something, and commits them.

A dry run lets calls through that only read, and records the others instead of making them. To
commit a plan, the code is executed again: what it read is answered from the journal, and the
planned calls that were approved are made. Further calls, which the code makes because it has now
seen their results, are planned in another round.

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
from ..protocol.payloads import JsonObject

PLANNED_KIND = "planned"  # the kind of error that a planned call gets
CallKey = tuple[str, str, int]  # target, canonical arguments, occurrence


@dataclass(frozen=True)
class PlannedCall:
    """A call that was recorded instead of made."""

    number: int
    target: str
    args: Mapping[str, Any]
    line: int | None
    hints: tuple[str, ...] = ()
    needs_person: bool = False  # a person is asked before it is made


class Plan:
    """The decisions on the calls of a dry run that may write: approved, denied, or only planned."""

    def __init__(self, approvals: Iterable[ApprovedCall] = ()) -> None:
        self._calls: dict[int, PlannedCall] = {}
        self._approvals = {approval_key(each): each for each in approvals}

    def find_approval(self, key: CallKey) -> ApprovedCall | None:
        """Return the decision on a call; None if there is none."""
        return self._approvals.get(key)

    def approved_args(self, key: CallKey, args: JsonObject) -> JsonObject:
        """Return the arguments that were approved for a call that has `args` in the code."""
        approval = self.find_approval(key)
        if approval is None or not approval["sent"]:
            return args
        sent: JsonObject = json.loads(approval["sent"])
        return sent

    @property
    def calls(self) -> list[PlannedCall]:
        """The calls that this run has planned, in order."""
        return [self._calls[number] for number in sorted(self._calls)]

    def add_call(self, call: PlannedCall) -> None:
        """Add a call that is not made."""
        self._calls[call.number] = call

    def restore_recorded(self, recording: Recording) -> None:
        """Restore what was planned and decided on another server."""
        for call in filter(is_planned, recording.calls):
            self.add_call(planned_call_of(call))
        for asked in recording.questions:
            answer = recording.answers.get(asked.question_id)
            if answer is None:
                continue
            if answer.decision == "allow":
                self.record_approval(asked.covered_calls)
            else:
                self.record_denial(asked.covered_calls)

    @property
    def approved_calls(self) -> list[ApprovedCall]:
        """The calls to make."""
        return [each for each in self._approvals.values() if each["sent"]]

    def record_approval(self, approvals: Iterable[ApprovedCall]) -> None:
        """Note that a person has approved these calls."""
        for each in approvals:
            self._approvals[approval_key(each)] = ApprovedCall(**{**each, "person": True})

    def record_denial(self, approvals: Iterable[ApprovedCall]) -> None:
        """Note that a person has denied these calls."""
        for each in approvals:
            denied = ApprovedCall(**{**each, "sent": "", "person": True})
            self._approvals[approval_key(each)] = denied


def approval_key(approval: ApprovedCall) -> CallKey:
    """Return the key of the call that a decision is about."""
    return approval["target"], approval["args"], approval["nth"]


def is_planned(call: RecordedCall) -> bool:
    """Return whether a call was recorded instead of made."""
    return call.error is not None and call.error.get("kind") == PLANNED_KIND


def planned_call_of(call: RecordedCall) -> PlannedCall:
    """Return a recorded call that was planned."""
    found = call.error and call.error["data"]
    data = found if isinstance(found, dict) else {}
    hints = data.get("hints")
    return PlannedCall(
        call.call_id,
        call.target,
        parse_args(call),
        call.line_number,
        tuple(map(str, hints)) if isinstance(hints, list) else (),
        needs_person=data.get("needs_person") is True,
    )


def parse_args(call: RecordedCall) -> JsonObject:
    """Return the arguments of a recorded call; {} if they are invalid, as in a forged archive."""
    try:
        args = json.loads(call.args)
    except (ValueError, RecursionError):
        return {}
    return args if isinstance(args, dict) else {}


def planned_call_name(number: int) -> str:
    """Return the name under which a client commits a planned call."""
    return f"c{number}"


def planned_calls(recording: Recording) -> dict[str, RecordedCall]:
    """Return the calls that a dry run has planned, in order, by the names that clients use."""
    return {planned_call_name(call.call_id): call for call in recording.calls if is_planned(call)}


def decide_approvals(
    recording: Recording, answers: Mapping[str, Any], *, for_person: bool = False
) -> list[ApprovedCall]:
    """Return the decisions that `answers` make on the planned calls of a dry run.

    A call that they do not name is not made. With `for_person` they count as a person's decisions.
    Raises `InvalidRequest`.
    """
    planned = planned_calls(recording)
    unknown = [name for name in answers if name != "*" and name not in planned]
    if unknown:
        names = ", ".join(planned)
        raise InvalidRequest(
            f"The plan has no call {unknown[0]!r:.80}.", remedy=f"Its calls are {names:.500}."
        )
    default = answers.get("*", "deny")
    return [
        _decide_call(name, call, answers.get(name, default), for_person=for_person)
        for name, call in planned.items()
    ]


def _decide_call(name: str, call: RecordedCall, answer: Any, *, for_person: bool) -> ApprovedCall:
    sent: str | None = None  # the arguments to send; "" to deny the call
    if isinstance(answer, str):
        sent = {"allow": call.args, "deny": ""}.get(answer)
    elif isinstance(answer, dict) and answer.keys() == {"args"}:
        args = answer["args"]
        try:
            sent = canonical_json(args) if isinstance(args, dict) else None
        except ValueError as exc:
            raise InvalidRequest(f"The arguments given for {name} cannot be sent. {exc}") from exc
    if sent is None:
        raise InvalidRequest(
            f"{json.dumps(answer, default=str)[:80]} is not an answer to {name}.",
            remedy="Answer with 'allow', 'deny' or {\"args\": {...}} to send other arguments.",
        )
    return ApprovedCall(
        target=call.target, args=call.args, nth=call.nth, sent=sent, person=for_person
    )
