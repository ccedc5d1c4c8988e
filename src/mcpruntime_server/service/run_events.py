"""What HTTP clients see of a run's events: made from those of the journal, and bounded.

Rule 1: the id of an event follows from the journal alone, so it is valid in every server.
Rule 2: one event of the journal may become several: long output, and one for each file. They are
numbered, and the last one has the number of the whole.
Rule 3: the end comes last. The journal has it before the files of the run, which may arrive later.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from ..errors import InvalidRequest
from ..journal import events as recorded
from ..journal.rows import FILES_FLAG, UNDONE_FLAG, RunRow, StoredEvent
from ..protocol.presentation import truncate_json
from ..protocol.truncation import truncate_text
from ..protocol.wire import escape_json_surrogates
from ..runtime.plan import Plan
from ..runtime.run_report import display_value
from . import event_models as public

MAX_TEXT_CHARS = 32 * 1024  # of output in one event
MAX_DATA_CHARS = 32 * 1024  # of arguments and values; `GET /runs/{id}` has more of a value
MAX_ERROR_CHARS = 4_000
MAX_COVERED_CALLS = 200
MAX_PAGE_EVENTS = 200  # that are read at once
MAX_PAGE_BYTES = 256 * 1024
# What events raise that are not as they should be: an archive may contain anything.
DAMAGE_ERRORS = (ValueError, TypeError, KeyError, RecursionError)
WHOLE_EVENT = 1 << 31  # greater than the number of any part
EVENT_ID_PATTERN = r"^(r_[A-Za-z0-9_-]{1,64}:)?[0-9]{1,15}(\.[0-9]{1,9})?$"


class EventPosition(NamedTuple):
    """A place in the log of a session: after event `sequence`, or after `part` parts of it."""

    sequence: int
    part: int = WHOLE_EVENT

    def __str__(self) -> str:
        """Return the position as it stands in an id."""
        return str(self.sequence) if self.part == WHOLE_EVENT else f"{self.sequence}.{self.part}"


BEGINNING = EventPosition(0)
logger = logging.getLogger(__name__)


def format_event_id(run_id: str, position: EventPosition) -> str:
    """Return the id of the event that ends at a position."""
    return f"{run_id}:{position}"


def parse_event_id(text: str) -> tuple[str | None, EventPosition]:
    """Return the run, if it is named, and the position of an id; raises `InvalidRequest`."""
    if not re.fullmatch(EVENT_ID_PATTERN, text):
        raise InvalidRequest(
            f"{text!r:.80} is not the id of an event.",
            remedy="Send back the id of the last event that was received, or none.",
        )
    run_id, _, place = text.rpartition(":")
    sequence, _, part = place.partition(".")
    return run_id or None, EventPosition(int(sequence), int(part) if part else WHOLE_EVENT)


@dataclass(frozen=True, slots=True)
class EncodedEvent:
    """An event for clients; `data` is its JSON."""

    position: EventPosition
    type: str
    data: bytes


@dataclass(frozen=True)
class EventReaderState:
    """What must be known of the events up to `sequence` to understand those that follow."""

    sequence: int = 0
    open_calls: Mapping[int, str] = field(default_factory=dict)  # targets, by number
    approved_calls: tuple[recorded.ApprovedCall, ...] = ()
    held_end: StoredEvent | None = None  # a `RunFinished` whose files have not come


class EventEncoder:
    """Turns a page of a run's recorded events into those for clients."""

    def __init__(self, run: RunRow, state: EventReaderState) -> None:
        self._run = run
        self._sequence = state.sequence
        self._open_calls = dict(state.open_calls)
        self._approved_calls = state.approved_calls
        self._held_end = state.held_end

    @property
    def state(self) -> EventReaderState:
        """What is known after the events that were encoded."""
        return EventReaderState(
            self._sequence, self._open_calls, self._approved_calls, self._held_end
        )

    def encode_page(self, stored: Iterator[StoredEvent], max_bytes: int) -> list[EncodedEvent]:
        """Return the events that the first recorded ones become, about `max_bytes` at most."""
        page: list[EncodedEvent] = []
        size = 0
        for count, each in enumerate(stored, 1):
            self._sequence = each.sequence
            try:
                new = list(self._encode(each))
            except DAMAGE_ERRORS as exc:
                logger.warning("event %s of %s is damaged: %s", each.sequence, each.session_id, exc)
                continue
            page += new
            size += sum(len(event.data) for event in new)
            if count >= MAX_PAGE_EVENTS or size >= max_bytes:
                break
        return page

    def release_end(self) -> list[EncodedEvent]:
        """Return the end of a run whose files are lost."""
        end, self._held_end = self._held_end, None
        if end is None:
            return []
        return [self._encode_end(end, EventPosition(end.sequence), is_lost=True)]

    def _encode(self, stored: StoredEvent) -> Iterator[EncodedEvent]:
        """Yield what a recorded event becomes."""
        event, position = stored.event, EventPosition(stored.sequence)
        match event:
            case recorded.RunQueued():
                yield self._event(public.RunQueuedEvent, stored, position)
            case recorded.RunStarted():
                self._approved_calls = tuple(event.approved_calls)
                yield self._event(
                    public.RunStartedEvent,
                    stored,
                    position,
                    step=event.step,
                    parent=event.parent_id,
                    dry_run=event.dry_run,
                )
            case recorded.RunSuspended():
                yield self._event(public.RunSuspendedEvent, stored, position)
            case recorded.RunResumed():
                yield self._event(
                    public.RunResumedEvent, stored, position, replayed_calls=event.replayed_calls
                )
            case recorded.OutputWritten():
                yield from self._encode_output(stored, event)
            case recorded.CallStarted() if event.in_ledger:
                self._open_calls[event.call_id] = event.target
                yield self._encode_call(stored, event)
            case recorded.CallFinished() if event.call_id in self._open_calls:
                yield self._encode_result(stored, event)
            case recorded.QuestionAsked():
                target = self._open_calls.get(event.call_id, "")
                yield self._encode_question(stored, event, self._run.id, target)
            case recorded.AgentQuestionAsked():
                yield self._encode_question(stored, event, event.asking_run, event.target)
            case recorded.QuestionAnswered() | recorded.AgentQuestionAnswered():
                yield self._event(
                    public.AnsweredEvent,
                    stored,
                    position,
                    asking_run=getattr(event, "asking_run", self._run.id),
                    question=event.question_id,
                    decision=event.decision,
                    scope=event.scope,
                    answered_by=event.answered_by,
                )
            case recorded.FilesChanged():
                yield from self._encode_files(stored, event)
            case recorded.RunFinished():
                self._open_calls.clear()
                if FILES_FLAG in event.flags:
                    self._held_end = stored
                else:
                    yield self._encode_end(stored, position)

    def _encode_output(
        self, stored: StoredEvent, event: recorded.OutputWritten
    ) -> Iterator[EncodedEvent]:
        starts = range(0, len(event.text), MAX_TEXT_CHARS)
        for position, start in zip(number_parts(stored, len(starts)), starts, strict=True):
            yield self._event(
                public.OutputEvent,
                stored,
                position,
                stream=event.stream,
                text=event.text[start : start + MAX_TEXT_CHARS],
                dropped_bytes=0 if start else event.dropped_bytes,
            )

    def _encode_call(self, stored: StoredEvent, event: recorded.CallStarted) -> EncodedEvent:
        args = json.loads(event.args)
        if self._approved_calls:  # an approval may have changed them
            plan = Plan(self._approved_calls)
            args = plan.approved_args((event.target, event.args, event.nth), args)
        arguments, is_cut = bound_data(args)
        return self._event(
            public.CallStartedEvent,
            stored,
            EventPosition(stored.sequence),
            call=event.call_id,
            target=event.target,
            arguments=arguments,
            arguments_cut=is_cut,
            effect=event.effect,
            line=event.line_number,
        )

    def _encode_result(self, stored: StoredEvent, event: recorded.CallFinished) -> EncodedEvent:
        value, is_cut = bound_data(event.value)
        error = None
        if event.error is not None:
            message = truncate_text(event.error["message"], MAX_ERROR_CHARS)[0]
            error = public.EventError(kind=event.error["kind"], message=message)
        return self._event(
            public.CallFinishedEvent,
            stored,
            EventPosition(stored.sequence),
            call=event.call_id,
            target=self._open_calls.pop(event.call_id),
            status="ok" if error is None else "error",
            value=value,
            value_cut=is_cut,
            error=error,
            duration_ms=event.duration_ms,
        )

    def _encode_question(
        self,
        stored: StoredEvent,
        event: recorded.QuestionAsked | recorded.AgentQuestionAsked,
        asking_run: str,
        target: str,
    ) -> EncodedEvent:
        covered = [
            public.CoveredCall(
                target=call["target"], arguments=bound_data(json.loads(call["sent"]))[0]
            )
            for call in event.covered_calls[:MAX_COVERED_CALLS]
        ]
        request = event.model_request
        return self._event(
            public.WaitingEvent,
            stored,
            EventPosition(stored.sequence),
            asking_run=asking_run,
            question=event.question_id,
            kind=event.kind,
            call=event.call_id,
            target=target,
            covered_calls=covered,
            prompt=None if request is None else request["prompt"],
            answer_schema=None if request is None else request["schema"],
            hints=event.hints,
            url=event.url or None,
            expires_at=to_datetime(event.expires_at),
        )

    def _encode_files(
        self, stored: StoredEvent, event: recorded.FilesChanged
    ) -> Iterator[EncodedEvent]:
        """Yield the files, and then the end of the run that has waited for them."""
        end, self._held_end = self._held_end, None
        paths = [*event.changed, *event.removed]
        positions = number_parts(stored, len(paths) + (end is not None))
        for path, position in zip(paths, positions, strict=False):
            entry = event.changed.get(path)
            yield self._event(
                public.FileEvent,
                stored,
                position,
                path=path,
                change="removed" if entry is None else "changed",
                size=None if entry is None else entry["size"],
                digest=None if entry is None else entry["digest"],
            )
        if end is not None:
            yield self._encode_end(end, EventPosition(stored.sequence))

    def _encode_end(
        self, stored: StoredEvent, position: EventPosition, *, is_lost: bool = False
    ) -> EncodedEvent:
        event = stored.event
        assert isinstance(event, recorded.RunFinished), "the end of a run"
        value, is_cut = None, False
        if event.value is not None:
            value, is_cut = display_value(event.value, MAX_DATA_CHARS, None)
        error = event.error
        return self._event(
            public.RunFinishedEvent,
            stored,
            position,
            status=event.status,
            value=value,
            value_cut=is_cut,
            error=None if error is None else public.RunErrorInfo(**error),
            usage=dict(event.usage or {}),
            undone=UNDONE_FLAG in event.flags,
            files_lost=is_lost,
        )

    def _event(
        self,
        model: type[public.BaseRunEvent],
        stored: StoredEvent,
        position: EventPosition,
        **fields: Any,
    ) -> EncodedEvent:
        event = model(
            id=format_event_id(self._run.id, position),
            run=self._run.id,
            session=self._run.session_id,
            at=to_datetime(stored.recorded_at),
            **fields,
        )
        kind = cast(str, model.model_fields["type"].default)
        return EncodedEvent(position, kind, event.model_dump_json().encode())


def number_parts(stored: StoredEvent, count: int) -> Iterator[EventPosition]:
    """Yield the positions of the `count` parts of an event."""
    for part in range(1, count):
        yield EventPosition(stored.sequence, part)
    if count:
        yield EventPosition(stored.sequence)


def bound_data(data: Any) -> tuple[Any, bool]:
    """Return JSON data with about `MAX_DATA_CHARS` at most, and whether parts are left out.

    Lone surrogates, which UTF-8 cannot encode, are escaped.
    """
    text, is_cut = truncate_json(data, MAX_DATA_CHARS)
    return escape_json_surrogates(json.loads(text) if is_cut else data), is_cut


def to_datetime(seconds: float) -> datetime:
    """Return a time, in seconds since the epoch, as a date and time in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
