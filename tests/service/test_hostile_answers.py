"""Answers that nobody may give, that come twice or too late, and texts that mislead a person.

Two servers share a data folder. Where the server that gets an answer does not execute the run, the
answer waits in a row of the journal; an attack must not get through either way.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from ..helpers.event_streams import ApiClient, ReceivedEvent, connect_api
from ..helpers.http_service import HttpService, open_http_service
from ..helpers.server_connection import TEST_TIMEOUT_S, write_local_settings
from ..server.conftest import upstream_entry
from ..server.test_approvals import ASK
from .test_foreign_objects import NO_RUN, call

IMPORT = "from tools.counted import add\n"
MISLEADING = "x\n2. counted.count, 1 call:\r\n   {} \u202e\x1b[2J\x00\u2028allow\ud83d"
FORMS = [
    {},
    {"decision_1": None},
    {"decision_1": ["allow"]},
    {"decision_1": {"allow": True}},
    {"decision_1": "ALLOW"},
    {"decision_1": "allow "},
    {"decision_1": "Allow once"},
    {"decision_2": "allow"},
    {"decision_01": "allow", "decision": "allow", "*": "allow", "q1": "allow"},
    {"decision_1\x00": "allow", "action": "accept"},
]
WORDS = ("allow", "deny", "allow_session")
BAD_ANSWERS: list[Any] = [
    {"q1": "ALLOW"},
    {"q1": "allow\x00"},
    {"q1": ["allow"]},
    {"q1": {"result": 1}},
    {"q1": None},
    {"q1": True},
    {"q1": "allow", "q2": "allow"},
    {"q2": "allow"},
    {"q1\x00": "allow"},
    {"\ud800": "allow"},
    {"q1' OR '1'='1": "allow"},
    {"../q1": "allow"},
    {"": "allow"},
    {"q" * 100_000: "allow"},
    {},
    [],
    "allow",
]


@pytest.fixture(scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[HttpService]]:
    folder = tmp_path_factory.mktemp("answers")
    settings = write_local_settings(
        folder,
        mcpServers={"counted": upstream_entry("counted", str(folder / "done"))},
        policy=ASK,
    )
    async with open_http_service(settings) as first, open_http_service(settings) as second:
        yield [first, second]


@pytest.fixture
async def apis(servers: list[HttpService]) -> AsyncIterator[list[ApiClient]]:
    """Ann's clients of both servers; the first one executes the runs of a test."""
    token = servers[0].create_token("ann")
    with anyio.fail_after(TEST_TIMEOUT_S):
        async with connect_api(servers[0], token) as here, connect_api(servers[1], token) as there:
            yield [here, there]


async def start_asking(api: ApiClient, item: str) -> str:
    """Start a run that waits until a person allows it to add an item."""
    body = {"code": f"{IMPORT}add(item={item!r}).result", "session": f"adds {item}"}
    asked = (await api.post("/execute", body)).json()
    assert asked["status"] == "waiting", asked
    return str(asked["run"])


def count_added(server: HttpService, item: str) -> int:
    done: Path = server.settings.parent / "done"
    return done.read_text().splitlines().count(f"add {item}") if done.exists() else 0


async def end_run(api: ApiClient, run: str) -> list[ReceivedEvent]:
    """Deny what a run asks, and return its events."""
    await api.post(f"/runs/{run}/answers", {"answers": {"q1": "deny"}})
    return await api.read_events(run)


async def test_nobody_answers_or_cancels_the_run_of_another(
    servers: list[HttpService], apis: list[ApiClient]
) -> None:
    run = await start_asking(apis[0], "foreign")
    token = servers[0].create_token("bob")
    for server in servers:
        async with connect_api(server, token) as bobs:
            for path, body in (
                ("answers", {"answers": {"q1": "allow"}}),
                ("answers", {"answers": {"*": "allow"}}),
                ("cancel", {}),
            ):
                theirs = await bobs.post(f"/runs/{run}/{path}", body)
                none = await bobs.post(f"/runs/{NO_RUN}/{path}", body)
                assert (theirs.status_code, none.status_code) == (404, 404)
                assert theirs.text.replace(run, NO_RUN) == none.text
    events = await end_run(apis[0], run)
    [answered] = [event.data for event in events if event.type == "answered"]
    assert (answered["decision"], answered["answered_by"]) == ("deny", "ann, over HTTP")
    assert count_added(servers[0], "foreign") == 0


async def test_who_may_only_run_and_read_approves_nothing_in_either_server(
    servers: list[HttpService], apis: list[ApiClient]
) -> None:
    run = await start_asking(apis[0], "narrow")
    token = servers[0].create_token("ann", "--scope", "run", "--scope", "read")
    for server in servers:
        async with connect_api(server, token) as narrow:
            for answers in ({"q1": "allow"}, {"*": "allow_session"}):
                refused = await narrow.post(f"/runs/{run}/answers", {"answers": answers})
                assert refused.status_code == 403, refused.text
    await end_run(apis[1], run)
    assert count_added(servers[0], "narrow") == 0


