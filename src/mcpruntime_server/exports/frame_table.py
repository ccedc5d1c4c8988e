"""The CSV of a data frame, which its step recorded as shortened text.

The frame itself exists in the state after the step. There, in a sandbox of its own, the last
expression of the step is evaluated again and writes itself into a file. That must be the value that
was recorded, as far as the recorded text says. The file is that of sandboxed code: its cells are
guarded here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from functools import cache
from importlib.resources import files
from io import TextIOWrapper
from typing import IO, TextIO

from ..errors import Conflict
from ..journal.events import RunValue
from ..runtime.inspector import Inspector
from ..runtime.run_history import RecordedRun
from ..runtime.run_report import RunReport
from .csv_table import guard_cell

FRAME_TYPES = ("DataFrame", "Series", "LazyFrame", "Table", "RecordBatch")
FRAME_TIMEOUT_S = 120.0  # for the evaluation and the file; a restored state comes on top
MAX_ROW_CHARS = 250_000  # of one row, which is read and written without a break
MAX_TABLE_CHARS = 64_000_000  # which take a processor some ten seconds
CHECKED_CELLS = 10_000  # between two looks whether anybody still waits for them
NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
FRAME_REMEDY = "Ask the step for a smaller part, or write the table to a file in the code."


def is_frame(value: RunValue | None) -> bool:
    """Return whether a value is recorded as the text of a data frame."""
    if value is None or value["kind"] == "json":
        return False
    return value["type"].rpartition(".")[2] in FRAME_TYPES


@asynccontextmanager
async def open_frame(
    inspector: Inspector, run: RecordedRun, principal: str
) -> AsyncIterator[IO[bytes]]:
    """Yield the CSV file that the frame of a step writes; raises `Conflict` if it cannot."""
    name = f"value-{run.row.id}.csv"
    code = f"CODE = {run.code!r}\nFILE = {name!r}\n{load_program()}"
    report, file = await inspector.write_file(run.row, principal, code, name, FRAME_TIMEOUT_S)
    with file or nullcontext():
        check_frame(run, report)
        if file is None:
            raise Conflict("The CSV file is larger than files may be.", remedy=FRAME_REMEDY)
        yield file


def check_frame(run: RecordedRun, report: RunReport) -> None:
    """Raise `Conflict` unless the value that was written is the one that was recorded."""
    if report.error is not None or report.status != "ok":
        reason = report.error["message"] if report.error else report.status
        raise Conflict(f"The table cannot be written as CSV. {reason}", remedy=FRAME_REMEDY)
    recorded = run.finished.value if run.finished else None
    found = report.value
    if found is None or recorded is None or found["text"] != recorded["text"]:
        raise Conflict(
            "The last expression of the step has another value when it is evaluated again.",
            remedy="Assign the table to a variable, and return the variable.",
        )


@cache
def load_program() -> str:
    """Return the code that writes a frame."""
    return (files(__package__) / "templates" / "write_frame.py.txt").read_text()


def copy_guarded(
    out: TextIO, file: IO[bytes], check_cancelled: Callable[[], None] = lambda: None
) -> None:
    """Copy CSV so that a spreadsheet executes nothing in it, in constant memory.

    `check_cancelled` is called now and then. Raises `Conflict` if it is no CSV or too large.
    """
    text = TextIOWrapper(file, "utf-8", "replace", newline="")
    try:
        writer = csv.writer(out, lineterminator="\r\n")
        unchecked = 0
        for row in iter_rows(text):
            writer.writerow([each if NUMBER.fullmatch(each) else guard_cell(each) for each in row])
            unchecked += 1 + len(row)
            if unchecked > CHECKED_CELLS:
                check_cancelled()
                unchecked = 0
    except csv.Error as exc:
        raise Conflict(f"The table cannot be written as CSV: {exc}.", remedy=FRAME_REMEDY) from exc
    finally:
        text.detach()


def iter_rows(text: TextIO) -> Iterator[list[str]]:
    """Yield the rows of CSV, none of which is large; raises `Conflict` and `csv.Error`."""
    used, read = 0, 0

    def iter_lines() -> Iterator[str]:  # of which a row may have many
        nonlocal used, read
        while line := text.readline(MAX_ROW_CHARS):
            used += len(line)
            read += len(line)
            if read > MAX_TABLE_CHARS:
                raise Conflict(
                    f"The table has more than {MAX_TABLE_CHARS:,} characters as CSV.",
                    remedy=FRAME_REMEDY,
                )
            if used >= MAX_ROW_CHARS:
                raise Conflict(
                    f"A row of the table has {MAX_ROW_CHARS:,} characters or more.",
                    remedy=FRAME_REMEDY,
                )
            yield line

    for row in csv.reader(iter_lines()):
        used = 0
        yield row
