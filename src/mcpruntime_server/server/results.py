"""How a run is told to a client: typed data and a text with the same facts, both within the client's limits."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, Field

from ..config import ServerSettings
from ..kernel.present import json_text, shorten
from ..runtime.calls import LedgerEntry
from ..runtime.run import Report, shown_value

LISTED_CALLS = 50  # of a ledger; the journal has them all
LISTED_FILES = 50
CALL_CHARS = 300  # of one call's arguments, and of its error


class CallLine(BaseModel):
    """One call that the code made: where a retry must not repeat a write, this says what was done."""

    call: str
    status: Literal["started", "ok", "error"]
    ms: float
    error: str | None = None


class ErrorInfo(BaseModel):
    """Why the code failed; the traceback shows its own lines only."""

    type: str
    message: str
    traceback: str
    line: int | None = None


class RunResult(BaseModel):
    """What became of a run."""

    run: str
    session: str = Field(description="Pass this back to keep variables and files.")
    step: int
    status: Literal["running", "ok", "error", "timeout", "crashed", "cancelled"]
    value: Any = Field(None, description="Last expression or assignment: JSON data, or its repr as text.")
    stdout: str = ""
    stderr: str = ""
    error: ErrorInfo | None = None
    calls: list[CallLine] = []
    files: list[str] = Field([], description="Workspace files that changed; a removed one has a minus before it.")
    usage: dict[str, float] = {}
    note: str = ""


def result_of(report: Report, handle: str, settings: ServerSettings) -> RunResult:
    """Return `report` cut to the configured size; what was cut is said in the note."""
    notes = list(report.notes)
    stdout, stdout_cut = shorten(report.stdout, settings.result_chars)
    stderr, stderr_cut = shorten(report.stderr, settings.result_chars)
    value, value_cut = _value(report.value, settings.result_chars)
    cut = [name for name, was in (("value", value_cut), ("stdout", stdout_cut), ("stderr", stderr_cut)) if was]
    if cut:
        notes.append(f"Cut to fit: {', '.join(cut)}. Print or return less; the variables still hold everything.")
    if len(report.calls) > LISTED_CALLS:
        notes.append(f"{len(report.calls)} calls were made; the last {LISTED_CALLS} are listed.")
    files = [*report.changed, *(f"-{path}" for path in report.removed)]
    if len(files) > LISTED_FILES:
        notes.append(f"{len(files)} files changed; {LISTED_FILES} are listed.")
    return RunResult(
        run=report.run,
        session=handle,
        step=report.step,
        status=report.status,
        value=value,
        stdout=stdout,
        stderr=stderr,
        error=ErrorInfo(**report.error) if report.error else None,
        calls=[call_line(entry) for entry in report.calls[-LISTED_CALLS:]],
        files=files[:LISTED_FILES],
        usage=report.usage,
        note=" ".join(notes),
    )


def _value(value: dict[str, Any] | None, limit: int) -> tuple[Any, bool]:
    shown = shown_value(value)
    if value is None or len(value["text"]) <= limit:
        return shown, bool(value and value["cut"])
    if value["kind"] == "repr":
        return shorten(shown, limit)
    return json.loads(json_text(shown, limit)[0]), True


def call_line(entry: LedgerEntry) -> CallLine:
    """Return one line of a ledger, with the arguments as a caller would write them."""
    name = entry.target.removeprefix("tools.")
    args = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in entry.args.items())
    error = shorten(entry.error, CALL_CHARS)[0] if entry.error else None
    return CallLine(
        call=f"{name}({shorten(args, CALL_CHARS)[0]})", status=entry.status, ms=round(entry.ms, 1), error=error
    )


def text_of(result: RunResult) -> str:
    """Return the same facts as plain text, for clients that show the model only that."""
    lines = [f"{result.status} | session {result.session} | step {result.step} | run {result.run}"]
    if result.value is not None:
        text = result.value if isinstance(result.value, str) else json.dumps(result.value, ensure_ascii=False)
        lines.append(f"value: {text}")
    for name, text in (("stdout", result.stdout), ("stderr", result.stderr)):
        if text:
            lines.append(f"{name}:\n{text.rstrip()}")
    if result.error is not None:
        error = result.error
        lines.append(f"error:\n{error.traceback or f'{error.type}: {error.message}'}")
    if result.calls:
        lines.append("calls:")
        lines += [f"  {line.call} -> {line.status}{f': {line.error}' if line.error else ''}" for line in result.calls]
    if result.files:
        lines.append(f"files: {', '.join(result.files)}")
    if result.usage:
        lines.append("usage: " + ", ".join(f"{name} {value:g}" for name, value in result.usage.items()))
    if result.note:
        lines.append(f"note: {result.note}")
    return "\n".join(lines)
