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
from ..journal.events import Approval, canonical_json
from ..journal.replay import RecordedCall, Recording

PLANNED = "planned"  # the kind of error that a planned call is answered with
Key = tuple[str, str, int]  # target, canonical arguments, occurrence


@dataclass(frozen=True)
class PlannedCall:
    """A call that was recorded instead of made."""

    call: int
    target: str
    args: Mapping[str, Any]
    line: int | None
    hints: tuple[str, ...] = ()


class Plan:
    """What is decided of the calls of a run that may write: those approved are made, others refused or planned."""

    def __init__(self, approvals: Iterable[Approval] = ()) -> None:
        self._calls: dict[int, PlannedCall] = {}
        self._approvals = {key_of(each): each for each in approvals}

    def approval(self, key: Key) -> Approval | None:
        """Return what was decided of a call, or None where nothing was."""
        return self._approvals.get(key)

    def arguments(self, key: Key, args: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with which a call is made that has `args` in the code: those that were approved."""
        approval = self.approval(key)
        found: dict[str, Any] = json.loads(approval["sent"]) if approval is not None and approval["sent"] else args
        return found

    @property
    def calls(self) -> list[PlannedCall]:
        """The calls that were planned in this run, in order."""
        return [self._calls[number] for number in sorted(self._calls)]

    def add(self, call: PlannedCall) -> None:
        """Note a call that is not made."""
        self._calls[call.call] = call

    def restore(self, recording: Recording) -> None:
        """Have what was planned and decided in another server."""
        for call in filter(is_planned, recording.calls):
            self.add(planned_call(call))
        for asked in recording.asked:
            answer = recording.answered.get(asked.question)
            if answer is not None:
                (self.allow if answer.decision == "allow" else self.refuse)(asked.covers)

    @property
    def approved(self) -> list[Approval]:
        """The calls that are to be made."""
        return [each for each in self._approvals.values() if each["sent"]]

    def allow(self, approvals: Iterable[Approval]) -> None:
        """A person has allowed these."""
        for each in approvals:
            self._approvals[key_of(each)] = Approval(**{**each, "person": True})

    def refuse(self, approvals: Iterable[Approval]) -> None:
        """A person has refused these."""
        for each in approvals:
            self._approvals[key_of(each)] = Approval(**{**each, "sent": "", "person": True})


def key_of(approval: Approval) -> Key:
    """Return the name of the call that was decided on."""
    return approval["target"], approval["args"], approval["nth"]


def is_planned(call: RecordedCall) -> bool:
    """Return whether a call was recorded instead of made."""
    return call.error is not None and call.error.get("kind") == PLANNED


def planned_call(call: RecordedCall) -> PlannedCall:
    """Return a recorded call that was planned."""
    data = (call.error or {}).get("data")
    hints = data.get("hints", []) if isinstance(data, dict) else []
    return PlannedCall(call.call, call.target, args_of(call), call.line, tuple(map(str, hints)))


def args_of(call: RecordedCall) -> dict[str, Any]:
    """Return the arguments of a recorded call; an archive of a stranger's may have nonsense there."""
    try:
        args = json.loads(call.args)
    except (ValueError, RecursionError):
        return {}
    return args if isinstance(args, dict) else {}


def name_of(call: int) -> str:
    """Return the name under which a planned call is committed."""
    return f"c{call}"


def planned_calls(recording: Recording) -> dict[str, RecordedCall]:
    """Return the calls that a dry run has planned, in order, by the names under which they are committed."""
    return {name_of(call.call): call for call in recording.calls if is_planned(call)}


def decide(recording: Recording, answers: Mapping[str, Any], *, for_person: bool = False) -> list[Approval]:
    """Return what `answers` decide of the planned calls of a dry run; what they do not name is not to be made.

    They count as a person's if whoever gives them may decide `for_person`. Raises `InvalidRequest`.
    """
    planned = planned_calls(recording)
    unknown = [name for name in answers if name != "*" and name not in planned]
    if unknown:
        names = ", ".join(planned)
        raise InvalidRequest(f"The plan has no call {unknown[0]!r:.80}.", remedy=f"Its calls are {names:.500}.")
    rest = answers.get("*", "deny")
    return [_decided(name, call, answers.get(name, rest), for_person=for_person) for name, call in planned.items()]


def _decided(name: str, call: RecordedCall, answer: Any, *, for_person: bool) -> Approval:
    sent: str | None = {"allow": call.args, "deny": ""}.get(answer) if isinstance(answer, str) else None
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
    return Approval(target=call.target, args=call.args, nth=call.nth, sent=sent, person=for_person)
