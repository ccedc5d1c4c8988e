"""The questions in a result: as many as a client will show, and nothing in them twice.

Rule 1: a page begins with the oldest questions that are open. Those that do not fit follow when
these are answered.
Rule 2: a prompt and a schema that questions to a model share are shown with the first of them on
the page; the others refer to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from ..journal.call_scope import MAX_MODEL_REQUEST_CHARS
from ..journal.events import ClientModelRequest
from ..protocol.presentation import format_call
from ..protocol.truncation import truncate_text
from ..runtime.call_ledger import MAX_CALL_CHARS
from ..runtime.run_report import PendingQuestionView

RESULT_FRAME_CHARS = 1_000  # of a result, for everything but output and questions
QUESTION_FRAME_CHARS = 150  # of a question, for everything but prompt and schema
DATA_START = re.compile(r"\n\n(?=<data [0-9a-f]{12}>\n)")  # after the prompt of a model request


class PendingQuestionLine(BaseModel):
    """One question that a run waits for: a decision about `call`, and about `more` like it."""

    id: str
    kind: str
    call: str
    more: list[str] = []
    line: int | None = None
    hints: list[str] = []


@dataclass(frozen=True)
class ModelQuestion:
    """A question to a model in its parts; `data` and `schema` are "" if there is none."""

    prompt: str
    data: str
    schema: str

    @classmethod
    def parse(cls, request: ClientModelRequest) -> ModelQuestion:
        """Return the parts of a model request."""
        text = truncate_text(request["prompt"], MAX_MODEL_REQUEST_CHARS)[0]
        prompt, *data = DATA_START.split(text, maxsplit=1)
        schema = request["schema"]
        schema_text = "" if schema is None else json.dumps(schema, ensure_ascii=False)
        return cls(prompt, "".join(data), schema_text)

    def format(self, alike_id: str = "", schema_id: str = "") -> str:
        """Return the text for the client's model.

        Question `alike_id` has the same prompt and schema, `schema_id` has the same schema: they
        are shown before.
        """
        if alike_id and self.data:
            return f"As {alike_id}, about this:\n{self.data}"
        text = f"{self.prompt}\n\n{self.data}" if self.data else self.prompt
        if not self.schema:
            return text
        schema = f"the schema of {schema_id}" if schema_id else self.schema
        return f"{text}\n(Answer with JSON that follows {schema})"


def page_chars(result_chars: int, output_chars: int = 0) -> int:
    """Return how long the questions in a result may be, beside so much output of the run."""
    return max(result_chars - output_chars - RESULT_FRAME_CHARS, result_chars // 2)


def max_question_chars(result_chars: int) -> int:
    """Return how long one request to a client's model may be, so that a result can hold it."""
    return min(page_chars(result_chars) - QUESTION_FRAME_CHARS, MAX_MODEL_REQUEST_CHARS)


def format_model_question(request: ClientModelRequest) -> str:
    """Return the whole text of a model request for the client's model."""
    return ModelQuestion.parse(request).format()


def select_question_page(
    questions: Sequence[PendingQuestionView], max_chars: int, max_lines: int
) -> list[PendingQuestionLine]:
    """Return the first pending questions that fit into one result, at least one."""
    lines: list[PendingQuestionLine] = []
    id_by_frame: dict[tuple[str, str], str] = {}  # by prompt and schema
    id_by_schema: dict[str, str] = {}
    for question in questions[:max_lines]:
        if question.model_request is not None:
            parts = ModelQuestion.parse(question.model_request)
            frame = parts.prompt, parts.schema
            line = PendingQuestionLine(
                id=question.id,
                kind=question.kind,
                call=parts.format(id_by_frame.get(frame, ""), id_by_schema.get(parts.schema, "")),
                line=question.line,
            )
            id_by_frame.setdefault(frame, question.id)
            id_by_schema.setdefault(parts.schema, question.id)
        else:
            line = build_call_question(question)
        max_chars -= len(json.dumps(line.model_dump(exclude_defaults=True), ensure_ascii=False))
        if lines and max_chars < 0:
            break
        lines.append(line)
    return lines


def build_call_question(question: PendingQuestionView) -> PendingQuestionLine:
    """Return the line of a question about calls."""
    first, *more = (format_call(target, args, MAX_CALL_CHARS) for target, args in question.calls)
    return PendingQuestionLine(
        id=question.id,
        kind=question.kind,
        call=first,
        more=more,
        line=question.line,
        hints=list(question.hints),
    )
