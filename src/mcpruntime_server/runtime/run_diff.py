"""Compares two recorded runs, or the lineages of two runs.

What is compared may be large, and hostile: of each text a bounded part is compared, and each
difference is bounded. Times and usage are not compared, because they never agree.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import zip_longest
from typing import Any, TypedDict, TypeVar

from anyio import to_thread

from ..errors import JournalFailed, NotFound
from ..journal.events import CallError, FileEntry
from ..journal.recording import RecordedCall
from ..journal.rows import UNDONE_FLAG, RunRow
from ..journal.store import Journal
from .plan import CallKey
from .run_history import RecordedRun, load_recorded_run

MAX_LINE_CHARS = 400  # longer lines are split and compared in parts
MAX_COMPARED_LINES = 1000  # from the first difference on; difflib takes quadratic time
MAX_DIFF_LINES = 400
CONTEXT_LINES = 2  # around a difference
MAX_DIFFED_FILE_BYTES = 256 * 1024  # of larger files only the digests are compared
MAX_DIFFED_FILES = 100  # whose content is compared
NO_NEWLINE = "\\ No newline at end"

T = TypeVar("T")


@dataclass(frozen=True)
class ValueChange:
    """A field that differs; None where a run does not have it."""

    a: Any
    b: Any


class DiffOutcome(TypedDict):
    """How a call ended."""

    status: str  # "started" | "ok" | "error"
    value: Any
    error: CallError | None


@dataclass(frozen=True)
class CallChange:
    """A call that only one run made (the other side is None), or that ended differently."""

    target: str
    args: str  # canonical JSON
    nth: int
    a: DiffOutcome | None
    b: DiffOutcome | None


@dataclass(frozen=True)
class FileChange:
    """A file that differs; `text` is the unified difference of texts that are not too large."""

    path: str
    a: FileEntry | None
    b: FileEntry | None
    text: str = ""


@dataclass(frozen=True)
class RunDiff:
    """How run `b` differs from run `a`; a field that does not differ is empty."""

    a: RunRow
    b: RunRow
    code: str = ""  # this and the next two are unified differences
    stdout: str = ""
    stderr: str = ""
    calls: tuple[CallChange, ...] = ()
    value: ValueChange | None = None
    error: ValueChange | None = None
    status: ValueChange | None = None
    files: tuple[FileChange, ...] = ()  # in the workspaces at their ends
    damage: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs, as far as the journal can be read."""
        texts, ends = (self.code, self.stdout, self.stderr), (self.value, self.error, self.status)
        return not any((*texts, *ends, self.calls, self.files))


