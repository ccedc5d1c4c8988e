"""A session as a Jupyter notebook: one cell for each step, with the outputs that were recorded.

Rule: outputs are text and images only. HTML, SVG and scripts of a recording could act
on behalf of the person who opens the notebook.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ..journal.events import MediaEntry
from ..journal.rows import SessionRow
from ..protocol.payloads import JsonObject
from ..protocol.presentation import format_error
from ..runtime.run_history import RecordedRun

IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
CELL_ID_CHARS = re.compile(r"[^A-Za-z0-9_-]")
MAX_CELL_ID_CHARS = 64


def build_notebook(session: SessionRow, runs: Sequence[RecordedRun]) -> str:
    """Return the steps of a session as the JSON of a notebook, which is valid."""
    import nbformat  # needed for exports only

    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python", "file_extension": ".py"},
            "mcpruntime": {"session": session.id, "name": session.name},
        },
        "cells": [build_cell(number, run) for number, run in enumerate(runs, 1)],
    }
    nbformat.validate(notebook)
    return json.dumps(notebook, indent=1)


def build_cell(number: int, run: RecordedRun) -> JsonObject:
    """Return the cell of a step."""
    named = {"run": run.row.id, "step": run.row.step, "status": run.report.status}
    return {
        "cell_type": "code",
        "id": CELL_ID_CHARS.sub("-", run.row.id)[:MAX_CELL_ID_CHARS],
        "metadata": {"mcpruntime": named},
        "execution_count": number,
        "source": run.code,
        "outputs": list_outputs(number, run),
    }


def list_outputs(number: int, run: RecordedRun) -> list[JsonObject]:
    """Return what a step has printed, shown and returned, or the error that it ended with."""
    report = run.report
    outputs: list[JsonObject] = [
        {"output_type": "stream", "name": name, "text": text}
        for name, text in (("stdout", report.stdout), ("stderr", report.stderr))
        if text
    ]
    outputs += [
        {
            "output_type": "display_data",
            "data": {each["mime_type"]: each["data"]},
            "metadata": {},
        }
        for each in report.media
        if is_image(each)
    ]
    if report.value is not None:
        outputs.append(
            {
                "output_type": "execute_result",
                "data": {"text/plain": report.value["text"]},
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
