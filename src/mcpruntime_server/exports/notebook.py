"""A session as a Jupyter notebook: one cell for each step, with the outputs that were recorded.

Rule 1: outputs are text and images only. HTML, SVG and scripts of a recording could act
on behalf of the person who opens the notebook.
Rule 2: a notebook is written cell by cell, so that the memory of one step is enough for it.
"""

from __future__ import annotations

import json
import re
from typing import TextIO

from ..journal.events import MediaEntry
from ..journal.rows import SessionRow
from ..protocol.payloads import JsonObject
from ..protocol.presentation import format_error
from ..runtime.run_history import RecordedRun
from .text_output import split_text

IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
CELL_ID_CHARS = re.compile(r"[^A-Za-z0-9_-]")
MAX_CELL_ID_CHARS = 64
CELL_ENCODER = json.JSONEncoder(indent=1)


class NotebookWriter:
    """Writes the steps of a session as the JSON of a notebook."""

    def __init__(self, out: TextIO, session: SessionRow) -> None:
        self._out = out
        self._cell_count = 0
        fields = {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                "language_info": {"name": "python", "file_extension": ".py"},
                "mcpruntime": {"session": session.id, "name": session.name},
            },
        }
        out.write(json.dumps(fields, indent=1).removesuffix("\n}") + ',\n "cells": [')

    def add_step(self, run: RecordedRun) -> None:
        """Write the cell of the next step."""
        self._cell_count += 1
        self._out.write(",\n" if self._cell_count > 1 else "\n")
        for part in CELL_ENCODER.iterencode(build_cell(self._cell_count, run)):
            self._out.write(part)

    def finish(self) -> None:
        """Write the end."""
        self._out.write("\n ]\n}\n")


def build_cell(number: int, run: RecordedRun) -> JsonObject:
    """Return the cell of a step."""
    named = {"run": run.row.id, "step": run.row.step, "status": run.report.status}
    return {
        "cell_type": "code",
        "id": CELL_ID_CHARS.sub("-", run.row.id)[:MAX_CELL_ID_CHARS],
        "metadata": {"mcpruntime": named},
        "execution_count": number,
        "source": split_text(run.code),
        "outputs": list_outputs(number, run),
    }


def list_outputs(number: int, run: RecordedRun) -> list[JsonObject]:
    """Return what a step has printed, shown and returned, or the error that it ended with."""
    report = run.report
    outputs: list[JsonObject] = [
        {"output_type": "stream", "name": name, "text": split_text(text)}
        for name, text in (("stdout", report.stdout), ("stderr", report.stderr))
        if text
    ]
    outputs += [
        {
            "output_type": "display_data",
            "data": {each["mime_type"]: split_text(each["data"])},
            "metadata": {},
        }
        for each in report.media
        if is_image(each)
    ]
    if report.value is not None:
        outputs.append(
            {
                "output_type": "execute_result",
                "data": {"text/plain": split_text(report.value["text"])},
                "metadata": {},
                "execution_count": number,
            }
        )
    if report.error is not None:
        error = report.error
        text = format_error(error["type"], error["message"], error["traceback"])
        outputs.append(
            {
                "output_type": "error",
                "ename": error["type"],
                "evalue": error["message"],
                "traceback": text.splitlines(),
            }
        )
    return outputs


def is_image(media: MediaEntry) -> bool:
    """Return whether a program may show it as it is."""
    return media["mime_type"] in IMAGE_TYPES
