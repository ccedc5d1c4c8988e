"""The queue of what runs wait for: approvals, calls in doubt, questions, and plans."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import anyio
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import NotFound
from ..journal import overviews
from ..journal.overviews import SessionOverview
from ..journal.rows import SessionRow
from ..journal.store import Journal
from ..runtime.run_history import RecordedRun, load_recorded_run
from ..runtime.run_report import PendingQuestionView
from ..service.authentication import find_principal
from ..service.event_stream import EventStreamResponse
from ..service.run_events import EncodedEvent, EventPosition
from .page_rendering import PAGE_SECURITY_HEADERS
from .text_diffs import DiffLine, compare_texts
from .value_views import ValueNode, build_tree
from .viewer_services import ViewerServices

POLL_S = 0.4  # for questions of other servers; those of this one are announced
MAX_CARDS = 100
MAX_COVERED = 20  # calls of a plan or an answer that a card shows
MAX_PLANS = 50
MAX_REPLACEMENTS = 10  # of texts by others that a call of a card is shown with
REPLACEMENTS = (  # names of arguments of which the second takes the place of the first
    ("old_text", "new_text"),
    ("oldText", "newText"),
    ("old_string", "new_string"),
    ("old_str", "new_str"),
    ("old", "new"),
    ("before", "after"),
    ("search", "replace"),
    ("find", "replace"),
)
COMPARED_NAMES = frozenset(name for names in REPLACEMENTS for name in names)

CARD_LABELS = {  # what a card is, and what it asks
    "approval": ("Approval", "May this be called?"),
    "in_doubt": ("Call in doubt", "The server died during this call. Call it again?"),
    "question": ("Question", "Code asks the client's model"),
    "credential": ("Credential", "This call needs a credential of yours"),
    "plan": ("Plan", "A plan: make these calls?"),
}


@dataclass(frozen=True)
class AskedCall:
    """A call that is asked about, with the texts that its arguments replace by others."""

    server: str
    tool: str
    arguments: ValueNode
    diffs: tuple[tuple[DiffLine, ...], ...]


@dataclass(frozen=True)
class QuestionCard:
    """One thing to decide; `answer_to` are the names that the answer is for."""

    session: SessionRow
    run_id: str
    step: int
    name: str
    kind: str  # "approval" | "in_doubt" | "question" | "credential" | "plan"
    calls: tuple[AskedCall, ...]
    hidden_count: int
    prompt: str
    takes_json: bool
    line: int | None
    hints: tuple[str, ...]
    url: str  # of the page on which a credential is stored
    expires_at: float | None
    is_answered: bool

    @property
    def label(self) -> str:
        """What it is, in a word or two."""
        return CARD_LABELS[self.kind][0]

    @property
    def question(self) -> str:
        """What it asks."""
        return CARD_LABELS[self.kind][1]

    @property
    def key(self) -> str:
        """Its id in the page."""
        return f"{self.run_id}-{self.name}"

    @property
    def title(self) -> str:
        """What the page calls its session."""
        return self.session.name or self.session.id


class ApprovalPages:
    """The handlers of the queue."""

    def __init__(self, services: ViewerServices) -> None:
        self._services = services
        self._journal = services.journal
        self._expires_s = services.api.config.policy.expires_s

    async def show_queue(self, request: Request) -> Response:
        """Return the page with everything that waits for an answer."""
        cards = await self._load_cards(find_principal(request.scope))
        context = self._services.access.describe_request(request)
        return await self._services.renderer.render_page(context, "approvals.html", cards=cards)

    async def count_questions(self, request: Request) -> Response:
        """Return how many questions and plans wait for a person."""
        state = await self._load_state(find_principal(request.scope))
        return JSONResponse({"count": len(state)}, headers=PAGE_SECURITY_HEADERS)

    async def follow_queue(self, request: Request) -> Response:
        """Stream the changes of the queue."""
        changes = QueueChanges(self, self._journal, find_principal(request.scope))
        stopping = self._services.api.is_stopping
        return EventStreamResponse("queue", changes, stopping, PAGE_SECURITY_HEADERS, nullcontext())

    async def load_fingerprint(self, principal: str) -> str:
        """Return a fingerprint of the queue, which changes with it."""
        state = await self._load_state(principal)
        return sha256(json.dumps(state).encode()).hexdigest()

    async def _load_state(self, principal: str) -> list[tuple[str, str, bool]]:
        rows = await self._journal.list_pending_questions(principal)
        now = time.time()
        questions = [
            (row.run_id, row.question_id, row.is_answered) for row in rows if row.expires_at > now
        ]
        plans = await self._list_plans(principal)
        return questions + [(each.run_id or "", "plan", False) for each in plans]

    async def _list_plans(self, principal: str) -> list[SessionOverview]:
        """Return the sessions whose newest run is a plan that can be committed."""
        waiting = await self._journal.read(
            lambda rows: overviews.page_session_overviews(rows, principal, "waiting", MAX_PLANS, 0)
        )
        plans = []
        for each in waiting:
            run = await self._journal.load_run(each.run_id) if each.run_id else None
            if run is None or run.status != "waiting" or run.finished_at is None:
                continue
            if time.time() - run.finished_at <= self._expires_s:
                plans.append(each)
        return plans

    async def _load_cards(self, principal: str) -> list[QuestionCard]:
        rows = await self._journal.list_pending_questions(principal)
        runs: dict[str, tuple[SessionRow, RecordedRun]] = {}
        cards: list[QuestionCard] = []
        for row in rows[:MAX_CARDS]:
            with suppress(NotFound):  # the session was removed meanwhile
                if row.run_id not in runs:
                    runs[row.run_id] = await self._load_recorded(row.run_id, row.session_id)
                session, recorded = runs[row.run_id]
                cards += [
                    await to_thread.run_sync(
                        build_card, session, recorded, [view], row.is_answered, view.kind
                    )
                    for view in recorded.pending_questions
                    if view.id == row.question_id
                    and row.expires_at > time.time()
                    and view.kind in CARD_LABELS
                ]
        for each in await self._list_plans(principal):
            with suppress(NotFound):
                session, recorded = await self._load_recorded(str(each.run_id), each.row.id)
                planned = recorded.report.pending_questions
                if planned:
                    card = await to_thread.run_sync(
                        build_card, session, recorded, planned, False, "plan"
                    )
                    cards.append(card)
        return cards

    async def _load_recorded(self, run_id: str, session_id: str) -> tuple[SessionRow, RecordedRun]:
        session = await self._journal.load_session(session_id)
        return session, await load_recorded_run(self._journal, await self._journal.load_run(run_id))


class QueueChanges:
    """The changes of the queue of one principal, one after the other."""

    def __init__(self, pages: ApprovalPages, journal: Journal, principal: str) -> None:
        self._pages = pages
        self._journal = journal
        self._principal = principal
        self._sent = ""
        self._count = 0

    async def next_events(self) -> Sequence[EncodedEvent]:
        """Return the next change, waiting for one."""
        while True:
            changed = self._journal.next_queue_change()
            found = await self._pages.load_fingerprint(self._principal)
            if found != self._sent:
                self._sent = found
                self._count += 1
                return [EncodedEvent(EventPosition(self._count), "change", b"{}")]
            with anyio.move_on_after(POLL_S):
                await changed.wait()


def build_card(
    session: SessionRow,
    recorded: RecordedRun,
    views: Sequence[PendingQuestionView],
    is_answered: bool,
    kind: str,
) -> QuestionCard:
    """Return the card of a question, or of the questions that are a plan."""
    first = views[0]
    calls = [call for view in views for call in view.calls]
    if kind == "credential":
        calls = []  # the hints say what it is for; the call may be one of the runtime's own
    request = first.model_request
    return QuestionCard(
        session=session,
        run_id=recorded.row.id,
        step=recorded.row.step,
        name="*" if kind == "plan" else first.id,
        kind=kind,
        calls=tuple(build_asked_call(target, args) for target, args in calls[:MAX_COVERED]),
        hidden_count=max(len(calls) - MAX_COVERED, 0),
        prompt="" if request is None else request["prompt"],
        takes_json=request is not None and request["schema"] is not None,
        line=first.line,
        hints=tuple(dict.fromkeys(hint for view in views for hint in view.hints)),
        url=first.url if first.url.startswith(("http://", "https://")) else "",
        expires_at=first.expires,
        is_answered=is_answered,
    )


def build_asked_call(target: str, args: Mapping[str, Any]) -> AskedCall:
    """Return a call as a card shows it."""
    server, _, tool = target.removeprefix("tools.").rpartition(".")
    shown = sorted(args, key=COMPARED_NAMES.__contains__)  # where before what
    arguments = build_tree({name: args[name] for name in shown})
    return AskedCall(server, tool, arguments, tuple(find_replacements(args)))


def find_replacements(args: Mapping[str, Any]) -> list[tuple[DiffLine, ...]]:
    """Return the differences between texts that a call replaces and those that it puts there.

    There are `MAX_REPLACEMENTS` at most; the card has all arguments beside them.
    """
    diffs: list[tuple[DiffLine, ...]] = []
    for each in (args, *(item for value in args.values() for item in list_records(value))):
        if len(diffs) == MAX_REPLACEMENTS:
            break
        for old, new in REPLACEMENTS:
            before, after = each.get(old), each.get(new)
            if isinstance(before, str) and isinstance(after, str):
                diffs.append(compare_texts(before, after))
                break
    return [each for each in diffs if each]


def list_records(value: Any) -> list[Mapping[str, Any]]:
    """Return the records in a list of them."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
