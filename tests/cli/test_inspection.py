"""`replay probe`, `replay ask` and `replay variables`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat

from .conftest import RunCommand

READ_NOTEBOOK: Any = nbformat.reads  # without types


def test_a_step_is_probed_asked_and_listed(run: RunCommand) -> None:
    done = run("replay", "probe", "report:1", "1", "1 + 1")
    assert done.returncode == 0, done.stderr
    assert "1  2" in done.stdout
    done = run("replay", "ask", "report:1", "print('seen')\n6 * 7")
    assert done.returncode == 0, done.stderr
    assert "seen" in done.stdout
    assert "42" in done.stdout
    assert "(none)" not in done.stdout
    done = run("replay", "variables", "report:1", "--json")
    assert done.returncode == 0, done.stderr
    assert "variables" in json.loads(done.stdout)


def test_what_is_not_there_is_reported(run: RunCommand) -> None:
    done = run("replay", "probe", "report:1", "9999", "1")
    assert done.returncode == 2
    assert "no statement on line 9999" in done.stderr
    assert run("replay", "ask", "nothing:1", "1").returncode == 2
    assert run("replay", "ask", "report:1", "1 / 0").returncode == 1


def test_a_session_is_exported_as_a_notebook_and_a_run_as_a_page(
    run: RunCommand, tmp_path: Path
) -> None:
    notebook, page = tmp_path / "s.ipynb", tmp_path / "s.html"
    for name, file in (("report", notebook), ("report:1", page)):
        words = name, file, "--format", file.suffix[1:]
        done = run("replay", "export", *words)
        assert done.returncode == 0, done.stderr
        assert run("replay", "export", *words).returncode == 2
    assert READ_NOTEBOOK(notebook.read_text(), 4).cells[0].source == "x = 1\nprint('hello')"
    assert "print(&#39;hello&#39;)" in page.read_text()


def test_a_call_gets_another_answer(run: RunCommand) -> None:
    done = run("replay", "rerun", "report", "2", "--answer", "1=null", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["equal"] is False
    assert run("replay", "rerun", "report", "2", "--answer", "one").returncode == 2


def test_a_session_is_deleted_unless_a_fork_needs_it(run: RunCommand) -> None:
    forked = json.loads(run("replay", "fork", "report", "1", "--json").stdout)["session"]
    refused = run("replay", "delete", "report", "--yes")
    assert refused.returncode == 2
    assert "was forked from this one" in refused.stderr
    assert run("replay", "delete", forked, "--yes").returncode == 0
    assert run("replay", "show", forked).returncode == 2