@dataclass(frozen=True)
class LineageDiff:
    """How lineage `b` differs from lineage `a`: common runs, pairs of steps, and unpaired steps."""

    a: str | None  # the tips
    b: str | None
    common: tuple[str, ...] = ()
    steps: tuple[RunDiff, ...] = ()
    only_a: tuple[RunRow, ...] = ()
    only_b: tuple[RunRow, ...] = ()
    files: tuple[FileChange, ...] = ()  # in the workspaces at the tips
    damage: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs, as far as the journal can be read."""
        return not (self.only_a or self.only_b or self.files) and all(
            step.is_equal for step in self.steps
        )


async def diff_runs(journal: Journal, a: RunRow, b: RunRow, *, files: bool = True) -> RunDiff:
    """Compare two runs and, with `files`, the workspaces at their ends."""
    one, other = await load_recorded_run(journal, a), await load_recorded_run(journal, b)
    damage = [*one.damage, *other.damage]
    changed = await diff_files(journal, a.id, b.id, damage) if files else ()
    return await to_thread.run_sync(compare_runs, one, other, changed, damage)


def compare_runs(
    one: RecordedRun, other: RecordedRun, changed: tuple[FileChange, ...], damage: Sequence[str]
) -> RunDiff:
    """Compare two loaded runs, which takes long if they have printed a lot."""
    before, after = one.report, other.report
    return RunDiff(
        one.row,
        other.row,
        unified_diff(one.code, other.code),
        unified_diff(before.stdout, after.stdout),
        unified_diff(before.stderr, after.stderr),
        diff_calls(one.calls, other.calls),
        value_change(before.value, after.value),
        value_change(before.error, after.error),
        value_change(end_status(one), end_status(other)),
        changed,
        tuple(dict.fromkeys(damage)),
    )


async def diff_lineages(journal: Journal, a: str | None, b: str | None) -> LineageDiff:
    """Compare the runs that lead to two runs."""
    one, other = await journal.load_lineage(a), await journal.load_lineage(b)
    shared = 0
    while shared < min(len(one), len(other)) and one[shared].id == other[shared].id:
        shared += 1
    pairs = list(zip_longest(one[shared:], other[shared:]))
    steps = [
        await diff_runs(journal, left, right, files=False)
        for left, right in pairs
        if left and right
    ]
    damage = [text for step in steps for text in step.damage]
    return LineageDiff(
        a,
        b,
        tuple(row.id for row in one[:shared]),
        tuple(steps),
        tuple(left for left, right in pairs if left and not right),
        tuple(right for left, right in pairs if right and not left),
        await diff_files(journal, a, b, damage),
        tuple(dict.fromkeys(damage)),
    )


def value_change(a: Any, b: Any) -> ValueChange | None:
    """Return both values if they differ."""
    return ValueChange(a, b) if a != b else None


def end_status(run: RecordedRun) -> str:
    """Return the status of a run, and whether it was undone."""
    return f"{run.report.status}, undone" if UNDONE_FLAG in run.row.flags else run.report.status


# calls --------------------------------------------------------------------------------------------


def diff_calls(a: Sequence[RecordedCall], b: Sequence[RecordedCall]) -> tuple[CallChange, ...]:
    """Return the calls of the ledgers that differ.

    Their order is not compared, because calls may be concurrent.
    """
    before, after = outcomes_by_key(a), outcomes_by_key(b)
    changes = [
        CallChange(*key, before.get(key), after.get(key))
        for key in merge_ordered(list(before), list(after))
    ]
    return tuple(each for each in changes if each.a != each.b)


def outcomes_by_key(calls: Sequence[RecordedCall]) -> dict[CallKey, DiffOutcome]:
    """Return how the calls of a ledger ended.

    Identical calls are counted in an order that is the same whichever thread was first.
    """
    counts: Counter[tuple[str, str]] = Counter()
    keys: dict[int, CallKey] = {}
    for call in sorted(calls, key=lambda each: (each.order, each.nth)):
        keys[call.call_id] = call.target, call.args, counts[call.target, call.args]
        counts[call.target, call.args] += 1
    return {keys[call.call_id]: call_outcome(call) for call in calls if call.in_ledger}


def call_outcome(call: RecordedCall) -> DiffOutcome:
    """Return how a call ended."""
    if call.finished_sequence is None:
        return {"status": "started", "value": None, "error": None}
    return {"status": "error" if call.error else "ok", "value": call.value, "error": call.error}


def merge_ordered(a: Sequence[T], b: Sequence[T]) -> list[T]:
    """Return the items of both, each once, in the order of `a`; the rest of `b` keeps its place."""
    index_in_a, in_b = {item: index for index, item in enumerate(a)}, set(b)
    merged: list[T] = []
    done = 0  # items of `a` that are merged
    for item in b:
        index = index_in_a.get(item)
        end = done
        if index is not None:
            end = max(done, index + 1)
        else:
            while end < len(a) and a[end] not in in_b:
                end += 1
        merged += a[done:end]
        done = end
        if index is None:
            merged.append(item)
    return [*merged, *a[done:]]


# files --------------------------------------------------------------------------------------------


async def diff_files(
    journal: Journal, a: str | None, b: str | None, damage: list[str]
) -> tuple[FileChange, ...]:
    """Return how the workspaces at the ends of two runs differ."""
    try:
        (before, _), (after, _) = await journal.load_files_at(a), await journal.load_files_at(b)
    except JournalFailed as exc:
        damage.append(f"Files are not compared: {exc}")
        return ()
    paths = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    changes = []
    for number, path in enumerate(paths):
        old, new = before.get(path), after.get(path)
        text = await _diff_contents(journal, old, new, damage) if number < MAX_DIFFED_FILES else ""
        changes.append(FileChange(path, old, new, text))
    return tuple(changes)


async def _diff_contents(
    journal: Journal, a: FileEntry | None, b: FileEntry | None, damage: list[str]
) -> str:
    """Return the unified difference of two files; "" if one is binary, too large or damaged."""
    texts = []
    for entry in (a, b):
        if entry is not None and entry["size"] > MAX_DIFFED_FILE_BYTES:
            return ""
        try:
            data = b"" if entry is None else await journal.get_blob(entry["digest"])
            texts.append(data.decode())
        except (JournalFailed, NotFound) as exc:
            damage.append(str(exc))
            return ""
        except UnicodeDecodeError:
            return ""
    return "" if any("\0" in text for text in texts) else unified_diff(*texts)


# texts --------------------------------------------------------------------------------------------


def unified_diff(a: str, b: str) -> str:
    """Return the unified difference of two texts, bounded; "" only if they are equal.

    Line numbers count the parts of long lines.
    """
    if a == b:
        return ""
    ends_differ = bool(a and b) and a.endswith("\n") != b.endswith("\n")
    before, after = (
        _split_diff_lines(a, mark_end=ends_differ),
        _split_diff_lines(b, mark_end=ends_differ),
    )
    start = max(0, count_equal_lines(before, after) - CONTEXT_LINES)
    left, right = before[start:], after[start:]
    end = max(0, count_equal_lines(left[::-1], right[::-1]) - CONTEXT_LINES)
    left, right = left[: len(left) - end], right[: len(right) - end]
    lines = list(_diff_hunks(left[:MAX_COMPARED_LINES], right[:MAX_COMPARED_LINES], start))
    shown = lines[:MAX_DIFF_LINES]
    if len(lines) > MAX_DIFF_LINES or max(len(left), len(right)) > MAX_COMPARED_LINES:
        shown.append("… more lines differ than are shown")
    return "\n".join(shown) or "… only line ends differ"


def _split_diff_lines(text: str, *, mark_end: bool) -> list[str]:
    """Return the lines of a text, long ones in parts; `mark_end` shows a missing newline."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    elif mark_end:
        lines.append(NO_NEWLINE)
    return [
        line[at : at + MAX_LINE_CHARS]
        for line in lines
        for at in range(0, max(len(line), 1), MAX_LINE_CHARS)
    ]


