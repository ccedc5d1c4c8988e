"""What exports hold, and that nothing of a recording acts in them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import nbformat
import pytest

from mcpruntime_server.errors import Conflict
from mcpruntime_server.exports.csv_table import is_table, write_csv
from mcpruntime_server.exports.frame_table import copy_guarded, is_frame
from mcpruntime_server.exports.notebook import NotebookWriter
from mcpruntime_server.exports.run_page import write_run_page
from mcpruntime_server.journal.events import FileEntry, FilesChanged, RunFinished, RunStarted
from mcpruntime_server.journal.recording import RecordedCall
from mcpruntime_server.journal.rows import RunRow, SessionRow
from mcpruntime_server.runtime.run_history import RecordedRun

READ_NOTEBOOK: Any = nbformat.reads  # without types
HOSTILE = (
    "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>'\"`\x1b[31m\u202e{{7*7}}"
)
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)


def make_run(text: str) -> tuple[SessionRow, RecordedRun]:
    row = RunRow("r_One", "s_One", None, 1, "n", "error", 1.0, 2.0, None, frozenset())
    session = SessionRow(
        "s_One", text, "me", 1.0, 2.0, owner=None, tip="r_One", run_count=1, origin=None, purpose=""
    )
    start = RunStarted(
        run_id="r_One",
        parent_id=None,
        step=1,
        code=f"x = 1  # {text}",
        name="<step 1>",
        timeout_s=1.0,
        idempotency_key=None,
        seed="1",
        replayed_run=None,
        stale_packages=[],
    )
    error: Any = {"type": text, "message": text, "traceback": text, "line": None, "hint": ""}
    value: Any = {"kind": "repr", "text": text, "type": text, "cut": False}
    media: Any = [{"mime_type": "image/png", "data": PNG}]
    finish = RunFinished("error", value, error, {"wall_ms": 1.0}, [], media)
    call = RecordedCall(1, f"tools.{text}", json.dumps({"a": text}), 0, "read", 1, 2, text)
    files = FilesChanged({text: FileEntry(digest="0" * 64, size=1, mode=0o644)}, [text])
    output = {"stdout": text, "stderr": text}
    return session, RecordedRun(row, start, (call,), output, finish, files)


def export_page(session: SessionRow, run: RecordedRun) -> str:
    out = io.StringIO()
    write_run_page(out, session, run)
    return out.getvalue()


def export_notebook(session: SessionRow, *runs: RecordedRun) -> str:
    out = io.StringIO()
    notebook = NotebookWriter(out, session)
    for run in runs:
        notebook.add_step(run)
    notebook.finish()
    return out.getvalue()


def export_csv(value: Any) -> str:
    out = io.StringIO()
    write_csv(out, value)
    return out.getvalue()


class TagCollector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_page_needs_nothing_and_executes_nothing() -> None:
    page = export_page(*make_run(HOSTILE))
    parser = TagCollector()
    parser.feed(page)
    names = {tag for tag, _ in parser.tags}
    assert not names & {"script", "link", "iframe", "object", "form", "base", "svg"}
    for tag, attributes in parser.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/png;base64,")
    assert "&lt;script&gt;alert(1)" in page
    assert "49" not in page.replace("#", "")


def test_a_notebook_is_valid_and_has_text_and_images_only() -> None:
    session, run = make_run(HOSTILE)
    notebook = READ_NOTEBOOK(export_notebook(session, run), 4)
    nbformat.validate(notebook)
    (cell,) = notebook.cells
    assert cell.source == run.code
    assert [each.output_type for each in cell.outputs] == [
        "stream",
        "stream",
        "display_data",
        "execute_result",
        "error",
    ]
    kinds = {kind for each in cell.outputs for kind in each.get("data", {})}
    assert kinds == {"image/png", "text/plain"}


def test_long_texts_are_exported_whole() -> None:
    text = "ab\u00e9\U0001f600" * 50_000
    session, run = make_run(text)
    other = replace(run, row=replace(run.row, id="r_Two"))
    notebook = READ_NOTEBOOK(export_notebook(session, run, other), 4)
    nbformat.validate(notebook)
    assert [cell.outputs[0].text for cell in notebook.cells] == [text] * 2
    assert f"<pre>{text}</pre>" in export_page(session, run)


def test_a_session_without_steps_is_a_notebook() -> None:
    notebook = READ_NOTEBOOK(export_notebook(make_run("x")[0]), 4)
    nbformat.validate(notebook)
    assert notebook.cells == []


def read_csv(data: Any) -> list[list[str]]:
    value: Any = {"kind": "json", "text": json.dumps(data), "type": "list", "cut": False}
    return list(csv.reader(io.StringIO(export_csv(value))))


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (
            [{"a": 1, "b": "x"}, {"a": -2, "c": None}],
            [["a", "b", "c"], ["1", "x", ""], ["-2", "", ""]],
        ),
        ([[1, "=1+1"], [2, "a,b\n"]], [["1", "'=1+1"], ["2", "a,b\n"]]),
        ({"n": [1, 2], "@m": ["+x", " -y"]}, [["n", "'@m"], ["1", "'+x"], ["2", "' -y"]]),
        (["\tx", "\uff1d1", "ok"], [["'\tx"], ["'\uff1d1"], ["ok"]]),
    ],
)
def test_tables_of_all_shapes_are_written_without_formulas(
    data: Any, rows: list[list[str]]
) -> None:
    assert read_csv(data) == rows


def test_a_data_frame_is_text_and_a_cut_value_is_no_table() -> None:
    frame: Any = {"kind": "repr", "text": "   a\n0  1", "type": "DataFrame", "cut": False}
    with pytest.raises(Conflict, match="no table of JSON data"):
        export_csv(frame)
    assert is_frame(frame)
    other: Any = {**frame, "type": "Session"}
    assert not is_frame(other)
    cut: Any = {"kind": "json", "text": "[[1, 2]]", "type": "list", "cut": True}
    with pytest.raises(Conflict, match="cut"):
        export_csv(cut)
    whole: Any = {**cut, "cut": False}
    assert [is_table(each) for each in (None, frame, cut, whole)] == [False, False, False, True]


def test_rows_whose_names_differ_fill_no_memory() -> None:
    rows = [{f"k{number}": number} for number in range(12_000)]
    value: Any = {"kind": "json", "text": json.dumps(rows), "type": "list", "cut": False}
    assert not is_table(value)
    with pytest.raises(Conflict, match="144,012,000 cells; the limit is 1,000,000"):
        export_csv(value)


def copy_csv(content: str) -> str:
    out = io.StringIO()
    copy_guarded(out, io.BytesIO(content.encode()))
    return out.getvalue()


def test_cells_that_a_frame_wrote_are_guarded_and_numbers_stay() -> None:
    assert copy_csv('a,-1.5\n"=1\n2",+1e9\n-x,@y\n') == ("a,-1.5\r\n\"'=1\n2\",+1e9\r\n'-x,'@y\r\n")


@pytest.mark.parametrize("row", ["ab," * 400_000, '"a\n",' * 200_000, '"x' + "\n" * 300_000])
def test_a_row_without_an_end_is_refused(row: str) -> None:
    with pytest.raises(Conflict, match=r"or more|larger than"):
        copy_csv(f"a,b\n{row}")


@pytest.mark.parametrize("data", [1, "text", {}, {"a": 1}, [], [1, [2]], {"a": [1], "b": []}])
def test_what_is_no_table_is_refused(data: Any) -> None:
    with pytest.raises(Conflict):
        read_csv(data)
