"""Questions that the client's own model answers: no key, no model of ours, and the run waits."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.helpers.commands import run_command
from tests.helpers.server_connection import (
    ServerConnection,
    ToolAnswer,
    connect_server,
    parse_answer,
    write_settings,
)
from tests.server.test_resume import until

SMALL = {"backend": "local", "pool_size": 0}


def settings(folder: Path) -> Path:
    return write_settings(folder, sandbox=SMALL, llm={"broker": "caller"})


async def attach(server: ServerConnection, run: str, **more: object) -> ToolAnswer:
    return parse_answer(await server.client.call_tool("run_code", {"run": run, **more}))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerConnection]:
    async with connect_server(settings(tmp_path)) as connection:
        yield connection


async def test_the_model_of_the_client_answers_and_the_run_goes_on(
    server: ServerConnection,
) -> None:
    asked = await server.run("answer = ask_llm('Which city?', 'Text about Oslo')\nanswer.upper()")
    assert asked.status == "waiting"
    [wait] = asked.waiting_for
    assert wait["kind"] == "question"
    assert wait["call"].startswith("Which city?\n\n<data ")
    assert "Text about Oslo" in asked.text
    assert "The code asks you. Answer all with run_code(run=" in asked.text
    told = await attach(server, asked.run, answers={wait["id"]: "Oslo"})
    assert (told.status, told.value) == ("ok", "OSLO")
    assert (
        await server.evaluate("ask_llm('Which city?', 'Text about Oslo')") == "Oslo"
    )  # asked once in a session


async def test_a_batch_is_sent_at_once_and_only_wrong_answers_are_requested_again(
    server: ServerConnection,
) -> None:
    asked = await server.run(
        "[s.value for s in ask_llm_batch([f'Number {n}?' for n in range(60)], schema=int)]"
    )
    with anyio.fail_after(60):
        while len(asked.waiting_for) < 60:  # on a busy machine they do not come all at once
            asked = await attach(server, asked.run, wait_s=5)
    assert [wait["call"].split("\n")[0] for wait in asked.waiting_for] == [
        f"Number {n}?" for n in range(60)
    ]
    answers: dict[str, object] = {
        wait["id"]: {"value": number} for number, wait in enumerate(asked.waiting_for)
    }
    answers[asked.waiting_for[7]["id"]] = "seven"
    again = await attach(server, asked.run, answers=answers)
    [wait] = again.waiting_for
    assert "does not follow the schema" in wait["call"]
    told = await attach(server, asked.run, answers={"*": '{"value": 7}'})
    assert told.value == list(range(60))


async def test_code_that_asks_in_threads_waits_for_all_of_it(server: ServerConnection) -> None:
    asked = await server.run("[s.value for s in tools.map(ask_llm, ['a', 'b', 'c'])]")
    while len(asked.waiting_for) < 3:
        asked = await attach(server, asked.run, wait_s=5)
    told = await attach(
        server, asked.run, answers={wait["id"]: wait["call"] * 2 for wait in asked.waiting_for}
    )
    assert told.value == ["aa", "bb", "cc"]


async def test_questions_and_answers_outlive_the_server(tmp_path: Path) -> None:
    path = settings(tmp_path)
    async with connect_server(path) as server:
        asked = await server.run(
            "[s.value for s in ask_llm_batch(['one', 'two', 'three'])]", session="mine"
        )
        ids = {wait["call"]: wait["id"] for wait in asked.waiting_for}
        partly = await attach(server, asked.run, answers={ids["two"]: "2"}, wait_s=0.5)
        assert partly.status == "waiting"
        [pid] = server.server_pids
        os.kill(pid, signal.SIGKILL)
        with anyio.move_on_after(5):
            await until(
                lambda: (
                    not Path(f"/proc/{pid}").exists()
                    or "Z" in Path(f"/proc/{pid}/stat").read_text()
                )
            )
    async with connect_server(path) as server:
        asked = await attach(server, asked.run, wait_s=20)
        assert sorted(wait["call"] for wait in asked.waiting_for) == ["one", "three"]
        told = await attach(
            server, asked.run, answers={wait["id"]: wait["call"] for wait in asked.waiting_for}
        )
        assert told.value == ["one", "2", "three"]


async def test_a_cancelled_run_asks_nobody_any_more(server: ServerConnection) -> None:
    asked = await server.run("ask_llm('Well?')")
    told = await attach(server, asked.run, cancel=True)
    assert told.status == "cancelled"
    late = await attach(server, asked.run, answers={"q1": "yes"})
    assert late.is_error


@pytest.mark.parametrize(
    ("given", "said"),
    [(7, "7"), ({"a": [1]}, '{"a": [1]}'), (None, "null"), ("", ""), (True, "true")],
)
async def test_any_json_answer_becomes_text(
    server: ServerConnection, given: object, said: str
) -> None:
    asked = await server.run("ask_llm('Which?')")
    assert (await attach(server, asked.run, answers={"*": given})).value == said


async def test_a_request_that_is_too_long_for_the_client_is_an_error(
    server: ServerConnection,
) -> None:
    told = await server.run("ask_llm('Which?', 'x' * 100_000)")
    assert told.status == "error"
    assert "characters as JSON; the client's model accepts 18,850" in told.text
    code = (
        "[s.ok for s in ask_llm_batch('Which?', ['x' * 15_000] * 3 + ['y' * 15_000, 'z' * 90_000])]"
    )
    asked = await server.run(code)
    while asked.status == "waiting":
        asked = await attach(
            server, asked.run, answers={wait["id"]: "this" for wait in asked.waiting_for}
        )
    assert asked.value == [True] * 4 + [False]


async def test_a_question_that_nobody_answers_expires(tmp_path: Path) -> None:
    path = write_settings(
        tmp_path, sandbox=SMALL, llm={"broker": "caller"}, policy={"expires_s": 1.0}
    )
    async with connect_server(path) as server:
        asked = await server.run(
            "try:\n    ask_llm('Well?')\nexcept LlmError as error:\n    told = error.kind\ntold"
        )
        told = await attach(server, asked.run, wait_s=20)
        while told.status == "waiting":
            told = await attach(server, asked.run, wait_s=20)
        assert told.value == "llm_unavailable"


async def test_waiting_does_not_use_the_time_of_the_run(server: ServerConnection) -> None:
    asked = await server.run("import time\ntime.sleep(0.3)\nask_llm('Well?')", timeout_s=2)
    again = await attach(server, asked.run, wait_s=3)
    assert again.status == "waiting"
    assert (await attach(server, asked.run, answers={"*": "yes"})).value == "yes"


async def test_a_plan_asks_and_its_commit_is_answered_from_the_journal(
    server: ServerConnection,
) -> None:
    asked = await server.run("ask_llm('Which?')", dry_run=True)
    assert asked.status == "waiting"
    told = await attach(server, asked.run, answers={"*": "this"})
    assert (told.status, told.value) == ("ok", "this")


async def test_in_the_background_and_again_from_the_recording(server: ServerConnection) -> None:
    begun = await server.run(
        "[s.value for s in ask_llm_batch(['a', 'b', 'a'])] + [ask_llm('a')]", background=True
    )
    asked = await attach(server, begun.run, wait_s=20)
    assert [wait["call"] for wait in asked.waiting_for] == ["a", "b"]
    told = await attach(
        server, asked.run, answers={wait["id"]: wait["call"] * 2 for wait in asked.waiting_for}
    )
    assert told.value == ["aa", "bb", "aa", "aa"]
    again = await server.replay("rerun", run=told.run)
    assert "The same as recorded" in again.text
    assert await server.evaluate("llm_usage()['session']['calls']") == 2


async def test_a_person_can_answer_on_the_command_line(server: ServerConnection) -> None:
    asked = await server.run("ask_llm('Which\\x1b[2J?', schema=int)")
    listed = command(server, "approvals")
    assert "Which\\u001b[2J?" in listed
    command(server, "approvals", asked.run, "q1", '{"value": 3}')
    assert (await attach(server, asked.run, wait_s=20)).value == 3


def command(server: ServerConnection, *arguments: str) -> str:
    """Run a command on the server's data folder; return what it prints."""
    done = run_command("--config", server.data_dir.parent / "server.toml", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


# pages --------------------------------------------------------------------------------------------

MAILS = (
    "mails = [f'Mail {n}: ' + 'we would like to know more about it. ' * 55 for n in range(40)]\n"
)
CLASSIFY = (
    "from typing import Literal\n"
    "slots = ask_llm_batch('Which kind of mail is this?', mails,"
    " schema=Literal['praise', 'complaint', 'question'])\n"
    "[slot.value for slot in slots]"
)


async def ask_about_mails(server: ServerConnection) -> ToolAnswer:
    """Return the first page of the questions about all mails."""
    asked = await server.run(MAILS + CLASSIFY)
    with anyio.fail_after(60):
        while "of 40; the others follow." not in asked.note:  # on a busy machine they come in parts
            asked = await attach(server, asked.run, wait_s=0.2)
    return asked


async def test_many_questions_come_in_pages_that_a_client_can_show(
    server: ServerConnection,
) -> None:
    asked, pages = await ask_about_mails(server), 0
    known: set[str] = set()
    while asked.status == "waiting":
        pages += 1
        shown = json.dumps(asked.data, ensure_ascii=False)
        assert max(len(shown), len(asked.text)) <= 20_000
        assert shown.count("Which kind of mail is this?") == 1
        assert shown.count('\\"complaint\\"') == 1
        assert list(asked.data).index("note") < list(asked.data).index("waiting_for")
        assert asked.text.index("Answer all with run_code(run=") < asked.text.index("Mail ")
        ids = [wait["id"] for wait in asked.waiting_for]
        assert f"answers={{'{ids[0]}': 'your answer', ...}})" in asked.note
        assert known.isdisjoint(ids)
        known.update(ids)
        again = await attach(server, asked.run, wait_s=0)
        assert [wait["id"] for wait in again.waiting_for] == ids
        asked = await attach(server, asked.run, answers=dict.fromkeys(ids, "question"))
    assert (asked.value, len(known), pages) == (["question"] * 40, 40, 5)


async def test_questions_that_were_not_shown_cannot_be_answered(server: ServerConnection) -> None:
    asked = await ask_about_mails(server)
    shown = [wait["id"] for wait in asked.waiting_for]
    assert f"These are {len(shown)} of 40; the others follow." in asked.note
    refused = await attach(server, asked.run, answers={"q1": "praise", "q40": "praise"})
    assert refused.is_error
    assert "Question q40 of run" in refused.text
    assert "was not shown yet" in refused.text
    told = await attach(server, asked.run, answers={"*": "praise"})
    assert told.waiting_for[0]["id"] == f"q{len(shown) + 1}"  # the others were not answered by `*`
    while told.status == "waiting":
        told = await attach(server, told.run, answers={"*": "complaint"})
    assert told.value == ["praise"] * len(shown) + ["complaint"] * (40 - len(shown))


async def test_an_answer_before_any_question_was_shown_is_refused(server: ServerConnection) -> None:
    begun = await server.run("ask_llm('Well?')", background=True)
    for answers in ({"q1": "yes"}, {"*": "yes"}):
        assert (await attach(server, begun.run, answers=answers)).is_error
    asked = await attach(server, begun.run, wait_s=20)
    assert [wait["call"] for wait in asked.waiting_for] == ["Well?"]
    assert (await attach(server, begun.run, answers={"*": "yes"})).value == "yes"


@pytest.mark.parametrize("wrong", ["maybe", '"maybe"', {"value": "maybe"}])
@pytest.mark.parametrize("kind", ["Literal['yes', 'no']", "Literal['yes', 'no'] | None"])
async def test_a_wrong_enum_answer_gets_the_allowed_values(
    server: ServerConnection, wrong: object, kind: str
) -> None:
    asked = await server.run(
        f"from typing import Literal\nask_llm('Is it?', 'Text', schema={kind})"
    )
    again = await attach(server, asked.run, answers={"*": wrong})
    [wait] = again.waiting_for
    assert "Your answer was: " in wait["call"]
    assert '"maybe" is not one of "yes", "no"' in wait["call"]
    assert (await attach(server, asked.run, answers={"*": "no"})).value == "no"


async def test_questions_of_different_batches_keep_their_own_prompt_and_schema(
    server: ServerConnection,
) -> None:
    code = (
        "def ask(item): return ask_llm(*item[:2], schema=item[2])\n"
        "items = [('How old?', 'A', int), ('How old?', 'B', int), ('How tall?', 'B', int),"
        " ('How old?', 'C', str), ('Well?', None, None)]\n"
        "[slot.value for slot in tools.map(ask, items)]"
    )
    asked = await server.run(code)
    while len(asked.waiting_for) < 5:
        asked = await attach(server, asked.run, wait_s=5)
    calls = {wait["id"]: wait["call"] for wait in asked.waiting_for}
    by_data = {
        data: [call for call in calls.values() if f">\n{data}\n</data" in call] for data in "ABC"
    }
    old = [call for call in [*by_data["A"], *by_data["B"]] if not call.startswith("How tall?")]
    first, second = sorted(old, key=len, reverse=True)
    assert first.startswith("How old?")
    [first_id] = [name for name, call in calls.items() if call == first]
    assert second.startswith(f"As {first_id}, about this:\n<data ")
    assert by_data["C"][0].startswith("How old?")
    assert '"string"' in by_data["C"][0]
    assert "Well?" in calls.values()
