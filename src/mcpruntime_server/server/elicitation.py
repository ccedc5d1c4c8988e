"""Forms that ask a person, through the client, whether calls may be made.

Targets and arguments come from a sandbox. They are shown as ASCII JSON, so that nothing in them can
hide or look like our own words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from mcp.server.mcpserver import Context
from mcp.types import (
    ClientCapabilities,
    ElicitRequestFormParams,
    ElicitRequestURLParams,
    ElicitResult,
)

from ..runtime.pending_questions import (
    APPROVAL_KIND,
    APPROVAL_SCOPES,
    CREDENTIAL_KIND,
    PendingQuestion,
)
from ..runtime.run import Run

MAX_MESSAGE_CHARS = 60_000  # of a form: 200 calls with some arguments each
MAX_ARGUMENTS_CHARS = 2_000  # of one call's arguments
FORM_ID_CHARS = 16
FIELD_PREFIX = "decision"
CHOICES = (*APPROVAL_SCOPES, "deny")
CHOICE_LABELS = ("Allow once", "Allow for this run", "Allow for this session", "Deny")
GROUP_NOTE = "; what is allowed holds for all calls listed"


def client_supports_forms(ctx: Context[Any]) -> bool:
    """Return whether the client can show a form to a person."""
    return supports_forms(ctx.client_capabilities)


def supports_forms(capabilities: ClientCapabilities | None) -> bool:
    """Return whether a client with these capabilities can show a form to a person."""
    found = capabilities.elicitation if capabilities is not None else None
    return found is not None and (found.form is not None or found.url is None)


def pending_approvals(run: Run) -> list[PendingQuestion]:
    """Return what a person has to answer before `run` continues."""
    return select_approvals(run.questions.open_questions.values())


def asks_person(run: Run) -> bool:
    """Return whether `run` waits for a person: for an approval, or for a credential."""
    kinds = (APPROVAL_KIND, CREDENTIAL_KIND)
    return any(each.asked.kind in kinds for each in run.questions.open_questions.values())


def select_approvals(questions: Iterable[PendingQuestion]) -> list[PendingQuestion]:
    """Return the questions that a person has to answer."""
    return [question for question in questions if question.asked.kind == APPROVAL_KIND]


def can_open_pages(capabilities: ClientCapabilities | None) -> bool:
    """Return whether a client with these capabilities can show a person a web page."""
    found = capabilities.elicitation if capabilities is not None else None
    return found is not None and found.url is not None


def select_page(questions: Iterable[PendingQuestion]) -> list[PendingQuestion]:
    """Return the questions for a credential that the same page answers as the first of them."""
    pending = [each for each in questions if each.asked.kind == CREDENTIAL_KIND]
    return [each for each in pending if each.asked.url == pending[0].asked.url]


def questions_of_page(form: str, questions: Iterable[PendingQuestion]) -> Sequence[PendingQuestion]:
    """Return the open `questions` for the credential of a page; none if they are answered."""
    pending = [each for each in questions if each.asked.kind == CREDENTIAL_KIND]
    for url in {each.asked.url for each in pending}:
        of_page = [each for each in pending if each.asked.url == url]
        if shown := questions_of_form(form, of_page):
            return shown
    return ()


def build_page_message(handle: str, run: Run, questions: Sequence[PendingQuestion]) -> str:
    """Return what a person reads who is asked to open the page for a credential."""
    missing = questions[0].asked.hints[0]
    return f"Code in the session {json.dumps(handle)} (run {run.id}) waits: {missing}"


def build_page_request(
    handle: str, run: Run, questions: Sequence[PendingQuestion]
) -> ElicitRequestURLParams:
    """Return the request that shows a person the page for a credential."""
    message = build_page_message(handle, run, questions)
    return ElicitRequestURLParams(message=message, url=questions[0].asked.url)


def form_id(questions: Sequence[PendingQuestion]) -> str:
    """Return an id for the form with these questions, which differs from that of any other form."""
    asked = " ".join(f"{question.run_id}:{question.id}" for question in questions)
    return sha256(asked.encode()).hexdigest()[:FORM_ID_CHARS]


def questions_of_form(form: str, questions: Sequence[PendingQuestion]) -> Sequence[PendingQuestion]:
    """Return the open `questions` that the form has asked; none if some are no longer open.

    Later questions follow them. They were not shown, and are not answered with this form.
    """
    shown = (questions[:count] for count in range(1, len(questions) + 1))
    return next((each for each in shown if form_id(each) == form), ())


def group_by_target(questions: Sequence[PendingQuestion]) -> dict[str, list[PendingQuestion]]:
    """Return the questions by the target of their calls."""
    groups: dict[str, list[PendingQuestion]] = {}
    for question in questions:
        groups.setdefault(question.target, []).append(question)
    return groups


def build_approval_form(
    handle: str, run: Run, asking_run: Run, questions: Sequence[PendingQuestion]
) -> ElicitRequestFormParams:
    """Return the form that asks for a decision on each target.

    `asking_run` wants to call them: `run` itself, of the session `handle`, or a run of its agents.
    """
    caller = f"code in the session {json.dumps(handle)} (run {run.id})"
    if asking_run is not run:
        caller = f"a sub-agent (run {asking_run.id}) of {caller}"
    lines = [f"{caller[0].upper()}{caller[1:]} wants to make these calls."]
    properties: dict[str, Any] = {}
    for number, (target, group) in enumerate(group_by_target(questions).items(), 1):
        calls = [
            (question, called, args)
            for question in group
            for called, args in question.covered_calls
        ]
        title = f"{number}. {json.dumps(target.removeprefix('tools.'))[1:-1]}"
        count = "1 call" if len(calls) == 1 else f"{len(calls)} calls"
        lines.append(f"\n{title}, {count}:")
        for question, called, args in calls:
            lines += format_call_lines(question, called, args, target)
        properties[f"{FIELD_PREFIX}_{number}"] = {
            "type": "string",
            "title": title,
            "description": f"{count}{GROUP_NOTE}" if len(calls) > 1 else count,
            "enum": list(CHOICES),
            "enumNames": list(CHOICE_LABELS),
        }
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return ElicitRequestFormParams(
        message=join_bounded_lines(lines, asking_run.questions.answer_command),
        requested_schema=schema,
    )


def format_call_lines(
    question: PendingQuestion, target: str, args: Mapping[str, Any], group: str
) -> list[str]:
    """Return the lines of a form that show one call."""
    text = json.dumps(args, sort_keys=True)
    if len(text) > MAX_ARGUMENTS_CHARS:
        text = f"{text[:MAX_ARGUMENTS_CHARS]}... ({len(text):,} characters)"
    name = "" if target == group else f"{json.dumps(target)[1:-1]} "
    line = f" (line {question.line})" if question.line else ""
    return [f"   {name}{text}{line}", *(f"     hint: {hint}" for hint in question.asked.hints)]


def join_bounded_lines(lines: Sequence[str], list_command: str) -> str:
    """Return the lines that fit into a form; then how many are left out, and what lists them."""
    size = 0
    for count, line in enumerate(lines):
        size += len(line) + 1
        if size > MAX_MESSAGE_CHARS:
            rest = len(lines) - count
            note = f"... and {rest} more lines: `{list_command}` shows all."
            return "\n".join([*lines[:count], note])
    return "\n".join(lines)


def parse_decisions(questions: Sequence[PendingQuestion], result: ElicitResult) -> dict[str, str]:
    """Return the answers in a form, by question; none if it was dismissed or is invalid."""
    if result.action == "cancel":
        return {}
    content = result.content or {}
    answers: dict[str, str] = {}
    for number, group in enumerate(group_by_target(questions).values(), 1):
        chosen = "deny" if result.action == "decline" else content.get(f"{FIELD_PREFIX}_{number}")
        if chosen in CHOICES:
            answers |= {question.id: str(chosen) for question in group}
    return answers
