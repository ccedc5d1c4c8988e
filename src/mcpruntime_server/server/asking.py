"""How a person is asked, through the client, whether calls may be made.

What code wants to call, and with which arguments, comes from a sandbox: it is shown as ASCII JSON, so that nothing in
it can pass for our own words or hide.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from mcp.server.mcpserver import Context
from mcp.types import ClientCapabilities, ElicitRequestFormParams, ElicitResult

from ..runtime.questions import APPROVAL, SCOPES, Question
from ..runtime.run import Run

MESSAGE_CHARS = 60_000  # of one form: 200 calls with some arguments each
CALL_CHARS = 2_000  # of one call's arguments
NAME_CHARS = 16  # of a form's name
FIELD = "decision"
CHOICES = (*SCOPES, "deny")
CHOICE_NAMES = ("Allow once", "Allow for this run", "Allow for this session", "Deny")
CHOICES_OF_MANY = "; what is allowed holds for all calls listed"


def can_ask(ctx: Context[Any]) -> bool:
    """Return whether the client can show a form to a person."""
    return shows_forms(ctx.client_capabilities)


def shows_forms(capabilities: ClientCapabilities | None) -> bool:
    """Return whether a client with these capabilities can show a form to a person."""
    found = capabilities.elicitation if capabilities is not None else None
    return found is not None and (found.form is not None or found.url is None)


def for_person(run: Run) -> list[Question]:
    """Return what a person has to answer before `run` goes on."""
    return approvals(run.questions.open.values())


def approvals(questions: Iterable[Question]) -> list[Question]:
    """Return those that are a person's to answer."""
    return [question for question in questions if question.asked.kind == APPROVAL]


def name_of(questions: Sequence[Question]) -> str:
    """Return the name of the form that asks these; another form of the run, or of its agents', has another name."""
    asked = " ".join(f"{question.run}:{question.id}" for question in questions)
    return sha256(asked.encode()).hexdigest()[:NAME_CHARS]


def asked_by(name: str, questions: Sequence[Question]) -> Sequence[Question]:
    """Return those of the open `questions` that were asked with the form `name`; none if not all of them are open.

    What was asked since then comes after them. It was not shown, and must not be answered with that form.
    """
    shown = (questions[:count] for count in range(1, len(questions) + 1))
    return next((each for each in shown if name_of(each) == name), ())


def grouped(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Return questions by the target of the calls."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.target, []).append(question)
    return groups


def form(handle: str, run: Run, asks: Run, questions: Sequence[Question]) -> ElicitRequestFormParams:
    """Return the form that asks for a decision on each tool that is to be called.

    Run `asks` wants to call them: `run`, of the session `handle`, or one of an agent that it has begun.
    """
    whose = f"Code in the session {json.dumps(handle)} (run {run.id})"
    if asks is not run:
        whose = f"A sub-agent (run {asks.id}) of code in the session {json.dumps(handle)} (run {run.id})"
    lines = [f"{whose} wants to make these calls."]
    properties: dict[str, Any] = {}
    for number, (target, group) in enumerate(grouped(questions).items(), 1):
        calls = [(question, called, args) for question in group for called, args in question.calls]
        shown = target.removeprefix("tools.")
        lines.append(f"\n{number}. {json.dumps(shown)[1:-1]}, {len(calls)} {'call' if len(calls) == 1 else 'calls'}:")
        for question, called, args in calls:
            lines += told_call(question, called, args, target)
        properties[f"{FIELD}_{number}"] = {
            "type": "string",
            "title": f"{number}. {json.dumps(shown)[1:-1]}",
            "description": f"{len(calls)} calls{CHOICES_OF_MANY}" if len(calls) > 1 else "1 call",
            "enum": list(CHOICES),
            "enumNames": list(CHOICE_NAMES),
        }
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return ElicitRequestFormParams(message=bounded(lines), requested_schema=schema)


def told_call(question: Question, target: str, args: Mapping[str, Any], group: str) -> list[str]:
    """Return one call as lines of the form."""
    text = json.dumps(args, sort_keys=True)
    text = text if len(text) <= CALL_CHARS else f"{text[:CALL_CHARS]}... ({len(text):,} characters)"
    name = "" if target == group else f"{json.dumps(target)[1:-1]} "
    line = f" (line {question.line})" if question.line else ""
    return [f"   {name}{text}{line}", *(f"     hint: {hint}" for hint in question.asked.hints)]


def bounded(lines: Sequence[str]) -> str:
    """Return as many of `lines` as a form can hold, and how many are left out."""
    size = 0
    for count, line in enumerate(lines):
        size += len(line) + 1
        if size > MESSAGE_CHARS:
            rest = len(lines) - count
            return "\n".join([*lines[:count], f"... and {rest} more lines: `mcpruntime-server approvals` shows all."])
    return "\n".join(lines)


def decisions(questions: Sequence[Question], result: ElicitResult) -> dict[str, str]:
    """Return the answers that a form came back with, by question; none if it was put aside or filled in wrongly."""
    if result.action == "cancel":
        return {}
    content = result.content or {}
    answers: dict[str, str] = {}
    for number, group in enumerate(grouped(questions).values(), 1):
        chosen = "deny" if result.action == "decline" else content.get(f"{FIELD}_{number}")
        if chosen in CHOICES:
            answers |= {question.id: str(chosen) for question in group}
    return answers