def count_equal_lines(a: Sequence[str], b: Sequence[str]) -> int:
    """Return how many lines at the start of two texts are equal."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((number for number, (one, other) in pairs if one != other), min(len(a), len(b)))


def _diff_hunks(a: Sequence[str], b: Sequence[str], start: int) -> Iterator[str]:
    """Yield the lines of a unified difference of texts that start after line `start`."""
    for group in difflib.SequenceMatcher(None, a, b).get_grouped_opcodes(CONTEXT_LINES):
        (_, left, _, right, _), (_, _, left_end, _, right_end) = group[0], group[-1]
        old_range = _hunk_range(start + left, left_end - left)
        new_range = _hunk_range(start + right, right_end - right)
        yield f"@@ -{old_range} +{new_range} @@"
        for tag, i, i_end, j, j_end in group:
            if tag == "equal":
                yield from (f" {line}" for line in a[i:i_end])
            else:
                yield from (f"-{line}" for line in a[i:i_end])
                yield from (f"+{line}" for line in b[j:j_end])


def _hunk_range(start: int, length: int) -> str:
    return f"{start + 1 if length else start},{length}"


# for programs -------------------------------------------------------------------------------------


def diff_to_json(found: Any) -> Any:
    """Return a difference, or a part of one, as JSON data; a run is its id."""
    if isinstance(found, RunRow):
        return found.id
    if isinstance(found, tuple):
        return [diff_to_json(item) for item in found]
    if not is_dataclass(found):
        return found
    data = {item.name: diff_to_json(getattr(found, item.name)) for item in fields(found)}
    return {"equal": found.is_equal, **data} if isinstance(found, RunDiff | LineageDiff) else data