async def test_of_many_answers_at_once_one_holds(
    servers: list[HttpService], apis: list[ApiClient]
) -> None:
    run = await start_asking(apis[0], "doubled")
    statuses: Counter[int] = Counter()

    async def answer(api: ApiClient, word: str) -> None:
        response = await api.post(f"/runs/{run}/answers", {"answers": {"q1": word}})
        statuses[response.status_code] += 1

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(
                answer, apis[number % 2], ("allow", "deny", "allow_session")[number % 3]
            )
    assert statuses.keys() <= {200, 202, 409}, statuses
    events = await apis[0].read_events(run)
    [answered] = [event.data for event in events if event.type == "answered"]
    assert count_added(servers[0], "doubled") == (answered["decision"] == "allow")
    late = [await api.post(f"/runs/{run}/answers", {"answers": {"q1": "allow"}}) for api in apis]
    assert [each.status_code for each in late] == [409, 409]
    await expect_no_rows(servers[0])


async def test_an_answer_that_comes_with_or_after_the_end_does_nothing(
    servers: list[HttpService], apis: list[ApiClient]
) -> None:
    here, there = apis
    run = await start_asking(here, "late")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(there.post, f"/runs/{run}/answers", {"answers": {"q1": "allow"}})
        tasks.start_soon(here.post, f"/runs/{run}/cancel")
    assert (await here.read_events(run))[-1].data["status"] in ("ok", "cancelled")
    made = count_added(servers[0], "late")
    for api in apis:
        late = await api.post(f"/runs/{run}/answers", {"answers": {"*": "allow"}})
        assert late.status_code == 409, late.text
        again = await api.post(f"/runs/{run}/cancel")
        assert again.status_code == 200
    body = {"code": "1 + 1", "session": "adds late"}
    assert (await here.post("/execute", body)).json()["value"] == 2
    assert count_added(servers[0], "late") == made <= 1
    await expect_no_rows(servers[0])


@pytest.mark.parametrize("which", [0, 1], ids=["here", "there"])
async def test_what_is_no_answer_is_refused_and_the_run_waits_on(
    servers: list[HttpService], apis: list[ApiClient], which: int
) -> None:
    item = f"bad {which}"
    run = await start_asking(apis[0], item)
    for answers in BAD_ANSWERS:
        text = json.dumps({"answers": answers})
        refused = await apis[which].http.post(
            f"{apis[which].base}/runs/{run}/answers",
            content=text,
            headers={"Content-Type": "application/json"},
        )
        assert refused.status_code in (400, 409), (text[:80], refused.text)
        assert len(refused.content) < 4_000
    shown = (await apis[0].get(f"/runs/{run}")).json()
    assert [each["id"] for each in shown["waiting_for"]] == ["q1"]
    await end_run(apis[which], run)
    assert count_added(servers[0], item) == 0


async def expect_no_rows(server: HttpService) -> None:
    """Wait until no answer waits in the journal."""
    address = f"file:{server.data_dir / 'journal.db'}?mode=ro"
    query = "SELECT count(*) FROM questions WHERE answer_json IS NOT NULL"
    with closing(sqlite3.connect(address, uri=True)) as rows:
        while rows.execute(query).fetchone() != (0,):  # noqa: ASYNC110 - of other processes
            await anyio.sleep(0.05)


# forms --------------------------------------------------------------------------------------------


async def test_no_text_of_code_looks_like_the_words_of_a_form(
    servers: list[HttpService],
) -> None:
    token = servers[0].create_token("ann")
    code = f"{IMPORT}add(item={MISLEADING!a})"
    asked = await call(servers[0], token, {"code": code, "wait_s": 5})
    [form] = asked["inputRequests"].values()
    lines = form["params"]["message"].split("\n")
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert [line for line in lines if line.startswith(("1.", "2."))] == ["1. counted.add, 1 call:"]
    assert list(form["params"]["requestedSchema"]["properties"]) == ["decision_1"]


async def test_a_form_that_decides_nothing_allows_nothing(servers: list[HttpService]) -> None:
    token = servers[0].create_token("ann")
    arguments = {"code": f"{IMPORT}add(item='undecided')", "wait_s": 5}
    for content in FORMS:
        asked = await call(servers[0], token, arguments)
        assert asked["resultType"] == "input_required", asked
        responses = {"approval": {"action": "accept", "content": content}}
        more = {"requestState": asked["requestState"], "inputResponses": responses}
        answer = await call(servers[0], token, {**arguments, "wait_s": 0.1}, **more)
        assert "undecided" not in str(answer.get("structuredContent", {}).get("value"))
        assert count_added(servers[0], "undecided") == 0, content
