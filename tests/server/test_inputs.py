"""Inputs from a client: what code sees of them, the same after each way of restoring a state."""

from __future__ import annotations

import gzip
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from bench import fake_llm
from tests.server.conftest import upstream_entry

from ..helpers.server_connection import (
    ServerConnection,
    ToolAnswer,
    connect_server,
    parse_answer,
    write_settings,
)

LOCAL = {"backend": "local", "pool_size": 0}
LARGE = 17 << 20  # bytes: more than is kept by content


def settings(folder: Path, **more: Any) -> Path:
    (folder / "files").mkdir(parents=True, exist_ok=True)
    return write_settings(
        folder, sandbox=LOCAL, server={"context_roots": [str(folder / "files")]}, **more
    )


def large_file(path: Path, word: str = "needle") -> Path:
    path.write_bytes(b"line of text\n" * (LARGE // 13) + f"{word}\n".encode())
    return path


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerConnection]:
    async with connect_server(settings(tmp_path)) as connection:
        yield connection


async def test_inputs_stay_until_others_are_given_and_go_with_their_step(
    server: ServerConnection,
) -> None:
    first = await server.run("CONTEXT.text", context=[{"text": "one"}], session="s")
    assert first.value == "one"
    assert await server.evaluate("[CONTEXT.text, CONTEXT_DATA.names]", "s") == ["one", ["text"]]
    second = await server.run(
        "old = CONTEXT_DATA[1]; CONTEXT_DATA['b'].text", "s", context=[{"text": "a"}, TWO]
    )
    assert second.value == "two"
    assert await server.evaluate("len(CONTEXT_DATA)", "s") == 2
    assert (await server.run("'CONTEXT' in globals()", "s", context=[])).value is False
    assert await server.evaluate("old.text", "s") == "two"
    await server.replay("rewind", "s", step=2)
    assert await server.evaluate("CONTEXT.text", "s") == "one"
    await server.replay("fork", "s", step=3, name="forked")
    assert await server.evaluate("CONTEXT.text", "s") == "one"


TWO = {"text": "two", "name": "b"}


async def test_a_fork_has_the_inputs_of_the_step_that_it_begins_at(
    server: ServerConnection,
) -> None:
    await server.run("x = CONTEXT.text", "s", context=[{"text": "one"}])
    await server.run("y = CONTEXT.text", "s", context=[TWO])
    forked = await server.replay("fork", "s", step=1, name="branch")
    assert not forked.is_error, forked.text
    assert await server.evaluate("[x, CONTEXT.text]", "branch") == ["one", "one"]
    assert await server.evaluate("[x, y, CONTEXT.text]", "s") == ["one", "two", "two"]


async def test_files_of_the_workspace_and_of_roots_and_packed_ones_are_inputs(
    server: ServerConnection, tmp_path: Path
) -> None:
    (tmp_path / "files" / "log.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    await server.run("import os; os.mkdir('d'); open('d/f.csv', 'w').write('a,b\\n1,2\\n')", "s")
    given = [
        "d/f.csv",
        f"file://{tmp_path}/files/log.gz",
        {"source": "workspace:d/f.csv", "name": "again"},
    ]
    found = await server.run(
        "[list(CONTEXT_DATA[0].rows()), list(CONTEXT_DATA[1])]", "s", context=given
    )
    assert found.value == [[{"a": "1", "b": "2"}], ["one", "two"]]
    assert await server.evaluate("CONTEXT_DATA.names", "s") == ["f.csv", "log.gz", "again"]
    assert (
        await server.run("open('d/f.csv', 'w').write('changed'); CONTEXT_DATA[0].text", "s")
    ).value == "a,b\n1,2\n"


async def test_requests_that_make_no_sense_say_what_would(
    server: ServerConnection, tmp_path: Path
) -> None:
    (tmp_path / "files" / "out").symlink_to("/etc/passwd")
    for given, wrong in (
        (["/etc/passwd"], "context[0]: '/etc/passwd' is not in a folder"),
        ([f"{tmp_path}/files/../server.toml"], "not in a folder"),
        ([f"{tmp_path}/files/out"], "not in a folder"),
        (["none.txt"], "has no file 'none.txt'"),
        ([{"text": "x"}, 3], "context[1], 3"),
    ):
        refused = await server.run("1", context=given)
        assert refused.is_error
        assert wrong in refused.text
        assert "[invalid_request]" in refused.text
    run = await server.run("1", "s")
    told = await server.client.call_tool("run_code", {"run": run.run, "context": []})
    assert told.is_error


async def test_a_rerun_and_a_rebuild_have_the_same_inputs_and_the_same_chance(
    tmp_path: Path,
) -> None:
    path = settings(tmp_path)
    large = large_file(tmp_path / "files" / "large.txt")
    code = (
        "taken = [line.start for line in CONTEXT_DATA[0].sample(5)]; [taken, CONTEXT_DATA[1].text]"
    )
    async with connect_server(path) as server:
        first = await server.run(code, "s", context=[str(large), TWO])
        again = await server.replay("rerun", "s", run=first.run)
        assert "The same as recorded" in again.text
    async with connect_server(path) as server:
        later = await server.run(
            "[taken, CONTEXT_DATA[1].text, len(CONTEXT_DATA[0].grep('needle'))]", "s"
        )
        assert later.value == [*first.value, 1], later.text
        assert "executed again" in later.note


async def test_a_large_file_that_has_changed_is_never_taken_for_what_it_was(tmp_path: Path) -> None:
    path = settings(tmp_path)
    large = large_file(tmp_path / "files" / "large.txt")
    async with connect_server(path) as server:
        first = await server.run("count = len(CONTEXT.grep('needle'))", "s", context=[str(large)])
        assert first.value == 1
    large_file(large, "noodle")
    async with connect_server(path) as server:
        later = await server.run("'count' in globals()", "s")
        assert later.value is False
        told = (
            "Step 1 cannot be executed again. The file behind the input 'large.txt' has changed "
            "since it was passed."
        )
        assert told in later.note
        read = await server.run("CONTEXT.peek()", "s")
        assert "InputChanged" in read.text
        again = await server.replay("rerun", "s", run=first.run)
        assert "[input_changed]" in again.text
        anew = await server.run("len(CONTEXT.grep('noodle'))", "s", context=[str(large)])
        assert anew.value == 1


async def test_code_reads_its_input_to_the_end_though_the_file_shrinks_meanwhile(
    server: ServerConnection, tmp_path: Path
) -> None:
    large = large_file(tmp_path / "files" / "large.txt")
    await server.run("lines = iter(CONTEXT.lines()); next(lines)", "s", context=[str(large)])
    os.truncate(large, 5 << 20)
    assert await server.evaluate("sum(1 for _ in lines)", "s") == LARGE // 13


async def test_a_run_that_continues_after_a_server_crash_has_its_inputs(
    tmp_path: Path,
) -> None:
    path = settings(tmp_path, mcpServers={"paced": upstream_entry("paced", str(tmp_path / "gate"))})
    code = (
        "import time\nopen('begun', 'w').close()\nprint(CONTEXT.text)\ntime.sleep(3)\nCONTEXT.text"
    )
    async with connect_server(path) as server:
        begun = await server.run(code, "s", background=True, context=[TWO])
        queued = await server.run(
            "CONTEXT.text * 2", "s", background=True, context=[{"text": "queued"}]
        )
        [pid] = server.server_pids
        os.kill(pid, signal.SIGKILL)
    async with connect_server(path) as server:
        for run, value in ((begun.run, "two"), (queued.run, "queuedqueued")):
            with anyio.fail_after(60):
                answer: dict[str, Any] = {}
                while answer.get("status") != "ok":
                    told = await server.client.call_tool("run_code", {"run": run})
                    answer = told.structured_content or {}
            assert answer["value"] == value


async def test_a_piece_is_asked_about_without_its_text_leaving_the_sandbox(tmp_path: Path) -> None:
    with fake_llm.start_model_server() as model:
        given = {"model": "echo", "api_base": model.url, "api_key": fake_llm.API_KEY}
        async with connect_server(settings(tmp_path, llm=given)) as server:
            text = {"text": "first line\nsecond line ä\n"}
            asked = await server.run("ask_llm('Which?', CONTEXT.lines()[1])", "s", context=[text])
            assert "\nsecond line ä\n</data " in asked.value
            assert "second" not in str(asked.calls)
            assert "$slice" in str(asked.calls)
            batch = (
                "[slot.value for slot in CONTEXT.map(lambda piece: ask_llm('Say', piece), "
                "max_chars=11)]"
            )
            assert [("first line" in each) for each in await server.evaluate(batch, "s")] == [
                True,
                False,
                False,
            ]
            both = await server.evaluate(
                "ask_llm('Both?', [CONTEXT.slice(0, 5), CONTEXT.slice(6, 10)])", "s"
            )
            assert '["first","line"]' in both
            again = await server.replay("rerun", "s", run=asked.run)
            assert "The same as recorded" in again.text
            id_ = await server.evaluate("CONTEXT.id", "s")
            forged = f"ask_llm('Tell', {{'$slice': {{'input': {id_!r}, 'start': 0, 'end': 5}}}})"
            assert "first" in await server.evaluate(forged, "s")
            stolen = await server.run(forged, "thief")
            assert "has never had the input of this slice" in stolen.text


async def test_resources_of_servers_are_inputs_by_their_addresses(tmp_path: Path) -> None:
    async with connect_server(
        settings(tmp_path, mcpServers={"shelf": upstream_entry("shelves", "left")})
    ) as server:
        found = await server.run(
            "[each.text for each in CONTEXT_DATA]", context=["shelf:note://shared", "note://left"]
        )
        assert found.value == ["of all, told by left", "of left: ä\nno token"]
        refused = await server.run("1", context=["note://none"])
        assert "context[0], 'note://none': No server has this resource" in refused.text


async def save(server: ServerConnection, **arguments: str) -> ToolAnswer:
    return parse_answer(await server.client.call_tool("save_skill", arguments))


LOG = "INFO start\nERROR disk full\nINFO next\nERROR no route\n"
COUNT_LINES = (
    "level = 'ERROR'\n"
    "def is_wanted(line):\n    return line.startswith(level) and line in CONTEXT\n"
    "found = [line for line in CONTEXT if is_wanted(line)]\n"
    "{'found': found, 'lines': CONTEXT.line_count(), 'name': CONTEXT.name}"
)


async def test_code_that_reads_context_becomes_a_skill_with_the_input_as_a_parameter(
    server: ServerConnection,
) -> None:
    log = {"text": LOG, "name": "app.log"}
    run = await server.run(COUNT_LINES, "s", context=[log])
    saved = await save(
        server, run=run.run, name="pick_lines", description="Pick the lines of a level."
    )
    assert "pick_lines@1 is in use" in saved.text, saved.text
    assert "Pick the lines of a level." in saved.text
    shown = parse_answer(await server.client.call_tool("list_skills", {"name": "pick_lines"}))
    assert "(context, level: str = 'ERROR')" in shown.text
    assert "CONTEXT" not in shown.source.replace("pass CONTEXT", "")
    assert '"""Pick the lines of a level.' in shown.source
    used = await server.run(
        "from skills.pick_lines import run\nrun(context=CONTEXT, level='INFO')",
        "other",
        context=[{"text": "INFO one\nWARN two\n", "name": "b"}],
    )
    assert used.value == {"found": ["INFO one"], "lines": 2, "name": "b"}
    again = await save(server, run=used.run)
    assert "pick_lines@" in again.text
    assert "is in use" in again.text, again.text
    found = parse_answer(await server.client.call_tool("list_skills", {"name": "pick_lines"}))
    assert "recorded cases: 2" in found.text


async def test_a_skill_must_depend_on_its_input(server: ServerConnection) -> None:
    run = await server.run("part = CONTEXT\nlen('constant')", "s", context=[{"text": "a\nb"}])
    saved = await save(server, run=run.run, name="constant")
    assert "is in use" not in saved.text


@pytest.mark.parametrize(
    ("context", "code"),
    [
        ([{"text": "a"}, TWO], "len(CONTEXT_DATA)"),
        ([{"text": "a"}, TWO], "total = sum(len(line) for line in CONTEXT)\ntotal"),
        ([{"text": "x" * 600_000}], "len(CONTEXT.text)"),
    ],
)
async def test_inputs_that_a_case_cannot_hold_are_refused_with_the_reason(
    server: ServerConnection, context: list[Any], code: str
) -> None:
    run = await server.run(code, "s", context=context)
    assert run.status == "ok", run.text
    kept = await save(server, run=run.run, name="counts")
    assert kept.is_error
    assert "which cannot become a parameter: only CONTEXT can" in kept.text


async def test_an_input_with_credentials_is_not_saved(server: ServerConnection) -> None:
    secret = "ghp_" + "a1B2" * 9
    run = await server.run("len(CONTEXT.text)", "s", context=[{"text": f"token {secret}"}])
    kept = await save(server, run=run.run, name="leaks")
    assert kept.is_error
    assert "looks like" in kept.text


async def test_the_result_says_what_was_given_and_what_can_be_done_with_it(
    server: ServerConnection,
) -> None:
    told = await server.run("1", "s", context=[{"text": "abc", "name": "a"}, TWO])
    assert (
        "CONTEXT is 'a' (3 bytes), 'b' (3 bytes). CONTEXT_DATA[0] is one of them. It has .peek(n)"
        in told.note
    )
    assert "CONTEXT is" not in ((await server.run("2", "s")).data.get("note") or "")


async def test_a_file_that_is_only_touched_is_known_by_its_content(tmp_path: Path) -> None:
    path = settings(tmp_path)
    large = large_file(tmp_path / "files" / "large.txt")
    async with connect_server(path) as server:
        await server.run("count = len(CONTEXT.grep('needle'))", "s", context=[str(large)])
        with anyio.fail_after(60):
            while "input_hashed" not in await anyio.to_thread.run_sync(kinds, server.data_dir):
                await server.run("1", "s")
    os.utime(large)
    async with connect_server(path) as server:
        assert await server.evaluate("[count, CONTEXT.line_count()]", "s") == [1, LARGE // 13 + 1]


def kinds(folder: Path) -> set[str]:
    """Return the kinds of events that are in a journal."""
    with closing(sqlite3.connect(folder / "journal.db")) as journal:
        return {kind for (kind,) in journal.execute("SELECT DISTINCT kind FROM events")}
