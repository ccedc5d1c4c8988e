"""Runs and lineages are compared: every difference is reported, within bounds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from time import process_time

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpruntime_server.journal.recording import RecordedCall
from mcpruntime_server.journal.rows import RunRow
from mcpruntime_server.journal.store import Journal
from mcpruntime_server.runtime import run_history, time_travel
from mcpruntime_server.runtime.run_diff import (
    diff_calls,
    diff_lineages,
    diff_runs,
    diff_to_json,
    merge_ordered,
    unified_diff,
)
from mcpruntime_server.runtime.runtime import Runtime
from mcpruntime_server.runtime.session import Session

from .test_journaled_runs import CALL, finish, running


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[tuple[Runtime, Journal]]:
    async with running(tmp_path) as pair:
        yield pair


async def row(session: Session, journal: Journal, code: str) -> RunRow:
    """Run `code` and return its row when all of it is in the journal."""
    run = await finish(session, code)
    with anyio.fail_after(30):
        await run.file_storage.wait()
    return await journal.load_run(run.id)


async def test_a_run_equals_itself_and_its_rerun(runtime: tuple[Runtime, Journal]) -> None:
    session = await runtime[0].open_session("report", "me")
    code = (
        f"{CALL}import random\nprint(random.random())\nopen('f', 'w').write('x')\n"
        f"host.call('t.echo', {{}})"
    )
    first = await row(session, runtime[1], code)
    assert (await diff_runs(runtime[1], first, first)).is_equal
    made = await time_travel.rerun_runs(runtime[0], [first], "me")
    again = await runtime[1].load_run(made.reports[0].run_id)
    found = await diff_runs(runtime[1], first, again)
    assert found.is_equal, found
    assert diff_to_json(found) == {
        "equal": True,
        "a": first.id,
        "b": again.id,
        **dict.fromkeys(("code", "stdout", "stderr"), ""),
        **dict.fromkeys(("value", "error", "status")),
        **{name: [] for name in ("calls", "files", "damage")},
    }


async def test_every_difference_between_two_runs_is_reported(
    runtime: tuple[Runtime, Journal],
) -> None:
    session = await runtime[0].open_session("report", "me")
    await row(
        session,
        runtime[1],
        f"{CALL}import sys\nn = 0\nopen('gone', 'w').write('g')\nopen('f', 'w').write('1\\n2\\n')",
    )
    one = await row(
        session,
        runtime[1],
        "print('a\\nb')\nhost.call('t.echo', {'n': 1})\nhost.call('t.echo', {'n': 2})\nn",
    )
    other = await row(
        session,
        runtime[1],
        "import os\nprint('a\\nc')\nprint('e', file=sys.stderr)\nhost.call('t.echo', {'n': 1})\n"
        "os.remove('gone')\n"
        "open('f', 'a').write('3\\n')\nopen('new', 'wb').write(b'\\0\\xff')\n"
        "host.call('t.fail', {})",
    )
    found = await diff_runs(runtime[1], one, other)
    assert not found.is_equal
    assert "+import os" in found.code.splitlines()
    assert found.stdout.splitlines() == ["@@ -1,2 +1,2 @@", " a", "-b", "+c"]
    assert found.stderr.splitlines() == ["@@ -0,0 +1,1 @@", "+e"]
    [only_a, only_b] = found.calls
    assert (only_a.target, only_a.args, only_a.b) == ("t.echo", '{"n":2}', None)
    assert only_a.a == {"status": "ok", "value": {"n": 2}, "error": None}
    assert (only_b.target, only_b.a) == ("t.fail", None)
    assert only_b.b is not None
    assert only_b.b["status"] == "error"
    assert found.value is not None
    assert (found.value.a["text"], found.value.b) == ("0", None)
    assert found.error is not None
    assert found.error.a is None
    assert found.status is not None
    assert (found.status.a, found.status.b) == ("ok", "error")
    files = {change.path: change for change in found.files}
    assert list(files) == ["f", "gone", "new"]
    assert files["f"].text.splitlines() == ["@@ -1,2 +1,3 @@", " 1", " 2", "+3"]
    assert files["gone"].b is None
    assert files["gone"].text == "@@ -1,1 +0,0 @@\n-g"
    assert (files["new"].a, files["new"].text) == (None, "")
    assert json.loads(json.dumps(diff_to_json(found)))["files"][0]["a"]["size"] == 4


async def test_lineages_are_compared_from_where_they_diverge(
    runtime: tuple[Runtime, Journal],
) -> None:
    journal = runtime[1]
    session = await runtime[0].open_session("report", "me")
    shared = await row(session, journal, "x = 1")
    forked = await time_travel.fork_session(
        runtime[0], await run_history.find_any_session(journal, "report"), 1, None, "other", "me"
    )
    mine = [
        await row(session, journal, code)
        for code in ("y = 1", "print(y)\nopen('f', 'w').write('y')", "'more'")
    ]
    theirs = [
        await row(forked, journal, code)
        for code in ("y = 1", "print(y + 1)\nopen('f', 'w').write('z')")
    ]
    found = await diff_lineages(journal, session.tip, forked.tip)
    assert found.common == (shared.id,)
    assert [(step.a, step.b) for step in found.steps] == list(zip(mine, theirs, strict=False))
    assert [step.is_equal for step in found.steps] == [True, False]
    assert (found.only_a, found.only_b, found.is_equal) == ((mine[2],), (), False)
    assert [change.path for change in found.files] == ["f"]
    assert diff_to_json(found)["only_a"] == [mine[2].id]
    assert (await diff_lineages(journal, forked.tip, forked.tip)).is_equal
    assert (await diff_lineages(journal, None, shared.id)).only_b == (shared,)


def test_calls_with_another_outcome_are_reported_and_their_order_is_not() -> None:
    def call(number: int, target: str, **end: object) -> RecordedCall:
        return replace(RecordedCall(number, target, "{}", 0, "read", number, number + 9), **end)  # type: ignore[arg-type]

    one = [
        call(1, "t.same", value=1),
        call(2, "t.value", value=1),
        call(3, "t.end"),
        call(4, "t.quiet", in_ledger=False),
    ]
    other = [
        call(1, "t.end", finished_sequence=None),
        call(2, "t.value", value=2),
        call(3, "t.same", value=1),
    ]
    found = diff_calls(one, other)
    assert [(change.target, change.a, change.b) for change in found] == [
        ("t.value", *({"status": "ok", "value": value, "error": None} for value in (1, 2))),
        (
            "t.end",
            *({"status": status, "value": None, "error": None} for status in ("ok", "started")),
        ),
    ]


async def test_damaged_content_is_reported_and_the_rest_is_compared(tmp_path: Path) -> None:
    async with running(tmp_path) as (runtime, journal):
        session = await runtime.open_session("report", "me")
        one = await row(
            session, journal, "open('f', 'w').write('one')\nopen('g', 'w').write('one more')"
        )
        other = await row(
            session,
            journal,
            "open('f', 'w').write('two')\nopen('g', 'w').write('two more')\nprint(2)",
        )
        digest = (await journal.load_files_at(other.id))[0]["f"]["digest"]
        journal.blobs.blob_path(digest).write_bytes(b"tow")
        found = await diff_runs(journal, one, other)
        assert [digest in text for text in found.damage] == [True]
        assert [(change.path, bool(change.text)) for change in found.files] == [
            ("f", False),
            ("g", True),
        ]
        assert "+2" in found.stdout


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("x" * 10_000_000, "y" + "x" * 10_000_000),
        (
            "\n".join(str(n % 7) for n in range(300_000)),
            "\n".join(str(n % 5) for n in range(300_000)),
        ),
        (
            "\n".join(str(n // 20) for n in range(0, 300_000, 7)),
            "\n".join(str(n // 20) for n in range(300_000, 0, -7)),
        ),
        ("a\n" * 1_000_000, "b\n" * 1_000_000),
    ],
)
def test_the_difference_of_hostile_texts_is_short_and_found_quickly(a: str, b: str) -> None:
    began = process_time()
    found = unified_diff(a, b)
    assert 0 < len(found) < 400_000
    assert process_time() - began < 10


def test_a_difference_at_the_end_of_long_texts_is_shown_alone() -> None:
    same = "".join(f"{n}\n" for n in range(100_000))
    assert unified_diff(f"{same}a\n", f"{same}b\n").splitlines() == [
        "@@ -99999,3 +99999,3 @@",
        " 99998",
        " 99999",
        "-a",
        "+b",
    ]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("a", "a\n"),
        ("", "\n"),
        ("x" * 400 + "y", "x" * 400 + "\ny"),
        ("a\\ No newline at end", "a"),
    ],
)
def test_texts_that_differ_only_in_line_ends_are_different(a: str, b: str) -> None:
    assert unified_diff(a, b)


@given(st.text("ab\n"), st.text("ab\n"))
def test_only_equal_texts_have_no_difference(a: str, b: str) -> None:
    assert (unified_diff(a, b) == "") == (a == b)


@given(st.lists(st.integers(0, 9), unique=True), st.lists(st.integers(0, 9), unique=True))
def test_a_merge_has_every_item_once_in_the_order_of_the_first(a: list[int], b: list[int]) -> None:
    found = merge_ordered(a, b)
    assert sorted(found) == sorted({*a, *b})
    assert [item for item in found if item in a] == a


def test_identical_calls_of_threads_are_paired_by_their_order() -> None:
    def call(number: int, order: int, value: str) -> RecordedCall:
        return RecordedCall(
            number, "t.echo", "{}", number - 1, "read", number, number + 9, value, order=order
        )

    before = [call(1, 5, "of five"), call(2, 3, "of three"), call(3, 0, "of main")]
    after = [call(1, 0, "of main"), call(2, 3, "of three"), call(3, 5, "of five")]
    assert diff_calls(before, after) == ()
    [change] = diff_calls(before, [*after[:2], call(3, 5, "another")])
    assert change.a is not None
    assert change.b is not None
    assert (change.a["value"], change.b["value"]) == ("of five", "another")
